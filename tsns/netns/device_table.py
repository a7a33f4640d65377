"""Devices and addresses of the network namespace that this process is in, read and changed (ring 1).

Source: rtnetlink(7), linux/if_link.h, if_addr.h. By hand, as `route_table`: each change takes a tenth of what pyroute2 takes for it.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterable, Sequence
from typing import Final, NamedTuple

from tsns.netns import netlink_messages
from tsns.netns.netlink_messages import FAMILIES, attribute, attributes, message, number

LOOPBACK: Final = 1  # its number, in each namespace
SCOPE_UNIVERSE: Final = 0
SCOPE_LINK: Final = 253
SCOPE_HOST: Final = 254

_LINK: Final = struct.Struct("=BxHiII")  # family, type, number, flags, which of them count
_ADDRESS: Final = struct.Struct("=BBBBI")  # family, bits, flags, scope, device
_RTM_NEWLINK: Final = 16
_RTM_GETLINK: Final = 18
_RTM_SETLINK: Final = 19
_RTM_NEWADDR: Final = 20
_RTM_DELADDR: Final = 21
_RTM_GETADDR: Final = 22
_IFF_UP: Final = 1
_MTU: Final = 4
_QUEUE_LENGTH: Final = 13
_GSO_MAX_SEGMENTS: Final = 40
_GSO_MAX_BYTES: Final = 41
_IFA_ADDRESS: Final = 1
_IFA_LOCAL: Final = 2
_NO_DAD: Final = 0x02


class Address(NamedTuple):
    """An address that a device has, packed, and the bits of its network."""

    device: int
    packed: bytes
    bits: int
    scope: int = SCOPE_UNIVERSE


def find(name: str) -> int:
    """A device's number; OSError where there is none of this name."""
    return socket.if_nametoindex(name)


def is_up(device: int) -> bool:
    """Whether a device is set up; OSError where there is none."""
    with netlink_messages.open_socket(socket.NETLINK_ROUTE) as sock:
        sock.send(message(_RTM_GETLINK, 0, _LINK.pack(socket.AF_UNSPEC, 0, device, 0, 0)))
        for kind, body in netlink_messages.parts(sock.recv(netlink_messages.READ_BYTES)):
            if kind == _RTM_NEWLINK:
                return bool(_LINK.unpack_from(body)[3] & _IFF_UP)
            if kind == netlink_messages.ERROR:
                code = netlink_messages.errno_of(body)
                raise OSError(code, os.strerror(code))
    return False


def set_up(device: int, *, up: bool = True, mtu: int = 0, queue_length: int = 0) -> None:
    """Have a device carry packets, or none; 0: what it has. OSError with the reason."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, device, _IFF_UP if up else 0, _IFF_UP)
    for kind, value in ((_MTU, mtu), (_QUEUE_LENGTH, queue_length)):
        if value:
            body += number(kind, value)
    _carry_out([message(_RTM_SETLINK, netlink_messages.ACK, body)], "a device cannot be set up")


def limit_super_packets(device: int, size: int, segments: int) -> None:
    """How long packets may be that the kernel leaves uncut, in bytes and in segments; an older kernel may know no such limits."""
    body = _LINK.pack(socket.AF_UNSPEC, 0, device, 0, 0)
    body += number(_GSO_MAX_BYTES, size) + number(_GSO_MAX_SEGMENTS, segments)
    unknown = {errno.EINVAL, errno.EOPNOTSUPP}
    _carry_out([message(_RTM_SETLINK, netlink_messages.ACK, body)], "a device's limits are refused", unknown)


def addresses() -> set[Address]:
    """All addresses. OSError with the reason."""
    found = set()
    with netlink_messages.open_socket(socket.NETLINK_ROUTE) as sock:
        sock.send(message(_RTM_GETADDR, netlink_messages.DUMP, _ADDRESS.pack(socket.AF_UNSPEC, 0, 0, 0, 0)))
        for kind, body in netlink_messages.until_done(sock):
            if kind == _RTM_NEWADDR and (address := _parsed(body)) is not None:
                found.add(address)
    return found


def change(add: Iterable[Address], remove: Iterable[Address]) -> None:
    """Remove addresses, then add others. OSError for the first that the kernel refuses; what is so already is none."""
    _carry_out([_message(each, adds=False) for each in remove], "an address cannot be removed", {errno.EADDRNOTAVAIL})
    _carry_out([_message(each, adds=True) for each in add], "an address is refused", {errno.EEXIST})


def _message(each: Address, *, adds: bool) -> bytes:
    flags = _NO_DAD if adds else 0
    body = _ADDRESS.pack(FAMILIES[len(each.packed)], each.bits, flags, each.scope, each.device)
    body += attribute(_IFA_LOCAL, each.packed) + attribute(_IFA_ADDRESS, each.packed)
    how = netlink_messages.ACK | (netlink_messages.CREATE | netlink_messages.EXCLUSIVE if adds else 0)
    return message(_RTM_NEWADDR if adds else _RTM_DELADDR, how, body)


def _parsed(body: bytes) -> Address | None:
    family, bits, _, scope, device = _ADDRESS.unpack_from(body)
    values = attributes(body, _ADDRESS.size)
    packed = values.get(_IFA_LOCAL, values.get(_IFA_ADDRESS, b""))  # LOCAL is our end of a point-to-point link
    return Address(device, packed, bits, scope) if FAMILIES.get(len(packed)) == family else None


def _carry_out(messages: Sequence[bytes], failed: str, fine: Collection[int] = ()) -> None:
    if messages:
        with netlink_messages.open_socket(socket.NETLINK_ROUTE) as sock:
            netlink_messages.carry_out(sock, messages, failed, fine)
