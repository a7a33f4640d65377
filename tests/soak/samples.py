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
    private_kb: int
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
            self.samples.append(
                Sample(at, private_kb(self.pid), len(os.listdir(f"/proc/{self.pid}/fd")), *_status(self.pid))
            )
            return True
        return False

    def after_warm_up(self, began: float, ended: float) -> list[Sample]:
        """The samples that count."""
        return [sample for sample in self.samples if sample.at >= began + WARM_UP_SHARE * (ended - began)]

    def memory_growth_kb(self, began: float, ended: float) -> float:
        """By the line that fits best, over the time after the warm-up."""
        return _growth([(sample.at, float(sample.private_kb)) for sample in self.after_warm_up(began, ended)])

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


def private_kb(pid: int) -> int:
    """What nobody shares with the process."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def _status(pid: int) -> tuple[int, float]:
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(words[17]), (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")
