"""How often something may be done, and how often at once; how much time something may take (ring 0)."""

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


class Allowance:
    """Of what is only known afterwards how much it was: `share` comes in with each second, at most `most` is kept, and there may be debts."""

    __slots__ = ("_at", "_left", "_most", "_share")

    def __init__(self, share: float, most: float, now: float) -> None:
        self._share = share
        self._most = most
        self._left = most
        self._at = now

    def spend(self, amount: float, now: float) -> float:
        """Spend as much; gives after how many seconds nothing is owed any more."""
        self._left = min(self._most, self._left + (now - self._at) * self._share) - amount
        self._at = now
        return max(0.0, -self._left / self._share)
