"""What a command inside sees of the file system: its own resolver files, none of the host's resolvers (ring 1, standard library only).

Sockets in the file system ignore network namespaces: nscd, systemd-resolved or Avahi would answer from outside. So their directories are
covered, nsswitch.conf asks files and DNS alone, and resolv.conf names MagicDNS. /sys shows the network namespace that it was mounted in, so
the inner one's own part of it is laid over the host's.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final

from tsns.error import UserError
from tsns.netns import linux

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
    for directory in MASKED_DIRECTORIES:
        if os.path.isdir(directory):
            linux.mount("tmpfs", directory, _MASK_FLAGS, kind="tmpfs", options="mode=0755,size=64k")
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


def _cover(source: str, path: str, *, required: bool) -> None:
    target = os.path.realpath(path)
    if os.path.dirname(target) in MASKED_DIRECTORIES:
        os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))  # on the mask, not on the host's file
    elif not os.path.exists(target):
        if not required:
            return  # the C library's own default is files and DNS
        raise UserError(
            f"this machine has no {path} that a private one could cover", f"make an empty one: `touch {target}`"
        )
    linux.mount(source, target, linux.MS_BIND)
    kept = os.statvfs(target).f_flag & _MASK_FLAGS  # an ordinary user may not lift them, and they have the same numbers
    linux.mount("none", target, linux.MS_BIND | linux.MS_REMOUNT | linux.MS_RDONLY | kept)
