"""Who talks all the time is heard at intervals."""

from __future__ import annotations

from tsns.control.pace import CALM_S, GATHER_S, MANY_READS, MUCH_BYTES, Pace


def test_who_speaks_seldom_is_heard_at_once() -> None:
    pace = Pace()
    assert {pace.heard(100, 1000.0 + number * CALM_S) for number in range(100)} == {0.0}


def test_who_talks_all_the_time_is_heard_at_intervals_until_it_pauses() -> None:
    pace = Pace()
    pauses = [pace.heard(100, 1000.0 + number * 0.001) for number in range(100)]
    assert pauses == [0.0] * (MANY_READS + 1) + [GATHER_S] * (100 - MANY_READS - 1)
    assert pace.heard(100, 1001.0) == 0.0


def test_a_large_message_is_heard_at_once() -> None:
    pace = Pace()
    assert {pace.heard(MUCH_BYTES, 1000.0 + number * 0.001) for number in range(100)} == {0.0}
