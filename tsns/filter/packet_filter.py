"""The packet filter: what may leave the tunnel towards the host, by control's rules and by what we sent ourselves (ring 0).

Source: wgengine/filter of Tailscale's module. The verdict on an inbound packet, first line that applies:

    empty (a keep-alive)                                  pass
    cut short, malformed, extension headers               drop
    destination multicast or link-local                   drop   (169.254.169.254, a cloud's metadata, may be a route)
    a later fragment                                      pass   (useless without its first one)
    destination neither ours nor routed by us             drop
    source a service address                              drop   (they are in each namespace itself)
    ICMP echo reply                                       pass
    ICMP error                                            pass where an answer of the flow that it quotes would
    other ICMP                                            by rule, on addresses alone
    TCP but no opening SYN                                pass   (useless without its connection)
    TCP SYN                                               by rule
    UDP, SCTP                                             pass as the answer to a flow of ours, else by rule
    TSMP                                                  pass   (the router takes it out)
    anything else                                         by rule that lists the protocol and all ports

Two lines are ours: Tailscale lets all ICMP errors pass, and leaves it to the host to know its own flows; and where there is an exit node, it
may send from any address.

Outbound all passes but what is malformed, for multicast or link-local addresses, TSMP, or for a service address: those are answered
in the namespace, and an exit node is not to get what misses them.

Nothing passes in either direction before the first `update`. Flows survive updates and have no time-out: only 512 others push one
out. A jailed peer is judged as if shields were up, with flows of its own.
"""

from __future__ import annotations

import enum
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Final

from tsns.filter.addresses import AddressSet, span
from tsns.filter.rules import CapabilityHolders, RuleSet
from tsns.proto.addresses import SERVICE_V4, SERVICE_V6, Prefix, pack
from tsns.proto.packets import (
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    NO_ICMP,
    TCP_ACK,
    TCP_HEADER_BYTES,
    TCP_SYN,
    Fields,
    Protocol,
    RejectReason,
    decode,
    quoted,
)
from tsns.proto.types import FilterRule
from tsns.steps import Steps, finish

MAX_FLOWS: Final = 512
MAX_VERDICTS: Final = 256  # remembered answers of the rules

_METADATA: Final = pack("169.254.169.254")
_SERVICES: Final = frozenset({SERVICE_V4, SERVICE_V6})
_ECHO_REPLY_V4: Final = 0
_ECHO_REPLY_V6: Final = 129
_ERRORS_V4: Final = frozenset({3, 11, 12})  # ICMP: unreachable, time exceeded, parameter problem
_ERRORS_V6: Final = frozenset({1, 2, 3, 4})  # ICMPv6: the same, and packet too big
_SYN_ACK: Final = TCP_SYN | TCP_ACK

# The enum's members as plain numbers: these are compared for every packet.
_TCP: Final = int(Protocol.TCP)
_UDP: Final = int(Protocol.UDP)
_TSMP: Final = int(Protocol.TSMP)
_WITH_FLOWS: Final = frozenset({int(Protocol.UDP), int(Protocol.SCTP)})


class Drop(enum.StrEnum):
    """Why a packet does not pass; the values are for counters and people."""

    NO_NETMAP = "no netmap yet"
    MALFORMED = "malformed"
    MULTICAST = "to a multicast address"
    LINK_LOCAL = "to a link-local address"
    NOT_OURS = "to an address that is not ours"
    FORGED_SERVICE = "from a service address, which is ours alone"
    UNASKED_ERROR = "an ICMP error about no flow of ours"
    NO_RULE = "no rule allows it"
    NO_RULE_TCP_OPEN = "no rule allows this TCP connection"
    SHIELDS_UP = "shields are up"
    SHIELDS_UP_TCP_OPEN = "shields are up against this TCP connection"
    TSMP_FROM_HOST = "TSMP that is not ours"
    SERVICE = "to a service address, which is answered in the namespace"

    @property
    def reject_reason(self) -> RejectReason | None:
        """What to tell the sender of a TCP SYN in a TSMP reject; None where there is nothing to tell. Tailscale tells it on IPv4 only."""
        if self is Drop.NO_RULE_TCP_OPEN or self is Drop.NOT_OURS:
            return RejectReason.ACL
        return RejectReason.SHIELDS_UP if self is Drop.SHIELDS_UP_TCP_OPEN else None


