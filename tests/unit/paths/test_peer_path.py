"""The way to one peer, as a transcript: what comes, what time it is, and what is wanted then."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsns.paths.candidates import LEARNT_S, MAX_LEARNT, MAX_TOLD
from tsns.paths.peer_path import (
    ACTIVE_S,
    ASKED_PROBES_BURST,
    ASKED_PROBES_PER_S,
    FRESH_ROUNDS,
    GIVE_UP_S,
    HEARTBEAT_S,
    MAX_CHANGES,
    MIN_CALL_SPACING_S,
    PATIENCE_S,
    PROBES_BURST,
    PROBES_PER_S,
    ROUND_GAPS_S,
    ROUND_S,
    SILENCE_S,
    TRUST_S,
    UPGRADE_S,
    Call,
    Change,
    Kind,
    PeerPath,
    Probe,
    Wish,
)
from tsns.proto.addresses import Endpoint
from tsns.ways import BothPaths, DerpPath, Path, UdpPath

A, B, C, LAN = ("192.0.2.1", 41641), ("192.0.2.2", 41641), ("192.0.2.3", 41641), ("192.168.0.1", 41641)
RELAY = 7
RTT_S = 0.02


def somewhere(number: int) -> Endpoint:
    return f"198.51.{number >> 8 & 255}.{number & 255}", 1 + (number >> 16)


class Line:
    """A path under a driven clock. `log` is what it wanted and when; peers at `answering` answer after RTT_S."""

    def __init__(self, *told: Endpoint, relay: int | None = RELAY, start: float = 1000.1) -> None:
        self.now = start
        self.path = PeerPath(self.now)
        self.answering: dict[Endpoint, float] = {}  # and their latencies
        self.log: list[tuple[float, Wish]] = []
        self._pongs: list[tuple[float, Endpoint, float]] = []
        self.do(self.path.tell(told, relay, self.now))

    def do(self, wishes: Iterable[Wish]) -> None:
        for wish in wishes:
            self.log.append((self.now, wish))
            if isinstance(wish, Probe) and wish.endpoint in self.answering:
                latency_s = self.answering[wish.endpoint]
                self._pongs.append((self.now + latency_s, wish.endpoint, latency_s))
        self.consistent()

    def consistent(self) -> None:
        """Kind, best and path are three ways to say one thing."""
        path, relay = self.path, self.path._relay
        assert (path.best is not None) == (path.kind in {Kind.DIRECT, Kind.DOUBTED})
        if path.best is not None:
            assert path._candidates.get(path.best) is not None, "the best is no candidate any more"
        direct = None if path.best is None else UdpPath(path.best)
        through = None if relay is None else DerpPath(relay)
        match path.kind:
            case Kind.NONE:
                assert path.path is None
                assert relay is None
            case Kind.RELAYED:
                assert path.path == through is not None
            case Kind.DIRECT:
                assert path.path == direct
            case Kind.DOUBTED:
                assert direct is not None
                assert path.path == (direct if through is None else BothPaths(direct, through))

    def way(self) -> Path | None:
        return self.path.path

    def kind(self) -> Kind:
        return self.path.kind

    def send(self) -> None:
        self.do(self.path.on_activity(self.now))

    def hear(self, endpoint: Endpoint) -> None:
        self.do(self.path.heard(endpoint, self.now))

    def pong(self, endpoint: Endpoint, latency_s: float = RTT_S) -> None:
        self.do(self.path.receive_pong(endpoint, latency_s, self.now))

    def ping(self, endpoint: Endpoint) -> None:
        self.do(self.path.receive_ping(endpoint, self.now))

    def call(self, *endpoints: Endpoint) -> None:
        self.do(self.path.receive_call(endpoints, self.now))

    def run(self, seconds: float, *, sending_every: float = inf, hearing: Endpoint | None = None) -> None:
        """Let time pass, with packets sent (and heard) all the while."""
        until, next_send = self.now + seconds, self.now if sending_every < inf else inf
        ticks = 0
        while True:
            self._pongs.sort()
            soonest = min(self.path.deadline(), next_send, *[at for at, *_ in self._pongs[:1]], until)
            ticks = ticks + 1 if soonest <= self.now else 0
            assert ticks < 100, "it does not come to rest"
            self.now = max(self.now, soonest)
            if self._pongs and self._pongs[0][0] <= self.now:
                _, endpoint, latency_s = self._pongs.pop(0)
                self.pong(endpoint, latency_s)
            elif self.path.deadline() <= self.now:
                self.do(self.path.tick(self.now))
            elif next_send <= self.now:
                next_send += sending_every
                self.send()
                if hearing is not None:
                    self.hear(hearing)
            else:
                return

    def take(self) -> list[Wish]:
        """What was wanted since this was last asked."""
        wishes = [wish for _, wish in self.log]
        self.log.clear()
        return wishes

    def times(self, kind: type, since: float = -inf) -> list[float]:
        """When wishes of this kind came, after `since`."""
        return [
            round(at - since if since > -inf else at, 3)
            for at, wish in self.log
            if isinstance(wish, kind) and at >= since
        ]

    def changes(self) -> list[Change]:
        return [wish for wish in self.take() if isinstance(wish, Change)]


def direct(endpoint: Endpoint = A, *more: Endpoint) -> Line:
    """A line with a path that has just shown itself."""
    line = Line(endpoint, *more)
    line.send()
    line.answering[endpoint] = RTT_S
    line.pong(endpoint)
    assert line.kind() is Kind.DIRECT
    line.log.clear()
    return line


# --- without a direct path -----------------------------------------------------------------------------------------


def test_before_anything_is_sent_nothing_is_asked() -> None:
    line = Line(A, B)
    line.run(1000.0)
    assert line.log == []
    assert (line.kind(), line.way()) == (Kind.RELAYED, DerpPath(RELAY))


def test_a_peer_without_a_relay_has_no_path_at_first() -> None:
    line = Line(A, relay=None)
    assert (line.kind(), line.way()) == (Kind.NONE, None)
    line.send()
    assert line.take() == [Probe(A)]  # and there is nobody to give a call to
    line.pong(A)
    assert line.way() == UdpPath(A)


def test_the_first_packet_begins_a_search_and_the_others_do_not() -> None:
    line = Line(A, B)
    line.send()
    assert line.take() == [Probe(A), Probe(B), Call()]
    for _ in range(100):
        line.send()
    assert line.take() == []


def test_rounds_come_quickly_at_first_and_then_every_few_seconds() -> None:
    line = Line(A)
    began = line.now
    line.run(20.0, sending_every=0.05)
    expected, at = [0.0], 0.0
    for gap_s in (*ROUND_GAPS_S, ROUND_S, ROUND_S, ROUND_S):
        at = round(at + gap_s, 3)
        expected.append(at)
    assert line.times(Call, began) == line.times(Probe, began) == expected


def test_a_search_in_vain_looks_up_our_own_endpoints_again() -> None:
    line = Line(A)
    line.run(40.0, sending_every=0.5)
    calls = [wish.fresh for _, wish in line.log if isinstance(wish, Call)]
    assert [number for number, fresh in enumerate(calls, 1) if fresh] == sorted(FRESH_ROUNDS)


def test_an_idle_peer_is_left_in_peace() -> None:
    line = Line(A)
    line.send()
    line.run(ACTIVE_S + ROUND_S)
    line.log.clear()
    line.run(1e6)
    assert line.log == []
    assert line.path.deadline() == inf


@pytest.mark.parametrize("searched_at", [0.0, 1.0, 2.0, 3.0, 4.0])
def test_whenever_an_idle_peer_is_sent_to_again_a_search_begins(searched_at: float) -> None:
    for pause_s in (ACTIVE_S + halves / 2 for halves in range(1, 16)):
        line = Line(A)
        line.send()
        line.run(searched_at)
        line.do(line.path.tell([A, B], RELAY, line.now))
        line.run(pause_s - searched_at)
        line.answering[A] = RTT_S
        line.run(10.0, sending_every=0.5)
        assert line.kind() is Kind.DIRECT, pause_s


def test_new_places_are_tried_at_once_while_there_is_a_search() -> None:
    line = Line(A)
    line.run(4.0, sending_every=0.5)
    line.log.clear()
    line.do(line.path.tell([A, B], RELAY, line.now))
    assert line.take() == [Probe(B), Probe(A), Call()]
    line.do(line.path.tell([A, B], RELAY, line.now))
    assert line.take() == []


def test_new_places_of_an_idle_peer_wait() -> None:
    line = Line(A)
    line.do(line.path.tell([B], RELAY, line.now))
    assert line.take() == []
    line.send()
    assert line.take() == [Probe(B), Call()]


def test_another_relay_counts_at_once() -> None:
    line = Line(A)
    line.do(line.path.tell([A], 9, line.now))
    assert line.way() == DerpPath(9)
    line.do(line.path.tell([A], None, line.now))
    assert (line.kind(), line.way()) == (Kind.NONE, None)
    line.do(line.path.tell([A], 9, line.now))
    assert line.kind() is Kind.RELAYED


# --- what makes a path ---------------------------------------------------------------------------------------------


def test_a_pong_makes_a_path_and_ends_the_search() -> None:
    line = Line(A, B)
    line.send()
    line.take()
    line.pong(A)
    assert [str(change) for change in line.changes()] == ["direct by 192.0.2.1:41641: it answers, after 20.0 ms"]
    assert line.way() == UdpPath(A)
    assert line.path.latency_s == RTT_S
    line.run(2.9)
    assert line.log == []


def test_neither_pings_nor_data_nor_calls_make_a_path() -> None:
    line = Line(A)
    line.send()
    for _ in range(10):
        line.ping(B)
        line.hear(B)
        line.call(B, C)
        line.run(0.1)
    assert line.kind() is Kind.RELAYED
    line = direct(A)
    for _ in range(10):
        line.ping(B)
        line.hear(B)
        line.call(B, C)
        line.run(0.1, sending_every=0.1)
    assert line.way() == UdpPath(A)


def test_a_pong_from_a_place_that_nobody_speaks_of_is_nothing() -> None:
    line = Line(A)
    line.send()
    line.pong(B)
    assert line.kind() is Kind.RELAYED


def test_a_ping_is_met_with_one_while_there_is_a_search() -> None:
    line = Line(A)
    line.send()
    line.take()
    line.ping(B)
    assert line.take() == [Probe(B)]
    line.ping(B)
    assert line.take() == []  # just pinged
    line.pong(B)
    assert line.way() == UdpPath(B)


def test_a_first_ping_from_a_place_is_met_though_it_was_just_pinged_in_vain() -> None:
    """Our own ping came before the peer's had opened its NAT, and there it ended."""
    line = Line(A)
    line.send()
    line.take()
    line.run(0.05)
    line.ping(A)
    assert line.take() == [Probe(A)]
    line.run(0.01)
    line.ping(A)
    assert line.take() == []


