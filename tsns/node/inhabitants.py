"""Who is in a node's namespace: commands that a client led in, and all that descends from them (ring 1)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from tsns.netns import namespace
from tsns.node.messages import Message
from tsns.node.watch import Watch

SCAN_FIRST_S: Final = 0.05
SCAN_MAX_S: Final = 2.0
MAX_LISTED: Final = 200


class Inhabitants:
    """Of one node. When a command has ended and nothing else `needs` the node, `empty` is called as soon as nobody is inside."""

    def __init__(self, watch: Watch, needed: Callable[[], bool], empty: Callable[[], None]) -> None:
        self._watch = watch
        self._needed = needed
        self._empty = empty
        self._namespace: tuple[int, int] | None = None
        self._scan_delay_s = SCAN_FIRST_S
        self.commands = 0  # that went inside and have not ended

    def made(self, descriptor: int) -> None:
        """The namespace is there."""
        self._namespace = namespace.identity(descriptor)

    def entered(self, pidfd: int) -> None:
        """A command has gone inside; the descriptor is ours from now on."""
        self.commands += 1
        self._watch.reader(pidfd, lambda: self._on_end(pidfd))

    def _on_end(self, pidfd: int) -> None:
        self._watch.forget(pidfd)
        os.close(pidfd)
        self.commands -= 1
        self.look_soon()

    def look_soon(self) -> None:
        """See whether anybody is left, if nothing else needs the node."""
        if not self._is_needed and not self._watch.has_moment("scan"):
            self._scan_delay_s = SCAN_FIRST_S
            self._watch.at("scan", time.monotonic(), self._scan)

    @property
    def _is_needed(self) -> bool:
        return bool(self.commands) or self._needed()

    def _scan(self) -> None:
        """The command's end is not the end: its descendants may live on."""
        if self._is_needed:
            return
        # Twice, since a fork may slip past one pass over /proc.
        if self._namespace is None or not (namespace.inside(self._namespace) or namespace.inside(self._namespace)):
            self._empty()
            return
        self._watch.at("scan", time.monotonic() + self._scan_delay_s, self._scan)
        self._scan_delay_s = min(2 * self._scan_delay_s, SCAN_MAX_S)

    def listed(self) -> list[Message]:
        """The processes inside, the first so many."""
        pids = namespace.inside(self._namespace) if self._namespace is not None else []
        return [{"kind": "process", "id": str(pid), "name": _command_name(pid)} for pid in pids[:MAX_LISTED]]


def _command_name(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""
