"""Routes of the network namespace that this process is in, read and changed many at once (ring 1).

Source: rtnetlink(7), rtnetlink.h. By hand: a thousand of them take pyroute2 seconds, and this less than a tenth of one. Only routes with our own mark
(`PROTOCOL`) are read and changed; the others are none of our business.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from tsns.netns import netlink_messages
from tsns.netns.netlink_messages import FAMILIES, attribute, attributes, message, number, number_of
from tsns.proto.addresses import Prefix

PROTOCOL: Final = 115  # by which our routes are known; `ip route` shows it as `proto 115`
MAIN_TABLE: Final = 254
LOCAL_TABLE: Final = 255

_RTMSG: Final = struct.Struct("=BBBBBBBBI")  # family, bits, bits of source, tos, table, protocol, scope, type, flags
_RTM_NEWROUTE: Final = 24
_RTM_DELROUTE: Final = 25
_RTM_GETROUTE: Final = 26
_RTA_DST: Final = 1
_RTA_OIF: Final = 4
_RTA_PRIORITY: Final = 6
_RTA_TABLE: Final = 15
_UNICAST: Final = 1
_UNREACHABLE: Final = 7
_SCOPE_UNIVERSE: Final = 0
_SCOPE_LINK: Final = 253
_SCOPE_NOWHERE: Final = 255  # of one to delete: whatever scope it has


class Route(NamedTuple):
    """One route of ours: by a device, or `unreachable` where that is 0."""

    prefix: Prefix
    metric: int
    device: int = 0  # its index
    table: int = MAIN_TABLE


def change(add: Iterable[Route], remove: Iterable[Route]) -> None:
    """Add routes, then remove others. OSError for the first that the kernel refuses; one to be removed that is gone is none."""
    with netlink_messages.open_socket(socket.NETLINK_ROUTE) as sock:
        more, fewer = (
            [_message(route, adds=adds) for route in routes] for adds, routes in ((True, add), (False, remove))
        )
        netlink_messages.carry_out(sock, more, "a route is refused", {errno.EEXIST})
        netlink_messages.carry_out(sock, fewer, "a route is refused", {errno.ESRCH, errno.ENOENT})


def make_so(wanted: set[Route], present: set[Route]) -> None:
    """Have `wanted` in the place of `present`. What stands comes first and goes last, so that no packet finds a gap."""
    change(
        sorted(wanted - present, key=lambda route: -route.metric),
        sorted(present - wanted, key=lambda route: route.metric),
    )


def present() -> set[Route]:
    """All routes of ours."""
    found: set[Route] = set()
    with netlink_messages.open_socket(socket.NETLINK_ROUTE) as sock:
        for family in FAMILIES.values():
            body = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            sock.send(message(_RTM_GETROUTE, netlink_messages.DUMP, body))
            try:
                for kind, answer in netlink_messages.until_done(sock):
                    if kind == _RTM_NEWROUTE and (route := _parsed(answer)) is not None:
                        found.add(route)
            except OSError as error:
                code = error.errno or 0
                raise OSError(code, f"the kernel does not tell the routes: {os.strerror(code)}") from None
    return found


def _message(route: Route, *, adds: bool) -> bytes:
    network = route.prefix.network
    family = FAMILIES[len(network)]
    scope = _SCOPE_LINK if route.device and family == socket.AF_INET else _SCOPE_UNIVERSE
    kind = _UNICAST if route.device else _UNREACHABLE
    body = _RTMSG.pack(
        family, route.prefix.bits, 0, 0, 0, PROTOCOL, scope if adds else _SCOPE_NOWHERE, kind, 0
    ) + number(_RTA_TABLE, route.table)
    body += attribute(_RTA_DST, network) + number(_RTA_PRIORITY, route.metric)
    if route.device:
        body += number(_RTA_OIF, route.device)
    flags = netlink_messages.ACK | (netlink_messages.CREATE | netlink_messages.REPLACE if adds else 0)
    return message(_RTM_NEWROUTE if adds else _RTM_DELROUTE, flags, body)


def _parsed(body: bytes) -> Route | None:
    """A route of ours; None for others."""
    family, bits, _, _, table, protocol, _, kind, _ = _RTMSG.unpack_from(body)
    if protocol != PROTOCOL or kind not in {_UNICAST, _UNREACHABLE}:
        return None
    width = next((size for size, known in FAMILIES.items() if known == family), 0)
    values = attributes(body, _RTMSG.size)
    return Route(
        Prefix(values.get(_RTA_DST, bytes(width)), bits),
        number_of(values, _RTA_PRIORITY, 0),
        number_of(values, _RTA_OIF, 0) if kind == _UNICAST else 0,
        number_of(values, _RTA_TABLE, table),
    )
