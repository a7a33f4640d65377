"""Sessions between two devices: rekeying, ageing, keepalives, reordering, hours of traffic."""

from __future__ import annotations

import itertools
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.wg.shuttle import (
    A_ADDRESS,
    A_ADDRESS6,
    A_TO_B,
    B_ADDRESS,
    B_ADDRESS6,
    B_TO_A,
    Fate,
    Shuttle,
    delayed,
    entropy,
    lost,
    udp,
)
from tsns.keys import NodePrivate, NodePublic
from tsns.proto.addresses import Prefix, pack
from tsns.proto.virtio import frame_of
from tsns.ways import DerpSource, Source, Train, UdpSource
from tsns.wg.cookie import CookieJar
from tsns.wg.device import Device, Transmit
from tsns.wg.drops import Drop
from tsns.wg.replay import REJECT_AFTER_MESSAGES
from tsns.wg.session import REKEY_AFTER_MESSAGES
from tsns.wg.staging import MAX_BYTES, MAX_PACKETS, MAX_TOTAL_BYTES

INITIATION, RESPONSE, TRANSPORT = 1, 2, 4
SOURCE = UdpSource(("192.0.2.9", 9))


def numbered(number: int) -> tuple[bytes, bytes]:
    """Two packets with this number in them, one for each direction."""
    payload = number.to_bytes(8, "big")
    return udp(A_ADDRESS, B_ADDRESS, payload), udp(B_ADDRESS, A_ADDRESS, payload)


def talk(line: Shuttle, seconds: float, gap_s: float) -> list[tuple[bytes, bytes]]:
    """Both sides send a packet at each gap, half a gap apart."""
    exchanged = []
    for number in range(int(seconds / gap_s)):
        packets = numbered(number)
        exchanged.append(packets)
        line.send(line.a, packets[0])
        line.run_for(gap_s / 2)
        line.send(line.b, packets[1])
        line.run_for(gap_s / 2)
    line.run_for(1.0)
    return exchanged


def test_three_hours_of_traffic_lose_nothing() -> None:
    line = Shuttle()
    started = time.process_time()
    exchanged = talk(line, 3 * 3600, gap_s=5.0)
    assert line.b.delivered == [to_b for to_b, _ in exchanged]
    assert line.a.delivered == [to_a for _, to_a in exchanged]
    assert len(line.a.sessions_up) == pytest.approx(3 * 3600 / 125, abs=4)
    assert line.a.device.counters.snapshot() == line.b.device.counters.snapshot() == {}
    assert len(line.a.device.indices.sessions) <= 3  # older keys are erased
    assert len(line.a.device._agenda._heap) < 100
    assert time.process_time() - started < 5


def test_a_rekey_loses_nothing_that_is_under_way() -> None:
    line = Shuttle()
    line.a.fate = line.b.fate = delayed(0.2)
    exchanged = talk(line, 400, gap_s=0.1)
    assert line.b.delivered == [to_b for to_b, _ in exchanged]
    assert line.a.delivered == [to_a for _, to_a in exchanged]
    assert len(line.a.sessions_up) >= 4


def test_loss_delay_reordering_and_duplicates() -> None:
    line = Shuttle()
    chance = random.Random(7)

    def fate(datagram: bytes, now: float) -> list[float]:
        if chance.random() < 0.3:
            return []
        copies = 2 if chance.random() < 0.05 else 1
        return [0.05 + (0.3 if chance.random() < 0.25 else 0.0) for _ in range(copies)]

    line.a.fate = line.b.fate = fate
    exchanged = talk(line, 600, gap_s=0.2)
    for delivered in (line.a.delivered, line.b.delivered):
        assert len(set(delivered)) == len(delivered)  # no duplicate passes
        assert len(delivered) > 0.6 * len(exchanged)
    for side in (line.a, line.b):
        # What was refused as a replay are the duplicates and nothing else.
        assert side.device.counters[Drop.REPLAYED] < 0.06 * len(exchanged)
        assert side.device.counters[Drop.NOT_AUTHENTIC] == 0


