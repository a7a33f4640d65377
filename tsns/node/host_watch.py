"""Notices that the host's network is another one, or that time has passed without us (ring 1)."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import Final

from tsns.netns import host_network

SETTLE_S: Final = 0.3  # changes come in groups
LOOK_EVERY_S: Final = 5.0  # at the clocks
ASLEEP_S: Final = 5.0  # a look that is so late means that machine or process did not run

log = logging.getLogger(__name__)

Snapshot = tuple[tuple[str, ...], tuple[str, ...]]


class HostWatch:
    """Calls `changed(addresses, why)` at the start (`why` is then empty) and after each change that concerns our sockets,
    and `turn()` every LOOK_EVERY_S or so.
    """

    def __init__(self, changed: Callable[[list[str], str], None], turn: Callable[[], None]) -> None:
        self._changed = changed
        self._turn = turn
        self._something = asyncio.Event()
        self._now: Snapshot = ((), ())

    def look(self) -> None:
        """Look once, without waiting for anything."""
        self._now = _snapshot()
        self._changed(list(self._now[0]), "")

    async def run(self) -> None:
        """Watch until cancelled."""
        loop = asyncio.get_running_loop()
        changes = host_network.Changes()

        def on_readable() -> None:
            changes.clear()
            self._something.set()

        loop.add_reader(changes.fileno(), on_readable)
        try:
            while True:
                self._turn()
                await self._wait()
        finally:
            loop.remove_reader(changes.fileno())
            changes.close()

    async def _wait(self) -> None:
        began = _clock()
        try:
            async with asyncio.timeout(LOOK_EVERY_S):
                await self._something.wait()
        except TimeoutError:
            if _clock() - began > LOOK_EVERY_S + ASLEEP_S:
                log.info("the machine, or this process, has slept")
                self._tell("it has slept")
            return
        await asyncio.sleep(SETTLE_S)
        self._something.clear()
        snapshot = _snapshot()
        if snapshot != self._now:
            log.info("the host's network has changed: %s", ", ".join(snapshot[1]) or "it leads nowhere")
            self._tell("the host's network has changed")

    def _tell(self, why: str) -> None:
        self._now = _snapshot()
        self._changed(list(self._now[0]), why)


def _snapshot() -> Snapshot:
    """All addresses, and those by which we leave."""
    try:
        return tuple(sorted(host_network.addresses())), host_network.source_addresses()
    except OSError as error:
        log.warning("the host's addresses cannot be read: %s", error)
        return (), ()


def _clock() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
