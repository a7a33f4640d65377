"""A token bucket: how often something may be done, and how often at once (ring 0)."""

from __future__ import annotations


class Bucket:
    """Tokens: `per_s` come in, at most `burst` are kept."""

    __slots__ = ("_at", "_burst", "_per_s", "_tokens")

    def __init__(self, per_s: float, burst: float, now: float) -> None:
        self._per_s = per_s
        self._burst = burst
        self._tokens = burst
        self._at = now

    def take(self, now: float) -> bool:
        """Take one; False where there is none."""
        self._tokens = min(self._burst, self._tokens + (now - self._at) * self._per_s)
        self._at = now
        if self._tokens < 1.0:
            return False
        self._tokens -= 1.0
        return True

    def is_full(self, now: float) -> bool:
        """Whether nothing was taken for so long that it need not be remembered."""
        return self._tokens + (now - self._at) * self._per_s >= self._burst
