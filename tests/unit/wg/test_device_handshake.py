"""Handshakes between two devices, told as transcripts: what is lost, late, repeated or forged, and what comes of it."""

from __future__ import annotations

import itertools

import pytest

from tests.unit.wg.shuttle import (
    A_TO_B,
    B_TO_A,
    WALL_CLOCK_AT_0,
    Shuttle,
    delayed,
    entropy,
    losing,
    lost,
)
from tsns.keys import NodePrivate, NodePublic
from tsns.ways import Train, UdpSource
from tsns.wg.cookie import CookieJar
from tsns.wg.device import Device, Reply, Transmit
from tsns.wg.drops import Drop
from tsns.wg.handshake import OwnKey, PeerKey, initiate
from tsns.wg.timers import MAX_RETRIES

INITIATION, RESPONSE, COOKIE, TRANSPORT = 1, 2, 3, 4


def both_ways(line: Shuttle) -> None:
    """Packets pass at once, both ways."""
    for side in (line.a, line.b):
        side.delivered.clear()
    line.send(line.a, A_TO_B)
    line.send(line.b, B_TO_A)
    line.run_for(0.1)
    assert line.b.delivered == [A_TO_B]
    assert line.a.delivered == [B_TO_A]


def test_the_first_packet_brings_the_session_about() -> None:
    line = Shuttle()
    line.send(line.a, A_TO_B)
    line.run(1.0)
    assert line.a.types == [INITIATION, TRANSPORT]
    assert line.b.types == [RESPONSE]
    assert line.b.delivered == [A_TO_B]
    assert len(line.a.sessions_up) == len(line.b.sessions_up) == 1
    assert line.a.device.statistics(line.b.key.public).last_handshake == pytest.approx(WALL_CLOCK_AT_0 + 0.02)
    both_ways(line)


def test_packets_wait_in_their_order_and_go_at_once() -> None:
    line = Shuttle()
    packets = [A_TO_B + bytes(n) for n in range(3)]  # trailing bytes are beyond the IP length
    line.send(line.a, packets[0])
    line.send(line.a, *packets[1:])
    line.run(0.05)
    assert line.a.types == [INITIATION, TRANSPORT, TRANSPORT, TRANSPORT]
    assert line.b.delivered == [A_TO_B] * 3


def test_the_responder_may_not_send_before_it_is_sure() -> None:
    line = Shuttle()
    line.a.fate = losing(TRANSPORT)
    line.send(line.a, A_TO_B)
    line.run(0.5)
    line.send(line.b, B_TO_A)
    assert line.b.types == [RESPONSE]
    assert line.b.sessions_up == []


def test_an_initiator_with_nothing_to_say_confirms_with_a_keepalive() -> None:
    line = Shuttle()
    line.connect()
    line.a.device.set_peer(line.b.key.public, [])
    line.run(126.0)  # older than its time
    line.b.fate = lost
    line.do(line.a, line.a.device.send_to(line.b.key.public, [A_TO_B], line.now))
    line.b.fate = delayed(0.01)
    line.run_for(1)
    assert line.a.types[-3:] == [TRANSPORT, INITIATION, TRANSPORT]
    assert len(line.a.sent[-1][1]) == 32


@pytest.mark.parametrize("until", [0.1, 0.3, 0.9])
def test_first_initiations_are_repeated_quickly(until: float) -> None:
    line = Shuttle()
    line.a.fate = losing(INITIATION, until=until)
    line.send(line.a, A_TO_B)
    line.run(3.0)
    expected = [0.0, 0.25, 0.5, 1.0, 2.0]
    assert line.a.sent_at(INITIATION) == [at for at in expected if at < until] + [
        next(at for at in expected if at >= until)
    ]
    assert line.b.delivered == [A_TO_B]


def test_a_dead_peer_is_given_up_after_eighteen_retries() -> None:
    line = Shuttle()
    line.a.fate = lost
    line.send(line.a, A_TO_B)
    line.run(400.0)
    tries = line.a.sent_at(INITIATION)
    assert tries[:5] == [0.0, 0.25, 0.5, 1.0, 2.0]
    gaps = [later - earlier for earlier, later in itertools.pairwise(tries[4:])]
    assert len(gaps) == MAX_RETRIES == 18
    assert all(5.0 <= gap <= 5.334 for gap in gaps)
    assert len(set(gaps)) > 10  # jitter
    assert line.a.device.counters[Drop.STAGED_TOO_LONG] == 1
    bodies = [datagram for _, datagram in line.a.sent]
    assert len({body[4:8] for body in bodies}) == len({body[8:40] for body in bodies}) == len(bodies)
    line.run(541.0)
    assert line.a.device.deadline() is None
    assert not line.a.device.indices.pending


