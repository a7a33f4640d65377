"""What targets are made of: the fuzzer's bytes as instructions, and stand-ins for the world."""

from __future__ import annotations

import asyncio
import functools
import random
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, TypeVar

from tsns.keys import MachinePrivate, NodePrivate

T = TypeVar("T")

OURS = NodePrivate(bytes(range(0x40, 0x60)))
THEIRS = NodePrivate(bytes(range(0x60, 0x80)))
MACHINE = MachinePrivate(bytes(range(0x80, 0xA0)))
CONTROL = MachinePrivate(bytes(range(0x48, 0x68)))
WALL_CLOCK = 1_700_000_000.0


def entropy(seed: int = 1) -> Callable[[int], bytes]:
    """Random bytes that are the same in every run."""
    return random.Random(seed).randbytes


class Instructions:
    """A case as a list of things to do: a number, then how many bytes it is about (two bytes), then those."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def byte(self) -> int:
        """The next byte; 0 at the end."""
        self._at += 1
        return self._data[self._at - 1] if self._at <= len(self._data) else 0

    def chunk(self) -> bytes:
        """The next piece: its length, little endian, and as much of it as there is."""
        size = self.byte() | self.byte() << 8
        start, self._at = self._at, self._at + size
        return self._data[start : self._at]

    def rest(self) -> bytes:
        """All that is left."""
        start, self._at = self._at, len(self._data)
        return self._data[start:]

    def steps(self, limit: int) -> Iterator[tuple[int, bytes]]:
        """(what to do, with what), as far as the case goes."""
        for _ in range(limit):
            if self._at >= len(self._data):
                return
            yield self.byte(), self.chunk()


def step(what: int, data: bytes) -> bytes:
    """What `Instructions.steps` reads: for seeds."""
    return bytes((what,)) + len(data).to_bytes(2, "little") + data


def cut(data: bytes) -> list[bytes]:
    """The case but its first byte, cut in two at a place that this byte chooses: streams come in pieces."""
    if not data:
        return []
    middle = data[0] * len(data) // 256
    return [data[1:][:middle], data[1:][middle:]]


class Writer:
    """The writing half of a connection that nobody reads."""

    def write(self, data: bytes) -> None:
        """Take it."""

    async def drain(self) -> None:
        """There is always room."""


@functools.cache
def _loop() -> asyncio.AbstractEventLoop:
    return asyncio.new_event_loop()


def stream(data: bytes) -> tuple[Any, Any]:
    """A connection that delivers this and ends."""
    reader = asyncio.StreamReader(limit=1 << 20, loop=_loop())
    if data:
        reader.feed_data(data)
    reader.feed_eof()
    return reader, Writer()


def finish(task: Coroutine[Any, Any, T]) -> T:
    """Run it to its end."""
    return _loop().run_until_complete(task)
