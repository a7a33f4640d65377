"""Answers of other servers, kept for as long as they may be (ring 0).

Source: RFC 1035 3.2.1 and RFC 2181 8 (times to live), RFC 2308 (what does not exist). `Reply.lifetime_s` says how long; here is what
happens to it meanwhile. Who was not asked for longest goes first when there is no more room.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from tsns.dns.replies import Question, Reply

MAX_ENTRIES: Final = 4096
MAX_BYTES: Final = 4 << 20
ENTRY_BYTES: Final = 700  # what an entry takes besides its message, roughly


@dataclass(frozen=True, slots=True)
class Kept:
    """An answer, who gave it, and when (seconds)."""

    reply: Reply
    resolver: str
    since: float


class Cache:
    """Answers by question, bounded in number and size."""

    def __init__(self, max_entries: int = MAX_ENTRIES, max_bytes: int = MAX_BYTES) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._entries: OrderedDict[Question, Kept] = OrderedDict()
        self.size_bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, question: Question, now: float) -> Kept | None:
        """The answer, unless its time is over."""
        kept = self._entries.get(question)
        if kept is None:
            return None
        if now - kept.since >= kept.reply.lifetime_s:
            self._drop(question)
            return None
        self._entries.move_to_end(question)
        return kept

    def put(self, question: Question, reply: Reply, resolver: str, now: float) -> None:
        """Keep an answer; one that must not be kept takes away what was there."""
        self._drop(question)
        size = _size(reply)
        if reply.lifetime_s <= 0 or size > self._max_bytes:
            return
        self._entries[question] = Kept(reply, resolver, now)
        self.size_bytes += size
        while len(self._entries) > self._max_entries or self.size_bytes > self._max_bytes:
            self._drop(next(iter(self._entries)))

    def clear(self) -> None:
        """Keep nothing."""
        self._entries.clear()
        self.size_bytes = 0

    def _drop(self, question: Question) -> None:
        kept = self._entries.pop(question, None)
        if kept is not None:
            self.size_bytes -= _size(kept.reply)


def _size(reply: Reply) -> int:
    return len(reply.data) + ENTRY_BYTES
