"""A container engine as the follower has it: asked for what is, and heard for what changes (ring 2).

    connect: a child listens to its events --> lines --> Event ... its end is the engine's --> connect again after a pause

What changes between two looks is in the events since before the first of them, so nothing is lost, and some of it told twice.
"""

from __future__ import annotations

import json
import logging
from typing import Final

from tsns.attach import children
from tsns.attach.children import Child
from tsns.attach.engines import Container, Engine, Event, connect
from tsns.error import UserError

FIRST_PAUSE_S: Final = 0.1  # before it is tried again, and twice as long after each further failure
MAX_PAUSE_S: Final = 5.0
WELL_S: Final = 5.0  # an engine that has answered for so long is tried again at once
MAX_FAILURES: Final = 16

log = logging.getLogger(__name__)


class Source:
    """One engine. While `engine` is None it does not answer."""

    def __init__(self, kind: str, url: str) -> None:
        self.kind = kind
        self.url = url
        self.engine: Engine | None = None
        self.stream: Child | None = None
        self._began = 0.0
        self._failures = 0

    def connect(self, now: float, wall_now: float) -> float | None:
        """Begin to listen. None, or how long to wait before the next try."""
        self._began = now
        try:
            self.engine = connect(self.kind, self.url)
        except UserError as error:
            if not self._failures:
                log.warning("%s", error.message)
            return self._pause_s()
        self.stream = Child(lambda fd: _tell_events(self.kind, self.url, wall_now, fd))
        return None

    def events(self) -> list[Event] | None:
        """What has happened since; None when the engine has ended."""
        lines = self.stream.lines() if self.stream is not None else None
        return None if lines is None else [Event(*json.loads(line)) for line in lines]

    def ended(self, now: float) -> float:
        """It does not answer any more. Gives how long to wait before the next try."""
        if now >= self._began + WELL_S:
            self._failures = 0
        log.warning("%s at %s has ended", self.kind, self.url)
        self.close()
        return self._pause_s()

    def close(self) -> None:
        """Listen no more."""
        if self.stream is not None:
            self.stream.close()
        if self.engine is not None:
            self.engine.close()
        self.stream = self.engine = None

    def find(self, name: str) -> Container | None:
        """The container of this name or id. UserError where the engine does not answer."""
        if self.engine is None:
            raise UserError(f"{self.kind} at {self.url} does not answer", "is its daemon running?")
        return self.engine.container(name)

    def _pause_s(self) -> float:
        pause_s = min(FIRST_PAUSE_S * 2**self._failures, MAX_PAUSE_S)
        self._failures = min(self._failures + 1, MAX_FAILURES)
        return float(pause_s)


def _tell_events(kind: str, url: str, since: float, fd: int) -> None:
    with connect(kind, url) as engine:
        for event in engine.events(since):
            children.say(fd, json.dumps(event).encode())
