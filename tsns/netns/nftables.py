"""nf_tables by hand: tables, chains and rules, changed all at once or not at all (ring 1, standard library only).

Source: linux/netfilter/nf_tables.h, nfnetlink.h. pyroute2 can do it too, but one change at a time; here a table takes another's place without a
moment in which neither is there.

    transact(new_table(INET, "t"), chain(INET, "t", "output", OUTPUT, policy=DROP), rule(INET, "t", "output", out_by("lo"), verdict(ACCEPT)))
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from typing import Final

from tsns.netns import netlink_messages
from tsns.netns.netlink_messages import attribute, message, nested, parts

NETLINK_NETFILTER: Final = 12
INET: Final = 1  # families
IPV4: Final = 2
NETDEV: Final = 5
INPUT: Final = 1  # hooks
FORWARD: Final = 2
OUTPUT: Final = 3
POSTROUTING: Final = 4
EGRESS: Final = 1  # of NETDEV: whatever leaves by a device (Linux 5.16)
DROP: Final = 0
ACCEPT: Final = 1
DNAT_PRIORITY: Final = -100
SNAT_PRIORITY: Final = 100
RELATED_AND_ESTABLISHED: Final = 2 | 4
MISSING: Final = "the kernel lacks nf_tables, or a part of it"

_NOT_THERE: Final = frozenset(
    {errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EINVAL}
)  # said by a kernel without any of it
_SUBSYSTEM: Final = 10
_BEGIN: Final = 0x10
_END: Final = 0x11
_NEWTABLE: Final = 0
_GETTABLE: Final = 1
_DELTABLE: Final = 2
_NEWCHAIN: Final = 3
_GETCHAIN: Final = 4
_NEWRULE: Final = 6
_GENMSG: Final = struct.Struct(">BBH")  # family, version, resource
_U32: Final = struct.Struct(">I")
_S32: Final = struct.Struct(">i")
_TABLE_NAME: Final = 1
_CHAIN_TABLE: Final = 1
_CHAIN_NAME: Final = 3
_CHAIN_HOOK: Final = 4
_CHAIN_POLICY: Final = 5
_CHAIN_TYPE: Final = 7
_HOOK_NUMBER: Final = 1
_HOOK_PRIORITY: Final = 2
_HOOK_DEVICE: Final = 3
_RULE_TABLE: Final = 1
_RULE_CHAIN: Final = 2
_RULE_EXPRESSIONS: Final = 4
_LIST_ELEMENT: Final = 1
_EXPRESSION_NAME: Final = 1
_EXPRESSION_DATA: Final = 2
_DATA_VALUE: Final = 1
_DATA_VERDICT: Final = 2
_VERDICT_CODE: Final = 1
_REGISTER_VERDICT: Final = 0
_REGISTER: Final = 1
_SECOND_REGISTER: Final = 2
_META_MARK: Final = 3
_META_INPUT_NAME: Final = 6
_META_OUTPUT_NAME: Final = 7
_META_PROTOCOL: Final = 16
_CT_STATE: Final = 0
_NETWORK_HEADER: Final = 1
_TRANSPORT_HEADER: Final = 2
_IPV4_DESTINATION_AT: Final = 16
_PORT_DESTINATION_AT: Final = 2
_NAT_DESTINATION: Final = 1
_INTERFACE_NAME_BYTES: Final = 16

Change = tuple[int, int, int, bytes]  # type, flags, family, attributes
Expressions = bytes


def transact(*changes: Change) -> None:
    """Make all of these changes in the caller's network namespace, or none. OSError with the reason."""
    batch = [message(_BEGIN, 0, _GENMSG.pack(0, 0, _SUBSYSTEM))]
    for kind, flags, family, attributes in changes:
        body = _GENMSG.pack(family, 0, 0) + attributes
        batch.append(message(_SUBSYSTEM << 8 | kind, netlink_messages.ACK | flags, body))
    batch.append(message(_END, 0, _GENMSG.pack(0, 0, _SUBSYSTEM)))
    with netlink_messages.open_socket(NETLINK_NETFILTER) as sock:
        sock.send(b"".join(batch))
        answers = 0
        while answers < len(changes):
            for kind, body in parts(sock.recv(netlink_messages.READ_BYTES)):
                if kind == netlink_messages.ERROR:
                    answers += 1
                    code = netlink_messages.errno_of(body)
                    if code:
                        raise OSError(code, f"nf_tables: {os.strerror(code)}")


def tables() -> set[tuple[int, str]]:
    """The tables that there are, by family and name: none on a kernel that cannot have any."""
    return {(family, _name(values, _TABLE_NAME)) for family, values in _all(_GETTABLE, 0)}


def chains(family: int, of: str) -> set[str]:
    """The chains of a table; none where there is no such table."""
    return {_name(values, _CHAIN_NAME) for _, values in _all(_GETCHAIN, family) if _name(values, _CHAIN_TABLE) == of}


def _all(kind: int, family: int) -> list[tuple[int, dict[int, bytes]]]:
    found = []
    try:
        with netlink_messages.open_socket(NETLINK_NETFILTER) as sock:
            sock.send(message(_SUBSYSTEM << 8 | kind, netlink_messages.DUMP, _GENMSG.pack(family, 0, 0)))
            for _, body in netlink_messages.until_done(sock):
                found.append((body[0], netlink_messages.attributes(body, _GENMSG.size)))
    except OSError as error:
        if error.errno not in _NOT_THERE:
            raise
    return found


def _name(values: dict[int, bytes], kind: int) -> str:
    return values.get(kind, b"").rstrip(b"\0").decode(errors="replace")


# --- changes ------------------------------------------------------------------------------------------------------------


def table(family: int, name: str) -> Change:
    """See to it that there is this table."""
    return _NEWTABLE, netlink_messages.CREATE, family, _text(_TABLE_NAME, name)


