"""The replay window, by the sequences of wireguard-go's replay_test.go and against a perfect memory."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.wg.replay import REJECT_AFTER_MESSAGES, WINDOW, ReplayWindow

LIMIT = WINDOW + 1
R = REJECT_AFTER_MESSAGES
L = LIMIT

SEQUENCE = [
    *[(0, True), (1, True), (1, False), (9, True), (8, True), (7, True), (7, False), (L, True), (L - 1, True)],
    *[(L - 1, False), (L - 2, True), (2, True), (2, False), (L + 16, True), (3, False), (L + 16, False), (4 * L, True)],
    *[(3 * L + 1, True), (10, False), (3 * L, False), (3 * L - 1, False), (3 * L + 2, True), (3 * L + 1, False)],
    *[(0, False), (R, False), (R - 1, True), (R, False), (R - 1, False), (R - 2, True), (R + 1, False), (R + 2, False)],
    *[(R - 2, False), (R - 3, True), (0, False)],
]


def test_the_known_sequence() -> None:
    window = ReplayWindow()
    for position, (counter, accepted) in enumerate(SEQUENCE):
        assert window.may_accept(counter) is accepted, position
        assert window.accept(counter) is accepted, position


@pytest.mark.parametrize(
    ("filled", "last"),
    [
        (range(1, 8129), [(0, True), (0, False)]),
        (range(2, 8130), [(1, True), (0, False)]),
        (range(8130, 1, -1), [(0, False)]),
    ],
)
def test_a_window_filled_to_its_edge(filled: range, last: list[tuple[int, bool]]) -> None:
    window = ReplayWindow()
    assert all(window.accept(counter) for counter in filled)
    assert [window.accept(counter) for counter, _ in last] == [accepted for _, accepted in last]


def test_asking_remembers_nothing() -> None:
    window = ReplayWindow()
    assert window.may_accept(5)
    assert window.may_accept(5)
    assert window.accept(5)
    assert not window.may_accept(5)


@given(st.lists(st.integers(0, 40_000) | st.integers(0, 300), max_size=200))
def test_it_agrees_with_a_perfect_memory(counters: list[int]) -> None:
    window, seen = ReplayWindow(), set[int]()
    for counter in counters:
        fresh = counter not in seen and (not seen or max(seen) - counter <= WINDOW)
        assert window.may_accept(counter) is fresh
        assert window.accept(counter) is fresh
        if fresh:
            seen.add(counter)


def test_a_run_ends_below_the_limit() -> None:
    window = ReplayWindow()
    assert window.may_accept_run(R - 4, 4)
    assert not window.may_accept_run(R - 3, 4)
    window.accept_run(0, 3)
    assert [window.may_accept_run(first, 1) for first in range(5)] == [False, False, False, True, True]


def test_runs_clear_what_they_pass() -> None:
    window = ReplayWindow()
    for first in range(0, 20_000, 50):
        assert window.may_accept_run(first, 49)
        window.accept_run(first, 49)
        assert window.may_accept(first + 49)
    assert all(window.may_accept(gap) for gap in range(19_999, 19_999 - 8000, -50))


@given(st.lists(st.tuples(st.integers(-200, 9000) | st.integers(-3, 80), st.integers(1, 130)), max_size=60))
def test_runs_agree_with_a_perfect_memory(runs: list[tuple[int, int]]) -> None:
    window, newest, seen = ReplayWindow(), 0, set[int]()
    for step, count in runs:
        first = max(0, newest + step)
        assert window.may_accept_run(first, count) is (first > newest or not seen)
        if first > newest or not seen:
            window.accept_run(first, count)
            newest = first + count - 1
            seen.update(range(first, first + count))
        for counter in (
            *range(max(0, newest - 300), newest + 1, 7),
            max(0, newest - WINDOW),
            newest - WINDOW - 1,
            newest + 1,
        ):
            fresh = counter not in seen and newest - counter <= WINDOW
            assert counter < 0 or window.may_accept(counter) is fresh
