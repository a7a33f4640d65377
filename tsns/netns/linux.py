"""The Linux calls that Python 3.11 lacks, by ctypes (ring 1, standard library only: `run` starts with it).

Source: the manual pages of unshare(2), setns(2), mount(2), mount_setattr(2), connect(2), openat2(2), ioctl_ns(2), prctl(2),
capabilities(7); the kernel's
samples/vfs for open_tree and move_mount.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from typing import Any, Final

CLONE_NEWNS: Final = 0x00020000
CLONE_NEWUSER: Final = 0x10000000
CLONE_NEWNET: Final = 0x40000000
MS_RDONLY: Final = 1
MS_NOSUID: Final = 2
MS_NODEV: Final = 4
MS_NOEXEC: Final = 8
MS_REMOUNT: Final = 32
MS_BIND: Final = 4096
MS_REC: Final = 16384
MS_SLAVE: Final = 1 << 19
MNT_DETACH: Final = 2
SO_PEERPIDFD: Final = 77  # since Linux 6.5
NSFS_MAGIC: Final = 0x6E736673
DOCKER_CAPABILITIES: Final = frozenset({0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31})  # what Docker leaves to root
HIGHEST_CAPABILITY: Final = 63

_AF_UNSPEC: Final = 0
_SYS_OPEN_TREE: Final = 428  # these are the same for all machines
_SYS_MOVE_MOUNT: Final = 429
_SYS_OPENAT2: Final = 437
_SYS_MOUNT_SETATTR: Final = 442
_RESOLVE_IN_ROOT: Final = 0x10
_NS_GET_NSTYPE: Final = 0xB703
_AT_FDCWD: Final = -100
_AT_EMPTY_PATH: Final = 0x1000
_OPEN_TREE_CLONE: Final = 1
_MOVE_MOUNT_F_EMPTY_PATH: Final = 4
_MOUNT_ATTR_RDONLY: Final = 1
_MS_PRIVATE: Final = 1 << 18
_PR_SET_PDEATHSIG: Final = 1
_PR_SET_DUMPABLE: Final = 4
_PR_CAPBSET_DROP: Final = 24
_PR_SET_NO_NEW_PRIVS: Final = 38
_PR_CAP_AMBIENT: Final = 47
_PR_CAP_AMBIENT_CLEAR_ALL: Final = 4
_CAPABILITY_VERSION_3: Final = 0x20080522
_SIGKILL: Final = 9

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, f"{what}: {os.strerror(code)}")


def unshare(flags: int) -> None:
    """Leave the namespaces of these kinds for new ones."""
    _check(_libc.unshare(flags), "unshare")


def disconnect(fd: int) -> None:
    """Let a connected socket be one that never was: the port that it was given is free, and it can be connected anew."""
    _check(_libc.connect(fd, (ctypes.c_uint16 * 8)(_AF_UNSPEC), 16), "disconnect")


def setns(fd: int, kind: int) -> None:
    """Enter the namespace behind a descriptor."""
    _check(_libc.setns(fd, kind), "setns")


def mount(source: str, target: str, flags: int, *, kind: str | None = None, options: str | None = None) -> None:
    """Mount something on `target`."""
    result = _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        options.encode() if options else None,
    )
    _check(result, f"mount on {target}")


def unmount(target: str) -> None:
    """Detach what is mounted there, used or not."""
    _check(_libc.umount2(os.fsencode(target), MNT_DETACH), f"unmount {target}")


def detached_mount(file: str) -> int:
    """A read-only mount of a file that is nowhere yet, as a descriptor (Linux 5.12)."""
    fd = _syscall(
        _SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(file), _OPEN_TREE_CLONE | os.O_CLOEXEC, what=f"open_tree of {file}"
    )
    attributes = (ctypes.c_uint64 * 4)(_MOUNT_ATTR_RDONLY, 0, _MS_PRIVATE, 0)
    try:
        size = ctypes.sizeof(attributes)
        _syscall(_SYS_MOUNT_SETATTR, fd, b"", _AT_EMPTY_PATH, ctypes.byref(attributes), size, what="mount_setattr")
    except OSError:
        os.close(fd)
        raise
    return fd


def attach_mount(fd: int, target: str) -> None:
    """Put a detached mount there, in whatever mount namespace this process is in by now."""
    _syscall(
        _SYS_MOVE_MOUNT,
        fd,
        b"",
        _AT_FDCWD,
        os.fsencode(target),
        _MOVE_MOUNT_F_EMPTY_PATH,
        what=f"move_mount to {target}",
    )


def open_in_root(root: int, path: str, flags: int, mode: int = 0) -> int:
    """Open a path whose links are followed as if this directory were the root: none leads out of it. openat2(2), Linux 5.6."""
    how = (ctypes.c_uint64 * 3)(flags, mode, _RESOLVE_IN_ROOT)
    return _syscall(
        _SYS_OPENAT2, root, os.fsencode(path), ctypes.byref(how), ctypes.sizeof(how), what=f"openat2 of {path}"
    )


def is_network_namespace(fd: int) -> bool:
    """Whether a descriptor is one of a network namespace. ioctl_ns(2)."""
    return int(_libc.ioctl(fd, ctypes.c_ulong(_NS_GET_NSTYPE))) == CLONE_NEWNET


def _syscall(number: int, *arguments: Any, what: str) -> int:
    wide = (ctypes.c_long(argument) if isinstance(argument, int) else argument for argument in arguments)
    result = int(_libc.syscall(ctypes.c_long(number), *wide))
    _check(result, what)
    return result


def _prctl(option: int, *arguments: int) -> int:
    padded = (*arguments, 0, 0, 0, 0)[:4]
    return int(_libc.prctl(option, *(ctypes.c_ulong(value) for value in padded)))


def keep_only_capabilities(kept: frozenset[int]) -> None:
    """Narrow the bounding set and empty the ambient set: what is held beyond that goes with the next exec."""
    for capability in range(HIGHEST_CAPABILITY + 1):
        if capability not in kept and _prctl(_PR_CAPBSET_DROP, capability) < 0:
            break  # past the last one that this kernel knows
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)


def become(uid: int, gid: int, groups: Sequence[int]) -> None:
    """Be another user, for good."""
    os.setgroups(list(groups))
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)


def drop_all_rights(uid: int, parent: int) -> None:
    """Be this user, without a capability and a way back to one, not dumpable, dead with `parent`. The caller is root."""
    keep_only_capabilities(frozenset())
    with contextlib.suppress(OSError):  # a container may map few ids only
        become(uid, uid, [])
    if os.geteuid() == 0:
        become(65534, 65534, [])
    drop_capabilities(parent)


def drop_capabilities(parent: int) -> None:
    """Hold no capability, without a way back to one by executing something; not dumpable, dead with `parent`.

    To be called after a change of uid, which clears the death signal; a parent that died before is told by getppid.
    """
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _check(_libc.capset(ctypes.byref(header), ctypes.byref((ctypes.c_uint32 * 6)())), "capset")
    _check(_prctl(_PR_SET_NO_NEW_PRIVS, 1), "no_new_privs")
    _check(_prctl(_PR_SET_DUMPABLE, 0), "dumpable")
    die_with(parent)


def die_with(parent: int) -> None:
    """Be killed when this process, of whom we are a child, ends."""
    _check(_prctl(_PR_SET_PDEATHSIG, _SIGKILL), "parent death signal")
    if os.getppid() != parent:
        os._exit(1)


def close_all_but(*kept: int) -> None:
    """Forget inherited descriptors: a lock or a listening socket lives as long as any copy of it."""
    low = 0
    for fd in sorted({0, 1, 2, *kept}):
        if low < fd:  # CPython 3.11 closes everything for an empty range that begins at 0
            os.closerange(low, fd)
        low = fd + 1
    os.closerange(low, 1 << 16)
