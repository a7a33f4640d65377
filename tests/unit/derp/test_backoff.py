"""Pauses before a relay is tried again."""

from __future__ import annotations

import pytest

from tsns.derp.backoff import Backoff


def lowest(low: float, high: float) -> float:
    assert low < high
    return low


def highest(low: float, high: float) -> float:
    assert low < high
    return high


def pauses(backoff: Backoff, count: int) -> list[float]:
    found = []
    for _ in range(count):
        backoff.fail()
        found.append(backoff.pause_s(now=0.0))
    return found


def test_pauses_grow_with_the_square_up_to_a_limit() -> None:
    assert pauses(Backoff(lowest), 3) == pytest.approx([0.005, 0.02, 0.045])
    assert pauses(Backoff(highest), 3) == pytest.approx([0.015, 0.06, 0.135])
    assert pauses(Backoff(highest), 30)[-1] == pytest.approx(7.5)


def test_without_a_failure_there_is_no_pause() -> None:
    backoff = Backoff(highest)
    assert backoff.pause_s(now=0.0) == 0
    pauses(backoff, 10)
    backoff.reset()
    assert backoff.pause_s(now=0.0) == 0


def test_a_restart_is_waited_for_and_then_tried_often_for_its_time() -> None:
    backoff = Backoff(highest)
    pauses(backoff, 30)
    backoff.expect_restart(10.0, 20.0)
    assert backoff.pause_s(now=100.0) == pytest.approx(12.5)
    assert backoff.pause_s(now=112.5) == pytest.approx(1.0)
    assert backoff.pause_s(now=132.4) == pytest.approx(1.0)
    assert backoff.pause_s(now=132.6) == pytest.approx(7.5)


def test_a_relay_cannot_keep_us_away_for_ever() -> None:
    backoff = Backoff(lowest)
    backoff.expect_restart(4e6, 4e6)
    assert backoff.pause_s(now=0.0) == 60.0


def test_success_ends_a_restart() -> None:
    backoff = Backoff(lowest)
    backoff.expect_restart(1.0, 100.0)
    backoff.pause_s(now=0.0)
    backoff.reset()
    assert pauses(backoff, 30)[-1] == pytest.approx(2.5)