def test_a_peer_that_hears_of_us_late_is_reached_by_the_next_try() -> None:
    line = Shuttle(introduce=False)
    line.introduce_b_to_a()
    line.send(line.a, A_TO_B)
    line.run(0.8)
    assert line.b.device.counters[Drop.UNKNOWN_SENDER] == 3
    line.introduce_a_to_b()
    line.run(1.1)
    assert line.b.delivered == [A_TO_B]


def test_once_something_came_back_the_paper_rules() -> None:
    line = Shuttle()
    line.connect()
    line.run(200.0)
    line.a.fate = lost
    line.send(line.a, A_TO_B)
    line.run(206.0)
    first, second = line.a.sent_at(INITIATION)
    assert 5.0 <= second - first <= 5.334


def test_a_long_way_does_not_make_the_quick_tries_chase_each_other() -> None:
    line = Shuttle()
    line.a.fate = line.b.fate = delayed(0.3)  # the answer takes longer than two gaps
    line.send(line.a, A_TO_B)
    line.run(5.0)
    assert line.a.sent_at(INITIATION) == [0.0, 0.25, 0.5]
    assert line.a.sessions_up == [pytest.approx(1.1)]
    assert line.b.delivered == [A_TO_B]
    assert line.a.device.counters[Drop.SUPERSEDED_RESPONSE] == 2


def test_a_lost_response() -> None:
    line = Shuttle()
    line.b.fate = losing(RESPONSE, until=0.1)
    line.send(line.a, A_TO_B)
    line.run(0.5)
    assert line.a.types == [INITIATION, INITIATION, TRANSPORT]
    assert line.b.delivered == [A_TO_B]
    both_ways(line)


def test_a_lost_confirmation_is_made_good_by_the_next_packet_of_the_initiator() -> None:
    line = Shuttle()
    line.a.fate = losing(TRANSPORT, until=0.1)
    line.send(line.a, A_TO_B)
    line.run(0.2)
    line.send(line.a, A_TO_B)
    line.run(0.3)
    assert line.b.types == [RESPONSE]
    both_ways(line)


def test_a_lost_confirmation_is_made_good_by_a_responder_with_something_to_say() -> None:
    line = Shuttle()
    line.a.fate = losing(TRANSPORT, until=0.1)
    line.send(line.a, A_TO_B)
    line.run(0.2)
    line.send(line.b, B_TO_A)
    line.run(2.0)
    assert line.b.types == [RESPONSE, INITIATION, TRANSPORT]
    assert 1.0 <= line.b.sent_at(INITIATION)[0] <= 1.35
    assert line.a.delivered == [B_TO_A]
    both_ways(line)


def test_both_at_once() -> None:
    line = Shuttle()
    line.send(line.a, A_TO_B)
    line.send(line.b, B_TO_A)
    line.run(0.1)
    assert line.a.delivered == [B_TO_A]
    assert line.b.delivered == [A_TO_B]
    assert line.a.types.count(INITIATION) == line.b.types.count(INITIATION) == 1
    both_ways(line)


def test_both_at_once_do_not_go_on_rekeying_twice() -> None:
    line = Shuttle()
    for second in range(600):
        line.send(line.a, A_TO_B)
        line.send(line.b, B_TO_A)
        line.run(float(second))
    line.run_for(1)
    assert len(line.a.delivered) == len(line.b.delivered) == 600
    # The first time both, then every 121 s the one who is not the one that yields.
    assert sorted((line.a.types.count(INITIATION), line.b.types.count(INITIATION))) == [1, 5]


@pytest.mark.parametrize("dropped", [INITIATION, RESPONSE])
@pytest.mark.parametrize("name", ["a", "b"])
def test_both_at_once_with_a_loss(dropped: int, name: str) -> None:
    line = Shuttle()
    side = line.a if name == "a" else line.b
    side.fate = losing(dropped, until=0.1)
    line.send(line.a, A_TO_B)
    line.send(line.b, B_TO_A)
    line.run(1.0)
    assert (line.a.delivered, line.b.delivered) == ([B_TO_A], [A_TO_B])
    both_ways(line)


def test_a_replayed_initiation_is_refused() -> None:
    line = Shuttle()
    line.send(line.a, A_TO_B)
    line.run(1.0)
    initiation = line.a.sent[0][1]
    assert line.inject(line.b, initiation) == []
    assert line.b.device.counters[Drop.REPLAYED_INITIATION] == 1
    both_ways(line)


def test_an_initiation_with_an_older_stamp_is_refused() -> None:
    line = Shuttle()
    line.a.fate = lost
    line.send(line.a, A_TO_B)
    line.run(0.3)
    older, newer = (datagram for _, datagram in line.a.sent)
    assert [output for output in line.inject(line.b, newer) if isinstance(output, Transmit)]
    line.run(1.0)
    assert line.inject(line.b, older) == []
    assert line.b.device.counters[Drop.REPLAYED_INITIATION] == 1


