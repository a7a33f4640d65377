"""Work that may take long or hang, in a child whose words come by a pipe (ring 2, standard library only).

The caller has one thread only. A child ends with its parent, whatever that one dies of, and holds none of its locks.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import Final

from tsns.netns import linux

READ_BYTES: Final = 64 << 10
MAX_UNREAD_BYTES: Final = 1 << 20  # of a line
_HANDLED: Final = (signal.SIGTERM, signal.SIGINT)


class Child:
    """One at work, until `close`. `fd` can be read when it has something to say, or has ended."""

    def __init__(self, work: Callable[[int], None]) -> None:
        """Begin: `work(fd)` writes to the pipe, in lines."""
        self.fd, writing = os.pipe2(os.O_CLOEXEC)
        self._rest = b""
        parent = os.getpid()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _HANDLED)  # our handlers are not the child's
        self.pid = os.fork()
        if self.pid == 0:
            status = 1
            try:
                signal.set_wakeup_fd(-1)
                for number in _HANDLED:
                    signal.signal(number, signal.SIG_DFL)
                signal.pthread_sigmask(signal.SIG_SETMASK, set())
                linux.die_with(parent)
                linux.close_all_but(writing)
                work(writing)
                status = 0
            finally:
                os._exit(status)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        os.close(writing)

    def lines(self) -> list[bytes] | None:
        """What it has said since; None when it has ended, or says what is no line."""
        data = os.read(self.fd, READ_BYTES)
        *whole, self._rest = (self._rest + data).split(b"\n")
        ended = not data or len(self._rest) > MAX_UNREAD_BYTES
        return None if ended and not whole else whole

    def close(self) -> None:
        """It ends, if it has not already."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.fd)


def say(fd: int, line: bytes) -> None:
    """From within a child: one line."""
    data = line + b"\n"
    while data:
        data = data[os.write(fd, data) :]
