"""What every engine of the seam makes of messages, and which packets it joins: examples."""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace

import pytest

from tests.unit.wg.engines import (
    A_INDEX,
    AB,
    B_INDEX,
    FRAME,
    IPV4,
    IPV6,
    KEEPALIVE,
    TIMESTAMPS,
    Engine,
    account,
    changed,
    joined,
    messages_of,
    pair,
    plains,
    received,
)
from tests.unit.wg.train_reference import (
    ACK,
    CWR,
    ECE,
    FIN,
    PLAIN,
    PSH,
    RST,
    SYN,
    TCP,
    UDP,
    URG,
    Flow,
    Super,
    ones_sum,
    recut,
    sealed,
)
from tsns.ways import Train
from tsns.wg.replay import REJECT_AFTER_MESSAGES


def test_strangers_messages_come_back(engine: Engine) -> None:
    us, them = pair(engine)
    (train,) = us.seal_train([KEEPALIVE] * 4, 1280).trains
    stranger = b"\4\0\0\0" + A_INDEX + bytes(24)
    mixed = Train(train.data[:64] + stranger + train.data[64:96] + train.data[96:127], 32)
    garbage = Train(b"\1" + bytes(40), 7)
    opened = them.open_train([mixed, Train.of(b""), garbage])
    assert opened == ([], 0, 3, 96, 0, 0, 0, [stranger, train.data[96:127], b"", *garbage.messages()])


def test_a_message_is_taken_once(engine: Engine) -> None:
    us, them = pair(engine)
    trains = us.seal_train([FRAME, KEEPALIVE], 1280).trains
    assert account(them.open_train(trains)) == 4
    assert them.open_train(trains + trains) == ([], 0, 0, 0, 8, 0, 0, [])


def test_a_counter_has_an_end(engine: Engine) -> None:
    us, them = pair(engine)
    us.counter = REJECT_AFTER_MESSAGES - 1
    us.seal_train([KEEPALIVE], 1280)
    for frame in (KEEPALIVE, FRAME):
        with pytest.raises(OverflowError):
            us.seal_train([frame], 1280)
    last, beyond, greatest = (
        Train.of(sealed(AB, b"", B_INDEX, counter))
        for counter in (REJECT_AFTER_MESSAGES - 1, REJECT_AFTER_MESSAGES, 2**64 - 1)
    )
    assert them.open_train([beyond, greatest, last, last])[2:6] == (1, 32, 3, 0)


def test_a_forged_counter_does_not_move_the_window(engine: Engine) -> None:
    us, them = pair(engine)
    (message,) = messages_of(us.seal_train([KEEPALIVE], 1280).trains)
    forged = message[:8] + (10**9).to_bytes(8, "little") + message[16:]
    opened = them.open_train([Train.of(forged), Train.of(forged), Train.of(message)])
    assert (opened.forged, opened.replayed, opened.keepalives) == (2, 0, 1)


@pytest.mark.parametrize(
    "packet", [bytes(16), b"\x45" * 19, b"\x45\0\0\x13" + bytes(30), b"\x45\0\0\x30" + bytes(43), b"\x60" + bytes(38)]
)
def test_what_is_no_ip_packet_goes_no_further(engine: Engine, packet: bytes) -> None:
    us, them = pair(engine)
    trains = us.seal_train([PLAIN + packet], 0).trains
    opened = them.open_train(trains)
    assert opened == ([], 0, 0, len(packet) + 32, 0, 0, 1, [])


def test_super_packets_are_joined_over_the_borders_of_trains(engine: Engine) -> None:
    for flow, most in ((IPV4, 52), (IPV6, 52), (Flow(protocol=UDP), 52)):
        us, them = pair(engine)
        whole = Super(flow, bytes(62000), 1240, sequence=2**32 - 70000, identification=0xFFD0)
        following = replace(whole, sequence=(whole.sequence + 62000) % 2**32, identification=(0xFFD0 + 50) & 0xFFFF)
        opened = them.open_train(us.seal_train([whole.frame(), following.frame()], 1280).trains)
        assert received(opened) == whole.packets() + following.packets()
        assert [len(recut(bytes(frame))) for frame in opened.frames] == [most, 100 - most]


def test_many_flows_of_many_shapes_take_turns(engine: Engine) -> None:
    options = [b"\1" * size for size in range(0, 41, 4)]
    flows = [replace(flow, tcp_options=each) for each in options for flow in (IPV4, IPV6)]
    supers = [Super(flow, bytes(10 * size), size) for flow in flows for size in (1000 - flow.header,)]
    packets = [packet for each in supers for packet in each.packets()]
    assert joined(engine, packets) == [10] * len(flows)