def test_a_ping_is_not_met_while_we_have_nothing_to_send_or_a_path() -> None:
    line = Line(A)
    line.ping(B)
    assert line.take() == []
    line = direct(A)
    line.ping(B)
    assert line.take() == []


def test_where_pings_came_from_is_tried_in_the_next_search() -> None:
    line = Line(A)
    line.ping(B)
    line.run(10.0)
    line.send()
    assert line.take() == [Probe(A), Probe(B), Call()]
    line = Line(A)
    line.ping(B)
    line.run(LEARNT_S + 0.1)
    line.send()
    assert line.take() == [Probe(A), Call()]


def test_a_call_is_answered_with_pings_and_no_call() -> None:
    line = Line(A)
    line.call(B, C)
    assert line.take() == [Probe(A), Probe(B), Probe(C)]
    assert line.path.deadline() == inf  # nor with more of them later


def test_calls_that_come_too_quickly_and_say_nothing_new_are_noted_only() -> None:
    line = Line()
    line.call(A, B)
    line.take()
    line.run(MIN_CALL_SPACING_S * 0.9)
    line.call(A)
    assert line.take() == []
    line.run(MIN_CALL_SPACING_S)
    line.call(A)
    assert line.take() == [Probe(A)]


def test_what_a_call_says_that_is_new_is_tried_at_once() -> None:
    """Who calls looks up where it is meanwhile, and calls again a moment later if it is elsewhere by now."""
    line = Line()
    line.call(A)
    line.take()
    line.run(0.02)
    line.call(A, B)
    assert line.take() == [Probe(B)]


