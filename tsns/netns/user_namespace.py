"""User namespaces: how somebody who is not root makes a node's namespaces, and how anybody enters them (ring 1, standard library only).

Who makes a user namespace has all rights over the network namespaces made in it, and none outside. A network namespace knows which user
namespace it belongs to, so its descriptor is all that one needs to enter: `enter` is the same for root's nodes and for everybody else's.

Source: user_namespaces(7), ioctl_ns(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from typing import Final

from tsns.error import UserError
from tsns.netns import linux

_NS_GET_USERNS: Final = 0xB701
_OWN: Final = "/proc/self/ns/user"
_MOST: Final = "user/max_user_namespaces"
_DEBIANS_SWITCH: Final = "kernel/unprivileged_userns_clone"
_APPARMORS_SWITCH: Final = "kernel/apparmor_restrict_unprivileged_userns"
_AS_ROOT: Final = "or run it with sudo"
_FAILED: Final = "the node cannot be made"


def make(*, as_root: bool) -> None:
    """Go into a new user namespace, in which the caller is root or else who they were. OSError with the reason.

    The process must have one thread. It has all rights there until it executes something, or for good as root.
    """
    uid, gid = os.geteuid(), os.getegid()
    linux.unshare(linux.CLONE_NEWUSER)
    _write("setgroups", "deny")  # else the kernel maps no group for somebody without rights
    _write("uid_map", f"{0 if as_root else uid} {uid} 1")
    _write("gid_map", f"{0 if as_root else gid} {gid} 1")


def _write(name: str, text: str) -> None:
    with open(f"/proc/self/{name}", "w") as file:
        file.write(text)


def enter_owner(namespace: int) -> None:
    """Enter the user namespace that the one behind a descriptor belongs to, and no other; root stays where it is. OSError with the reason.

    From there the user namespaces below it are within reach, which they are not from above for who is not root. One thread only.
    """
    owner = None if os.geteuid() == 0 else _owner(namespace)
    if owner is not None:
        try:
            linux.setns(owner, linux.CLONE_NEWUSER)
        finally:
            os.close(owner)


def enter(namespace: int, kind: int = linux.CLONE_NEWNET) -> None:
    """Enter the namespace of this kind behind a descriptor, and before it the user namespace that it belongs to. OSError with the reason.

    The process must have one thread. Root stays in its own user namespace, where it has all rights over those below, and others as well.
    """
    enter_owner(namespace)
    linux.setns(namespace, kind)


def _owner(namespace: int) -> int | None:
    """A descriptor of the user namespace that a namespace belongs to; None where that is the caller's own."""
    owner = fcntl.ioctl(namespace, _NS_GET_USERNS, 0)
    os.set_inheritable(owner, False)
    there, here = os.fstat(owner), os.stat(_OWN)
    if (there.st_dev, there.st_ino) == (here.st_dev, here.st_ino):
        os.close(owner)
        return None
    return owner


def refusal(error: OSError, *, is_root: bool | None = None, setting: Callable[[str], str] | None = None) -> UserError:
    """Why the caller got no namespaces, with what would help. `setting` reads what is under /proc/sys, empty where there is nothing."""
    if os.geteuid() == 0 if is_root is None else is_root:
        return UserError(f"{_FAILED}: {error}", "tsns needs root with CAP_NET_ADMIN and CAP_SYS_ADMIN")
    look = setting or _setting
    if look(_MOST) == "0":
        return _forbidden("user.max_user_namespaces is 0", "sudo sysctl user.max_user_namespaces=10000")
    if look(_DEBIANS_SWITCH) == "0":
        return _forbidden("kernel.unprivileged_userns_clone is 0", "sudo sysctl kernel.unprivileged_userns_clone=1")
    denied = error.errno in {errno.EPERM, errno.EACCES}
    if denied and look(_APPARMORS_SWITCH) not in {"", "0"}:
        return _forbidden("AppArmor does", "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0")
    if error.errno in {errno.ENOSPC, errno.EUSERS}:
        return UserError(
            "there are too many user namespaces on this machine, or too many in one another",
            f"allow more: `sudo sysctl user.max_user_namespaces=10000`, {_AS_ROOT}",
        )
    if error.errno in {errno.EINVAL, errno.ENOSYS}:
        return UserError("this kernel has no user namespaces", "run it with sudo")
    if denied:
        return UserError(
            f"{_FAILED}: {error}",
            f"in a container, add `--security-opt seccomp=unconfined` to it; elsewhere {_AS_ROOT.removeprefix('or ')}",
        )
    return UserError(f"{_FAILED}: {error}", "try it with sudo")


def _forbidden(who: str, remedy: str) -> UserError:
    return UserError(
        f"this machine forbids ordinary users to make namespaces: {who}", f"allow it: `{remedy}`, {_AS_ROOT}"
    )


def _setting(name: str) -> str:
    try:
        with open(f"/proc/sys/{name}") as file:
            return file.read().strip()
    except OSError:
        return ""