@pytest.mark.parametrize("number", range(7))
def test_a_forged_message_within_a_train_costs_only_itself(engine: Engine, number: int) -> None:
    us, them = pair(engine)
    whole = Super(IPV4, bytes(7000), 1000)
    (train,) = us.seal_train([whole.frame()], 1280).trains
    data = bytearray(train.data)
    data[number * train.stride + 100] ^= 1
    opened = them.open_train([train._replace(data=bytes(data)), train])
    packets = whole.packets()
    assert received(opened) == packets[:number] + packets[number + 1 :] + [packets[number]]
    assert (opened.packets, opened.forged, opened.replayed) == (7, 1, 6)


@pytest.mark.parametrize("head", [b"\0", b"\x55", b"\x45\0\x04\x11", b"\x45\0\0\x13", b"\x65\0\0\0\xff"])
def test_nonsense_within_a_train_costs_only_itself(engine: Engine, head: bytes) -> None:
    us, them = pair(engine)
    good, nonsense = Super(IPV4, bytes(12000), 1000).packets(), head.ljust(1040, b"\0")
    packets = [nonsense, *good[:6], nonsense, nonsense, *good[6:], nonsense]
    opened = them.open_train(us.seal_train([PLAIN + each for each in packets], 0).trains)
    assert (received(opened), opened.packets, opened.malformed) == (good, 12, 4)


@pytest.mark.parametrize(
    ("second", "together"),
    [
        ({}, True),
        ({"flags": ACK | PSH}, True),
        ({"flags": ACK | FIN}, True),
        ({"flags": ACK | CWR}, False),
        ({"flags": ACK | ECE}, False),
        ({"flags": ACK | URG}, False),
        ({"flags": ACK | RST}, False),
        ({"flags": ACK | SYN}, False),
        ({"flags": 0}, False),
        ({"sequence": 999}, False),
        ({"identification": 7}, True),
        ({"identification": 9}, True),
    ],
)
def test_tcp_packets_that_follow_are_joined(engine: Engine, second: dict[str, int], together: bool) -> None:
    packets = [
        IPV4.packet(bytes(1000), sequence=0, identification=7),
        IPV4.packet(bytes(1000), **{"sequence": 1000, "identification": 8} | second),
    ]
    assert joined(engine, packets) == ([2] if together else [1, 1])


@pytest.mark.parametrize(("identification", "together"), [(7, False), (8, True), (9, False)])
def test_the_number_of_a_packet_counts_where_it_may_be_fragmented(
    engine: Engine, identification: int, together: bool
) -> None:
    flow = replace(IPV4, fragmentation=0)
    packets = [
        flow.packet(bytes(1000), sequence=0, identification=7),
        flow.packet(bytes(1000), sequence=1000, identification=identification),
    ]
    assert joined(engine, packets) == ([2] if together else [1, 1])


def test_a_push_a_shorter_segment_and_a_longer_one_end_a_run(engine: Engine) -> None:
    def run(*steps: tuple[int, int]) -> list[bytes]:
        packets, sequence = [], 0
        for number, (size, flags) in enumerate(steps):
            packets.append(IPV6.packet(bytes(size), sequence=sequence, flags=flags, identification=number))
            sequence += size
        return packets

    assert joined(engine, run((99, ACK), (99, ACK | PSH), (99, ACK), (99, ACK))) == [2, 2]
    assert joined(engine, run((99, ACK | PSH), (99, ACK), (99, ACK))) == [1, 2]
    assert joined(engine, run((99, ACK), (98, ACK), (98, ACK))) == [2, 1]
    assert joined(engine, run((99, ACK), (100, ACK), (100, ACK))) == [1, 2]
    assert joined(engine, run((99, ACK | CWR | ECE), (99, ACK | ECE), (99, ACK | ECE | FIN))) == [3]
    assert joined(engine, run((99, ACK), (0, ACK), (99, ACK))) == [1, 1, 1]
    assert joined(engine, run(*[(9, ACK)] * 70)) == [64, 6]


def test_headers_that_differ_are_not_joined(engine: Engine) -> None:
    flows = [
        IPV4,
        *(Flow(traffic_class=2), Flow(ttl=63), Flow(fragmentation=0), Flow(source=IPV4.destination)),
        *(Flow(ports=(40000, 444)), Flow(ports=(40001, 443)), Flow(acknowledged=78), Flow(window=503), Flow(urgent=1)),
        *(Flow(reserved=1), Flow(tcp_options=TIMESTAMPS), Flow(tcp_options=b"\1" * 12), Flow(protocol=UDP), IPV6),
    ]
    for one, other in itertools.permutations(flows, 2):
        packets = [
            flow.packet(bytes(100), sequence=100 * number, identification=number)
            for number, flow in enumerate((one, other))
        ]
        assert joined(engine, packets) == [1, 1]


