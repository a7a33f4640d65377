"""The grid of pairs of NAT kinds: how soon an old node reaches a new one, and whether directly; as a table or as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tests.bench.figures import OURS, THEIRS, markdown_table, number, spread

Pair = tuple[str, str]  # the kinds of the old node's way to the internet and of the new one's
RELAYED: Final = "relayed"


@dataclass(frozen=True, slots=True)
class Meeting:
    """One new node of one contender; seconds from the start of its `up`."""

    up_s: float  # until `up` returned
    first_pong_s: float  # until an old node's ping, which begins when `up` has returned, was answered
    direct_s: float | None  # until it was answered directly; None: it was not in the time that there was

    def as_json(self) -> dict[str, Any]:
        """With both clocks: from the start of `up`, and from its return."""
        return {
            "up_s": self.up_s,
            "kind": RELAYED if self.direct_s is None else "direct",
            "first_pong_s": self.first_pong_s,
            "direct_s": self.direct_s,
            "first_pong_after_up_s": self.first_pong_s - self.up_s,
            "direct_after_up_s": None if self.direct_s is None else self.direct_s - self.up_s,
        }


@dataclass(slots=True)
class Grid:
    """All meetings, by pair and contender."""

    _meetings: dict[Pair, dict[str, list[Meeting]]] = field(default_factory=dict)

    def add(self, pair: Pair, contender: str, meeting: Meeting) -> None:
        """One sample."""
        self._meetings.setdefault(pair, {}).setdefault(contender, []).append(meeting)

    def __bool__(self) -> bool:
        return bool(self._meetings)

    def as_json(self) -> list[dict[str, Any]]:
        """For --json."""
        return [
            {
                "old": old,
                "new": new,
                "samples": {who: [meeting.as_json() for meeting in meetings] for who, meetings in by_contender.items()},
            }
            for (old, new), by_contender in self._meetings.items()
        ]

    def table(self) -> str:
        """A Markdown table with a line for each pair and the contenders side by side; medians, and the range of several."""
        head = ["old -> new"]
        for who in (OURS, THEIRS):
            head += [f"{who}: up", "first pong", "direct"]
        rows = [
            [f"{old} -> {new}", *(cell for who in (OURS, THEIRS) for cell in _cells(by_contender.get(who, [])))]
            for (old, new), by_contender in self._meetings.items()
        ]
        return markdown_table([head, *rows])


def _cells(meetings: Sequence[Meeting]) -> tuple[str, str, str]:
    if not meetings:
        return ("", "", "")
    direct = [meeting.direct_s for meeting in meetings if meeting.direct_s is not None]
    how = spread(direct) if direct else RELAYED
    if 0 < len(direct) < len(meetings):
        how += f", {RELAYED} {len(meetings) - len(direct)} of {len(meetings)}"
    ups, pongs = [meeting.up_s for meeting in meetings], [meeting.first_pong_s for meeting in meetings]
    return (number(statistics.median(ups)), spread(pongs), how)
