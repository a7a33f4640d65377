"""How long to wait before control is asked again (ring 0).

Source: util/backoff of Tailscale's module: the square of the failures so far, times 10 ms, give or take a half.
"""

from __future__ import annotations

import email.utils
from collections.abc import Callable
from typing import Final

STEP_S: Final = 0.010
MAX_DELAY_S: Final = 20.0  # before it is spread by a half: nobody is left alone for longer than 30 s
MAX_RETRY_AFTER_S: Final = 3600.0
BUSY_DELAY_S: Final = (5.0, 10.0)  # where a busy server names no time that makes sense

Fraction = Callable[[], float]  # random.random: evenly from 0 up to 1


class Backoff:
    """Counts failures and says how long to wait after each."""

    def __init__(self, fraction: Fraction) -> None:
        self._fraction = fraction
        self._failures = 0

    def succeeded(self) -> None:
        """Start again with the shortest wait."""
        self._failures = 0

    def failed(self, at_least_s: float | None = None) -> float:
        """Seconds to wait after one more failure; the other side may have asked for more."""
        self._failures += 1
        delay = min(self._failures**2 * STEP_S, MAX_DELAY_S) * (0.5 + self._fraction())
        return max(delay, at_least_s or 0.0)


def wish_of(status: int, header: str | None, wall_now: float, fraction: Fraction) -> float | None:
    """How long the sender of a response that is an error wants to be left alone; None where it says nothing of it."""
    if status == 429 or (header and status >= 500):
        return retry_after_s(header, wall_now, fraction)
    return None


def retry_after_s(header: str | None, wall_now: float, fraction: Fraction) -> float:
    """What a `Retry-After` header asks for: seconds or a date; some seconds at random where it is missing or out of bounds."""
    wish = 0.0
    text = (header or "").strip()
    if text.isascii() and text.isdigit() and len(text) <= 6:
        wish = float(text)
    elif text:
        try:
            wish = email.utils.parsedate_to_datetime(text).timestamp() - wall_now
        except (ValueError, OverflowError):
            wish = 0.0
    shortest, longest = BUSY_DELAY_S
    return wish if 0 < wish <= MAX_RETRY_AFTER_S else shortest + fraction() * (longest - shortest)
