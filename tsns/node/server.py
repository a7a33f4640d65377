"""The warmed server: has imported everything, and forks a keeper for each client that asks (ring 1).

It reads nothing from anybody and holds no secret: the forked child reads the request. It runs no event loop and has one thread, without
which a fork would not be safe. The first client that needs it makes the listening socket and hands it over as descriptor 3, so whoever
connects meanwhile waits in the backlog. Nodes live on when the server ends.
"""

from __future__ import annotations

import gc

gc.disable()  # until `warm.settle`: looking for garbage takes a fifth of the time of all these imports

import contextlib  # noqa: E402
import logging  # noqa: E402
import os  # noqa: E402
import resource  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Final  # noqa: E402

from tsns.netns import netlink  # noqa: E402
from tsns.node import keeper, leftovers, messages, warm  # noqa: E402
from tsns.node.places import Places  # noqa: E402
from tsns.node.watch import Watch  # noqa: E402

IDLE_S: Final = 600.0
SWEEP_S: Final = 1.0
LISTENER_FD: Final = 3
UMASK: Final = 0o077  # of everything that nodes write
BACKLOG: Final = 128

log = logging.getLogger(__name__)


class Server:
    """Accepts, forks, reaps, sweeps; `serve` returns after `idle_s` (None: never) without a client, or when told to end."""

    def __init__(self, listener: socket.socket, where: Places, idle_s: float | None) -> None:
        self._listener = listener
        self._where = where
        self._idle_s = idle_s
        self._watch = Watch()
        self._ending = False

    def serve(self) -> None:
        """Until the end."""
        self._listener.setblocking(False)
        self._watch.signals((signal.SIGTERM, signal.SIGINT), self._end)
        self._watch.reader(self._listener.fileno(), self._on_client)
        self._sweep()
        self._rest()
        while not self._ending:
            self._watch.turn()
        self._watch.close()

    def _end(self) -> None:
        self._ending = True

    def _rest(self) -> None:
        if self._idle_s is not None:
            self._watch.at("idle", time.monotonic() + self._idle_s, self._end)

    def _on_client(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        with connection:
            if messages.peer_uid(connection) != os.geteuid():
                return
            if len(os.listdir("/proc/self/task")) > 1:
                log.error(
                    "this process has a second thread: it does not fork"
                )  # the client then starts a keeper itself
                return
            self._fork(connection)
        self._rest()

    def _fork(self, connection: socket.socket) -> None:
        handled = (signal.SIGTERM, signal.SIGINT)
        ourselves = os.getpid()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, handled)  # our handlers are not the keeper's
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in handled:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            keeper.run(connection, ourselves)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        pidfd = os.pidfd_open(pid)
        self._watch.reader(pidfd, lambda: self._on_keeper_end(pid, pidfd))

    def _on_keeper_end(self, pid: int, pidfd: int) -> None:
        self._watch.forget(pidfd)
        os.close(pidfd)
        _, status = os.waitpid(pid, 0)
        if status:
            log.warning("keeper %d ended with %d", pid, os.waitstatus_to_exitcode(status))
            self._watch.at("sweep", time.monotonic() + SWEEP_S, self._sweep)  # its engine is just ending, too

    def _sweep(self) -> None:
        if leftovers.sweep(self._where):
            self._watch.at("sweep", time.monotonic() + SWEEP_S, self._sweep)


def prepare() -> None:
    """Import and limit what all keepers inherit; there are no core files of them, since those would hold keys."""
    logging.basicConfig(format="%(asctime)s %(levelname).1s %(name)s: %(message)s", level=logging.INFO)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    netlink.load()
    warm.load()
    warm.settle()
    os.umask(UMASK)


def serve(listener: socket.socket, where: Places, path: Path, idle_s: float | None) -> None:
    """Serve on a listening socket whose name is `path`, which goes at the end."""
    began = time.monotonic()
    prepare()
    log.info("server %d is warm after %.0f ms", os.getpid(), 1000 * (time.monotonic() - began))
    name = os.stat(path)
    try:
        Server(listener, where, idle_s).serve()
    finally:
        with contextlib.suppress(FileNotFoundError):
            if os.stat(path).st_ino == name.st_ino:  # else it is another server's by now
                path.unlink()
        log.info("server %d ends", os.getpid())


def main() -> None:
    """Started by a client with `RUN STATE SOCKET`: serve the listening socket at descriptor 3.

    Or with nothing: be the keeper of the client at the other end of descriptor 3, where no server can be had.
    """
    inherited = socket.socket(fileno=LISTENER_FD)
    if len(sys.argv) == 1:
        warm.settle()
        os.umask(UMASK)
        keeper.run(inherited)
    run, state, path = map(Path, sys.argv[1:])
    serve(inherited, Places(run, state), path, IDLE_S)


if __name__ == "__main__":
    main()
