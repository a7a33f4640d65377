"""Memory, descriptors and logs of the processes that live long, and whether they stay as they are."""

from __future__ import annotations

import contextlib
import os
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

WARM_UP_SHARE: Final = 0.2  # of the run, in which caches fill
LEAST_SAMPLES: Final = 5
MEMORY_TOLERANCE_KB: Final = 1024.0  # of growth from the end of the warm-up to the end of the run
DESCRIPTOR_TOLERANCE: Final = 2.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a process."""

    at: float
    anonymous_kb: int  # all that is its own or shared with its forks: a leak shows here and nowhere else
    private_kb: int  # of that, what nobody shares: grows also when those who shared it end
    descriptors: int
    threads: int
    cpu_s: float


@dataclass(slots=True)
class Life:
    """All looks at one process."""

    name: str
    pid: int
    samples: list[Sample] = field(default_factory=list)

    def look(self, at: float) -> bool:
        """Take a sample; False when the process is no more."""
        with contextlib.suppress(OSError):
            anonymous, private = memory_kb(self.pid)
            open_now = len(os.listdir(f"/proc/{self.pid}/fd"))
            self.samples.append(Sample(at, anonymous, private, open_now, *_status(self.pid)))
            return True
        return False

    def after_warm_up(self, began: float, ended: float) -> list[Sample]:
        """The samples that count."""
        return [sample for sample in self.samples if sample.at >= began + WARM_UP_SHARE * (ended - began)]

    def memory_growth_kb(self, began: float, ended: float) -> float:
        """By the line that fits best, over the time after the warm-up."""
        return _growth([(sample.at, float(sample.anonymous_kb)) for sample in self.after_warm_up(began, ended)])

    def descriptor_growth(self, began: float, ended: float) -> float:
        """The same for descriptors."""
        return _growth([(sample.at, float(sample.descriptors)) for sample in self.after_warm_up(began, ended)])

    def cpu_share(self) -> float:
        """Of one core, over all its samples."""
        first, last = self.samples[0], self.samples[-1]
        return (last.cpu_s - first.cpu_s) / max(last.at - first.at, 1e-9)


def _growth(points: list[tuple[float, float]]) -> float:
    if len(points) < LEAST_SAMPLES:
        return 0.0
    slope, _ = statistics.linear_regression([at for at, _ in points], [value for _, value in points])
    return slope * (points[-1][0] - points[0][0])


def memory_kb(pid: int) -> tuple[int, int]:
    """(anonymous, private) memory of a process."""
    lines = [line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]]
    sizes = {words[0].rstrip(":"): int(words[1]) for words in lines}
    return sizes["Anonymous"], sizes["Private_Clean"] + sizes["Private_Dirty"]


def _status(pid: int) -> tuple[int, float]:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[17]), (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