def test_a_call_is_a_reason_to_ask_whether_the_path_still_leads_there() -> None:
    """Who can hear us is content with the path, and who can not is calling."""
    line = direct(A)
    line.answering.clear()
    began = line.now
    line.run(0.5, sending_every=0.1, hearing=A)
    line.call(A)
    line.run(0.9, sending_every=0.1, hearing=A)
    assert line.times(Probe, began)[:2] == [0.5, 0.9]
    assert line.way() == BothPaths(UdpPath(A), DerpPath(RELAY))


def test_a_call_to_an_idle_peer_casts_no_doubt() -> None:
    line = direct(A)
    line.run(100.0)
    line.answering.clear()
    line.call(A)
    line.run(100.0)
    assert line.kind() is Kind.DIRECT


# --- a direct path -------------------------------------------------------------------------------------------------


def test_a_heartbeat_keeps_it() -> None:
    line = direct()
    began = line.now
    line.run(30.0, sending_every=0.1, hearing=A)
    assert line.kind() is Kind.DIRECT
    assert len(line.times(Probe)) == 10
    assert line.times(Probe, began)[:3] == [3.0, 6.0, 9.0]
    assert line.times(Call) == line.times(Change) == []


def test_heartbeats_end_when_nothing_is_sent() -> None:
    line = direct()
    line.run(ACTIVE_S + HEARTBEAT_S)
    assert len(line.times(Probe)) == ACTIVE_S / HEARTBEAT_S
    line.log.clear()
    line.run(1e6)
    assert line.log == []
    assert line.kind() is Kind.DIRECT