class PacketFilter:
    """One node's filter; it starts as one that drops everything."""

    def __init__(self) -> None:
        self._ready = False
        self._shields_up = True
        self._rules = RuleSet()
        self._compiled: Sequence[FilterRule] = ()  # what that was made of
        self._local = AddressSet(())
        self._verdicts: dict[tuple[int, bytes, bytes, int], bool] = {}
        self._flows = _Flows()
        self._jailed_flows = _Flows()
        # The flow of the packet that passed last: most packets are of the same one, and need not be looked at closely.
        self._passed_out = self._passed_in = b""

    @property
    def rules(self) -> RuleSet:
        """What is in force; its `capabilities` say whose coming and going among the peers makes an `update` due."""
        return self._rules

    def update(
        self,
        rules: Sequence[FilterRule],
        local: Sequence[Prefix],
        *,
        shields_up: bool,
        capability_holders: CapabilityHolders,
        unsigned: Iterable[Prefix] = (),
    ) -> None:
        """Put a netmap's rules in force, all at once: see `updating`."""
        finish(
            self.updating(rules, local, shields_up=shields_up, capability_holders=capability_holders, unsigned=unsigned)
        )

    def updating(
        self,
        rules: Sequence[FilterRule],
        local: Sequence[Prefix],
        *,
        shields_up: bool,
        capability_holders: CapabilityHolders,
        unsigned: Iterable[Prefix] = (),
    ) -> Steps[None]:
        """Put a netmap's rules in force, in steps, at the last of them; until then, those before are. Rules that are the very tuple of
        the last time are not compiled again.

        `local` holds our own addresses and the routes that we advertise; `capability_holders` is asked, at the end and for each
        `cap:NAME` among the sources, for the addresses of the nodes that hold it. `unsigned` are the addresses of peers that
        Tailnet Lock has not vouched for (UnsignedPeerAPIOnly): rules that allow one of them anything are void altogether.
        """
        compiled = self._rules
        if rules is not self._compiled or not isinstance(rules, tuple):
            compiled = RuleSet()
            yield from compiled.compile(rules)
        compiled.look_up(capability_holders, unsigned)
        self._rules, self._compiled = compiled, rules
        self._local = AddressSet(span(prefix) for prefix in local)
        self._shields_up = shields_up
        self._verdicts.clear()
        self._passed_out = self._passed_in = b""
        self._ready = True

    def outbound(self, data: bytes, size: int | None = None, *, jailed: bool = False) -> Drop | None:
        """Judge a packet of the host's; None lets it pass, and the answers to it later. `jailed`: it goes to a jailed peer.

        `data` may be only its first HEAD_BYTES where `size` is given. A verdict on a super-packet is one on each packet in it.
        """
        flow = None if size is None or jailed else _plain_flow(data, size)
        if flow is not None and flow == self._passed_out:
            return None
        drop = self._outbound(data, size, jailed=jailed)
        if drop is None and flow is not None:
            self._passed_out = flow
        return drop

    def _outbound(self, data: bytes, size: int | None, *, jailed: bool) -> Drop | None:
        if not self._ready:
            return Drop.NO_NETMAP
        fields = decode(data, size)
        if fields is None:
            return Drop.MALFORMED
        protocol, source, destination, later_fragment = fields[1], fields[2], fields[3], fields[8]
        drop = _forbidden_destination(destination)
        if drop is not None:
            return drop
        if protocol == _TSMP:
            return Drop.TSMP_FROM_HOST
        if destination in _SERVICES:
            return Drop.SERVICE
        if protocol in _WITH_FLOWS and not later_fragment:
            flows = self._jailed_flows if jailed else self._flows
            flows.remember((protocol, destination, source, fields[5], fields[4]))
        return None

    def inbound(self, data: bytes, size: int | None = None, *, jailed: bool = False) -> Drop | None:
        """Judge a packet out of the tunnel, whose source has been checked against its sender; None lets it pass. See `outbound`."""
        flow = None if size is None or jailed else _plain_flow(data, size)
        if flow is not None and flow == self._passed_in:
            return None
        drop = self._inbound(data, size, jailed=jailed)
        if drop is None and flow is not None:
            self._passed_in = flow
        return drop

    def _inbound(self, data: bytes, size: int | None, *, jailed: bool) -> Drop | None:
        if not self._ready:
            return Drop.NO_NETMAP
        if not data:
            return None
        fields = decode(data, size)
        if fields is None:
            return Drop.MALFORMED
        destination = fields[3]
        drop = _forbidden_destination(destination)
        if drop is not None:
            return drop
        if fields[8]:  # a later fragment
            return None
        if destination not in self._local:
            return Drop.NOT_OURS
        if fields[2] in _SERVICES:
            return Drop.FORGED_SERVICE
        flows, is_shielded = (self._jailed_flows, True) if jailed else (self._flows, self._shields_up)
        if fields[7] in (_ERRORS_V4 if fields[0] == 4 else _ERRORS_V6):
            return None if self._is_about_ours(data, fields, flows, is_shielded) else Drop.UNASKED_ERROR
        if self._needs_no_rule(fields, flows):
            return None
        opens = fields[1] == _TCP
        if is_shielded:
            return Drop.SHIELDS_UP_TCP_OPEN if opens else Drop.SHIELDS_UP
        if self._permitted(fields):
            return None
        return Drop.NO_RULE_TCP_OPEN if opens else Drop.NO_RULE

    def _needs_no_rule(self, fields: Fields, flows: _Flows) -> bool:
        version, protocol, source, destination, source_port, destination_port, tcp_flags, icmp_type = fields[:8]
        if protocol == _TCP:
            return tcp_flags & _SYN_ACK != TCP_SYN
        if protocol in _WITH_FLOWS:
            return flows.recall((protocol, source, destination, source_port, destination_port))
        if icmp_type != NO_ICMP:
            return icmp_type == (_ECHO_REPLY_V4 if version == 4 else _ECHO_REPLY_V6)
        return protocol == _TSMP

    def _is_about_ours(self, data: bytes, fields: Fields, flows: _Flows, is_shielded: bool) -> bool:
        """Whether an ICMP error quotes a packet from where it is sent to, and of a flow whose answers pass."""
        found = quoted(data, fields)
        if found is None:
            return False
        protocol, source, destination, source_port, destination_port = found
        if source != fields[3]:
            return False
        if protocol not in _WITH_FLOWS or source_port is None or destination_port is None:
            return True  # answers of TCP and ICMP always pass, and so do later fragments
        if flows.recall((protocol, destination, source, destination_port, source_port)):
            return True
        return not is_shielded and self._rules.permits(protocol, destination, source, source_port)

    def _permitted(self, fields: Fields) -> bool:
        protocol, source, destination, port = fields[1], fields[2], fields[3], fields[5]
        key = (protocol, source, destination, port)
        verdict = self._verdicts.get(key)
        if verdict is None:
            if protocol == _TCP or protocol in _WITH_FLOWS:
                verdict = self._rules.permits(protocol, source, destination, port)
            elif fields[7] != NO_ICMP:
                verdict = self._rules.permits_any(source, destination)
            else:
                verdict = self._rules.permits_all_ports(protocol, source, destination)
            if len(self._verdicts) >= MAX_VERDICTS:
                self._verdicts.clear()
            self._verdicts[key] = verdict
        return verdict


