"""The netmap cached for a start without control: read at the engine's start, handed to the keeper when it has changed (ring 1).

The keeper owns the file; the engine has descriptors only. A burst of changes is written once, and a large tailnet more seldom than a small
one, since writing takes time from packets.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import time
from collections.abc import Awaitable, Callable
from typing import Final

from tsns.control import cache
from tsns.control.netmap import NetMap, NetMapChange
from tsns.error import ProtocolError
from tsns.keys import NodePublic
from tsns.proto.types import MapResponse
from tsns.slices import in_slices
from tsns.steps import Steps, finish

FIRST_AFTER_S: Final = 0.5  # what follows the first netmap at once comes with it
INTERVAL_S: Final = 5.0
SHARE: Final = 0.005  # of the time, at most, for writing

log = logging.getLogger(__name__)


class NetmapCache:
    """Keeps the file behind `save(fd)`, whose answer is empty or an error's text, as new as it is worth."""

    def __init__(self, save: Callable[[int], Awaitable[str]]) -> None:
        self._save = save
        self._netmap: NetMap | None = None
        self._dirty = asyncio.Event()
        self._is_collecting = False  # what is no longer dirty, and not yet written
        self._complained = False

    def note(self, netmap: NetMap, change: NetMapChange) -> None:
        """The netmap has changed."""
        self._netmap = netmap
        if not self._dirty.is_set() and cache.is_worth_saving(change):
            self._dirty.set()

    async def run(self) -> None:
        """Write, until cancelled."""
        pause_s = FIRST_AFTER_S
        while True:
            await self._dirty.wait()
            await asyncio.sleep(pause_s)
            began = time.monotonic()
            self._is_collecting = True
            data = await in_slices(self._content())
            self._is_collecting = False
            pause_s = max(INTERVAL_S, (time.monotonic() - began) / SHARE)
            if data is not None and self._netmap is not None:  # else `clear` was faster
                await self._write(data)

    async def finish(self) -> None:
        """Write what is new, once more."""
        if (self._dirty.is_set() or self._is_collecting) and (data := finish(self._content())) is not None:
            await self._write(data)

    async def clear(self) -> None:
        """What is cached is no longer ours to use."""
        self._netmap = None
        self._dirty.clear()
        await self._write(b"")

    def _content(self) -> Steps[bytes | None]:
        self._dirty.clear()
        return None if self._netmap is None else (yield from cache.dumping(self._netmap))

    async def _write(self, data: bytes) -> None:
        fd = _in_memory(data)
        try:
            error = await self._save(fd)
        finally:
            os.close(fd)
        if error and not self._complained:
            log.warning("the netmap could not be cached: %s; a start without control will not be possible", error)
        self._complained = bool(error)


def _in_memory(data: bytes) -> int:
    """A file of memory with this content, which nobody can change any more."""
    fd = os.memfd_create("netmap", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    with open(fd, "wb", closefd=False) as file:
        file.write(data)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
    return fd


def read(fd: int, key: NodePublic | None) -> MapResponse | None:
    """The netmap in a file, which is closed; None, and a warning where it deserves one, for what is not ours or cannot be read."""
    if fd < 0:
        return None
    try:
        with open(fd, "rb") as file:
            data = file.read(cache.MAX_BYTES + 1)
        if not data or key is None:
            return None
        return cache.load(data, key)
    except (OSError, ProtocolError) as error:
        log.warning("the cached netmap cannot be used: %s", error)
        return None
