"""Whether a parser took a case as it must: no exception but the documented ones, in little time, with little memory."""

from __future__ import annotations

import hashlib
import resource
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fuzz.targets import Target

ROOT: Final = Path(__file__).parents[2]
MAX_CASE_S: Final = 0.1  # of the processor's time: what the machine does meanwhile is not the parser's fault
CONFIRMATIONS: Final = 3  # a slow case has to be slow as often as this


@dataclass(frozen=True)
class Finding:
    """What is wrong. Findings with the same summary are the same."""

    target: str
    summary: str
    case: bytes

    @property
    def digest(self) -> str:
        """The name of its file."""
        return hashlib.sha256(self.case).hexdigest()[:16]


class Judge:
    """Runs cases of one target, and keeps the time of the slowest."""

    def __init__(self, target: Target, *, slower_by: float = 1.0) -> None:
        """`slower_by`: what instrumentation costs."""
        self.target = target
        self.slowest_s = 0.0
        self.slowest = b""
        self._limit_s = MAX_CASE_S * slower_by
        for seed in target.seeds:  # what is imported or cached at first use is not a case's
            self._run(seed)
        Path("/proc/self/clear_refs").write_text("5")  # the peak so far is not a case's either

    def judge(self, case: bytes) -> Finding | None:
        """Run it once; what is wrong with that, if anything."""
        memory = _peak_kb()
        elapsed_s, error = self._run(case)
        grown_kb = _peak_kb() - memory
        if elapsed_s > self._limit_s:
            elapsed_s = min(elapsed_s, *(self._run(case)[0] for _ in range(CONFIRMATIONS)))
        if elapsed_s > self.slowest_s:
            self.slowest_s, self.slowest = elapsed_s, case
        if error is not None:
            return Finding(self.target.name, f"{type(error).__name__} {_where(error)}", case)
        if grown_kb > self.target.max_memory_mb << 10:
            return Finding(self.target.name, f"more than {self.target.max_memory_mb} MB", case)
        if elapsed_s > self._limit_s:
            return Finding(self.target.name, f"more than {1000 * MAX_CASE_S:.0f} ms", case)
        return None

    def _run(self, case: bytes) -> tuple[float, Exception | None]:
        begun = time.thread_time()
        error: Exception | None = None
        try:
            self.target.run(case)
        except self.target.documented:
            pass
        except Exception as failure:  # noqa: BLE001 (that is what is looked for)
            error = failure
        return time.thread_time() - begun, error


def _peak_kb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _where(error: Exception) -> str:
    """The last place in our own code, or in the target for a failed assertion."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [
        frame for frame in frames if Path(frame.filename).is_relative_to(ROOT) and "site-packages" not in frame.filename
    ]
    frame = (ours or frames)[-1]
    return f"at {Path(frame.filename).name}:{frame.lineno} in {frame.name}"
