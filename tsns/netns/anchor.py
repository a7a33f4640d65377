"""How a node's namespace is found again when its keeper was killed while a command still runs in it (ring 1).

Root's is mounted on a file, which also gives it a name for others. Nobody else can mount for all to see, so for them the file holds a
record: the namespace is looked for among the processes of the same user, and known by its cookie, which the kernel gives to one namespace
only. Where it gives none (before Linux 5.14), or nobody is inside any more, there is nothing to be found: the next keeper makes a new
namespace, and what is in the old one has loopback and nothing else.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
from pathlib import Path
from typing import Final, NamedTuple

from tsns.netns import linux, namespace
from tsns.netns.child import in_network
from tsns.netns.namespace import Made

MAX_RECORD_BYTES: Final = 4096
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_SO_NETNS_COOKIE: Final = 71
_COOKIE_BYTES: Final = 8
_FILE_MODE: Final = 0o600
_DIRECTORY_MODE: Final = 0o755


class _Record(NamedTuple):
    boot: str
    device: int
    inode: int
    cookie: int


def make(path: Path, *, map_root: bool = False) -> Made:
    """Make a namespace with its TUN that will be found at `path`; one that is found there already gets a new TUN.

    `map_root`: whether an ordinary user is root in a new one. OSError with the reason.
    """
    left = _find(path)
    if left is not None:
        try:
            return namespace.make(adopted=left)
        finally:
            os.close(left)
    made = namespace.make(map_root=map_root)
    path.parent.mkdir(mode=_DIRECTORY_MODE, parents=True, exist_ok=True)
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, _FILE_MODE)
    with open(fd, "w") as file:
        if os.geteuid() == 0:
            linux.mount(f"/proc/self/fd/{made.namespace}", str(path), linux.MS_BIND)
        elif (cookie := _cookie(made.dns[0])) is not None:
            file.write(json.dumps(_Record(_boot(), *namespace.identity(made.namespace), cookie)))
    return made


def forget(path: Path) -> None:
    """Nothing is to be found there any more; with the last process and descriptor inside, the namespace goes."""
    with contextlib.suppress(OSError):  # nothing is mounted there
        linux.unmount(str(path))
    path.unlink(missing_ok=True)


def is_inhabited(path: Path) -> bool:
    """Whether somebody is in the namespace that would be found there."""
    if _is_mounted(path):
        return bool(namespace.inside(namespace.identity(path)))
    record = _read(path)
    return record is not None and bool(namespace.inside((record.device, record.inode)))


def _find(path: Path) -> int | None:
    """A descriptor of the namespace; None where there is none."""
    if _is_mounted(path):
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    record = _read(path)
    if record is None:
        return None
    for pid in namespace.inside((record.device, record.inode)):
        with contextlib.suppress(OSError):  # it has ended, say
            found = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
            if _is_it(found, record):
                return found
            os.close(found)
    return None


def _is_it(found: int, record: _Record) -> bool:
    """Inodes are used again, cookies are not."""
    [sock] = in_network(found, lambda: [socket.socket(socket.AF_INET, socket.SOCK_DGRAM).detach()])
    try:
        return _cookie(sock) == record.cookie
    finally:
        os.close(sock)


def _cookie(sock: int) -> int | None:
    """The cookie of the network namespace that a socket belongs to; None where this kernel has none."""
    with socket.socket(fileno=os.dup(sock)) as copy, contextlib.suppress(OSError):
        return int.from_bytes(copy.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, _COOKIE_BYTES), "little")
    return None


def _boot() -> str:
    return _BOOT_ID.read_text().strip()


def _read(path: Path) -> _Record | None:
    """The record of this boot; None where there is none that makes sense."""
    try:
        with open(path, "rb") as file:
            boot, *numbers = json.loads(file.read(MAX_RECORD_BYTES))
        record = _Record(boot, *numbers)
    except (OSError, ValueError, TypeError):
        return None
    return record if record.boot == _boot() and all(type(number) is int for number in record[1:]) else None


class _StatFs(ctypes.Structure):
    _fields_ = (("f_type", ctypes.c_long), ("rest", ctypes.c_byte * 256))


def _is_mounted(path: Path) -> bool:
    """Whether a namespace is mounted there (and not just a file left over)."""
    result = _StatFs()
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.statfs(os.fsencode(path), ctypes.byref(result)) == 0 and result.f_type == linux.NSFS_MAGIC)
