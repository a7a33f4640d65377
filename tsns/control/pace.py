"""How often a control server is listened to that talks all the time (ring 0).

A tailnet in motion is told of in small messages, a thousand a second, and each that is heard by itself costs as much as several that are
heard together. So who says little, again and again, is heard at intervals; a large message, and who speaks seldom, at once.
"""

from __future__ import annotations

from typing import Final

CALM_S: Final = 0.05  # between two reads, and nobody is talkative
MANY_READS: Final = 16  # in a row
MUCH_BYTES: Final = 16 << 10  # are a large message, of which the rest is wanted at once
GATHER_S: Final = 0.005


class Pace:
    """Of one connection."""

    def __init__(self) -> None:
        self._heard_at = 0.0
        self._small_reads = 0  # in a row

    def heard(self, size: int, now: float) -> float:
        """So many bytes have come; returns for how long more of them may gather before they are read."""
        is_in_a_row = now - self._heard_at < CALM_S and size < MUCH_BYTES
        self._small_reads = self._small_reads + 1 if is_in_a_row else 0
        self._heard_at = now
        return GATHER_S if self._small_reads > MANY_READS else 0.0
