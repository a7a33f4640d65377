"""Tells when something in a directory changes: inotify(7), by ctypes (ring 1, standard library only)."""

from __future__ import annotations

import ctypes
import os
import struct
from typing import Final

READ_BYTES: Final = 16 << 10

_IN_CLOSE_WRITE: Final = 0x008
_IN_MOVED_TO: Final = 0x080
_IN_CREATE: Final = 0x100
_IN_DELETE: Final = 0x200
_IN_ONLYDIR: Final = 0x0100_0000
_CHANGES: Final = _IN_CLOSE_WRITE | _IN_MOVED_TO | _IN_CREATE | _IN_DELETE | _IN_ONLYDIR
_EVENT: Final = struct.Struct("iIII")  # watch, mask, cookie, length of the name that follows

_libc = ctypes.CDLL(None, use_errno=True)


class Inotify:
    """Watches directories. OSError where the system gives no more of them: their number is bounded for each user."""

    def __init__(self) -> None:
        self.fd = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def add(self, directory: str) -> None:
        """Watch this directory too; OSError where there is none. A second time changes nothing."""
        _checked(_libc.inotify_add_watch(self.fd, os.fsencode(directory), _CHANGES))

    def read(self) -> set[str]:
        """The names in all watched directories with which something happened."""
        names: set[str] = set()
        while True:
            try:
                data = os.read(self.fd, READ_BYTES)
            except BlockingIOError:
                return names
            place = 0
            while place + _EVENT.size <= len(data):
                *_, length = _EVENT.unpack_from(data, place)
                place += _EVENT.size
                names.add(os.fsdecode(data[place : place + length].rstrip(b"\0")))
                place += length

    def close(self) -> None:
        """Watch nothing."""
        os.close(self.fd)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"inotify: {os.strerror(code)}")
    return result
