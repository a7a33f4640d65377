"""Two routers and what passes between them: paths, filters, TSMP, and datagrams that are not WireGuard's."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.wg.shuttle import (
    A_ADDRESS,
    A_ADDRESS6,
    A_TO_B,
    B_ADDRESS,
    B_ADDRESS6,
    B_TO_A,
    entropy,
    udp,
)
from tsns.disco.messages import MAGIC as DISCO_MAGIC
from tsns.filter.opening import refusal_text
from tsns.filter.packet_filter import Drop as FilterDrop
from tsns.filter.packet_filter import PacketFilter as RealFilter
from tsns.keys import DiscoPrivate, NodePrivate, NodePublic
from tsns.paths.peer_paths import DISCO_STRANGER, Reach
from tsns.proto.addresses import Prefix
from tsns.proto.packets import TCP_ACK, TCP_RST, RejectReason, build, parse, tsmp_disco_key, tsmp_reject
from tsns.proto.types import FilterRule
from tsns.proto.virtio import frame_of
from tsns.ways import DerpPath, SendDerp, SendUdp, Train, UdpPath
from tsns.wg.device import Device, SessionUp
from tsns.wg.drops import Drop
from tsns.wg.masquerade import Masquerade
from tsns.wg.router import (
    FILTERED_IN,
    FILTERED_OUT,
    NO_PATH,
    OWN_DISCO,
    TSMP_UNKNOWN,
    Output,
    PacketFilter,
    Pong,
    Rejected,
    Router,
    StunReply,
    WriteTun,
)

STRANGER = ("198.51.100.1", 4242)
TOKEN = b"8 bytes!"
STUN_INDICATION = bytes.fromhex("001100142112a442") + bytes(32)
STUN_RESPONSE = bytes.fromhex("0101000c2112a442") + bytes(24)


def syn(source: bytes, destination: bytes, port: int = 80) -> bytes:
    """The first packet of a TCP connection."""
    return build(6, source, destination, struct.pack(">HHIIBBHHH", 40_000, port, 1, 0, 0x50, 0x02, 1000, 0, 0))


class OpenFilter:
    """Lets everything pass but what it is told to refuse."""

    def __init__(self) -> None:
        self.refused_in: set[bytes] = set()
        self.refused_out: set[bytes] = set()
        self.judged_jailed: list[tuple[str, bool]] = []

    def inbound(self, data: bytes, size: int, *, jailed: bool) -> FilterDrop | None:
        self.judged_jailed.append(("in", jailed))
        return FilterDrop.NO_RULE if data in self.refused_in else None

    def outbound(self, data: bytes, size: int, *, jailed: bool) -> FilterDrop | None:
        self.judged_jailed.append(("out", jailed))
        return FilterDrop.MALFORMED if data in self.refused_out else None


class Node:
    """A router with a name, a key, an address, and what its host got."""

    def __init__(self, seed: int, packet_filter: PacketFilter) -> None:
        self.key = NodePrivate.generate(entropy(seed)(32))
        self.address = (f"192.0.2.{seed}", 41641)
        self.device = Device(self.key, entropy(10 + seed), wall_clock=lambda: 1_700_000_000.0)
        self.router = Router(self.device, packet_filter, DiscoPrivate.generate(entropy(20 + seed)(32)))
        self.written: list[bytes] = []
        self.events: list[Output] = []
        self.sent: list[Output] = []


class Pair:
    """Two nodes; datagrams arrive at once, by UDP from their address and by DERP with their key."""

    def __init__(self, a_filter: PacketFilter | None = None, b_filter: PacketFilter | None = None) -> None:
        self.a, self.b = Node(1, a_filter or OpenFilter()), Node(2, b_filter or OpenFilter())
        self.a.device.set_peer(self.b.key.public, [Prefix(B_ADDRESS, 32), Prefix(B_ADDRESS6, 128)])
        self.b.device.set_peer(self.a.key.public, [Prefix(A_ADDRESS, 32), Prefix(A_ADDRESS6, 128)])
        self.a.router.set_path(self.b.key.public, DerpPath(7))
        self.b.router.set_path(self.a.key.public, DerpPath(7))
        self.now = 0.0

    def do(self, node: Node, outputs: Iterable[Output]) -> None:
        other = self.b if node is self.a else self.a
        for output in outputs:
            match output:
                case WriteTun():
                    node.written += output.packets
                case SendDerp(region, peer):
                    assert peer == other.key.public
                    node.sent.append(output)
                    frames = [(node.key.public, datagram) for datagram in output.datagrams]
                    self.do(other, other.router.inbound_derp(region, frames, self.now))
                case SendUdp(address, trains):
                    assert address == other.address
                    node.sent.append(output)
                    self.do(other, other.router.inbound_udp([(train, node.address) for train in trains], self.now))
                case _:
                    node.events.append(output)

    def send(self, node: Node, *packets: bytes) -> None:
        self.do(node, node.router.outbound(map(frame_of, packets), self.now))

    def ping(self) -> None:
        self.do(self.a, self.a.router.ping(self.b.key.public, A_ADDRESS, B_ADDRESS, TOKEN, self.now))


def test_by_relay_both_ways() -> None:
    pair = Pair()
    pair.send(pair.a, A_TO_B)
    pair.send(pair.b, B_TO_A, B_TO_A)
    assert pair.b.written == [A_TO_B]
    assert pair.a.written == [B_TO_A, B_TO_A]
    assert {(output.region, output.peer) for output in pair.a.sent if isinstance(output, SendDerp)} == {
        (7, pair.b.key.public)
    }
    assert pair.a.events == [SessionUp(pair.b.key.public)]
    assert pair.b.events == [SessionUp(pair.a.key.public)]


def test_a_greeting_is_a_session_and_nothing_more() -> None:
    pair = Pair()
    pair.do(pair.a, pair.a.router.greet(pair.b.key.public, pair.now))
    assert pair.a.events == [SessionUp(pair.b.key.public)]
    assert pair.b.events == [SessionUp(pair.a.key.public)]
    assert (pair.a.written, pair.b.written) == ([], [])
    pair.do(pair.a, pair.a.router.greet(NodePrivate.generate(entropy(9)(32)).public, pair.now))
    assert pair.a.router.counters[Drop.NO_PEER] == 1


def test_each_way_has_a_path_of_its_own() -> None:
    pair = Pair()
    pair.a.router.set_path(pair.b.key.public, UdpPath(pair.b.address))
    assert pair.a.router.path(pair.b.key.public) == UdpPath(pair.b.address)
    pair.send(pair.a, A_TO_B)
    pair.send(pair.b, B_TO_A)
    assert (pair.a.written, pair.b.written) == ([B_TO_A], [A_TO_B])
    assert all(isinstance(output, SendUdp) for output in pair.a.sent)
    assert all(isinstance(output, SendDerp) for output in pair.b.sent)  # whatever came by UDP


def test_without_a_path_packets_are_counted_and_found_later() -> None:
    pair = Pair()
    pair.a.router.set_path(pair.b.key.public, None)
    pair.send(pair.a, A_TO_B)
    assert pair.a.sent == []
    assert pair.a.router.counters[NO_PATH] == 1
    pair.a.router.set_path(pair.b.key.public, DerpPath(7))
    deadline = pair.a.router.deadline()
    assert deadline is not None
    pair.now = deadline
    pair.do(pair.a, pair.a.router.tick(deadline))
    assert pair.b.written == [A_TO_B]


def test_the_filter_judges_both_ways() -> None:
    a_filter, b_filter = OpenFilter(), OpenFilter()
    pair = Pair(a_filter, b_filter)
    refused_out, refused_in = udp(A_ADDRESS, B_ADDRESS, b"no!"), udp(A_ADDRESS, B_ADDRESS, b"not you")
    a_filter.refused_out.add(refused_out)
    b_filter.refused_in.add(refused_in)
    pair.send(pair.a, refused_out, A_TO_B, refused_in)
    assert pair.b.written == [A_TO_B]
    assert pair.a.router.counters[f"{FILTERED_OUT}{FilterDrop.MALFORMED}"] == 1
    assert pair.b.router.counters[f"{FILTERED_IN}{FilterDrop.NO_RULE}"] == 1


def test_nothing_passes_before_the_first_rules() -> None:
    pair = Pair(None, RealFilter())
    pair.send(pair.a, A_TO_B)
    pair.ping()
    pair.send(pair.b, B_TO_A)
    assert pair.b.written == pair.a.written == []
    assert not [event for event in pair.a.events if isinstance(event, Pong)]


def with_rules(*local: bytes) -> RealFilter:
    real = RealFilter()
    real.update(
        list[FilterRule](),
        [Prefix(each, 8 * len(each)) for each in local],
        shields_up=False,
        capability_holders=lambda name: [],
    )
    return real


def test_a_refused_connection_is_told_to_who_began_it() -> None:
    """The engine hears of it, and so does the program: from the other end, as it seems to it."""
    pair = Pair(with_rules(A_ADDRESS), with_rules(B_ADDRESS, B_ADDRESS6))
    pair.send(pair.a, syn(A_ADDRESS, B_ADDRESS))
    [rejected] = [event for event in pair.a.events if isinstance(event, Rejected)]
    assert rejected.peer == pair.b.key.public
    reject = rejected.reject
    assert (reject.source, reject.destination, reject.destination_port) == (A_ADDRESS, B_ADDRESS, 80)
    assert reject.reason == RejectReason.ACL
    assert pair.b.written == []
    [reset] = map(parse, pair.a.written)
    assert reset is not None
    assert (reset.source, reset.source_port, reset.destination) == (B_ADDRESS, 80, A_ADDRESS)
    assert reset.tcp_flags == TCP_RST | TCP_ACK
    assert pair.a.router.counters[refusal_text(RejectReason.ACL)] == 1
    pair.a.events.clear()
    pair.send(pair.a, syn(A_ADDRESS6, B_ADDRESS6))  # Tailscale tells it on IPv4 only
    assert pair.a.events == []
    assert len(pair.a.written) == 1


def test_a_connection_to_what_is_not_routed_here_any_more_is_refused_too() -> None:
    pair = Pair(with_rules(A_ADDRESS), with_rules(B_ADDRESS6))
    pair.send(pair.a, syn(A_ADDRESS, B_ADDRESS), A_TO_B)
    [rejected] = [event for event in pair.a.events if isinstance(event, Rejected)]
    assert rejected.reject.reason == RejectReason.ACL
    assert pair.b.router.counters[f"{FILTERED_IN}{FilterDrop.NOT_OURS}"] == 2


def test_a_refusal_of_what_nobody_asked_for_reaches_no_program() -> None:
    pair = Pair()
    stands = parse(build(6, B_ADDRESS, A_ADDRESS, syn(B_ADDRESS, A_ADDRESS)[20:]))
    assert stands is not None
    pair.do(pair.a, send_to(pair, tsmp_reject(stands, RejectReason.ACL)))
    assert [type(event) for event in pair.b.events] == [SessionUp, Rejected]
    assert pair.b.written == []


@pytest.mark.parametrize(("source", "destination"), [(A_ADDRESS, B_ADDRESS), (A_ADDRESS6, B_ADDRESS6)])
def test_our_own_search_for_paths_never_goes_through_the_tunnel(source: bytes, destination: bytes) -> None:
    pair = Pair()
    ours, theirs = (
        udp(source, destination, DISCO_MAGIC + DiscoPrivate.generate(entropy(seed)(32)).public.raw + bytes(60))
        for seed in (21, 22)
    )
    pair.send(pair.a, ours, theirs)
    assert pair.a.router.counters[f"{FILTERED_OUT}{OWN_DISCO}"] == 1
    assert pair.b.router.counters[f"{FILTERED_IN}{OWN_DISCO}"] == 1
    assert pair.b.written == []


def test_a_ping_is_answered_below_the_host() -> None:
    pair = Pair(with_rules(A_ADDRESS), with_rules(B_ADDRESS))
    pair.ping()
    assert pair.a.events == [SessionUp(pair.b.key.public), Pong(pair.b.key.public, TOKEN)]
    assert pair.a.written == pair.b.written == []


def test_tsmp_never_reaches_the_host() -> None:
    pair = Pair()
    garbage = build(99, A_ADDRESS, B_ADDRESS, b"?nothing")
    key = tsmp_disco_key(A_ADDRESS, B_ADDRESS, b"\x07" * 32)
    pair.do(pair.a, send_to(pair, garbage, key))
    assert pair.b.written == []
    assert pair.b.router.counters[TSMP_UNKNOWN] == 1


def send_to(pair: Pair, *packets: bytes) -> list[Output]:
    """Send from a to b below a's filter."""
    out: list[Output] = []
    pair.a.router._route(pair.a.device.send_to(pair.b.key.public, packets, pair.now), pair.now, out)
    return out