def test_only_the_initiator_rekeys() -> None:
    line = Shuttle()
    line.connect()
    line.run(150.0)
    line.send(line.b, B_TO_A)
    line.run_for(0.1)
    assert INITIATION not in line.b.types + line.a.types
    line.send(line.a, A_TO_B)
    line.run_for(0.1)
    assert line.a.types.count(INITIATION) == 1


def test_an_initiator_that_only_listens_rekeys_in_the_last_minute() -> None:
    line = Shuttle()
    line.connect()
    line.run(164.0)
    line.send(line.b, B_TO_A)
    line.run(167.0)
    assert INITIATION not in line.a.types
    line.send(line.b, B_TO_A)
    line.run(168.0)
    assert line.a.sent_at(INITIATION) == [167.01]
    assert len(line.b.sessions_up) == 1


def test_counters_that_run_out() -> None:
    line = Shuttle()
    line.connect()
    [session] = line.a.device.indices.sessions.values()
    session.send_counter = REKEY_AFTER_MESSAGES
    line.run(10.0)
    line.send(line.a, A_TO_B)
    line.run_for(0.1)
    assert line.a.types.count(INITIATION) == 1
    line.run(20.0)
    current = max(line.a.device.indices.sessions.values(), key=lambda each: each.created_at)
    current.send_counter = REJECT_AFTER_MESSAGES - 1
    line.b.delivered.clear()
    line.send(line.a, A_TO_B, A_TO_B)
    line.run_for(0.1)
    assert line.b.delivered == [A_TO_B, A_TO_B]
    assert current.send_counter == REJECT_AFTER_MESSAGES - 1
    assert line.a.types.count(INITIATION) == 2


def test_an_old_session_neither_sends_nor_receives() -> None:
    line = Shuttle()
    line.connect()
    line.a.fate = lost
    line.send(line.a, A_TO_B)
    kept = line.a.sent[-1][1]
    line.run(179.0)
    line.a.sent.clear()
    line.run(185.0)
    assert line.inject(line.b, kept) == []
    assert line.b.device.counters[Drop.SESSION_EXPIRED] == 1
    line.a.fate = delayed(0.01)
    line.send(line.a, A_TO_B)
    assert line.a.types[-1] == INITIATION


def test_keys_are_erased_and_the_tunnel_is_forgotten() -> None:
    line = Shuttle()
    line.connect()
    sessions = list(line.a.device.indices.sessions.values())
    line.run(539.0)
    assert line.a.device.indices.sessions
    line.run(541.0)
    for side in (line.a, line.b):
        assert not side.device.indices.sessions
        assert side.device.deadline() is None
    assert all(session._transport is None for session in sessions)
    line.send(line.b, B_TO_A)
    line.run_for(1.0)
    assert line.a.delivered == [B_TO_A]


def test_who_only_listens_gives_a_sign_of_life_after_ten_seconds() -> None:
    line = Shuttle()
    line.connect()
    line.run(20.0)
    line.b.sent.clear()
    line.send(line.a, A_TO_B)
    line.run(40.0)
    assert line.b.sent_at(TRANSPORT) == [30.01]
    assert len(line.b.sent[0][1]) == 32


def test_a_second_packet_meanwhile_is_worth_another_one() -> None:
    line = Shuttle()
    line.connect()
    line.run(20.0)
    line.b.sent.clear()
    line.send(line.a, A_TO_B)
    line.run(25.0)
    line.send(line.a, A_TO_B)
    line.run(60.0)
    assert line.b.sent_at(TRANSPORT) == [pytest.approx(30.01), pytest.approx(40.01)]


def test_who_answers_anyway_needs_no_keepalive() -> None:
    line = Shuttle()
    line.connect()
    line.run(20.0)
    line.b.sent.clear()
    line.send(line.a, A_TO_B)
    line.run(25.0)
    line.send(line.b, B_TO_A)
    line.run(60.0)
    assert line.b.sent_at(TRANSPORT) == [25.0]


def test_silence_for_fifteen_seconds_begins_a_handshake() -> None:
    line = Shuttle()
    line.connect()
    line.run(20.0)
    line.b.fate = lost
    line.send(line.a, A_TO_B)
    line.run(36.0)
    [at] = line.a.sent_at(INITIATION)
    assert 35.0 <= at <= 35.334