def no_table(family: int, name: str) -> tuple[Change, Change]:
    """See to it that there is none of this name."""
    return table(family, name), (_DELTABLE, 0, family, _text(_TABLE_NAME, name))


def new_table(family: int, name: str) -> tuple[Change, Change, Change]:
    """An empty table, in the place of any other of this name."""
    return *no_table(family, name), table(family, name)


def chain(
    family: int,
    of: str,
    name: str,
    hook: int,
    *,
    device: str = "",
    policy: int = ACCEPT,
    kind: str = "filter",
    priority: int = 0,
) -> Change:
    """A chain that packets go through at this hook; in NETDEV that of a device, with which it goes."""
    where = [_number(_HOOK_NUMBER, hook), attribute(_HOOK_PRIORITY, _S32.pack(priority))]
    if device:
        where.append(_text(_HOOK_DEVICE, device))
    attributes = (
        _text(_CHAIN_TABLE, of)
        + _text(_CHAIN_NAME, name)
        + nested(_CHAIN_HOOK, *where)
        + _number(_CHAIN_POLICY, policy)
        + _text(_CHAIN_TYPE, kind)
    )
    return _NEWCHAIN, netlink_messages.CREATE, family, attributes


def rule(family: int, of: str, chain_name: str, *expressions: Expressions) -> Change:
    """A rule behind the chain's others."""
    attributes = (
        _text(_RULE_TABLE, of) + _text(_RULE_CHAIN, chain_name) + nested(_RULE_EXPRESSIONS, b"".join(expressions))
    )
    return _NEWRULE, netlink_messages.CREATE | netlink_messages.APPEND, family, attributes


# --- what rules are made of -----------------------------------------------------------------------------------------------


def came_by(device: str) -> Expressions:
    """What has come by this device."""
    return _meta(_META_INPUT_NAME) + _compare(_device(device))


def goes_by(device: str, *, equal: bool = True) -> Expressions:
    """What goes out by this device, or by any other."""
    return _meta(_META_OUTPUT_NAME) + _compare(_device(device), equal=equal)


def marked(mark: int, *, equal: bool = True) -> Expressions:
    """What has this mark, or has not."""
    return _meta(_META_MARK) + _compare(struct.pack("=I", mark), equal=equal)


def set_mark(mark: int) -> Expressions:
    """Give it a mark."""
    source = _number(3, _REGISTER)
    return _immediate(_REGISTER, struct.pack("=I", mark)) + _expression("meta", _number(2, _META_MARK), source)


def to_address(packed: bytes) -> Expressions:
    """What goes to this IPv4 address."""
    return _payload(_NETWORK_HEADER, _IPV4_DESTINATION_AT, len(packed)) + _compare(packed)


def to_port(protocol: int, port: int) -> Expressions:
    """What goes to this port by TCP or UDP."""
    return (
        _meta(_META_PROTOCOL)
        + _compare(bytes([protocol]))
        + _payload(_TRANSPORT_HEADER, _PORT_DESTINATION_AT, 2)
        + _compare(port.to_bytes(2, "big"))
    )


def answers() -> Expressions:
    """What belongs to a flow that has been let through."""
    nothing = bytes(4)
    mask = struct.pack("=I", RELATED_AND_ESTABLISHED)
    return (
        _expression("ct", _number(1, _REGISTER), _number(2, _CT_STATE))
        + _expression(
            "bitwise",
            _number(1, _REGISTER),
            _number(2, _REGISTER),
            _number(3, len(mask)),
            nested(4, attribute(_DATA_VALUE, mask)),
            nested(5, attribute(_DATA_VALUE, nothing)),
        )
        + _compare(nothing, equal=False)
    )


def verdict(code: int) -> Expressions:
    """Let it pass, or drop it."""
    data = nested(2, nested(_DATA_VERDICT, _number(_VERDICT_CODE, code)))
    return _expression("immediate", _number(1, _REGISTER_VERDICT), data)


def masquerade() -> Expressions:
    """Give it this namespace's own address as the source."""
    return _expression("masq")


def send_to(address: bytes, port: int) -> Expressions:
    """Have it go to this IPv4 address and port instead."""
    return (
        _immediate(_REGISTER, address)
        + _immediate(_SECOND_REGISTER, port.to_bytes(2, "big"))
        + _expression(
            "nat",
            _number(1, _NAT_DESTINATION),
            _number(2, socket.AF_INET),
            _number(3, _REGISTER),
            _number(5, _SECOND_REGISTER),
        )
    )


def _text(kind: int, text: str) -> bytes:
    return attribute(kind, text.encode() + b"\0")


def _number(kind: int, value: int) -> bytes:
    return attribute(kind, _U32.pack(value))


def _expression(name: str, *data: bytes) -> Expressions:
    return nested(_LIST_ELEMENT, _text(_EXPRESSION_NAME, name), nested(_EXPRESSION_DATA, *data))


def _meta(key: int) -> Expressions:
    return _expression("meta", _number(1, _REGISTER), _number(2, key))


def _payload(base: int, offset: int, length: int) -> Expressions:
    return _expression("payload", _number(1, _REGISTER), _number(2, base), _number(3, offset), _number(4, length))


def _compare(data: bytes, *, equal: bool = True) -> Expressions:
    operator = _number(2, 0 if equal else 1)
    return _expression("cmp", _number(1, _REGISTER), operator, nested(3, attribute(_DATA_VALUE, data)))


def _immediate(register: int, value: bytes) -> Expressions:
    return _expression("immediate", _number(1, register), nested(2, attribute(_DATA_VALUE, value)))


def _device(name: str) -> bytes:
    return name.encode().ljust(_INTERFACE_NAME_BYTES, b"\0")