def test_jailed_peers_are_judged_as_such() -> None:
    packet_filter = OpenFilter()
    pair = Pair(packet_filter)
    pair.send(pair.a, A_TO_B)
    pair.a.router.set_jailed(pair.b.key.public, True)
    pair.send(pair.a, A_TO_B)
    pair.send(pair.b, B_TO_A)
    pair.a.router.set_jailed(pair.b.key.public, False)
    pair.send(pair.b, B_TO_A)
    assert packet_filter.judged_jailed == [("out", False), ("out", True), ("in", True), ("in", False)]


def test_what_is_not_wireguard_is_told_apart() -> None:
    pair = Pair()
    disco = DISCO_MAGIC + bytes(60)
    outputs = pair.a.router.inbound_udp(
        [(Train.of(each), STRANGER) for each in (STUN_RESPONSE, disco, STUN_INDICATION)], 0.0
    )
    assert outputs == [StunReply(STUN_RESPONSE, STRANGER)]
    assert pair.a.router.counters.snapshot() == {DISCO_STRANGER: 1, Drop.MALFORMED: 1}
    frames = [(pair.b.key.public, disco), (pair.b.key.public, STUN_RESPONSE)]
    assert pair.a.router.inbound_derp(7, frames, 0.0) == []  # a relay carries no STUN
    assert pair.a.router.counters.snapshot() == {DISCO_STRANGER: 2, Drop.MALFORMED: 2}


