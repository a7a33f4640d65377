"""What a keeper has done in the namespaces of others, written down so that it can be undone when the keeper was killed (ring 1).

One file for a node, RUN/NAME.attached, written anew at each change. A record names the namespace by the process that it was entered by and
that process's start time, or by its path; numbers of processes and namespaces are used again, so all of it has to be as it was.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final, NamedTuple

from tsns.netns import attachment, mounts, namespace

MAX_FILE_BYTES: Final = 256 << 10
FILE_MODE: Final = 0o600
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_START_TIME: Final = 19  # the field of /proc/PID/stat, counted from behind the command's name (proc(5): 22)


class Record(NamedTuple):
    """One attachment, as it may have to be undone."""

    key: str
    kind: str  # "docker", "podman", "pid" or "netns"
    id: str
    name: str
    pid: int  # 0: it was entered by its path, which is `id`
    started: int  # in the kernel's ticks
    device: int  # of the namespace
    inode: int
    before: dict[str, Any]  # see `tsns.netns.attachment`
    resolv: str  # our file that is mounted over its resolv.conf; empty where none is


def load(path: Path) -> list[Record]:
    """The records of this boot; none where there is no file that makes sense."""
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read(MAX_FILE_BYTES))
        if content["boot"] != _boot():
            return []
        return [Record(**each) for each in content["attachments"]]
    except (OSError, ValueError, TypeError, KeyError):
        return []


def save(path: Path, records: Iterable[Record]) -> None:
    """Keep these, and no others. OSError with the reason."""
    kept = [record._asdict() for record in records]
    if not kept:
        path.unlink(missing_ok=True)
        return
    fresh = path.with_name(f"{path.name}.new")
    fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, FILE_MODE)
    with open(fd, "w") as file:
        json.dump({"boot": _boot(), "attachments": kept}, file)
    fresh.replace(path)


def started(pid: int) -> int:
    """When a process began, in the kernel's ticks; OSError where there is none of this number."""
    stat = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    return int(stat.rpartition(")")[2].split()[_START_TIME])


def find(record: Record) -> tuple[int, int] | None:
    """Descriptors of its network and its mount namespace (-1 where no process is known); None where the namespace is gone."""
    opened = []
    try:
        if not record.pid:
            opened.append(os.open(record.id, os.O_RDONLY | os.O_CLOEXEC))
        elif started(record.pid) == record.started:
            opened += [os.open(f"/proc/{record.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("net", "mnt")]
        if opened and namespace.identity(opened[0]) == (record.device, record.inode):
            return opened[0], opened[1] if record.pid else -1
    except (OSError, ValueError, IndexError):
        pass  # it has ended
    for fd in opened:
        os.close(fd)
    return None


def lives(record: Record) -> bool:
    """Whether its namespace is still there."""
    found = find(record)
    for fd in found or ():
        if fd >= 0:
            os.close(fd)
    return found is not None


def undo(record: Record) -> bool:
    """Give its namespace back what was there; False where that is gone. OSError with the reason."""
    found = find(record)
    if found is None:
        return False
    network, mount = found
    try:
        attachment.remove(network, record.before, abandoned=True)
        if record.resolv and mount >= 0:
            mounts.eject(mounts.RESOLV_PATH, record.resolv, mount)
    finally:
        for fd in found:
            if fd >= 0:
                os.close(fd)
    with contextlib.suppress(OSError):
        os.unlink(record.resolv)
    return True


def _boot() -> str:
    return _BOOT_ID.read_text().strip()
