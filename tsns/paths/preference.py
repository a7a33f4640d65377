"""Which region is home: the choice out of the reports, slow to change (ring 0).

Source: net/netcheck/netcheck.go of Tailscale's module. A change of home is told to every peer, so the present one stays
while it is reachable and not clearly worse.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Collection, Mapping
from typing import Final

from tsns.paths.netcheck import Report

HISTORY_S: Final = 305.0
MAX_HISTORY: Final = 64  # reports
HEARD_S: Final = 8.0  # a relay that sent something so lately is reachable
HEARD_WITHOUT_NETWORK_S: Final = 120.0  # where no region answers, one that did lately may stay
MIN_GAIN_S: Final = 0.010
MIN_GAIN_RATIO: Final = 2 / 3


class Preference:
    """The home region, as one report follows another. `number` is any number, constant for a node: it decides where nothing else does."""

    def __init__(self, number: int) -> None:
        self.home: int | None = None
        self._number = number
        self._history: collections.deque[Report] = collections.deque(maxlen=MAX_HISTORY)

    def set_regions(self, regions: Collection[int]) -> None:
        """Only these may be home from now on; where there is one only, it is."""
        if self.home not in regions:
            self.home = None
        if len(regions) == 1:
            self.home = next(iter(regions))

    def note(
        self,
        report: Report,
        regions: Collection[int],
        scores: Mapping[int, float],
        heard_at: Callable[[int], float | None],
        *,
        may_change: bool = True,
    ) -> int | None:
        """The home after this report. `heard_at` says when a standing connection to a region last brought something.

        Without `may_change` a present home stays (nobody could be told of another one).
        """
        self._history.append(report)
        old = self.home if self.home in regions else None
        answered = {region: latency for region, latency in report.latencies().items() if region in regions}
        if old is None or may_change:
            if answered:
                self.home = self._choose(old, answered, scores, heard_at, report.at)
            else:
                self.home = self._without_answers(old, regions, heard_at, report.at)
        return self.home

    def _choose(
        self,
        old: int | None,
        answered: Mapping[int, float],
        scores: Mapping[int, float],
        heard_at: Callable[[int], float | None],
        now: float,
    ) -> int:
        best: dict[int, float] = {}
        for report in (one for one in self._history if now - one.at <= HISTORY_S):
            for region, latency in report.latencies().items():
                weighed = latency * score if (score := scores.get(region, 0)) > 0 else latency
                best[region] = min(weighed, best.get(region, weighed))
        candidate = min(answered, key=lambda region: (best[region], region))
        if old is None or old == candidate or old not in best:
            return candidate
        heard = heard_at(old)
        reachable = old in answered or (heard is not None and now - heard <= HEARD_S)
        little_gain = best[old] - best[candidate] < MIN_GAIN_S or best[candidate] > best[old] * MIN_GAIN_RATIO
        return old if reachable and little_gain else candidate

    def _without_answers(
        self, old: int | None, regions: Collection[int], heard_at: Callable[[int], float | None], now: float
    ) -> int | None:
        if old is not None:
            return old
        heard = {
            region: at
            for region in regions
            if (at := heard_at(region)) is not None and now - at <= HEARD_WITHOUT_NETWORK_S
        }
        if heard:
            return max(heard, key=heard.__getitem__)
        ordered = sorted(regions)
        return ordered[self._number % len(ordered)] if ordered else None