@pytest.mark.parametrize(
    "flow",
    [Flow(ip_options=b"\1" * 4), Flow(fragmentation=0x2000), Flow(fragmentation=1), Flow(fragmentation=0x8000)],
)
def test_packets_with_options_and_fragments_are_not_joined(engine: Engine, flow: Flow) -> None:
    assert joined(engine, [flow.packet(bytes(100), sequence=100 * n, identification=n) for n in range(9)]) == [1] * 9


def test_datagrams_are_joined_where_the_tun_takes_them(engine: Engine) -> None:
    for flow in (Flow(protocol=UDP), Flow(version=6, protocol=UDP, source=bytes(16), destination=bytes(16))):
        packets = [flow.packet(bytes(size), identification=n) for n, size in enumerate((90, 90, 90, 20, 20, 0, 90))]
        assert joined(engine, packets) == [4, 1, 1, 1]
        assert joined(engine, packets, join_udp=False) == [1] * 7
        without = [changed(packet, flow.network_header + 6, b"\0\0") for packet in packets]
        assert joined(engine, without) == [1] * 7


def zeroed(flow: Flow) -> list[bytes]:
    """Segments whose checksums, of TCP or UDP, come to zero."""
    packets = []
    for number in range(12):
        fields = {"sequence": 1000 * number, "identification": number}
        blank = flow.packet(bytes(1000), **fields)
        at = 36 if flow.protocol == TCP else 26
        packets.append(flow.packet(blank[at : at + 2] + bytes(998), **fields))
    return packets


@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_the_two_zeros_of_checksums(engine: Engine, protocol: int) -> None:
    flow = Flow(protocol=protocol)
    at, good, other = (36, b"\0\0", b"\xff\xff") if protocol == TCP else (26, b"\xff\xff", b"\0\0")
    packets = zeroed(flow)
    assert all(packet[at : at + 2] == good for packet in packets)
    assert joined(engine, packets) == [12]
    us, _ = pair(engine)
    payload = b"".join(packet[flow.header :] for packet in packets)
    whole = Super(flow, payload, 1000, sequence=0, identification=0)
    assert plains(us.seal_train([whole.frame()], 0)) == packets
    packets[5] = changed(packets[5], at, other)
    assert joined(engine, packets) == [5, 1, 6]


def test_an_ipv4_checksum_goes_round_by_way_of_zero(engine: Engine) -> None:
    (checksum,) = struct.unpack_from(">H", IPV4.ip(1020, 0), 10)
    whole = Super(IPV4, bytes(12000), 1000, identification=checksum - 5)
    packets = whole.packets()
    assert [packet[10:12] for packet in packets[4:7]] == [b"\0\1", b"\0\0", b"\xff\xfe"]
    us, _ = pair(engine)
    assert plains(us.seal_train([whole.frame()], 0)) == packets
    assert joined(engine, packets) == [12]
    packets[5] = changed(packets[5], 10, b"\xff\xff")
    assert joined(engine, packets) == [5, 1, 6]


def test_a_pseudo_header_whose_sum_is_zero(engine: Engine) -> None:
    rest = ones_sum(IPV4.source + b"\x64\x40" + struct.pack(">HH", 6, 20 + 200))
    flow = Flow(destination=b"\x64\x40" + struct.pack(">H", 0xFFFF - rest))
    whole = Super(flow, bytes(200), 100)
    us, them = pair(engine)
    sealed = us.seal_train([whole.frame()], 1280)
    assert plains(us.seal_train([whole.frame()], 0), 2) == whole.packets()
    assert them.open_train(sealed.trains).frames == [whole.frame()]


def test_a_wrong_checksum_stays_wrong(engine: Engine) -> None:
    for flow, at in itertools.product((IPV4, IPV6), (11, 45, 60)):
        if flow is IPV6 and at == 11:
            continue  # there is none in its header
        packets = [flow.packet(bytes(range(100)), sequence=100 * n, identification=n) for n in range(12)]
        packets[5] = changed(packets[5], at, bytes((packets[5][at] ^ 1,)))
        assert joined(engine, packets) == [5, 1, 6]
    zero = IPV4.packet(IPV4.packet(b"\0\0")[36:38])
    follower = IPV4.packet(b"\0\0", sequence=2, identification=1)
    assert zero[36:38] == b"\0\0"
    assert joined(engine, [zero, follower]) == [2]
    assert joined(engine, [changed(zero, 36, b"\xff\xff"), follower]) == [1, 1]
