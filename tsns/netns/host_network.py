"""The addresses of the network namespace that this process is in, and word of their changes (ring 1).

Source: rtnetlink(7), rtnetlink.h. Read by hand, since the engine does without pyroute2: its import costs each node more than all of this.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from typing import Final

from tsns.proto.addresses import unpack

READ_BYTES: Final = 64 << 10
MAX_ADDRESSES: Final = 256
MAX_READS: Final = 64  # of one answer, and of what wakes us

_NLMSG: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_IFADDRMSG: Final = struct.Struct("=BBBBI")  # family, prefix length, flags, scope, interface
_RTATTR: Final = struct.Struct("=HH")  # length, type
_ERRNO: Final = struct.Struct("=i")  # negative
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_RTM_NEWADDR: Final = 20
_RTM_GETADDR: Final = 22
_NLM_F_REQUEST: Final = 0x1
_NLM_F_DUMP: Final = 0x300
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
    with _netlink(0) as sock:
        request = _IFADDRMSG.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        header = _NLMSG.pack(_NLMSG.size + len(request), _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0)
        sock.send(header + request)
        for _ in range(MAX_READS):
            for kind, body in _messages(sock.recv(READ_BYTES)):
                if kind == _NLMSG_DONE:
                    return found[:MAX_ADDRESSES]
                if kind == _NLMSG_ERROR:
                    raise OSError(-_ERRNO.unpack_from(body)[0], "the kernel does not tell the addresses")
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
        self._sock = _netlink(_GROUPS)
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


def _netlink(groups: int) -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    sock.bind((0, groups))
    return sock


def _messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The (type, body) pairs of netlink messages."""
    start = 0
    while start + _NLMSG.size <= len(data):
        length, kind, *_ = _NLMSG.unpack_from(data, start)
        if length < _NLMSG.size:
            return
        yield kind, data[start + _NLMSG.size : start + length]
        start += -(-length // 4) * 4


def _address(body: bytes) -> str | None:
    """The address of an RTM_NEWADDR; None for one that is not in use yet."""
    if len(body) < _IFADDRMSG.size:
        return None
    family, _, flags, _, _ = _IFADDRMSG.unpack_from(body)
    if family not in _FAMILIES or flags & _IFA_F_TENTATIVE:
        return None
    found: dict[int, bytes] = {}
    start = _IFADDRMSG.size
    while start + _RTATTR.size <= len(body):
        length, kind = _RTATTR.unpack_from(body, start)
        if length < _RTATTR.size:
            break
        found[kind] = body[start + _RTATTR.size : start + length]
        start += -(-length // 4) * 4
    packed = found.get(_IFA_LOCAL, found.get(_IFA_ADDRESS))  # LOCAL is our end of a point-to-point link
    return unpack(packed) if packed and len(packed) == _FAMILIES[family] else None
