"""Packets that wait for a session (ring 0).

Bounded for each peer in packets, bytes and time, and over all peers in bytes: a program that knocks at every address of
a large tailnet must not fill our memory. What is oldest goes first.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from math import inf
from typing import Final

from tsns.counters import Counters
from tsns.wg.drops import Drop

MAX_PACKETS: Final = 256
MAX_BYTES: Final = 256 << 10
MAX_TOTAL_BYTES: Final = 16 << 20  # over all peers of a device
MAX_WAIT_S: Final = 5.0


class StagedTotal:
    """How many bytes wait with all peers of a device."""

    __slots__ = ("bytes",)

    def __init__(self) -> None:
        self.bytes = 0


class StagedQueue:
    """The packets that wait for one peer."""

    __slots__ = ("_bytes", "_counters", "_packets", "_total")

    def __init__(self, total: StagedTotal, counters: Counters) -> None:
        self._packets: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._total = total
        self._counters = counters

    def __len__(self) -> int:
        return len(self._packets)

    def put(self, packets: Sequence[bytes], now: float) -> None:
        """Let them wait, at the cost of the oldest where there is no room."""
        self.expire(now)
        for packet in packets:
            size = len(packet)
            while self._packets and (len(self._packets) >= MAX_PACKETS or self._bytes + size > MAX_BYTES):
                self._drop_oldest(Drop.STAGED_FULL)
            if size > MAX_BYTES or self._total.bytes + size > MAX_TOTAL_BYTES:
                self._counters.add(Drop.STAGED_FULL)
                continue
            self._packets.append((now, packet))
            self._bytes += size
            self._total.bytes += size

    def take(self, now: float) -> list[bytes]:
        """All that have not waited too long, in their order; the queue is empty then."""
        self.expire(now)
        packets = [packet for _, packet in self._packets]
        self._forget()
        return packets

    def drop_all(self, reason: Drop) -> None:
        """Give them up."""
        if self._packets:
            self._counters.add(reason, len(self._packets))
        self._forget()

    def expire(self, now: float) -> None:
        """Drop what has waited too long."""
        while self._packets and self._packets[0][0] + MAX_WAIT_S <= now:  # as in `deadline`, to the last bit
            self._drop_oldest(Drop.STAGED_TOO_LONG)

    def deadline(self) -> float:
        """When `expire` has something to do; infinity when never."""
        return self._packets[0][0] + MAX_WAIT_S if self._packets else inf

    def _drop_oldest(self, reason: Drop) -> None:
        _, packet = self._packets.popleft()
        self._bytes -= len(packet)
        self._total.bytes -= len(packet)
        self._counters.add(reason)

    def _forget(self) -> None:
        self._total.bytes -= self._bytes
        self._bytes = 0
        self._packets.clear()
