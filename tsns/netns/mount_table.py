"""What is mounted where, as the kernel tells it (ring 1, standard library only).

Source: proc(5), /proc/PID/mountinfo.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from typing import Final, NamedTuple

MAX_BYTES: Final = 16 << 20  # of a table: some hundred thousand mounts
_DELETED: Final = "//deleted"
_ESCAPE: Final = re.compile(r"\\([0-7]{3})")  # of space, tab, newline and backslash


class Origin(NamedTuple):
    """What is mounted: the device, as the table has it, and the path on it."""

    device: str
    path: str


class Mount(NamedTuple):
    """One line: its number, what is mounted, and where; of those at one place the last is the one that is seen."""

    number: int
    origin: Origin
    point: str


def read(process: int) -> Iterator[Mount]:
    """The mounts of the namespace that a process is in, by a descriptor of its directory in /proc. OSError with the reason."""
    fd = os.open("mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=process)
    with open(fd, encoding="utf-8", errors="surrogateescape") as table:
        return parse(table.read(MAX_BYTES))


def parse(table: str) -> Iterator[Mount]:
    """The mounts in the text of such a table; a file that has been deleted goes by the name that it had."""
    for line in table.split("\n"):
        fields = line.split(" ")
        if len(fields) > 5 and fields[0].isdecimal():
            root = _unescaped(fields[3]).removesuffix(_DELETED)
            yield Mount(int(fields[0]), Origin(fields[2], root), _unescaped(fields[4]))


def origin(file: str) -> Origin:
    """What a mount of this file would show; it need not exist, but its directory. OSError with the reason."""
    directory, name = os.path.split(os.path.realpath(file))
    fd = os.open(directory, os.O_PATH | os.O_CLOEXEC)
    try:
        with open(f"/proc/self/fdinfo/{fd}") as info:
            number = next(int(line.split()[1]) for line in info if line.startswith("mnt_id:"))
    finally:
        os.close(fd)
    process = os.open("/proc/self", os.O_PATH | os.O_CLOEXEC)
    try:
        mount = next(each for each in read(process) if each.number == number)
    except StopIteration:
        raise OSError(f"{directory} is on no mount that can be seen") from None
    finally:
        os.close(process)
    below = os.path.relpath(os.path.join(directory, name), mount.point)
    return Origin(mount.origin.device, os.path.normpath(os.path.join(mount.origin.path, below)))


def _unescaped(text: str) -> str:
    return _ESCAPE.sub(lambda found: chr(int(found[1], 8)), text)
