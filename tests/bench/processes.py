"""What processes use: memory by whose it is, and processor time to the nanosecond."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

KIB: Final = 1024
NS: Final = 1e9


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes of one process or several: of `private` it is the only user, `pss` adds its share of what is shared."""

    rss: int = 0
    pss: int = 0
    private: int = 0

    def __add__(self, other: Memory) -> Memory:
        return Memory(self.rss + other.rss, self.pss + other.pss, self.private + other.private)


def memory(pids: Iterable[int]) -> Memory:
    """The memory of these processes together. What they share counts for each of them in `rss`."""
    return sum((_memory(pid) for pid in pids), Memory())


def _memory(pid: int) -> Memory:
    sizes: dict[str, int] = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]:
        name, size = line.split()[:2]
        sizes[name] = int(size) * KIB
    return Memory(sizes["Rss:"], sizes["Pss:"], sizes["Private_Clean:"] + sizes["Private_Dirty:"])


def cpu_s(pids: Iterable[int]) -> float:
    """The processor time that these processes' living threads have used so far, in seconds."""
    total = 0
    for pid in pids:
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError):  # a thread that just ended
                total += int(task.joinpath("schedstat").read_text().split()[0])
    return total / NS


def spent_s(pids: Iterable[int]) -> float:
    """The processor time, user and system, of these processes so far, with that of threads that have ended; in clock ticks of 10 ms."""
    fields = (Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split() for pid in pids)
    return sum(int(found[11]) + int(found[12]) for found in fields) / os.sysconf("SC_CLK_TCK")


def parent(pid: int) -> int:
    """The process that this one's parent is."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def ancestry(pid: int) -> list[int]:
    """A process and those above it, up to but without whoever collects orphans or is ourselves."""
    found = [pid]
    while (above := parent(found[-1])) > 1 and above != os.getpid() and _is_python(above):
        found.append(above)
    return found


def _is_python(pid: int) -> bool:
    """Whether this is an interpreter at work for tsns, and not, say, the container's first process."""
    command = Path(f"/proc/{pid}/cmdline").read_bytes()
    return b"tsns" in command and b"tests.bench" not in command
