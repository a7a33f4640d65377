"""Several namespaces behind one address: whose a packet is."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.counters import Counters
from tsns.proto.addresses import pack
from tsns.proto.packets import Protocol, build, echo_reply, echo_request
from tsns.proto.virtio import frame_of
from tsns.wg import sharing
from tsns.wg.sharing import OWN, Ask, Put, Sharing, slices

WEB, DB = 1, 2
US, THEM, OTHERS = "100.64.0.1", "100.64.0.2", "100.64.0.3"
US_6, THEM_6 = "fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2"
NOW = 1000.0
SYN, ACK = 2, 16


def tcp(source: str, source_port: int, destination: str, destination_port: int, flags: int = SYN) -> bytes:
    segment = struct.pack(">HHIIBBHHH", source_port, destination_port, 0, 0, 5 << 4, flags, 0, 0, 0)
    return build(Protocol.TCP, pack(source), pack(destination), segment)


def udp(source: str, source_port: int, destination: str, destination_port: int, payload: bytes = b"") -> bytes:
    datagram = struct.pack(">HHHH", source_port, destination_port, 8 + len(payload), 0) + payload
    return build(Protocol.UDP, pack(source), pack(destination), datagram)


def unreachable(packet: bytes) -> bytes:
    """What a router says of a packet of ours."""
    if packet[0] >> 4 == 4:
        return build(Protocol.ICMP, pack(OTHERS), packet[12:16], b"\x03\x01\0\0\0\0\0\0" + packet[:28])
    return build(Protocol.ICMPV6, pack(THEM_6), packet[8:24], b"\x01\0\0\0\0\0\0\0" + packet)


class Node:
    """Two containers with a slice of the ports each, beside the node's own namespace."""

    def __init__(self) -> None:
        self.counters = Counters()
        self.sharing = Sharing(self.counters)
        self.sharing.add(OWN, range(32768, 40000))
        self.sharing.add(WEB, range(40000, 50000))
        self.sharing.add(DB, range(50000, 60000))

    def sends(self, place: int, packet: bytes) -> bool:
        return self.sharing.send(place, frame_of(packet))

    def gets(self, *packets: bytes, now: float = NOW) -> list[object]:
        """Where they go: numbers of places, questions, or nothing for what waits."""
        out = self.sharing.receive([frame_of(packet) for packet in packets], now)
        return [output.place if isinstance(output, Put) else output for output in out]


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.mark.parametrize("place", [OWN, WEB, DB])
@pytest.mark.parametrize(
    ("out", "back"),
    [
        (tcp(US, 1234, THEM, 80), tcp(THEM, 80, US, 1234, SYN | ACK)),
        (udp(US, 1234, THEM, 53), udp(THEM, 53, US, 1234)),
        (udp(US_6, 1234, THEM_6, 53), udp(THEM_6, 53, US_6, 1234)),
        (echo_request(pack(US), pack(THEM), 77, 1), echo_reply(pack(THEM), pack(US), 77, 1)),
        (echo_request(pack(US_6), pack(THEM_6), 77, 1), echo_reply(pack(THEM_6), pack(US_6), 77, 1)),
        (udp(US, 1234, THEM, 53), unreachable(udp(US, 1234, THEM, 53))),
        (udp(US_6, 1234, THEM_6, 53), unreachable(udp(US_6, 1234, THEM_6, 53))),
        (echo_request(pack(US), pack(THEM), 77, 1), unreachable(echo_request(pack(US), pack(THEM), 77, 1))),
    ],
    ids=["tcp", "udp", "udp6", "ping", "ping6", "error", "error6", "error of a ping"],
)
def test_an_answer_goes_to_who_asked(node: Node, place: int, out: bytes, back: bytes) -> None:
    assert node.sends(place, out)
    assert node.gets(back) == [place]


@pytest.mark.parametrize(("port", "place"), [(45000, WEB), (55000, DB), (33000, OWN)])
def test_without_a_flow_the_slice_says_whose_port_it_is_where_nobody_listens(node: Node, port: int, place: int) -> None:
    late = udp(THEM, 53, US, port)
    assert node.gets(late) == [Ask(Protocol.UDP, port)]
    assert node.sharing.answer(Protocol.UDP, port, None, NOW) == [Put(place, [frame_of(late)])]


def test_who_listens_on_a_port_of_anothers_slice_is_found(node: Node) -> None:
    knock = tcp(THEM, 5000, US, 50051)
    assert node.gets(knock) == [Ask(Protocol.TCP, 50051)]
    assert node.sharing.answer(Protocol.TCP, 50051, WEB, NOW) == [Put(WEB, [frame_of(knock)])]


def test_pings_and_what_nobody_knows_are_the_nodes_own(node: Node) -> None:
    assert node.gets(echo_request(pack(THEM), pack(US), 7, 1), build(47, pack(THEM), pack(US), b"gre"), b"junk") == [
        OWN
    ]
    assert node.gets(echo_reply(pack(THEM), pack(US), 7, 1)) == [OWN]


def test_a_new_flow_goes_to_who_listens(node: Node) -> None:
    """It waits while that is asked for; later ones do not."""
    first = tcp(THEM, 5000, US, 80)
    assert node.gets(first, tcp(THEM, 5001, US, 80)) == [Ask(Protocol.TCP, 80)]
    assert node.sharing.answer(Protocol.TCP, 80, WEB, NOW) == [
        Put(WEB, [frame_of(first), frame_of(tcp(THEM, 5001, US, 80))])
    ]
    assert node.gets(tcp(OTHERS, 5000, US, 80), now=NOW + 1) == [WEB]
    assert node.sends(WEB, tcp(US, 80, THEM, 5000, SYN | ACK))


