"""Counted reasons: what became of packets that went no further (ring 0)."""

from __future__ import annotations

from collections.abc import Mapping


class Counters:
    """How often each reason came up; reasons are texts, `Drop` or others."""

    __slots__ = ("_counts",)

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def add(self, reason: str, count: int = 1) -> None:
        """Count it."""
        if count:
            self._counts[reason] = self._counts.get(reason, 0) + count

    def __getitem__(self, reason: str) -> int:
        return self._counts.get(reason, 0)

    def snapshot(self) -> Mapping[str, int]:
        """A copy: every reason that came up at all, as plain text."""
        return {str(reason): count for reason, count in self._counts.items()}

    def __repr__(self) -> str:
        return f"Counters({dict(self.snapshot())})"
