"""Which files an engine may read, by Landlock (ring 1).

An engine of an ordinary user has that user's uid, and so all their files; this leaves it what names are looked up with, certificates,
time zones, and the program itself. Kernels without Landlock (before 5.13, or built or booted without it) restrict nothing here.

Source: landlock(7), linux/landlock.h; the system calls have the same numbers on all machines.
"""

from __future__ import annotations

import ctypes
import os
import ssl
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_CREATE_RULESET: Final = 444
_ADD_RULE: Final = 445
_RESTRICT_SELF: Final = 446
_ASK_VERSION: Final = 1
_PATH_BENEATH: Final = 1
_READ_FILE: Final = 1 << 2
_READ_DIR: Final = 1 << 3
_FILE_RIGHTS: Final = {1: 13, 2: 14, 3: 15, 4: 15}  # bits, by version of the interface; 16 from the fifth on
_LATEST_FILE_RIGHTS: Final = 16
_SYSTEM: Final = ("/etc", "/usr", "/lib", "/lib64", "/proc/self", "/proc/sys", "/proc/stat", "/sys/devices/system/cpu")
# Where /etc/resolv.conf may lead to, now or when the host's network is another one.
_RESOLVERS: Final = ("/run/systemd/resolve", "/run/NetworkManager", "/run/resolvconf", "/run/connman")
_LOOKED_UP_WITH: Final = ("/etc/resolv.conf", "/etc/hosts", "/etc/nsswitch.conf", "/etc/localtime")

_libc: Final = ctypes.CDLL(None, use_errno=True)


class _Ruleset(ctypes.Structure):
    _fields_ = (("files", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = (("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32))


def readable() -> list[str]:
    """The files and directories that an engine may read."""
    roots = ssl.get_default_verify_paths()
    links = (*_LOOKED_UP_WITH, *filter(None, (roots.cafile, roots.capath)))  # often to where somebody replaces them
    targets = {os.path.dirname(os.path.realpath(path)) for path in links}
    program = {sys.prefix, sys.base_prefix, str(Path(__file__).parents[1]), *filter(os.path.isabs, sys.path)}
    return sorted({*_SYSTEM, *_RESOLVERS, *targets, *program} - {"/"})


def version() -> int:
    """Of the kernel's interface; 0 where there is none."""
    try:
        return _call(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION))
    except OSError:
        return 0


def confine() -> bool:
    """From now on, open nothing but these, and those for reading; for good. The process must have no_new_privs.

    False where this kernel has no Landlock; OSError where it fails all the same.
    """
    known = version()
    if not known:
        return False
    rights = _Ruleset((1 << _FILE_RIGHTS.get(known, _LATEST_FILE_RIGHTS)) - 1)
    size = ctypes.c_size_t(ctypes.sizeof(rights))
    ruleset = _call(_CREATE_RULESET, ctypes.byref(rights), size, ctypes.c_uint32(0))
    try:
        for fd in _opened(readable()):
            kind = _READ_FILE | _READ_DIR if stat.S_ISDIR(os.fstat(fd).st_mode) else _READ_FILE
            rule = ctypes.byref(_PathBeneath(kind, fd))
            _call(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0))
        _call(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0))
    finally:
        os.close(ruleset)
    return True


def _call(number: int, *arguments: object) -> int:
    result = int(_libc.syscall(ctypes.c_long(number), *arguments))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"landlock: {os.strerror(code)}")
    return result


def _opened(paths: list[str]) -> Iterator[int]:
    """A descriptor for each that is there, while it is looked at."""
    for path in paths:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            yield fd
        finally:
            os.close(fd)
