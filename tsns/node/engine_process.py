"""The engine as the keeper sees it: a child process and a channel to it (ring 1)."""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from tsns.bucket import Allowance
from tsns.node import messages
from tsns.node.messages import Message
from tsns.node.watch import Watch

STOP_PATIENCE_S: Final = 4.0  # for its logout and its goodbyes
WORK_SHARE: Final = 0.5  # of the keeper's time that an engine may take with what it asks for, in the long run
WORK_AT_ONCE_S: Final = 2.0

log = logging.getLogger(__name__)

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class EngineProcess:
    """Starts, hears and ends one child. `on_message` gets its words and descriptors, `on_end` the wait status when it ended unbidden."""

    def __init__(
        self,
        watch: Watch,
        on_message: Callable[[Message, Sequence[int]], None],
        on_end: Callable[[int, float], None],
    ) -> None:
        self._watch = watch
        self._on_message = on_message
        self._on_end = on_end
        self._channel: socket.socket | None = None
        self._pidfd = -1
        self._since = 0.0
        self._allowance = Allowance(WORK_SHARE, WORK_AT_ONCE_S, time.monotonic())
        self.pid = 0  # 0: there is none

    def start(self, body: Callable[[socket.socket, int], NoReturn]) -> None:
        """Fork a child that is `body(channel, our pid)` for the rest of its life."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * messages.MAX_ENGINE_MESSAGE_BYTES)
        parent = os.getpid()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # our handlers must not run in the child
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # its end comes by the channel
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            body(theirs, parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        ours.setblocking(False)
        self.pid, self._channel, self._pidfd, self._since = pid, ours, os.pidfd_open(pid), time.monotonic()
        self._hear()
        self._watch.reader(self._pidfd, self._ended)

    def tell(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send to it; a child that just died says so by its end, and one that does not read is ended."""
        if self._channel is None:
            return
        try:
            messages.send(self._channel, message, fds, messages.MAX_ENGINE_MESSAGE_BYTES)
        except BlockingIOError:
            log.warning("the engine does not read")
            self._give_up(self._channel.fileno())
        except OSError:
            pass

    def stop(self, *, logout: bool) -> None:
        """Let it say goodbye, then see that it is gone."""
        if not self.pid:
            return
        self.tell({"stop": True, "logout": logout})
        self._hear()
        deadline = time.monotonic() + STOP_PATIENCE_S
        while (patience_s := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select(self._awaited(), [], [], patience_s)
            if self._pidfd in readable:
                break
            if readable:
                self._read()  # it may want something kept before it goes
        else:
            os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def _awaited(self) -> list[int]:
        channel = self._channel.fileno() if self._channel is not None else -1
        return [self._pidfd, channel] if self._watch.watches(channel) else [self._pidfd]

    def _hear(self) -> None:
        """Hear it, from now on or again."""
        self._watch.cancel("hear the engine")
        if self._channel is not None and not self._watch.watches(self._channel.fileno()):
            self._watch.reader(self._channel.fileno(), self._read)

    def _read(self) -> None:
        assert self._channel is not None  # watched
        channel, began = self._channel.fileno(), time.monotonic()
        try:
            message, fds = messages.receive(self._channel, messages.MAX_ENGINE_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except (EOFError, OSError, ValueError):
            self._give_up(channel)  # it hung up, or talks nonsense
            return
        try:
            self._on_message(message, fds)
        except Exception:  # nothing that it says may end the keeper
            log.exception("the engine asked for something that went wrong")
            self._give_up(channel)
        finally:
            for fd in fds:
                os.close(fd)
        now = time.monotonic()
        pause_s = self._allowance.spend(now - began, now)
        if pause_s > 0.0 and self._watch.watches(channel):
            self._watch.forget(channel)  # it waits until others have had their turn
            self._watch.at("hear the engine", now + pause_s, self._hear)

    def _give_up(self, channel: int) -> None:
        self._watch.forget(channel)
        os.kill(self.pid, signal.SIGKILL)

    def _ended(self) -> None:
        lived_s = time.monotonic() - self._since
        self._on_end(self._reap(), lived_s)

    def _reap(self) -> int:
        self._watch.forget(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        self._watch.cancel("hear the engine")
        if self._channel is not None:
            self._watch.forget(self._channel.fileno())
            self._channel.close()
            self._channel = None
        return status