def test_what_stands_between_does_not_change_the_order() -> None:
    pair = Pair()
    pair.send(pair.a, A_TO_B)
    packets = [udp(A_ADDRESS, B_ADDRESS, bytes((number,))) for number in range(4)]
    [sent] = pair.a.router.outbound(map(frame_of, packets), 0.0)
    assert isinstance(sent, SendDerp)
    mixed = [
        (datagram, address)
        for datagram, address in zip(sent.datagrams, [STRANGER, STRANGER, pair.a.address, STRANGER], strict=True)
    ]
    mixed[1:1] = [(DISCO_MAGIC + bytes(60), STRANGER), (STUN_RESPONSE, STRANGER), (b"", STRANGER)]
    pair.do(pair.b, pair.b.router.inbound_udp([(Train.of(each), address) for each, address in mixed], 0.0))
    assert pair.b.written == [A_TO_B, *packets]


def test_what_comes_amid_a_train_is_judged_as_if_it_came_alone() -> None:
    pair = Pair()
    pair.send(pair.a, A_TO_B)
    [sent] = pair.a.router.outbound([frame_of(A_TO_B)], 0.0)
    assert isinstance(sent, SendDerp)
    [message] = sent.datagrams
    size = len(message)
    others = [each.ljust(size, b"\0")[:size] for each in (STUN_RESPONSE, STUN_INDICATION, DISCO_MAGIC)]
    train = Train(message + b"".join(others), size)
    pair.do(pair.b, pair.b.router.inbound_udp([(train, STRANGER)], 0.0))
    assert pair.b.written == [A_TO_B, A_TO_B]
    assert [event for event in pair.b.events if isinstance(event, StunReply)] == [StunReply(others[0], STRANGER)]
    assert pair.b.router.counters.snapshot() == {DISCO_STRANGER: 1, Drop.MALFORMED: 1}


