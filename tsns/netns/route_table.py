"""Routes of the network namespace that this process is in, read and changed many at once (ring 1).

Source: rtnetlink(7), rtnetlink.h. By hand: a thousand of them take pyroute2 seconds, and this less than a tenth of one. Only routes with our own mark
(`PROTOCOL`) are read and changed; the others are none of our business.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Collection, Iterable, Iterator
from typing import Final, NamedTuple

from tsns.proto.addresses import Prefix

PROTOCOL: Final = 115  # by which our routes are known; `ip route` shows it as `proto 115`
MAIN_TABLE: Final = 254
READ_BYTES: Final = 64 << 10
BATCH: Final = 100  # messages at once: their answers have to fit into the socket's buffer

_NLMSG: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_RTMSG: Final = struct.Struct("=BBBBBBBBI")  # family, bits, bits of source, tos, table, protocol, scope, type, flags
_RTATTR: Final = struct.Struct("=HH")  # length, type
_U32: Final = struct.Struct("=I")
_ERRNO: Final = struct.Struct("=i")  # negative
_NLMSG_ERROR: Final = 2
_NLMSG_DONE: Final = 3
_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_RTM_GETROUTE: Final = 26
_REQUEST: Final = 0x1
_ACK: Final = 0x4
_DUMP: Final = 0x300
_CREATE_OR_REPLACE: Final = 0x400 | 0x100
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_PRIORITY: Final = 6
_RTA_TABLE: Final = 15
_UNICAST: Final = 1
_UNREACHABLE: Final = 7
_SCOPE_UNIVERSE: Final = 0
_SCOPE_LINK: Final = 253
_SCOPE_NOWHERE: Final = 255  # of one to delete: whatever scope it has
_FAMILIES: Final = {4: socket.AF_INET, 16: socket.AF_INET6}  # by the bytes of an address


class Route(NamedTuple):
    """One route of ours: by a device, or `unreachable` where that is 0."""

    prefix: Prefix
    metric: int
    device: int = 0  # its index
    table: int = MAIN_TABLE


def change(add: Iterable[Route], remove: Iterable[Route]) -> None:
    """Add routes, then remove others. OSError for the first that the kernel refuses; one to be removed that is gone is none."""
    with _netlink() as sock:
        _send(sock, [_message(route, adds=True) for route in add], (0, errno.EEXIST))
        _send(sock, [_message(route, adds=False) for route in remove], (0, errno.ESRCH, errno.ENOENT))


def present() -> set[Route]:
    """All routes of ours."""
    found: set[Route] = set()
    with _netlink() as sock:
        for family in _FAMILIES.values():
            body = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            sock.send(_NLMSG.pack(_NLMSG.size + len(body), _RTM_GETROUTE, _REQUEST | _DUMP, 1, 0) + body)
            for kind, answer in _until_done(sock):
                if kind == _RTM_NEWROUTE and (route := _parsed(answer)) is not None:
                    found.add(route)
    return found


def _netlink() -> socket.socket:
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    sock.bind((0, 0))
    return sock


def _attribute(kind: int, value: bytes) -> bytes:
    return _RTATTR.pack(_RTATTR.size + len(value), kind) + value  # all values here have a multiple of 4 bytes


def _message(route: Route, *, adds: bool) -> bytes:
    network = route.prefix.network
    family = _FAMILIES[len(network)]
    scope = _SCOPE_LINK if route.device and family == socket.AF_INET else _SCOPE_UNIVERSE
    kind = _UNICAST if route.device else _UNREACHABLE
    body = _RTMSG.pack(
        family, route.prefix.bits, 0, 0, 0, PROTOCOL, scope if adds else _SCOPE_NOWHERE, kind, 0
    ) + _attribute(_RTA_TABLE, _U32.pack(route.table))
    body += _attribute(_RTA_DST, network) + _attribute(_RTA_PRIORITY, _U32.pack(route.metric))
    if route.device:
        body += _attribute(_RTA_OIF, _U32.pack(route.device))
    flags = _REQUEST | _ACK | (_CREATE_OR_REPLACE if adds else 0)
    what = _RTM_NEWROUTE if adds else _RTM_DELROUTE
    return _NLMSG.pack(_NLMSG.size + len(body), what, flags, 1, 0) + body


def _send(sock: socket.socket, messages: list[bytes], fine: Collection[int]) -> None:
    for start in range(0, len(messages), BATCH):
        batch = messages[start : start + BATCH]
        sock.send(b"".join(batch))
        answers = 0
        while answers < len(batch):
            for kind, body in _parts(sock.recv(READ_BYTES)):
                if kind == _NLMSG_ERROR:
                    answers += 1
                    code = -_ERRNO.unpack_from(body)[0]
                    if code not in fine:
                        raise OSError(code, f"a route is refused: {os.strerror(code)}")


def _until_done(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    while True:
        for kind, body in _parts(sock.recv(READ_BYTES)):
            if kind == _NLMSG_DONE:
                return
            if kind == _NLMSG_ERROR:
                code = -_ERRNO.unpack_from(body)[0]
                raise OSError(code, f"the kernel does not tell the routes: {os.strerror(code)}")
            yield kind, body


def _parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The (type, body) pairs of netlink messages."""
    start = 0
    while start + _NLMSG.size <= len(data):
        length, kind, *_ = _NLMSG.unpack_from(data, start)
        if length < _NLMSG.size:
            return
        yield kind, data[start + _NLMSG.size : start + length]
        start += -(-length // 4) * 4


def _parsed(body: bytes) -> Route | None:
    """A route of ours; None for others."""
    family, bits, _, _, table, protocol, _, kind, _ = _RTMSG.unpack_from(body)
    if protocol != PROTOCOL or kind not in {_UNICAST, _UNREACHABLE}:
        return None
    width = next((size for size, known in _FAMILIES.items() if known == family), 0)
    values: dict[int, bytes] = {}
    start = _RTMSG.size
    while start + _RTATTR.size <= len(body):
        length, name = _RTATTR.unpack_from(body, start)
        if length < _RTATTR.size:
            break
        values[name] = body[start + _RTATTR.size : start + length]
        start += -(-length // 4) * 4

    def number(name: int, otherwise: int) -> int:
        value = values.get(name, b"")
        return int(_U32.unpack(value)[0]) if len(value) == _U32.size else otherwise

    return Route(
        Prefix(values.get(_RTA_DST, bytes(width)), bits),
        number(_RTA_PRIORITY, 0),
        number(_RTA_OIF, 0) if kind == _UNICAST else 0,
        number(_RTA_TABLE, table),
    )
