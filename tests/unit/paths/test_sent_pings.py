"""Pings that wait for their pongs: for how long, and how many."""

from __future__ import annotations

from tsns.keys import NodePublic
from tsns.paths.sent_pings import MAX_PINGS, PING_PATIENCE_S, SentPing, SentPings
from tsns.ways import DerpPath

PEER = NodePublic(bytes(range(32)))


def sent(at: float) -> SentPing:
    return SentPing(at, PEER, DerpPath(1), None)


def named(number: int) -> bytes:
    return number.to_bytes(12, "big")


def test_a_ping_waits_until_it_is_answered_or_nobody_is_patient_any_more() -> None:
    pings = SentPings()
    pings.add(named(1), sent(10.0))
    pings.add(named(2), sent(11.0))
    assert pings.get(named(3), 11.0) is None
    assert pings.get(named(1), 10.0 + PING_PATIENCE_S) == sent(10.0)
    assert pings.get(named(1), 10.1 + PING_PATIENCE_S) is None
    assert pings.get(named(2), 10.1 + PING_PATIENCE_S) == sent(11.0)
    pings.answered(named(2))
    assert pings.get(named(2), 11.0) is None


def test_what_nobody_answered_is_forgotten_when_others_are_sent() -> None:
    pings = SentPings()
    for number in range(1000):
        pings.add(named(number), sent(float(number)))
        assert len(pings) <= PING_PATIENCE_S + 1
    pings.add(named(5000), sent(1e6))
    assert len(pings) == 1


def test_the_oldest_give_way_to_new_ones() -> None:
    pings = SentPings()
    for number in range(MAX_PINGS + 10):
        pings.add(named(number), sent(0.0))
    assert len(pings) == MAX_PINGS
    assert pings.get(named(9), 0.0) is None
    assert pings.get(named(10), 0.0) == sent(0.0)
    assert pings.get(named(MAX_PINGS + 9), 0.0) == sent(0.0)