def _plain_flow(head: bytes, size: int) -> bytes | None:
    """Protocol, addresses and ports, of a packet whose verdict is that of its flow: TCP without SYN and UDP, whole and without any
    options of IP; None for others.
    """
    if len(head) < IPV4_HEADER_BYTES + TCP_HEADER_BYTES:
        return None
    if head[0] == 0x45:
        if head[2] << 8 | head[3] == size and not head[6] & 0x3F and not head[7]:
            protocol = head[9]
            if protocol == _UDP or (protocol == _TCP and not head[33] & TCP_SYN):
                return head[9:10] + head[12:24]
    elif len(head) < IPV6_HEADER_BYTES + TCP_HEADER_BYTES:
        return None
    elif head[0] >> 4 == 6 and IPV6_HEADER_BYTES + (head[4] << 8 | head[5]) == size:
        protocol = head[6]
        if protocol == _UDP or (protocol == _TCP and not head[53] & TCP_SYN):
            return head[6:7] + head[8:44]
    return None


def _forbidden_destination(destination: bytes) -> Drop | None:
    first = destination[0]
    if len(destination) == 4:
        if 224 <= first < 240:
            return Drop.MULTICAST
        if first == 169 and destination[1] == 254 and destination != _METADATA:
            return Drop.LINK_LOCAL
    elif first == 0xFF:
        return Drop.MULTICAST
    elif first == 0xFE and destination[1] & 0xC0 == 0x80:
        return Drop.LINK_LOCAL
    return None


_Flow = tuple[int, bytes, bytes, int, int]  # protocol, source, destination, ports: as an answer would have them


class _Flows:
    """The latest flows that we began or answered, as their answers look; the one unused for longest goes first."""

    __slots__ = ("_known", "_latest")

    def __init__(self) -> None:
        self._known: OrderedDict[_Flow, None] = OrderedDict()
        self._latest: _Flow | None = None

    def remember(self, flow: _Flow) -> None:
        if flow == self._latest:
            return
        self._known[flow] = None
        self._known.move_to_end(flow)
        if len(self._known) > MAX_FLOWS:
            self._known.popitem(last=False)
        self._latest = flow

    def recall(self, flow: _Flow) -> bool:
        if flow == self._latest:
            return True
        if flow not in self._known:
            return False
        self._known.move_to_end(flow)
        self._latest = flow
        return True
