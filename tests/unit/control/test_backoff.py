"""How long control is left alone."""

from __future__ import annotations

import pytest

from tsns.control.backoff import MAX_DELAY_S, Backoff, retry_after_s, wish_of

NOW = 1_800_000_000.0  # 2027-01-15 08:00:00 UTC


def test_waits_grow_with_the_square_of_the_failures() -> None:
    backoff = Backoff(lambda: 0.5)
    assert [round(backoff.failed(), 3) for _ in range(4)] == [0.01, 0.04, 0.09, 0.16]
    backoff.succeeded()
    assert backoff.failed() == 0.01


def test_waits_are_spread_by_a_half_and_end_at_30_seconds() -> None:
    assert (Backoff(lambda: 0.0).failed(), Backoff(lambda: 1.0).failed()) == (0.005, 0.015)
    backoff = Backoff(lambda: 1.0)
    assert max(backoff.failed() for _ in range(100)) == 1.5 * MAX_DELAY_S == 30.0
    backoff = Backoff(lambda: 0.0)
    assert [backoff.failed() for _ in range(1000)][-1] == 0.5 * MAX_DELAY_S, "spread for ever: no herd"


def test_the_other_sides_wish_counts_where_it_is_longer() -> None:
    backoff = Backoff(lambda: 0.5)
    assert backoff.failed(60.0) == 60.0
    assert backoff.failed(0.001) == 0.04


@pytest.mark.parametrize(
    ("header", "wait"),
    [
        ("7", 7.0),
        (" 3600 ", 3600.0),
        ("Fri, 15 Jan 2027 08:00:30 GMT", 30.0),
        ("Fri, 15 Jan 2027 07:00:00 GMT", 7.5),
        ("3601", 7.5),
        ("0", 7.5),
        ("-1", 7.5),
        ("soon", 7.5),
        ("9" * 5000, 7.5),
        (None, 7.5),
    ],
)
def test_retry_after(header: str | None, wait: float) -> None:
    assert retry_after_s(header, NOW, lambda: 0.5) == wait


@pytest.mark.parametrize(
    ("status", "header", "wish"),
    [(429, "3", 3.0), (429, None, 7.5), (503, "3", 3.0), (503, None, None), (500, "", None), (404, "3", None)],
)
def test_whose_wish_counts(status: int, header: str | None, wish: float | None) -> None:
    """A proxy in front of control may say 503 with a time, too; a plain 500 has no wish to be obeyed."""
    assert wish_of(status, header, NOW, lambda: 0.5) == wish
