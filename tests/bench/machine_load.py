"""Whether the machine was quiet enough for its figures to be believed."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

LOOK_S: Final = 1.0
MAX_BUSY: Final = 0.10  # of all processors, while nothing of ours runs
MAX_STEAL: Final = 0.02  # taken by the machine below ours


@dataclass(frozen=True, slots=True)
class Ticks:
    """The processors' time so far, in clock ticks, all together."""

    busy: int
    steal: int
    total: int

    def since(self, before: Ticks) -> tuple[float, float]:
        """The shares that were busy and stolen since then."""
        total = max(1, self.total - before.total)
        return (self.busy - before.busy) / total, (self.steal - before.steal) / total


def ticks() -> Ticks:
    """As the kernel counts by now."""
    user, nice, system, idle, iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]
    )
    busy = user + nice + system + irq + softirq + steal
    return Ticks(busy, steal, busy + idle + iowait)


@dataclass(frozen=True, slots=True)
class Quiet:
    """What others did while a part ran, as far as it can be told from them: before and after it, and stolen time."""

    busy_before: float
    busy_after: float
    steal: float
    load_average: float  # of one minute, before; parts of our own that went before count in it

    @property
    def believable(self) -> bool:
        """Whether others left the machine to us."""
        return max(self.busy_before, self.busy_after) <= MAX_BUSY and self.steal <= MAX_STEAL

    def __str__(self) -> str:
        verdict = "quiet" if self.believable else "TOO BUSY TO BELIEVE"
        return (
            f"{verdict}: others used {100 * self.busy_before:.0f} % before and {100 * self.busy_after:.0f} % after, "
            f"stolen {100 * self.steal:.0f} %, load {self.load_average:.1f}"
        )


class Watch:
    """Looks at the machine around a part: made before it, asked after it."""

    def __init__(self) -> None:
        self._load = os.getloadavg()[0]
        self._busy = others_busy()
        self._began = ticks()

    def quiet(self) -> Quiet:
        """What the part had to live with."""
        _, steal = ticks().since(self._began)
        return Quiet(self._busy, others_busy(), steal, self._load)


def others_busy() -> float:
    """The share of all processors that others use just now, when we do nothing."""
    before = ticks()
    time.sleep(LOOK_S)
    return ticks().since(before)[0]
