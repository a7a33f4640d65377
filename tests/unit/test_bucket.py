"""Tokens: at most so many at once, and so many a second. Time: so much at once, and a share of what follows."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsns.bucket import Allowance, Bucket


def test_a_burst_and_then_one_at_a_time() -> None:
    bucket = Bucket(per_s=2.0, burst=3.0, now=10.0)
    assert [bucket.take(10.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(10.4)
    assert bucket.take(10.5)
    assert not bucket.take(10.5)


def test_no_more_than_a_burst_is_kept_however_long_it_rests() -> None:
    bucket = Bucket(per_s=2.0, burst=3.0, now=0.0)
    assert bucket.take(0.0)
    assert sum(bucket.take(1e6) for _ in range(10)) == 3


@pytest.mark.parametrize(("now", "full"), [(0.0, False), (0.49, False), (0.5, True), (100.0, True)])
def test_a_full_one_need_not_be_remembered(now: float, full: bool) -> None:
    bucket = Bucket(per_s=2.0, burst=3.0, now=0.0)
    assert bucket.is_full(0.0)
    bucket.take(0.0)
    assert bucket.is_full(now) == full


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(0, 1), max_size=200))
def test_never_more_than_both_together(pauses: list[float]) -> None:
    bucket, now, taken = Bucket(per_s=5.0, burst=10.0, now=0.0), 0.0, 0
    for pause in pauses:
        now += pause
        taken += bucket.take(now)
    assert taken <= 10 + 5 * now + 1e-6


def test_who_has_spent_too_much_waits_until_nothing_is_owed() -> None:
    allowance = Allowance(share=0.5, most=2.0, now=10.0)
    assert allowance.spend(1.5, 10.0) == 0.0
    assert allowance.spend(1.5, 10.0) == 2.0
    assert allowance.spend(0.0, 11.0) == 1.0
    assert allowance.spend(0.0, 12.0) == 0.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=200))
def test_no_more_than_the_share_however_it_is_spent(steps: list[tuple[float, float]]) -> None:
    allowance, now, spent = Allowance(share=0.5, most=2.0, now=0.0), 0.0, 0.0
    for pause, amount in steps:
        now += pause
        spent += amount
        now += allowance.spend(amount, now)
    assert spent <= 2.0 + 0.5 * now + 1e-6