def test_a_cookie_goes_back_to_where_the_message_came_from() -> None:
    pair = Pair()
    pair.a.router.set_path(pair.b.key.public, UdpPath(pair.b.address))
    [initiation] = pair.a.router.outbound([frame_of(A_TO_B)], 0.0)
    assert isinstance(initiation, SendUdp)
    [message] = initiation.datagrams
    pair.b.router.inbound_udp([(Train.of(message), STRANGER)] * 127, 0.0)
    [reply] = pair.b.router.inbound_udp([(Train.of(message), STRANGER)], 0.0)
    assert isinstance(reply, SendUdp)
    assert reply.address == STRANGER
    assert pair.b.router.counters[Drop.UNDER_LOAD] == 1
    pair.b.device._admission._loads[True]._loaded_until = 1.0
    [reply] = pair.b.router.inbound_derp(3, [(pair.a.key.public, message)], 0.0)
    assert isinstance(reply, SendDerp)
    assert (reply.region, reply.peer) == (3, pair.a.key.public)


def test_a_relay_is_not_believed_about_senders() -> None:
    pair = Pair()
    pair.send(pair.a, A_TO_B)
    [sent] = pair.a.router.outbound([frame_of(A_TO_B)], 0.0)
    assert isinstance(sent, SendDerp)
    liar = NodePublic(b"\x09" * 32)
    pair.do(
        pair.b,
        pair.b.router.inbound_derp(7, [(liar, sent.datagrams[0]), (pair.a.key.public, b"\4\0\0\0" + bytes(40))], 0.0),
    )
    assert pair.b.written == [A_TO_B, A_TO_B]  # it is a's packet, whoever brings it
    assert pair.b.router.counters[Drop.UNKNOWN_INDEX] == 1


