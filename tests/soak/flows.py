"""The traffic between nodes as the soak sees it: what was sent, what came back, and when it flows again."""

from __future__ import annotations

import itertools
import json
import subprocess
import threading
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

IN_A_ROW: Final = 3  # echoes of packets sent after a fault, before a flow counts as recovered
POLL_S: Final = 0.05
KINDS: Final = ("udp", "icmp", "tcp")


@dataclass(frozen=True, slots=True)
class Window:
    """From a fault to its recovery: what is lost in it is that fault's."""

    began: float
    ended: float


@dataclass(frozen=True, slots=True)
class Sent:
    """One packet or line, and how long its echo took; None: it never came."""

    at: float
    took: float | None


class Flow:
    """From one node to another; hears what the probe inside says."""

    def __init__(self, name: str, probe: subprocess.Popen[str]) -> None:
        self.name = name
        self.sent: dict[str, list[Sent]] = {kind: [] for kind in KINDS}
        self._probe = probe
        self._thread = threading.Thread(target=self._hear, name=f"flow {name}", daemon=True)
        self._thread.start()

    def _hear(self) -> None:
        assert self._probe.stdout is not None
        for line in self._probe.stdout:
            kind, at, took = json.loads(line)
            self.sent[kind].append(Sent(at, took))

    @property
    def alive(self) -> bool:
        """Whether its probe runs."""
        return self._probe.poll() is None

    def close(self) -> None:
        """End the probe."""
        self._probe.kill()
        self._probe.communicate()
        self._thread.join(5)

    def flows_since(self, moment: float) -> bool:
        """Whether packets that were sent after this moment have come back, one after the other."""
        recent = [sent for sent in self.sent["udp"][-100:] if sent.at > moment]
        return len(recent) >= IN_A_ROW and all(sent.took is not None for sent in recent[-IN_A_ROW:])

    def silence_s(self, window: Window) -> float:
        """The longest time without an echo around a fault."""
        heard = sorted(
            sent.at + sent.took
            for sent in self.sent["udp"][-600:]
            if sent.took is not None and window.began - 1 < sent.at + sent.took < window.ended + 1
        )
        return max((later - earlier for earlier, later in itertools.pairwise(heard)), default=0.0)

    def lost(self, kind: str, windows: Iterable[Window]) -> int:
        """How many of those sent in one of the windows are lost."""
        spans = list(windows)
        return sum(
            sent.took is None and any(window.began <= sent.at <= window.ended for window in spans)
            for sent in self.sent[kind]
        )

    def outside(self, kind: str, windows: Sequence[Window], until: float) -> tuple[int, list[float]]:
        """How many were sent in none of the windows, and when those of them that are lost."""
        mine = [
            sent
            for sent in self.sent[kind]
            if sent.at < until and not any(window.began <= sent.at <= window.ended for window in windows)
        ]
        return len(mine), [sent.at for sent in mine if sent.took is None]


def await_flowing(flows: Iterable[Flow], moment: float, within_s: float) -> list[str]:
    """Wait until all flow again; the names of those that do not within that time after `moment`."""
    while True:
        silent = [flow.name for flow in flows if not flow.flows_since(moment)]
        if not silent or time.monotonic() > moment + within_s:
            return silent
        time.sleep(POLL_S)