def test_who_hears_nothing_asks_sooner() -> None:
    line = direct()
    began = line.now
    line.run(2.5, sending_every=0.1)
    first, second = line.times(Probe, began)
    assert SILENCE_S <= first <= SILENCE_S + 0.1
    assert SILENCE_S <= second - first - RTT_S <= SILENCE_S + 0.1
    assert line.kind() is Kind.DIRECT


def test_two_pings_without_an_answer_are_a_doubt() -> None:
    line = direct(A, B)
    line.answering.clear()
    began = line.now
    line.run(1.95, sending_every=0.1)
    [at] = line.times(Change, began)
    assert at == pytest.approx(SILENCE_S + 0.1 + 2 * PATIENCE_S[0], abs=0.11)
    assert line.way() == BothPaths(UdpPath(A), DerpPath(RELAY))
    assert [str(change) for change in line.changes()] == ["direct and relayed by 192.0.2.1:41641: 2 pings unanswered"]


def test_one_lost_ping_is_no_doubt() -> None:
    line = direct()
    line.answering.clear()
    line.run(1.2, sending_every=0.1)
    line.answering[A] = RTT_S
    line.run(20.0, sending_every=0.1)
    assert line.times(Change) == []


@pytest.mark.parametrize(("latency_s", "patience_s"), [(0.001, 0.4), (0.2, 0.8), (0.4, 1.6), (0.9, 2.0), (5.0, 2.0)])
def test_patience_is_longer_where_the_way_is(latency_s: float, patience_s: float) -> None:
    line = direct()
    line.pong(A, latency_s)
    line.answering.clear()
    began = line.now
    line.run(2.9 + 2 * patience_s, hearing=A)
    [first, second, *_] = line.times(Probe, began)
    assert second - first == pytest.approx(patience_s)


def test_a_handshake_that_the_peer_begins_by_relay_is_a_doubt() -> None:
    """It has another process, or is elsewhere: what we answer by the path of before it would not get."""
    line = direct(A, B)
    line.do(line.path.heard_by_relay(line.now))
    assert line.way() == BothPaths(UdpPath(A), DerpPath(RELAY))
    line.pong(A)
    assert line.way() == UdpPath(A)


