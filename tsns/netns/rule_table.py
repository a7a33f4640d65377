"""Rules of the network namespace that this process is in, by which its tables are looked up, read and changed many at once (ring 1).

Source: rtnetlink(7), linux/fib_rules.h. By hand, as `route_table`, and with the same mark: others' rules are none of our business.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterable
from typing import Final, NamedTuple

from tsns.netns import netlink_messages
from tsns.netns.netlink_messages import FAMILIES, attribute, attributes, message, number, number_of
from tsns.netns.route_table import PROTOCOL
from tsns.proto.addresses import Prefix

_HEADER: Final = struct.Struct("=BBBBBxxBI")  # family, bits of destination, of source, tos, table, action, flags
_RTM_NEWRULE: Final = 32
_RTM_DELRULE: Final = 33
_RTM_GETRULE: Final = 34
_SOURCE: Final = 2
_PRIORITY: Final = 6
_SUPPRESS_PREFIX_LENGTH: Final = 14
_TABLE: Final = 15
_PROTOCOL: Final = 21
_LOOK_UP: Final = 1


class Rule(NamedTuple):
    """One rule of ours: look a table up, for everything or what comes from one network."""

    family: int
    priority: int
    table: int
    source: Prefix | None = None
    no_default: bool = False  # a default route that is found there does not count


def present(families: Iterable[int]) -> set[Rule]:
    """All rules of ours. OSError with the reason."""
    found: set[Rule] = set()
    with netlink_messages.open_socket(socket.NETLINK_ROUTE) as sock:
        for family in families:
            sock.send(message(_RTM_GETRULE, netlink_messages.DUMP, _HEADER.pack(family, 0, 0, 0, 0, 0, 0)))
            for kind, body in netlink_messages.until_done(sock):
                if kind == _RTM_NEWRULE and (rule := _parsed(body)) is not None:
                    found.add(rule)
    return found


def make_so(wanted: set[Rule], present: set[Rule]) -> None:
    """Have `wanted` in the place of `present`, new ones first. OSError for the first that the kernel refuses."""
    more = [_message(rule, adds=True) for rule in sorted(wanted - present, key=lambda rule: rule.priority)]
    fewer = [_message(rule, adds=False) for rule in present - wanted]
    with netlink_messages.open_socket(socket.NETLINK_ROUTE) as sock:
        for messages, fine in ((more, errno.EEXIST), (fewer, errno.ENOENT)):
            netlink_messages.carry_out(sock, messages, "a rule for routes is refused", {fine})


def _message(rule: Rule, *, adds: bool) -> bytes:
    bits = rule.source.bits if rule.source is not None else 0
    body = _HEADER.pack(rule.family, 0, bits, 0, 0, _LOOK_UP, 0)
    body += number(_PRIORITY, rule.priority) + number(_TABLE, rule.table)
    body += attribute(_PROTOCOL, bytes([PROTOCOL]))
    if rule.source is not None:
        body += attribute(_SOURCE, rule.source.network)
    if rule.no_default:
        body += number(_SUPPRESS_PREFIX_LENGTH, 0)
    flags = netlink_messages.ACK | (netlink_messages.CREATE | netlink_messages.EXCLUSIVE if adds else 0)
    return message(_RTM_NEWRULE if adds else _RTM_DELRULE, flags, body)


def _parsed(body: bytes) -> Rule | None:
    """A rule of ours; None for others."""
    family, _, bits, _, table, action, _ = _HEADER.unpack_from(body)
    values = attributes(body, _HEADER.size)
    if values.get(_PROTOCOL) != bytes([PROTOCOL]) or action != _LOOK_UP or family not in FAMILIES.values():
        return None
    source = values.get(_SOURCE)
    return Rule(
        family,
        number_of(values, _PRIORITY, 0),
        number_of(values, _TABLE, table),
        Prefix(source, bits) if source else None,
        no_default=number_of(values, _SUPPRESS_PREFIX_LENGTH, 0xFFFFFFFF) == 0,
    )
