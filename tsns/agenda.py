"""Who is to be called when: the deadlines of many machines as one (ring 0)."""

from __future__ import annotations

import heapq
from math import inf
from typing import Generic, Protocol, TypeVar


class Scheduled(Protocol):
    """What is on an agenda remembers for when: an agenda writes it, and nobody else does."""

    scheduled_at: float


Item = TypeVar("Item", bound=Scheduled)


class Agenda(Generic[Item]):
    """A heap in which deadlines that move away, as most do with every packet, cost nothing.

    The old entry wakes its item too early, and is put right then. So a deadline may be early, and never is late.
    """

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Item]] = []  # an entry counts if its item is still due then
        self.entries = 0  # made so far: while there is no new one, no deadline has come nearer

    def schedule(self, item: Item, at: float) -> None:
        """See to it that the item is called by then; infinity: it has nothing to wait for."""
        if at < item.scheduled_at:
            item.scheduled_at = at
            self.entries += 1
            heapq.heappush(self._heap, (at, self.entries, item))

    def drop(self, item: Item) -> None:
        """Call this item no more."""
        item.scheduled_at = inf

    def due(self, now: float) -> list[Item]:
        """Those whose time has come; whoever is to be called again has to be scheduled again."""
        found = []
        while self._heap and self._heap[0][0] <= now:
            at, _, item = heapq.heappop(self._heap)
            if item.scheduled_at == at:
                item.scheduled_at = inf
                found.append(item)
        return found

    def deadline(self) -> float | None:
        """When `due` has something; None when nothing is."""
        heap = self._heap
        while heap and heap[0][2].scheduled_at != heap[0][0]:
            heapq.heappop(heap)
        return heap[0][0] if heap else None
