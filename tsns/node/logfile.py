"""A node's log on disk: two files of bounded size (ring 1).

The keeper writes it; the engine, which has no right to do so, writes to a pipe whose other end the keeper reads.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Final

MAX_FILE_BYTES: Final = 5 << 20
FILE_MODE: Final = 0o600
MAX_READ_BYTES: Final = 64 << 10
MAX_READS: Final = 16  # at once: the engine could write without end


class LogFile:
    """`path`, and when that is full `path.1`. A disk that is full costs lines, not the node."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1
        self._size = 0
        self._open()

    def _open(self) -> None:
        with contextlib.suppress(OSError):
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
            self._fd = os.open(self.path, flags, FILE_MODE)
            self._size = os.fstat(self._fd).st_size

    def write(self, data: bytes) -> None:
        """Append these bytes."""
        if self._size + len(data) > MAX_FILE_BYTES:
            self.close()
            with contextlib.suppress(OSError):
                os.replace(self.path, self.path.with_name(f"{self.path.name}.1"))
            self._open()
        with contextlib.suppress(OSError):
            self._size += os.write(self._fd, data)

    def close(self) -> None:
        """Let go of the file."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class LogPipe:
    """The way of all lines into a log: whoever writes needs a descriptor only."""

    def __init__(self, log: LogFile) -> None:
        self._log = log
        # A full pipe costs lines: it must not stop the one who is to empty it.
        self.reading_fd, self.writing_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def drain(self) -> None:
        """Write down what has come, or the first part of it."""
        with contextlib.suppress(BlockingIOError):
            for _ in range(MAX_READS):
                self._log.write(os.read(self.reading_fd, MAX_READ_BYTES))