def test_a_doubt_begins_a_search_and_asks_for_help() -> None:
    line = direct(A, B)
    line.answering.clear()
    line.run(1.95, sending_every=0.1)
    [(at, _)] = [(at, wish) for at, wish in line.log if isinstance(wish, Change)]
    assert {wish for when, wish in line.log if when == at} >= {Probe(A), Probe(B), Call(fresh=True)}


def test_a_pong_ends_the_doubt() -> None:
    line = direct(A, B)
    line.answering.clear()
    line.run(2.5, sending_every=0.1)
    line.take()
    line.pong(A)
    assert line.way() == UdpPath(A)
    assert [change.reason for change in line.changes()] == ["it answers again, after 20.0 ms"]


def test_in_doubt_whoever_answers_first_is_taken() -> None:
    line = direct(A, B)
    line.answering.clear()
    line.run(2.5, sending_every=0.1)
    line.pong(B, 2.0)
    assert line.way() == UdpPath(B)
    line.pong(A, 0.001)  # and then whoever is better
    assert line.way() == UdpPath(A)


def test_a_path_that_stays_silent_is_given_up() -> None:
    line = direct(A)
    line.answering.clear()
    began = line.now
    line.run(GIVE_UP_S + 0.1, sending_every=0.1)
    assert line.way() == DerpPath(RELAY)
    assert line.path.latency_s is None
    assert line.times(Change, began)[-1] == pytest.approx(GIVE_UP_S)
    line.run(60.0, sending_every=0.1)  # the search goes on
    line.answering[A] = RTT_S
    line.run(ROUND_S + RTT_S, sending_every=0.1)
    assert line.way() == UdpPath(A)


def test_without_a_relay_a_path_is_never_given_up() -> None:
    line = Line(A, relay=None)
    line.send()
    line.pong(A)
    line.run(100.0, sending_every=0.1)
    assert (line.kind(), line.way()) == (Kind.DOUBTED, UdpPath(A))
    line.do(line.path.tell([A], RELAY, line.now))  # until there is one
    line.run(0.1)
    assert line.way() == DerpPath(RELAY)


@pytest.mark.parametrize("power", [6, 10, 17, 24, 30])
def test_giving_up_comes_to_rest_whatever_the_rounding(power: int) -> None:
    for shift in (number / 37 for number in range(20)):
        line = Line(A, start=2.0**power - 1.0 - shift)  # a sum with half the digits that its parts have
        line.send()
        line.pong(A)
        line.run(30.0, sending_every=0.7)
        assert line.kind() is Kind.RELAYED


def test_who_wakes_doubts_what_was_known() -> None:
    line = direct(A)
    line.run(1000.0)
    line.log.clear()
    line.send()
    assert line.way() == BothPaths(UdpPath(A), DerpPath(RELAY))
    assert [change.reason for change in line.changes()] == ["it was idle"]
    line.run(RTT_S)
    assert line.way() == UdpPath(A)


def test_who_wakes_in_vain_goes_by_relay_alone_soon() -> None:
    line = direct(A)
    line.run(1000.0)
    line.answering.clear()
    line.send()
    line.run(GIVE_UP_S - TRUST_S + 0.1, sending_every=0.5)
    assert line.way() == DerpPath(RELAY)


def test_when_time_leaps_nothing_old_is_trusted() -> None:
    line = direct(A)
    line.run(1.0, sending_every=0.1, hearing=A)
    line.now += 600.0
    line.do(line.path.tick(line.now))
    line.log.clear()
    line.send()
    assert line.kind() is Kind.DOUBTED


def test_the_best_stays_a_candidate_though_nobody_speaks_of_it() -> None:
    """A peer behind a NAT is where its pings came from, and it need not ping as long as we do."""
    line = Line(A)
    line.send()
    line.ping(B)
    line.answering[B] = RTT_S
    line.pong(B)
    line.run(2 * LEARNT_S, sending_every=0.5, hearing=B)
    line.ping(C)
    line.do(line.path.tell([A], RELAY, line.now))
    line.call()
    line.run(20.0, sending_every=0.5, hearing=B)
    assert line.way() == UdpPath(B)
    assert line.times(Change)[1:] == []


# --- better ones ---------------------------------------------------------------------------------------------------


