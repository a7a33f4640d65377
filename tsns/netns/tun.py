"""The TUN device of a node (ring 1).

Source: Documentation/networking/tuntap.rst of the kernel. The device belongs to the network namespace in which /dev/net/tun was *opened*,
not to that of the ioctl. It is not persistent: it lives as long as somebody holds a descriptor of it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from typing import Final

from tsns.error import UserError

TUN_PATH: Final = "/dev/net/tun"
TUN_NAME: Final = "tsns0"
MTU_BYTES: Final = 1280  # the least that IPv6 permits, and it passes nearly every path, even another tunnel

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 1
_IFF_NO_PI: Final = 0x1000


def open_tun() -> int:
    """A new TUN in the caller's network namespace: a non-blocking descriptor, one packet a read or write."""
    tun = os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", TUN_NAME.encode(), _IFF_TUN | _IFF_NO_PI))
    except OSError:
        os.close(tun)
        raise
    return tun


def check() -> None:
    """UserError where this machine offers no TUN."""
    try:
        os.close(os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno == errno.ENOENT:
            raise UserError(
                f"this machine has no {TUN_PATH}",
                "load it with `modprobe tun`; in a container, add `--device /dev/net/tun`",
            ) from None
        raise UserError(
            f"{TUN_PATH} cannot be opened: {os.strerror(error.errno or 0)}",
            "in a container, add `--device /dev/net/tun --cap-add NET_ADMIN`",
        ) from None