def test_the_answer_is_believed_for_a_while_and_the_flow_for_longer(node: Node) -> None:
    node.gets(tcp(THEM, 5000, US, 80))
    node.sharing.answer(Protocol.TCP, 80, WEB, NOW)
    later = NOW + sharing.LISTENER_S
    assert node.gets(tcp(OTHERS, 5000, US, 80), now=later) == [Ask(Protocol.TCP, 80)]
    assert node.gets(tcp(THEM, 5000, US, 80, ACK), now=later) == [WEB]


def test_where_nobody_listens_the_node_itself_refuses(node: Node) -> None:
    knock = tcp(THEM, 5000, US, 81)
    node.gets(knock)
    assert node.sharing.answer(Protocol.TCP, 81, None, NOW) == [Put(OWN, [frame_of(knock)])]
    assert node.gets(tcp(THEM, 5001, US, 81), now=NOW + 0.1) == [OWN]
    again = node.gets(tcp(THEM, 5002, US, 81), now=NOW + sharing.NOBODY_S)
    assert again == [Ask(Protocol.TCP, 81)], "somebody may have begun to listen"


def test_a_published_port_needs_no_question(node: Node) -> None:
    node.sharing.publish(Protocol.TCP, 80, DB)
    assert node.gets(tcp(THEM, 5000, US, 80)) == [DB]


def test_two_places_in_one_flow_are_a_clash(node: Node) -> None:
    """Two programs that chose the same port by themselves: the first one has it."""
    assert node.sends(WEB, udp(US, 5353, THEM, 53))
    assert not node.sends(DB, udp(US, 5353, THEM, 53))
    assert node.counters[sharing.CLASH] == 1
    assert node.sends(DB, udp(US, 5353, OTHERS, 53)), "another flow"
    assert node.gets(udp(THEM, 53, US, 5353), udp(OTHERS, 53, US, 5353)) == [WEB, DB]


def test_a_place_that_is_gone_has_no_flows(node: Node) -> None:
    node.sends(WEB, udp(US, 5353, THEM, 53))
    node.sharing.publish(Protocol.TCP, 80, WEB)
    node.gets(tcp(THEM, 5000, US, 81))
    node.sharing.answer(Protocol.TCP, 81, WEB, NOW)
    node.sharing.remove(WEB)
    assert node.sends(DB, udp(US, 5353, THEM, 53))
    assert node.gets(tcp(THEM, 5000, US, 80), tcp(THEM, 5001, US, 81)) == [Ask(Protocol.TCP, 80), Ask(Protocol.TCP, 81)]
    assert node.sharing.answer(Protocol.TCP, 80, WEB, NOW) == [Put(OWN, [frame_of(tcp(THEM, 5000, US, 80))])]


def test_later_fragments_follow_the_first(node: Node) -> None:
    node.sends(WEB, udp(US, 1234, THEM, 53))
    whole = udp(THEM, 53, US, 1234, bytes(200))
    first = bytearray(whole)
    first[4:8] = b"\x12\x34\x20\x00"
    later = bytearray(whole)
    later[4:8] = b"\x12\x34\x00\x14"
    alien = bytearray(later)
    alien[4:6] = b"\x12\x35"
    assert node.gets(bytes(later)) == [OWN], "of which nothing is known"
    assert node.gets(bytes(first), bytes(later), bytes(alien)) == [WEB, OWN]


def test_what_waits_is_bounded_in_number_and_time(node: Node) -> None:
    knocks = [tcp(THEM, 5000 + i, US, 80) for i in range(sharing.MAX_HELD_FRAMES + 3)]
    assert node.gets(*knocks) == [Ask(Protocol.TCP, 80)]
    assert node.counters[sharing.HELD_TOO_MANY] == 3
    assert node.sharing.deadline() == NOW + sharing.HOLD_S
    node.sharing.tick(NOW + sharing.HOLD_S)
    assert node.counters[sharing.HELD_TOO_LONG] == sharing.MAX_HELD_FRAMES
    assert node.sharing.deadline() is None
    assert node.gets(knocks[0], now=NOW + 1) == [Ask(Protocol.TCP, 80)]


def test_what_is_remembered_is_bounded(node: Node) -> None:
    for port in range(sharing.MAX_FLOWS + 10):
        node.sends(WEB, udp(US, 5353, THEM, port))
    assert len(node.sharing._flows) == sharing.MAX_FLOWS
    for port in range(1, sharing.MAX_LISTENERS + 10):
        node.sharing.answer(Protocol.TCP, port, WEB, NOW)
    assert len(node.sharing._listeners) == sharing.MAX_LISTENERS


def test_slices_are_disjoint() -> None:
    assert list(slices(range(100, 110), 3)) == [range(100, 103), range(103, 106), range(106, 109)]


@given(st.lists(st.binary(max_size=80)), st.booleans())
def test_no_packet_is_lost_or_raises(packets: list[bytes], v6: bool) -> None:
    node = Node()
    packets = [bytes((0x60 if v6 else 0x45,)) + packet for packet in packets]
    out = node.sharing.receive([frame_of(packet) for packet in packets], NOW)
    for packet in packets:
        node.sends(WEB, packet)
    put = sum(len(output.frames) for output in out if isinstance(output, Put))
    assert put + node.sharing._held_count == len(packets)
