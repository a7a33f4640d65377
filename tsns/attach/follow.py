"""The process that follows attachments: there is one while there is something to follow (ring 2, standard library only until it begins).

RUN/follow      locked for life by the one that follows, with its number inside
RUN/follow.log  what it has done

    ensure --starts--> guard --forks--> follower: when one of the two is killed, the other one makes it anew
    SIGTERM to the guard ends both; so does the end of the last wish
    `tsns watch` takes the place of both, and gives it back
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import select
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

from tsns.attach import wishes
from tsns.error import UserError
from tsns.node import detached
from tsns.node.detached import INHERITED_FD
from tsns.node.places import Places, make_run_directory

if TYPE_CHECKING:
    from tsns.attach.follower import Follower

LOCK_NAME: Final = "follow"  # no node's: theirs have endings
LOG_NAME: Final = "follow.log"
LOCK_MODE: Final = 0o600
UMASK: Final = 0o077
MODULE: Final = "tsns.attach.follow"
FIRST_PAUSE_S: Final = 0.1  # before a follower that was killed begins anew, and twice as long each time
MAX_PAUSE_S: Final = 30.0
WELL_S: Final = 60.0  # one that has lived so long begins anew at once
END_PATIENCE_S: Final = 5.0
RETRY_S: Final = 0.02
MAX_ROLE_BYTES: Final = 64
FOLLOWS: Final = "follows"
WATCHES: Final = "watches"
# What decides where engines are, and how a node reaches control. Never a key.
KEPT_VARIABLES: Final = (
    "DOCKER_HOST",
    "HOME",
    "SUDO_UID",
    "SSL_CERT_FILE",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
)
PROXY_VARIABLES: Final = ("https_proxy", "http_proxy", "no_proxy")

log = logging.getLogger(__name__)


def ensure(where: Places, environ: Mapping[str, str]) -> None:
    """See to it that somebody follows, if there is something to follow. Where somebody does, this costs a look. UserError."""
    if not wishes.files(where):
        return
    lock = hold(where)
    if lock is None:
        return
    try:
        arguments = [str(where.run), str(where.state)]
        detached.spawn(MODULE, arguments, lock, where.run / LOG_NAME, kept_variables(environ))
    finally:
        os.close(lock)  # the one that was started has it, too


def hold(where: Places) -> int | None:
    """The right to follow, as a descriptor: a lock that all its copies hold, in other processes as well. None where another has it."""
    make_run_directory(where.run)
    fd = os.open(where.run / LOCK_NAME, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, LOCK_MODE)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    os.ftruncate(fd, 0)  # the number of the one before may be anybody's by now
    return fd


def take_over(where: Places) -> int:
    """The right to follow, which a follower gives up. UserError where it does not, or `tsns watch` runs."""
    until = time.monotonic() + END_PATIENCE_S
    while (lock := hold(where)) is None:
        pid, role = holder(where)
        if role == WATCHES:
            raise UserError("`tsns watch` runs already", f"end it first: it is process {pid}")
        if pid:
            _end(pid)
        if time.monotonic() > until:
            raise UserError("the process that follows attachments does not end", f"end it by hand: it is process {pid}")
        time.sleep(RETRY_S)
    return lock


def holder(where: Places) -> tuple[int, str]:
    """Who follows, as a number, and in what role; 0 and nothing for nobody, or somebody who has just begun."""
    try:
        with open(where.run / LOCK_NAME, "rb") as file:
            number, _, role = file.read(MAX_ROLE_BYTES).decode().strip().partition(" ")
            return int(number), role
    except (OSError, ValueError):
        return 0, ""


def say_role(lock: int, role: str) -> None:
    """Write down who holds the lock."""
    os.pwrite(lock, f"{os.getpid()} {role}\n".ljust(MAX_ROLE_BYTES).encode(), 0)


def _end(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        process = os.pidfd_open(pid)
        try:
            signal.pidfd_send_signal(process, signal.SIGTERM)
            select.select([process], [], [], END_PATIENCE_S)
        finally:
            os.close(process)


def kept_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """Of an environment, what a follower needs. A proxy that wants a password is left out."""
    kept = {name: environ[name] for name in KEPT_VARIABLES if name in environ}
    return kept | {
        name: value for name, value in environ.items() if name.lower() in PROXY_VARIABLES and "@" not in value
    }


def main() -> None:
    """Started by `ensure` with `RUN STATE`: guard a follower, and hold the lock at descriptor 3."""
    where = Places(Path(sys.argv[1]), Path(sys.argv[2]))
    os.set_inheritable(INHERITED_FD, False)
    os.umask(UMASK)
    logging.basicConfig(format="%(asctime)s %(levelname).1s %(name)s: %(message)s", level=logging.INFO)
    say_role(INHERITED_FD, FOLLOWS)
    _guard(where)
    os.close(INHERITED_FD)
    ensure(where, os.environ)  # somebody may have wished for something just now, and seen us at work


class _EndError(BaseException):
    """SIGTERM."""


def _on_signal(*_: object) -> NoReturn:
    raise _EndError


def _guard(where: Places) -> None:
    """Have a follower until it has nothing to do, or we are told to end."""
    signal.signal(signal.SIGTERM, _on_signal)
    pause_s, pid = FIRST_PAUSE_S, 0
    try:
        while True:
            began = time.monotonic()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
            pid = os.fork()
            if pid == 0:
                _follow(where, os.getppid())
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            _, status = os.waitpid(pid, 0)
            pid = 0
            if not status:
                return
            if os.waitstatus_to_exitcode(status) == -signal.SIGTERM:
                sys.exit(0)
            pause_s = FIRST_PAUSE_S if time.monotonic() > began + WELL_S else min(2 * pause_s, MAX_PAUSE_S)
            log.warning("the follower ended with %d", os.waitstatus_to_exitcode(status))
            time.sleep(pause_s)
    except _EndError:
        if pid:
            os.kill(pid, signal.SIGKILL)  # what it has begun is found again
            os.waitpid(pid, 0)
        sys.exit(0)


def _follow(where: Places, guard: int) -> NoReturn:
    status = 1
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        from tsns.attach.follower import Follower

        follower = Follower(where, os.environ, after_look=_bound_log)
        process = os.pidfd_open(guard)
        if os.getppid() != guard:
            _become_guard(follower)
        follower.reader(process, lambda: _become_guard(follower))
        log.info("process %d follows", os.getpid())
        follower.run()
        follower.close()
        status = 0
    except Exception:
        log.exception("the follower has failed")
    finally:
        os._exit(status)


def _become_guard(follower: Follower) -> None:
    """Ours was killed."""
    log.warning("the guard has ended")
    follower.close()
    os.set_inheritable(INHERITED_FD, True)
    detached.execute(MODULE, sys.argv[1:], os.environ)


def _bound_log() -> None:
    if os.fstat(sys.stderr.fileno()).st_size > detached.MAX_LOG_BYTES:
        os.ftruncate(sys.stderr.fileno(), 0)


def watch(where: Places, environ: Mapping[str, str]) -> None:
    """Follow in the foreground, labels included, until SIGINT or SIGTERM; what is wished for then is followed on. UserError."""
    from tsns.attach.follower import Follower

    lock = take_over(where)
    say_role(lock, WATCHES)
    before = signal.signal(signal.SIGTERM, _on_signal)
    try:
        with contextlib.suppress(_EndError, KeyboardInterrupt):
            follower = Follower(where, environ, labels_on=True)
            try:
                follower.run()
            finally:
                follower.close()
    finally:
        signal.signal(signal.SIGTERM, before)
        os.close(lock)
    ensure(where, environ)


if __name__ == "__main__":
    main()
