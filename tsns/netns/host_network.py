"""The addresses of the network namespace that this process is in, and word of their changes (ring 1).

Source: rtnetlink(7), rtnetlink.h. Read by hand, since the engine does without pyroute2: its import costs each node more than all of this.
"""

from __future__ import annotations

import socket
import struct
from typing import Final

from tsns.netns import netlink_messages
from tsns.netns.netlink_messages import READ_BYTES
from tsns.proto.addresses import unpack

MAX_ADDRESSES: Final = 256
MAX_READS: Final = 64  # of one answer, and of what wakes us

_IFADDRMSG: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
_RTM_NEWADDR: Final = 20
_RTM_GETADDR: Final = 22
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_IFA_F_TENTATIVE: Final = 0x40
_GROUPS: Final = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, IPv4 addresses and routes, IPv6 addresses and routes
_FAMILIES: Final = {socket.AF_INET: 4, socket.AF_INET6: 16}  # and the bytes of an address
# Where a packet to anybody would go: documentation addresses, to which nothing is sent.
_ANYBODY: Final = {socket.AF_INET: "198.51.100.1", socket.AF_INET6: "2001:db8::1"}


def addresses() -> list[str]:
    """All addresses that are in use, as text; OSError where the kernel does not tell."""
    found: list[str] = []
    with netlink_messages.open_socket(socket.NETLINK_ROUTE) as sock:
        request = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        sock.send(netlink_messages.message(_RTM_GETADDR, netlink_messages.DUMP, request))
        for _ in range(MAX_READS):
            for kind, body in netlink_messages.parts(sock.recv(READ_BYTES)):
                if kind == netlink_messages.DONE:
                    return found[:MAX_ADDRESSES]
                if kind == netlink_messages.ERROR:
                    raise OSError(netlink_messages.errno_of(body), "the kernel does not tell the addresses")
                if kind == _RTM_NEWADDR and (address := _address(body)):
                    found.append(address)
    return found[:MAX_ADDRESSES]


def source_addresses() -> tuple[str, ...]:
    """The addresses that packets to the world leave with, one for each family that has a way there. Nothing is sent."""
    found = []
    for family in _FAMILIES:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            try:
                sock.connect((_ANYBODY[family], 9))
            except OSError:
                continue
            found.append(str(sock.getsockname()[0]))
    return tuple(found)


class Changes:
    """Readable when addresses, routes or links have changed. What exactly is to be looked up."""

    def __init__(self) -> None:
        self._sock = netlink_messages.open_socket(socket.NETLINK_ROUTE, _GROUPS)
        self._sock.setblocking(False)

    def fileno(self) -> int:
        """The descriptor to wait for."""
        return self._sock.fileno()

    def clear(self) -> None:
        """Read what has come."""
        for _ in range(MAX_READS):
            try:
                self._sock.recv(READ_BYTES)
            except BlockingIOError:
                return
            except OSError:  # ENOBUFS: there was more than the kernel could keep for us
                continue

    def close(self) -> None:
        """Hear no more."""
        self._sock.close()


def _address(body: bytes) -> str | None:
    """The address of an RTM_NEWADDR; None for one that is not in use yet."""
    if len(body) < _IFADDRMSG.size:
        return None
    family, _, flags, _, _ = _IFADDRMSG.unpack_from(body)
    if family not in _FAMILIES or flags & _IFA_F_TENTATIVE:
        return None
    found = netlink_messages.attributes(body, _IFADDRMSG.size)
    packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))  # LOCAL is our end of a point-to-point link
    return unpack(packed) if packed and len(packed) == _FAMILIES[family] else None