@pytest.mark.parametrize("way", ["udp", "derp"])
@given(data=st.lists(st.binary(max_size=100) | st.binary(max_size=60).map(lambda rest: DISCO_MAGIC + rest), max_size=4))
def test_no_bytes_of_a_stranger_raise(way: str, data: list[bytes]) -> None:
    pair = Pair(RealFilter())
    if way == "udp":
        pair.a.router.inbound_udp([(Train.of(each), STRANGER) for each in data], 0.0)
    else:
        pair.a.router.inbound_derp(1, [(pair.b.key.public, each) for each in data], 0.0)
    pair.a.router.outbound(map(frame_of, data), 0.0)
    assert pair.a.written == []


def test_a_peer_that_speaks_wireguard_only_is_told_nothing_by_tsmp() -> None:
    """Its system would answer that it does not know the protocol."""
    opening = syn(A_ADDRESS, B_ADDRESS)
    for plain in (False, True):
        pair = Pair(b_filter=RealFilter())
        assert isinstance(pair.b.router._filter, RealFilter)
        pair.b.router._filter.update([], [Prefix(B_ADDRESS, 32)], shields_up=False, capability_holders=lambda _: ())
        pair.b.router.paths.set_peer(pair.a.key.public, Reach(None, [], None if plain else 7, plain=plain), pair.now)
        pair.b.router.set_path(pair.a.key.public, DerpPath(7))
        pair.send(pair.a, opening)
        pair.ping()
        assert (pair.a.events == [SessionUp(pair.b.key.public)]) == plain, pair.a.events


def test_who_knows_us_by_another_address_reaches_us_and_is_answered_by_it() -> None:
    """The filter judges what the host sees: flows of ours, and rules for our own addresses."""
    worn = bytes((100, 101, 102, 103))
    pair = Pair(a_filter=RealFilter())
    assert isinstance(pair.a.router._filter, RealFilter)
    pair.a.router._filter.update([], [Prefix(A_ADDRESS, 32)], shields_up=False, capability_holders=lambda _: ())
    pair.b.device.set_peer(pair.a.key.public, [Prefix(worn, 32)])
    pair.a.device.set_masquerade(pair.b.key.public, Masquerade([(A_ADDRESS, worn)]))
    pair.send(pair.a, udp(A_ADDRESS, B_ADDRESS))
    assert pair.b.written == [udp(worn, B_ADDRESS)]
    answer = bytes.fromhex("2000 1000 000d 0000") + b"hello"
    pair.send(pair.b, build(17, B_ADDRESS, worn, answer))
    assert pair.a.written == [build(17, B_ADDRESS, A_ADDRESS, answer)]
    pair.a.device.set_masquerade(pair.b.key.public, None)
    pair.send(pair.a, udp(A_ADDRESS, B_ADDRESS))
    assert len(pair.b.written) == 1, "the peer knows nobody by our own address"