def test_a_peer_that_forgot_us_is_found_again() -> None:
    line = Shuttle()
    line.connect()
    line.run(10.0)
    line.b.device.remove_peer(line.a.key.public)
    line.introduce_a_to_b()
    line.send(line.a, A_TO_B)
    line.run(30.0)
    assert line.b.device.counters[Drop.UNKNOWN_INDEX] >= 1
    line.send(line.a, A_TO_B)
    line.run_for(0.1)
    assert line.b.delivered == [A_TO_B]


def test_a_packet_passes_once() -> None:
    line = Shuttle()
    line.connect()
    line.send(line.a, A_TO_B)
    line.run_for(0.1)
    assert line.inject(line.b, line.a.sent[-1][1]) == []
    assert line.b.delivered == [A_TO_B]
    assert line.b.device.counters[Drop.REPLAYED] == 1


def test_a_train_loses_only_its_bad_packets() -> None:
    line = Shuttle()
    line.connect()
    line.a.fate = lost
    packets = [numbered(number)[0] for number in range(5)]
    line.send(line.a, *packets)
    train = [datagram for _, datagram in line.a.sent]
    train[1] = train[1][:-1] + bytes((train[1][-1] ^ 1,))
    train[3] = train[2]
    line.do(line.b, line.b.device.receive(map(Train.of, train), SOURCE, line.now))
    assert line.b.delivered == [packets[0], packets[2], packets[4]]
    assert line.b.device.counters.snapshot() == {Drop.NOT_AUTHENTIC: 1, Drop.REPLAYED: 1}
    line.do(
        line.b, line.b.device.receive([Train.of(line.a.sent[1][1])], SOURCE, line.now)
    )  # the forgery did not use up its number
    assert line.b.delivered[-1] == packets[1]


def test_padding_goes_to_sixteen_but_not_beyond_the_mtu() -> None:
    line = Shuttle()
    line.connect()
    for size, padded in [(29, 32), (32, 32), (1271, 1280), (1280, 1280), (1281, 1281)]:
        packet = udp(A_ADDRESS, B_ADDRESS, bytes(size - 28))
        line.send(line.a, packet)
        line.run_for(0.1)
        assert len(line.a.sent[-1][1]) == 32 + padded
        assert line.b.delivered[-1] == packet


def test_inner_sources_are_the_senders_own() -> None:
    line = Shuttle()
    line.connect()
    spoofed = udp(pack("100.64.0.99"), B_ADDRESS)
    good6 = udp(A_ADDRESS6, B_ADDRESS6)
    line.send(line.a, spoofed, A_TO_B, good6, udp(pack("fd7a::bad"), B_ADDRESS6))
    line.do(line.a, line.a.device.send_to(line.b.key.public, [b"\x45garbage", A_TO_B[:-1], b"\x00" * 40], line.now))
    line.run_for(0.1)
    assert line.b.delivered == [A_TO_B, good6]
    assert line.b.device.counters.snapshot() == {Drop.SOURCE_NOT_ALLOWED: 2, Drop.BAD_INNER_PACKET: 2 + 1}


def test_who_has_no_peer_gets_nothing_out() -> None:
    line = Shuttle()
    assert line.a.device.send(map(frame_of, [udp(A_ADDRESS, pack("100.64.0.77")), b"", b"\x45"]), 0.0) == []
    assert line.a.device.send_to(NodePublic(b"\x01" * 32), [A_TO_B], 0.0) == []
    assert line.a.device.counters[Drop.NO_PEER] == 4


def test_changing_allowed_ips_keeps_the_session() -> None:
    line = Shuttle()
    line.connect()
    line.b.device.set_peer(line.a.key.public, [Prefix(A_ADDRESS6, 128)])
    line.send(line.a, A_TO_B)
    line.run_for(0.1)
    assert line.b.delivered == []
    line.introduce_a_to_b()
    line.send(line.a, A_TO_B)
    line.run_for(0.1)
    assert line.b.delivered == [A_TO_B]
    assert INITIATION not in line.a.types


