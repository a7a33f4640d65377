"""The home region: the nearest, but slow to change."""

from __future__ import annotations

from collections.abc import Mapping

from tsns.paths.netcheck import Report
from tsns.paths.preference import HEARD_S, HISTORY_S, Preference

REGIONS = (1, 2, 3)


def report(at: float, latencies: Mapping[int, float]) -> Report:
    return Report(at=at, full=True, v4=latencies)


def note(
    preference: Preference,
    at: float,
    latencies: Mapping[int, float],
    *,
    scores: Mapping[int, float] | None = None,
    heard: Mapping[int, float] | None = None,
    may_change: bool = True,
) -> int | None:
    return preference.note(report(at, latencies), REGIONS, scores or {}, (heard or {}).get, may_change=may_change)


def test_the_nearest_region_is_home() -> None:
    assert note(Preference(0), 0, {1: 0.05, 2: 0.02}) == 2


def test_the_only_region_is_home_before_any_report() -> None:
    preference = Preference(0)
    preference.set_regions([7])
    assert preference.home == 7
    preference.set_regions([7, 8])
    assert preference.home == 7
    preference.set_regions([8, 9])
    assert preference.home is None


def test_a_region_that_may_not_be_home_is_not_chosen() -> None:
    assert note(Preference(0), 0, {9: 0.001, 2: 0.02}) == 2


def test_a_small_gain_changes_nothing() -> None:
    preference = Preference(0)
    note(preference, 0, {1: 0.020, 2: 0.030})
    assert note(preference, 400, {1: 0.030, 2: 0.0201}) == 1  # less than 10 ms
    assert note(preference, 800, {1: 0.100, 2: 0.070}) == 1  # more than two thirds
    assert note(preference, 1200, {1: 0.100, 2: 0.060}) == 2


def test_the_best_of_five_minutes_counts() -> None:
    preference = Preference(0)
    note(preference, 0, {1: 0.02, 2: 0.03})
    assert note(preference, 100, {1: 0.5, 2: 0.03}) == 1
    assert note(preference, HISTORY_S + 1, {1: 0.5, 2: 0.03}) == 2


def test_scores_weigh() -> None:
    assert note(Preference(0), 0, {1: 0.05, 2: 0.04}, scores={1: 0.5}) == 1
    assert note(Preference(0), 0, {1: 0.05, 2: 0.04}, scores={1: 0.0, 2: -1.0}) == 2


def test_a_home_that_is_silent_is_left_unless_its_connection_speaks() -> None:
    preference = Preference(0)
    note(preference, 0, {1: 0.02, 2: 0.03})
    assert note(preference, 20, {2: 0.03}, heard={1: 20 - HEARD_S}) == 1
    assert note(preference, 20, {2: 0.03}, heard={1: 20 - HEARD_S - 0.1}) == 2


def test_without_any_answer_home_stays() -> None:
    preference = Preference(0)
    note(preference, 0, {1: 0.02})
    assert note(preference, 20, {}) == 1


def test_without_any_answer_ever_the_number_decides() -> None:
    assert [note(Preference(number), 0, {}) for number in (0, 1, 2, 3)] == [1, 2, 3, 1]
    assert note(Preference(0), 100, {}, heard={3: 50.0}) == 3
    assert Preference(5).note(report(0, {}), [], {}, lambda _: None) is None


def test_home_does_not_move_while_nobody_can_be_told() -> None:
    preference = Preference(0)
    assert note(preference, 0, {1: 0.02}, may_change=False) == 1
    assert note(preference, 400, {1: 0.2, 2: 0.03}, may_change=False) == 1
    assert note(preference, 800, {1: 0.2, 2: 0.03}) == 2
