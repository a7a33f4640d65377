"""The pings that wait for their pongs (ring 0)."""

from __future__ import annotations

import collections
from dataclasses import dataclass
from typing import Final

from tsns.keys import NodePublic
from tsns.ways import DerpPath, UdpPath

PING_PATIENCE_S: Final = 5.0  # a pong that comes later counts for nothing
MAX_PINGS: Final = 4096  # that wait


@dataclass(frozen=True, slots=True)
class SentPing:
    """When it was sent, to whom and by which way; `token` is a person's, if a person wants to know of the pong."""

    at: float
    peer: NodePublic
    path: UdpPath | DerpPath
    token: bytes | None


class SentPings:
    """By their transactions, the oldest first."""

    def __init__(self) -> None:
        self._waiting: collections.OrderedDict[bytes, SentPing] = collections.OrderedDict()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, transaction: bytes, ping: SentPing) -> None:
        """It has been sent just now. Those that have waited for too long are forgotten."""
        self._waiting[transaction] = ping
        while len(self._waiting) > MAX_PINGS or ping.at - next(iter(self._waiting.values())).at > PING_PATIENCE_S:
            self._waiting.popitem(last=False)

    def get(self, transaction: bytes, now: float) -> SentPing | None:
        """The ping, if it still waits."""
        ping = self._waiting.get(transaction)
        return None if ping is None or now - ping.at > PING_PATIENCE_S else ping

    def answered(self, transaction: bytes) -> None:
        """It waits no more."""
        del self._waiting[transaction]
