"""A month under traffic, and what happens where counters, indices and memory run out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from math import inf

import pytest

from tests.unit.wg.shuttle import (
    A_ADDRESS,
    A_TO_B,
    B_ADDRESS,
    B_TO_A,
    WALL_CLOCK_AT_0,
    Shuttle,
    Side,
    entropy,
    udp,
)
from tsns.counters import Counters
from tsns.keys import NodePrivate
from tsns.proto.addresses import Prefix
from tsns.proto.virtio import frame_of
from tsns.ways import Train, UdpSource
from tsns.wg.device import Deliver, Device, Output, SessionUp, Transmit
from tsns.wg.drops import Drop
from tsns.wg.handshake import OwnKey, PeerKey, initiate
from tsns.wg.indices import IndexTable
from tsns.wg.replay import REJECT_AFTER_MESSAGES
from tsns.wg.session import REJECT_AFTER_TIME_S, REKEY_AFTER_MESSAGES, REKEY_AFTER_TIME_S, Session
from tsns.wg.tunnel import MAX_PREVIOUS, QUICK_RETRIES_AFTER_S

INITIATION = 1
SOURCE = UdpSource(("192.0.2.9", 9))
DAY_S = 86_400.0


class Half:
    """One side of a month: a device, and what is on its way to it."""

    def __init__(self, seed: int, own: bytes) -> None:
        self.key = NodePrivate.generate(entropy(seed)(32))
        self.now = 0.0
        self.device = Device(self.key, entropy(10 + seed), wall_clock=lambda: WALL_CLOCK_AT_0 + self.now)
        self.own = own
        self.inbox: deque[bytes] = deque()
        self.received = 0
        self.sessions = 0
        self.most_indices = 0

    def take(self, outputs: list[Output], other: Half) -> None:
        for output in outputs:
            match output:
                case Transmit():
                    other.inbox.extend(output.datagrams)
                case Deliver():
                    self.received += len(output.packets)
                case SessionUp():
                    self.sessions += 1
        self.most_indices = max(self.most_indices, len(self.device.indices.sessions) + len(self.device.indices.pending))


def test_thirty_days_of_traffic_both_ways_lose_nothing(record_property: Callable[[str, object], None]) -> None:
    a, b = Half(1, A_ADDRESS), Half(2, B_ADDRESS)
    packets = {a: [udp(A_ADDRESS, B_ADDRESS, b"ab")] * 2, b: [udp(B_ADDRESS, A_ADDRESS, b"ba")] * 2}
    for half, other in ((a, b), (b, a)):
        half.device.set_peer(other.key.public, [Prefix(other.own, 32)])
    started = time.process_time()
    now, gap_s = 0.0, 88.0
    sent = 0
    while now < 30 * DAY_S:
        now += gap_s
        a.now = b.now = now
        # A train of each side is on its way before either has read anything: also when the keys change.
        for half, other in ((a, b), (b, a)):
            deadline = half.device.deadline()
            if deadline is not None and deadline <= now:
                half.take(half.device.tick(now), other)
            if half is a or sent:  # a begins; the two would begin at once otherwise
                half.take(half.device.send(map(frame_of, packets[half]), now), other)
        sent += 2
        while a.inbox or b.inbox:
            for half, other in ((a, b), (b, a)):
                arrived, half.inbox = half.inbox, deque()
                if arrived:
                    half.take(half.device.receive(map(Train.of, arrived), SOURCE, now), other)
    elapsed_s = time.process_time() - started

    assert (a.received, b.received) == (sent - 2, sent)
    rekeys = a.sessions + b.sessions
    assert rekeys >= 2 * 30 * DAY_S / (REKEY_AFTER_TIME_S + 2 * gap_s)
    assert a.device.counters.snapshot() == b.device.counters.snapshot() == {}
    assert max(a.most_indices, b.most_indices) <= 2 + MAX_PREVIOUS
    record_property("cpu_s", elapsed_s)  # 7 s where this was written


def test_a_week_of_which_every_second_counts() -> None:
    """Denser traffic around every change of keys, with a delay on the line longer than the gap between packets."""
    line = Shuttle()
    line.a.fate = line.b.fate = lambda datagram, now: [0.3]
    sent = 0
    line.send(line.a, A_TO_B)
    line.run_for(1.0)
    while line.now < 7 * DAY_S / 24:
        line.run_for(REKEY_AFTER_TIME_S - 2.0)
        for _ in range(40):
            line.send(line.a, A_TO_B)
            line.send(line.b, B_TO_A)
            line.run_for(0.1)
            sent += 1
    line.run_for(2.0)
    assert (len(line.a.delivered), len(line.b.delivered)) == (sent, sent + 1)
    assert len(line.a.sessions_up) > 100


# --- counters ------------------------------------------------------------------------------------------------------


def session_of(side: Side) -> Session:
    """The session that the side sends with."""
    [peer] = side.device._peers.values()
    assert peer.tunnel is not None
    assert peer.tunnel._current is not None
    return peer.tunnel._current


@pytest.mark.parametrize("responder", [False, True], ids=["initiator", "responder"])
def test_either_side_asks_for_new_keys_after_two_to_the_sixtieth_messages(responder: bool) -> None:
    line = Shuttle()
    line.connect()
    line.run(10.0)
    side, packet = (line.b, B_TO_A) if responder else (line.a, A_TO_B)
    session_of(side).send_counter = REKEY_AFTER_MESSAGES - 1
    line.send(side, packet)
    line.send(side, packet)
    assert side.types.count(INITIATION) == 1  # with the message that is one too many
    line.run_for(1.0)
    assert line.other(side).delivered == [packet, packet]
    assert session_of(side).send_counter < 10
    line.send(side, packet)
    line.run_for(1.0)
    assert side.types.count(INITIATION) == 1


@pytest.mark.parametrize("responder", [False, True], ids=["initiator", "responder"])
def test_no_message_is_sealed_with_the_last_counters(responder: bool) -> None:
    line = Shuttle()
    line.connect()
    line.run(10.0)
    side, packet = (line.b, B_TO_A) if responder else (line.a, A_TO_B)
    used_up = session_of(side)
    used_up.send_counter = REJECT_AFTER_MESSAGES - 1
    line.send(side, packet)  # the last one that is permitted
    line.run_for(0.1)
    line.send(side, packet, packet)  # these wait for new keys
    line.run_for(6.0)
    assert used_up.send_counter == REJECT_AFTER_MESSAGES
    assert line.other(side).delivered == [packet] * 3
    assert session_of(side) is not used_up
    assert side.device.counters.snapshot() == {}


def test_a_message_with_a_counter_beyond_the_limit_is_refused_however_authentic() -> None:
    line = Shuttle()
    line.connect()
    a, b = session_of(line.a), session_of(line.b)
    a.send_counter = REJECT_AFTER_MESSAGES
    with pytest.raises(OverflowError):
        a.seal([frame_of(A_TO_B)], 1280, Counters())
    message = b"\4\0\0\0" + b.local_index + REJECT_AFTER_MESSAGES.to_bytes(8, "little") + bytes(48)
    assert line.inject(line.b, message) == []
    assert line.b.device.counters[Drop.REPLAYED] == 1


def test_a_session_that_is_too_old_is_not_used_though_no_timer_ran() -> None:
    line = Shuttle()
    line.connect()
    line.now += REJECT_AFTER_TIME_S
    line.send(line.a, A_TO_B)
    assert [datagram[0] for _, datagram in line.a.sent] == [INITIATION]


# --- indices -------------------------------------------------------------------------------------------------------


def test_an_index_is_found_even_where_chance_has_run_out() -> None:
    table = IndexTable(lambda size: b"\xff" * size)
    found = []
    for _ in range(5):
        index = table.allocate()
        table.sessions[index] = None  # type: ignore[assignment]
        found.append(index.hex())
    assert found == ["ffffffff", "00000000", "00000001", "00000002", "00000003"]


def test_a_peer_that_begins_for_ever_holds_a_handful_of_indices() -> None:
    line = Shuttle()
    line.connect()
    own = OwnKey(line.a.key)
    key = PeerKey(own, line.b.key.public, bytes(32))
    [peer] = line.a.device._peers.values()
    assert peer.tunnel is not None
    for number in range(1, 1000):
        line.now += 0.1
        body, _ = initiate(
            own,
            key,
            ephemeral=number.to_bytes(32, "big"),
            index=number.to_bytes(4, "big"),
            timestamp=b"\x50" + number.to_bytes(11, "big"),
            now=line.now,
        )
        line.b.device.receive([Train.of(peer.tunnel._jar.stamp(body, line.now))], SOURCE, line.now)
        assert len(line.b.device.indices.sessions) <= 2 + MAX_PREVIOUS
    assert line.b.device.counters.snapshot() == {}


def test_a_peer_that_never_answers_holds_a_handful_of_indices() -> None:
    line = Shuttle(introduce=False)
    line.introduce_b_to_a()
    most = 0
    for _ in range(3000):
        line.send(line.a, A_TO_B)
        line.run_for(0.1)
        most = max(most, len(line.a.device.indices.pending))
    assert most == len(QUICK_RETRIES_AFTER_S)
    line.run_for(1000.0)
    assert not line.a.device.indices.pending
    assert line.a.device.deadline() in (None, inf)
