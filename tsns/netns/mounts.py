"""What a command inside sees of the file system: its own resolver files, none of the host's resolvers (ring 1, standard library only).

Sockets in the file system ignore network namespaces: nscd, systemd-resolved or Avahi would answer from outside. So their directories are
covered, nsswitch.conf asks files and DNS alone, and resolv.conf names MagicDNS. /sys shows the network namespace that it was mounted in, so
the inner one's own part of it is laid over the host's.

When the host puts another file in the place of one of its own, the kernel takes away what was mounted on the old one, in all mount
namespaces and without a word. `inject` puts it back.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from typing import Final

from tsns.error import UserError
from tsns.netns import linux, mount_table, user_namespace
from tsns.netns.child import in_child

RESOLV_PATH: Final = "/etc/resolv.conf"
NSSWITCH_PATH: Final = "/etc/nsswitch.conf"
MASKED_DIRECTORIES: Final = ("/run/systemd/resolve", "/run/nscd", "/run/avahi-daemon", "/run/systemd/machine")
_SYS_NETWORK: Final = ("class/net", "devices/virtual/net")
_WORKPLACE: Final = "/tmp"  # any directory will do: what is put there is moved away at once
_MASK_FLAGS: Final = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC


def nsswitch(text: str) -> str:
    """The host's nsswitch.conf with host names looked up in /etc/hosts and DNS only."""
    kept = [line for line in text.splitlines() if line.split(":")[0].strip() != "hosts"]
    return "\n".join([*kept, "hosts: files dns", ""])


def enter_private(resolv: str, nsswitch_file: str) -> None:
    """A mount namespace of the caller's own, with these two files in the host's places and the resolvers' sockets covered.

    The caller is in its network namespace already, and in its user namespace.

    UserError where there is nothing to put resolv.conf on.
    """
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", linux.MS_REC | linux.MS_SLAVE)  # later mounts of the host still arrive, ours do not leave
    _mask()
    _cover(resolv, RESOLV_PATH, required=True)
    _cover(nsswitch_file, NSSWITCH_PATH, required=False)
    with contextlib.suppress(
        OSError
    ):  # where it cannot be had (in containers, say) the host's interfaces show, and nothing more
        _show_own_interfaces()


def _show_own_interfaces() -> None:
    linux.mount("sysfs", _WORKPLACE, _MASK_FLAGS, kind="sysfs")
    try:
        for place in _SYS_NETWORK:
            linux.mount(f"{_WORKPLACE}/{place}", f"/sys/{place}", linux.MS_BIND)
    finally:
        linux.unmount(_WORKPLACE)


def inject(covers: Mapping[str, str], namespace: int, *, mask: bool = False) -> None:
    """Put files (values) over others (keys) in another mount namespace, read-only, where they are not yet; OSError where that cannot be.

    `namespace` is a descriptor of the mount namespace. With `mask` the resolvers' directories are
    covered there as well. What is missing there is left out, but for resolv.conf: without it there is no use in the others.
    """
    in_child(lambda: _inject(covers, namespace, mask=mask))


def _inject(covers: Mapping[str, str], namespace: int, *, mask: bool) -> list[int]:
    # First everything that is reached by the paths of our own namespace. An ordinary user may not take mounts from there, and need not:
    # whoever they have inside sees the same paths.
    as_root = os.geteuid() == 0
    found = {path: (os.stat(file), linux.detached_mount(file) if as_root else -1) for path, file in covers.items()}
    origins = {path: mount_table.origin(file) for path, file in covers.items()}
    own = _enter(namespace)
    if mask:
        _mask()
    for path, (status, mount) in found.items():
        target = _target(path, makes=mask)
        if target is None:
            if path == RESOLV_PATH:
                raise OSError(
                    errno.ENOENT, f"there is no {path} in there that ours could be put over; make an empty one"
                )
            continue
        if os.path.samestat(status, os.stat(target)):
            continue
        _uncover(target, origins[path], own)  # one that was deleted since: nothing can be put over it
        if as_root:
            linux.attach_mount(mount, target)
        else:
            _bind(covers[path], target)
    return []


def eject(path: str, file: str, namespace: int) -> None:
    """Take away what `inject` has put over `path` in another mount namespace, if it is there and nothing else lies over it.

    `file` need not exist any more, but its directory. OSError with the reason.
    """
    in_child(lambda: _eject(path, file, namespace))


def _eject(path: str, file: str, namespace: int) -> list[int]:
    ours = mount_table.origin(file)
    own = _enter(namespace)
    target = _target(path)
    if target is not None:
        _uncover(target, ours, own)
    return []


def _uncover(target: str, ours: mount_table.Origin, own: int) -> None:
    """Take away mounts of ours, as long as one of them is what is seen there."""
    while True:
        mounted = [each for each in mount_table.read(own) if each.point == target]
        if not mounted or mounted[-1].origin != ours:
            return
        linux.unmount(target)


def _enter(namespace: int) -> int:
    """Enter a mount namespace, its root directory included; OSError where it is the one that this process is in.

    Gives back a descriptor of what /proc knew of this process: in there it may know nothing of us.
    """
    own = os.open("/proc/self", os.O_PATH | os.O_CLOEXEC)
    before = os.stat("ns/mnt", dir_fd=own)
    user_namespace.enter(namespace, linux.CLONE_NEWNS)
    if os.path.samestat(before, os.stat("ns/mnt", dir_fd=own)):
        raise OSError(errno.EINVAL, "it has the same file system as tsns itself, whose files stay as they are")
    return own


def _mask() -> None:
    for directory in MASKED_DIRECTORIES:
        if os.path.isdir(directory) and not os.path.ismount(directory):
            linux.mount("tmpfs", directory, _MASK_FLAGS, kind="tmpfs", options="mode=0755,size=64k")


def _cover(source: str, path: str, *, required: bool) -> None:
    target = _target(path, makes=True)
    if target is None:
        if not required:
            return  # the C library's own default is files and DNS
        raise UserError(
            f"this machine has no {path} that a private one could cover", f"make an empty one: `touch {path}`"
        )
    _bind(source, target)


def _bind(source: str, target: str) -> None:
    """Put a file over another, read-only."""
    linux.mount(source, target, linux.MS_BIND)
    kept = os.statvfs(target).f_flag & _MASK_FLAGS  # an ordinary user may not lift them, and they have the same numbers
    linux.mount("none", target, linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | kept)


def _target(path: str, *, makes: bool = False) -> str | None:
    """The file behind this path, where `makes` made if it would be on one of our masks; None where there is none."""
    target = os.path.realpath(path)
    if makes and os.path.dirname(target) in MASKED_DIRECTORIES:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))  # on the mask, not on the host's file
    return target if os.path.exists(target) else None
