"""A gateway's clock: whether it has kept its table of mappings since we last heard of it (ring 0).

Source: RFC 6887, section 8.5; NAT-PMP's clock (RFC 6886, section 3.6) is the same one, judged a little less strictly there.
"""

from __future__ import annotations

from typing import Final

BACKWARDS_S: Final = 1  # datagrams may overtake each other
SLACK_S: Final = 2
DRIFT: Final = 1 / 16


class Epoch:
    """The clock as one answer after another shows it."""

    def __init__(self) -> None:
        self._last: tuple[int, float] | None = None  # its time in seconds, and ours

    def note(self, epoch_s: int, now: float) -> bool:
        """Whether it went on as ours did; else it has begun anew, and what it had granted is gone."""
        last, self._last = self._last, (epoch_s, now)
        if last is None:
            return True
        theirs, ours = epoch_s - last[0], now - last[1]
        if theirs < -BACKWARDS_S:
            return False
        return ours + SLACK_S >= theirs * (1 - DRIFT) and theirs + SLACK_S >= ours * (1 - DRIFT)