def test_the_memory_of_stamps_outlives_the_tunnel() -> None:
    line = Shuttle()
    line.send(line.a, A_TO_B)
    line.run(1.0)
    initiation = line.a.sent[0][1]
    line.run(1000.0)
    assert line.b.device.deadline() is None  # the tunnel is gone
    assert line.inject(line.b, initiation) == []
    assert line.b.device.counters[Drop.REPLAYED_INITIATION] == 1


def test_initiations_in_too_quick_succession_are_refused() -> None:
    line = Shuttle()
    line.a.fate = lost
    line.send(line.a, A_TO_B)
    line.run(0.3)
    first, second = (datagram for _, datagram in line.a.sent)
    line.inject(line.b, first)
    line.now += 0.019
    assert line.inject(line.b, second) == []
    assert line.b.device.counters[Drop.INITIATION_TOO_SOON] == 1
    line.now += 0.02
    assert line.inject(line.b, second) != []


@pytest.mark.parametrize("step", [-10 * 365 * 86400.0, -86400.0, -0.001, 0.0])
def test_stamps_grow_whatever_the_wall_clock_does(step: float) -> None:
    line = Shuttle()
    line.connect()
    line.run(250.0)
    before = line.a.device._peers[line.b.key.public].last_stamp
    line.wall_clock = lambda: WALL_CLOCK_AT_0 + 0.005 + step
    line.send(line.a, A_TO_B)
    line.run_for(0.1)
    assert line.a.device._peers[line.b.key.public].last_stamp > before
    assert line.b.delivered == [A_TO_B]


def test_stamps_grow_even_for_a_peer_that_was_removed_and_came_back() -> None:
    line = Shuttle()
    line.wall_clock = lambda: WALL_CLOCK_AT_0
    line.connect()
    line.a.device.remove_peer(line.b.key.public)
    line.introduce_b_to_a()
    line.send(line.a, A_TO_B)
    line.run_for(0.1)
    assert line.b.delivered == [A_TO_B]
    assert line.b.device.counters[Drop.REPLAYED_INITIATION] == 0


def test_stamps_grow_from_one_run_to_the_next_although_the_clock_was_set_back() -> None:
    line = Shuttle()
    line.connect()
    ten_years_back = WALL_CLOCK_AT_0 - 10 * 365 * 86_400
    for latest_time, delivered in ((0.0, []), (WALL_CLOCK_AT_0 + 1, [A_TO_B])):
        line.a.device = Device(
            line.a.key, entropy(77), wall_clock=lambda: ten_years_back + line.now, latest_time=latest_time
        )
        line.introduce_b_to_a()
        line.send(line.a, A_TO_B)
        line.run_for(0.1)
        assert line.b.delivered == delivered


def test_a_peer_that_began_anew_is_met_at_once() -> None:
    line = Shuttle()
    line.connect()
    line.b.device.set_private_key(line.b.key)
    line.do(line.a, line.a.device.begin_anew(line.b.key.public, line.now))
    assert line.a.device.begin_anew(NodePublic(b"\x01" * 32), line.now) == [], "nothing was spoken with that one"
    line.send(line.a, A_TO_B)
    line.run_for(0.1)
    assert line.b.delivered == [A_TO_B]


def test_the_keys_that_a_new_process_has_asked_for_stay_in_use() -> None:
    """Control's word that the peer has begun anew comes after the peer's own first packets."""
    line = Shuttle()
    line.connect()
    line.b.device.set_private_key(line.b.key)
    line.send(line.b, B_TO_A)
    line.run_for(0.1)
    assert line.a.delivered == [B_TO_A]
    line.b.fate = lost  # whatever is asked for now takes long
    line.do(line.a, line.a.device.begin_anew(line.b.key.public, line.now))
    line.send(line.a, A_TO_B)
    line.run_for(0.1)
    assert line.b.delivered == [A_TO_B]


def test_a_forged_response_does_not_disturb() -> None:
    line = Shuttle()
    line.b.fate = lost
    line.send(line.a, A_TO_B)
    line.run(0.1)
    response = line.b.sent[0][1]
    forged = CookieJar(line.a.key.public.raw).stamp(
        response[:50] + b"?" + response[51:60], 0.0
    )  # mac1 anybody can make
    assert line.inject(line.a, forged) == []
    assert line.a.device.counters[Drop.BAD_HANDSHAKE] == 1
    assert line.inject(line.a, response) != []
    assert len(line.a.sessions_up) == 1