def test_a_better_one_is_taken_and_a_worse_one_is_not() -> None:
    line = direct(A, B, LAN)
    line.pong(B, 0.019)  # five points
    assert line.way() == UdpPath(B)
    line.pong(A, 0.019)
    assert line.way() == UdpPath(B)
    line.pong(LAN, 0.019)
    assert line.way() == UdpPath(LAN)
    assert line.path.latency_s == 0.019
    line.pong(B, 0.0189)
    assert line.way() == UdpPath(LAN)
    assert [change.reason for change in line.changes()] == [
        "better: 19.0 ms instead of 20.0 ms",
        "better: 19.0 ms instead of 19.0 ms",
    ]


def test_a_better_one_is_looked_for_every_minute() -> None:
    line = direct(A, B)
    began = line.now
    line.run(3 * UPGRADE_S, sending_every=0.5, hearing=A)
    assert len(line.times(Call)) == 3 - 1 + (line.times(Call, began)[0] < UPGRADE_S)
    line.answering[B] = 0.001
    line.run(UPGRADE_S + HEARTBEAT_S, sending_every=0.5, hearing=A)
    assert line.way() == UdpPath(B)


def test_nothing_better_is_looked_for_than_what_is_good() -> None:
    line = direct(A, B)
    line.answering[A] = 0.004
    line.run(HEARTBEAT_S + 0.1, sending_every=0.5, hearing=A)
    line.log.clear()
    line.run(10 * UPGRADE_S, sending_every=0.5, hearing=A)
    assert line.times(Call) == []
    assert {wish for wish in line.take() if isinstance(wish, Probe)} == {Probe(A)}


# --- another network, another process ------------------------------------------------------------------------------


def test_on_another_network_what_was_known_is_doubted_at_once() -> None:
    line = direct(A)
    line.do(line.path.begin_anew("why", line.now))
    assert line.way() == BothPaths(UdpPath(A), DerpPath(RELAY))
    wishes = line.take()
    assert [wish.reason for wish in wishes if isinstance(wish, Change)] == ["why"]
    assert Probe(A) in wishes
    assert any(isinstance(wish, Call) for wish in wishes)
    line.run(RTT_S)
    assert line.kind() is Kind.DIRECT


def test_on_another_network_an_idle_peer_is_left_in_peace_until_it_is_sent_to() -> None:
    line = direct(A)
    line.run(60.0)
    line.log.clear()
    line.do(line.path.begin_anew("why", line.now))
    line.run(60.0)
    assert line.log == []
    line.send()
    assert line.kind() is Kind.DOUBTED


def test_a_search_begins_anew_with_the_network() -> None:
    line = Line(A)
    line.run(20.0, sending_every=0.5)
    line.log.clear()
    began = line.now
    line.do(line.path.begin_anew("why", line.now))
    line.run(0.7, sending_every=0.5)
    assert line.times(Probe, began) == [0.0, 0.2, 0.6]


# --- people --------------------------------------------------------------------------------------------------------


def test_a_person_asks_by_the_path_that_is_trusted_or_by_all_there_are() -> None:
    line = direct(A, B)
    assert line.path.ways_to_ask(line.now) == [UdpPath(A)]
    assert set(line.path.ways_to_ask(line.now + TRUST_S + 0.1)) == {UdpPath(A), UdpPath(B), DerpPath(RELAY)}
    assert Line(relay=None).path.ways_to_ask(0.0) == []


def test_changes_are_remembered_up_to_a_number() -> None:
    line = direct(A, B)
    for number in range(100):
        line.do(line.path.begin_anew(f"reason {number}", line.now))
        line.pong(A)
    assert len(line.path.changes) == MAX_CHANGES
    assert line.path.changes[-2].reason == "reason 99"
    assert str(Change(0.0, Kind.RELAYED, None, "why")) == "relayed: why"


# --- bounds --------------------------------------------------------------------------------------------------------


def most_within(times: list[float], seconds: float) -> int:
    """The greatest number of these within any such time."""
    return max((sum(start <= at <= start + seconds for at in times) for start in times), default=0)


