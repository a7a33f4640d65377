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
# What the kernel hands over at once is what one UDP send carries: 49 messages.
SUPER_PACKET_SEGMENTS: Final = 65_507 // (MTU_BYTES + 32)
SUPER_PACKET_BYTES: Final = SUPER_PACKET_SEGMENTS * (MTU_BYTES - 52)  # headers of IPv4 and TCP with time stamps
TUN_QUEUE_FRAMES: Final = 128  # of up to 60 KB: more would only be delay

TUNSETIFF: Final = 0x400454CA
_IFF_TUN: Final = 1
_IFF_NO_PI: Final = 0x1000
IFF_VNET_HDR: Final = 0x4000


def open_tun() -> int:
    """A new TUN in the caller's network namespace: a non-blocking descriptor, with virtio headers where the kernel has them."""
    tun = os.open(TUN_PATH, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        try:
            _set_interface(tun, _IFF_TUN | _IFF_NO_PI | IFF_VNET_HDR)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            _set_interface(tun, _IFF_TUN | _IFF_NO_PI)
    except OSError:
        os.close(tun)
        raise
    return tun


def _set_interface(tun: int, flags: int) -> None:
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", TUN_NAME.encode(), flags))


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
        if os.geteuid() != 0 and error.errno == errno.EACCES:
            raise UserError(
                f"{TUN_PATH} may not be opened by ordinary users", f"`sudo chmod 0666 {TUN_PATH}`, or run it with sudo"
            ) from None
        raise UserError(
            f"{TUN_PATH} cannot be opened: {os.strerror(error.errno or 0)}",
            "in a container, add `--device /dev/net/tun --cap-add NET_ADMIN`",
        ) from None