def test_other_peers_come_and_go_without_being_noticed() -> None:
    line = Shuttle()
    line.connect()
    third = NodePrivate.generate(b"\x33" * 32).public
    line.a.device.set_peer(third, [Prefix(B_ADDRESS, 32)])  # b's address moves
    assert line.a.device.peer_for(B_ADDRESS) == third
    line.introduce_b_to_a()  # and back
    assert line.a.device.peer_for(B_ADDRESS) == line.b.key.public
    line.a.device.remove_peer(third)
    line.a.device.remove_peer(third)
    line.send(line.a, A_TO_B)
    line.run_for(0.1)
    assert line.b.delivered == [A_TO_B]
    assert INITIATION not in line.a.types


def test_a_removed_peer_is_gone_with_its_keys() -> None:
    line = Shuttle()
    line.connect()
    line.send(line.b, B_TO_A)
    line.a.device.remove_peer(line.b.key.public)
    line.run_for(0.1)
    assert line.a.delivered == []
    assert line.a.device.peer_for(B_ADDRESS) is None
    assert not line.a.device.indices.sessions
    assert line.a.device.deadline() is None
    assert list(line.a.device.peers()) == []


def test_a_new_private_key_ends_all_sessions() -> None:
    line = Shuttle()
    line.connect()
    line.a.device.set_private_key(NodePrivate.generate(b"\x55" * 32))
    assert not line.a.device.indices.sessions
    line.send(line.a, A_TO_B)
    line.run_for(0.1)
    assert line.b.device.counters[Drop.UNKNOWN_SENDER] == 1


def test_statistics_count_messages_that_were_authentic() -> None:
    line = Shuttle()
    line.connect()
    line.inject(line.b, bytes.fromhex("04000000") + bytes(60))
    a, b = line.a.device.statistics(line.b.key.public), line.b.device.statistics(line.a.key.public)
    assert a.tx_bytes == b.rx_bytes == 148 + 32 + 48
    assert a.rx_bytes == b.tx_bytes == 92
    assert line.a.device.statistics(NodePublic(b"\x01" * 32)).last_handshake is None


def test_what_waits_is_bounded_in_packets_bytes_and_time() -> None:
    line = Shuttle()
    line.a.fate = lost
    line.send(line.a, *[numbered(number)[0] for number in range(MAX_PACKETS + 10)])
    assert line.a.device.counters[Drop.STAGED_FULL] == 10
    line.run(1.0)
    line.a.fate = delayed(0.01)
    line.run(3.0)
    assert line.b.delivered == [numbered(number)[0] for number in range(10, MAX_PACKETS + 10)]  # the oldest went

    line = Shuttle()
    line.a.fate = lost
    big = udp(A_ADDRESS, B_ADDRESS, bytes(60_000))
    line.send(line.a, *[big] * 10)
    assert line.a.device.counters[Drop.STAGED_FULL] == 10 - MAX_BYTES // len(big)
    line.run(5.01)
    assert line.a.device.counters[Drop.STAGED_TOO_LONG] == MAX_BYTES // len(big)
    assert line.a.device.staged_total.bytes == 0


def test_what_waits_for_all_peers_together_is_bounded_too() -> None:
    device = Device(NodePrivate.generate(b"\x11" * 32), entropy(5), wall_clock=lambda: 0.0)
    packet = bytes(60_000)
    for number in range(300):
        key = NodePrivate.generate(number.to_bytes(32, "big")).public
        device.set_peer(key, [])
        device.send_to(key, [packet], 0.0)
    size = len(frame_of(packet))
    assert device.counters[Drop.STAGED_FULL] == 300 - MAX_TOTAL_BYTES // size
    assert device.staged_total.bytes == MAX_TOTAL_BYTES // size * size


def test_ten_thousand_peers_cost_little_until_they_are_used() -> None:
    device = Device(NodePrivate.generate(b"\x11" * 32), entropy(5), wall_clock=lambda: 0.0)
    started = time.process_time()
    for number in range(10_000):
        address = (0x64400000 + number).to_bytes(4, "big")
        device.set_peer(NodePublic(number.to_bytes(32, "big")), [Prefix(address, 32)])
    assert time.process_time() - started < 2
    assert device.deadline() is None
    assert device.peer_for((0x64400000 + 4711).to_bytes(4, "big")) == NodePublic((4711).to_bytes(32, "big"))