def test_a_peer_that_calls_for_ever_does_not_make_us_storm() -> None:
    line = Line(*map(somewhere, range(MAX_TOLD)))
    for number in range(2000):
        line.call(*map(somewhere, range(100 * number, 100 * number + 32)))
        line.ping(somewhere(50_000 + number))
        line.run(0.01, sending_every=0.01)
        assert len(line.path._candidates) <= MAX_TOLD + 32 + MAX_LEARNT
    times = line.times(Probe)
    both_per_s, both_burst = PROBES_PER_S + ASKED_PROBES_PER_S, PROBES_BURST + ASKED_PROBES_BURST
    assert len(times) <= both_burst + both_per_s * 20.0
    assert most_within(times, 1.0) <= both_burst + both_per_s
    assert len(line.times(Call)) < 12


def test_what_a_peer_wants_to_be_pinged_does_not_keep_us_from_pinging_what_we_want() -> None:
    line = Line(A)
    for number in range(500):
        line.call(*map(somewhere, range(100 * number, 100 * number + 32)))
        line.run(0.01, sending_every=0.01)
    line.log.clear()
    line.answering[A] = RTT_S
    line.call(*map(somewhere, range(32)))
    line.run(ROUND_S + 0.1, sending_every=0.1)
    assert line.way() == UdpPath(A)
    for number in range(3000):  # and what answers is not doubted
        line.call(*map(somewhere, range(100 * number, 100 * number + 32)))
        line.run(0.01, sending_every=0.01)
    assert line.way() == UdpPath(A)
    assert line.times(Change)[1:] == []


# --- in any order --------------------------------------------------------------------------------------------------

PLACES = [A, B, C, LAN]
places = st.sampled_from(PLACES)
steps = st.one_of(
    st.tuples(st.just("send")),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.01, 0.1, 0.3, 1.0, 3.0, 7.0, 12.0, 50.0, 4000.0])),
    st.tuples(st.just("leap"), st.sampled_from([1.0, 12.0, 600.0])),
    st.tuples(st.just("pong"), places, st.sampled_from([0.0, 0.001, 0.02, 1.0, 4.9])),
    st.tuples(st.just("ping"), places),
    st.tuples(st.just("hear"), places),
    st.tuples(st.just("call"), st.lists(places, max_size=4)),
    st.tuples(st.just("tell"), st.lists(places, max_size=4), st.sampled_from([None, 1, 2])),
    st.tuples(st.just("begin anew")),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(steps, max_size=40), st.sampled_from([0.0, 0.1, 1e6 + 0.3]), st.booleans())
def test_in_whatever_order_things_happen(events: list[tuple[object, ...]], start: float, with_relay: bool) -> None:
    line = Line(A, relay=1 if with_relay else None, start=start)
    for event in events:
        before = line.path.best
        match event:
            case ("send",):
                line.send()
            case ("wait", float(seconds)):
                line.run(seconds)
            case ("leap", float(seconds)):
                line.now += seconds
                line.run(0.0)
            case ("pong", (str(host), int(port)), float(latency_s)):
                line.pong((host, port), latency_s)
            case ("ping", (str(host), int(port))):
                line.ping((host, port))
                assert line.path.best == before
            case ("hear", (str(host), int(port))):
                line.hear((host, port))
                assert line.path.best == before
            case ("call", list(endpoints)):
                line.call(*endpoints)
                assert line.path.best == before
            case ("tell", list(endpoints), region):
                line.do(line.path.tell(endpoints, region, line.now))  # type: ignore[arg-type]
                assert line.path.best == before
            case ("begin anew",):
                line.do(line.path.begin_anew("why", line.now))
        assert line.path._relay is None or line.way() is not None
    # Whatever happened: who sends finds what answers, and who is idle is left in peace.
    line.do(line.path.tell([B], 3, line.now))
    line.answering = {B: RTT_S}
    line.run(ROUND_S + TRUST_S + HEARTBEAT_S, sending_every=0.2)
    assert line.way() == UdpPath(B)
    line.run(ACTIVE_S + HEARTBEAT_S + 1.0)
    line.log.clear()
    line.run(1e5)
    assert line.log == []
    assert line.path.deadline() == inf