def test_a_response_counts_once() -> None:
    line = Shuttle()
    line.send(line.a, A_TO_B)
    line.run(1.0)
    assert line.inject(line.a, line.b.sent[0][1]) == []
    assert line.a.device.counters[Drop.UNKNOWN_INDEX] == 1


def test_what_goes_back_to_its_sender_is_nothing_to_it() -> None:
    line = Shuttle()
    line.send(line.a, A_TO_B)
    line.run(1.0)
    for _, datagram in list(line.a.sent):
        assert line.inject(line.a, datagram) == []
    counters = line.a.device.counters
    assert counters[Drop.WRONG_MAC1] == 1
    assert counters[Drop.UNKNOWN_INDEX] == 1


def test_different_preshared_keys_never_meet() -> None:
    line = Shuttle(preshared=(b"\x01" * 32, b"\x02" * 32))
    line.send(line.a, A_TO_B)
    line.run(3.0)
    assert line.a.sessions_up == line.b.sessions_up == []
    assert line.a.device.counters[Drop.BAD_HANDSHAKE] > 0


def test_the_same_preshared_key_does() -> None:
    line = Shuttle(preshared=(b"\x01" * 32, b"\x01" * 32))
    line.connect()
    both_ways(line)


def test_a_changed_preshared_key_counts_from_the_next_handshake() -> None:
    line = Shuttle()
    line.connect()
    line.preshared = (b"\x01" * 32, b"\x01" * 32)
    line.introduce_a_to_b()
    line.introduce_b_to_a()
    both_ways(line)
    line.run(200.0)
    both_ways(line)


def flood(line: Shuttle, count: int, *, with_cookie: bool = False) -> int:
    """Initiations to b by a stranger who knows b's key; how many cookie replies they get."""
    own = OwnKey(NodePrivate.generate(b"\x77" * 32))
    key = PeerKey(own, line.b.key.public, bytes(32))
    body, _ = initiate(own, key, ephemeral=b"\x01" * 32, index=b"abcd", timestamp=bytes(12), now=0.0)
    jar = CookieJar(line.b.key.public.raw)
    message = jar.stamp(body, line.now)
    source = UdpSource(("198.51.100.1", 1))
    replies = 0
    for _ in range(count):
        for output in line.b.device.receive([Train.of(message)], source, line.now):
            assert isinstance(output, Reply)
            assert output.source == source
            replies += 1
            if with_cookie:
                assert jar.receive(output.datagram, line.now)
                message = jar.stamp(body, line.now)
    return replies


def test_under_load_a_cookie_has_to_be_fetched_first() -> None:
    line = Shuttle()
    assert flood(line, 1000) == 5
    assert line.b.device.counters[Drop.UNKNOWN_SENDER] == 127
    assert line.b.device.counters[Drop.NO_COOKIE_LEFT] == 1000 - 127 - 5
    line.send(line.a, A_TO_B)
    line.run(0.1)
    assert line.b.types == [COOKIE]
    assert line.b.device.counters[Drop.UNDER_LOAD] == 5 + 1
    line.run(0.5)
    assert line.a.types == [INITIATION, INITIATION, TRANSPORT]
    assert line.a.sent[0][1][-16:] == bytes(16)
    assert line.a.sent[1][1][-16:] != bytes(16)
    assert line.b.delivered == [A_TO_B]


def test_a_responder_gets_a_cookie_too() -> None:
    line = Shuttle()
    line.connect()
    line.run(130.0)
    flood(line, 200)
    line.send(line.b, B_TO_A)  # nothing to rekey for the responder
    line.send(line.a, A_TO_B)  # a rekeys
    line.run(131.0)
    assert COOKIE in line.b.types
    assert line.a.types.count(INITIATION) == 1
    line.run(136.0)  # the next try is 5 s later, with the old keys in use meanwhile
    both_ways(line)
    assert line.a.types.count(INITIATION) == 2


def test_even_with_a_cookie_there_is_a_limit_for_a_source() -> None:
    line = Shuttle()
    assert flood(line, 1001, with_cookie=True) == 1
    counters = line.b.device.counters
    assert counters[Drop.UNKNOWN_SENDER] == 127 + 5
    assert counters[Drop.RATE_LIMITED] == 1000 - 127 - 5


def test_a_flow_does_not_notice_a_flood() -> None:
    line = Shuttle()
    line.connect()
    for _ in range(20):
        flood(line, 50)
        both_ways(line)


def test_a_peer_with_a_worthless_key() -> None:
    line = Shuttle()
    worthless = NodePublic(bytes(32))
    line.a.device.set_peer(worthless, [])
    assert line.a.device.send_to(worthless, [A_TO_B], 0.0) == []
    assert line.a.device.send_to(worthless, [A_TO_B], 0.0) == []
    assert line.a.device.counters[Drop.BAD_PEER_KEY] == 2
    assert line.a.device.deadline() is None