def test_trains_are_cut_by_peer_and_keep_their_order() -> None:
    device = Device(NodePrivate.generate(b"\x11" * 32), entropy(5), wall_clock=lambda: 0.0)
    keys = [NodePrivate.generate(bytes((number,)) * 32).public for number in (1, 2)]
    for key, address in zip(keys, (A_ADDRESS, B_ADDRESS), strict=True):
        device.set_peer(key, [Prefix(address, 32)])
    outputs = device.send(map(frame_of, [A_TO_B, B_TO_A, A_TO_B, A_TO_B]), 0.0)
    assert [output.peer for output in outputs if isinstance(output, Transmit)] == [keys[1], keys[0]]


@given(st.lists(st.binary(max_size=200), max_size=5))
def test_no_bytes_of_a_stranger_raise(datagrams: list[bytes]) -> None:
    line = Shuttle()
    assert line.a.device.receive(map(Train.of, datagrams), SOURCE, 0.0) == []
    assert sum(line.a.device.counters.snapshot().values()) == len(datagrams)


SOURCES: list[Source] = [SOURCE, DerpSource(7, NodePublic(b"\x01" * 32)), UdpSource(("fe80::1%eth0", 1))]
HEADS = {148: b"\1\0\0\0", 92: b"\2\0\0\0", 64: b"\3\0\0\0", 32: b"\4\0\0\0", 80: b"\4\0\0\0"}


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_no_message_of_the_right_shape_raises(data: st.DataObject) -> None:
    line = Shuttle()
    line.connect()
    line.send(line.a, A_TO_B)
    device = line.b.device
    [index] = device.indices.sessions
    for _ in range(5):
        size = data.draw(st.sampled_from(sorted(HEADS)))
        middle = data.draw(st.sampled_from([index, bytes(4), b"\xff" * 4]))
        message = HEADS[size] + middle + middle + data.draw(st.binary(min_size=size - 12, max_size=size - 12))
        if size in {148, 92}:
            message = CookieJar(line.b.key.public.raw).stamp(message[:-32], line.now)
        source = data.draw(st.sampled_from(SOURCES))
        assert device.receive([Train.of(message)], source, line.now) == []


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.floats(0.0, 200.0)), max_size=12), st.integers(0, 2**32))
def test_whatever_was_lost_and_late_the_two_find_each_other(events: list[tuple[bool, bool, float]], seed: int) -> None:
    line = Shuttle()
    chance = random.Random(seed)

    def fate(datagram: bytes, now: float) -> list[float]:
        return [chance.choice([0.001, 0.05, 1.0]) for _ in range(chance.choice([0, 1, 1, 2]))]

    line.a.fate = line.b.fate = fate
    for a_sends, b_sends, pause in events:
        if a_sends:
            line.send(line.a, A_TO_B)
        if b_sends:
            line.send(line.b, B_TO_A)
        line.run_for(pause)
    healthy: Fate = delayed(0.01)
    line.a.fate = line.b.fate = healthy
    line.a.delivered.clear()
    line.b.delivered.clear()
    for _ in range(40):
        line.send(line.a, A_TO_B)
        line.send(line.b, B_TO_A)
        line.run_for(1.0)
    assert line.a.delivered[-10:] == [B_TO_A] * 10
    assert line.b.delivered[-10:] == [A_TO_B] * 10
    assert len(line.a.delivered) >= 20
    assert len(line.b.delivered) >= 20


def test_a_deadline_that_was_kept_does_not_come_again() -> None:
    line = Shuttle()
    line.connect()
    device = line.a.device
    deadlines = []
    now = line.now
    while (deadline := device.deadline()) is not None:
        assert deadline > now
        now = deadline
        deadlines.append(now)
        device.tick(now)
    assert len(deadlines) < 60
    assert all(later > earlier for earlier, later in itertools.pairwise(deadlines))
