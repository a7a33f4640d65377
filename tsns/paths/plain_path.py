"""The way to a peer that speaks WireGuard and nothing else: no disco, no relay (ring 0).

Source: WireGuard paper 2.1 (an endpoint is where the peer was last heard from); the netmap says where to begin. There is nothing to
probe with but WireGuard itself: while nothing authentic comes back, the peer's endpoints are tried one after the other.
"""

from __future__ import annotations

import collections
from collections.abc import Iterable
from math import inf
from typing import Final

from tsns.paths.candidates import MAX_TOLD
from tsns.paths.peer_path import ACTIVE_S, MAX_CHANGES, Change, Kind, Wish
from tsns.proto.addresses import Endpoint
from tsns.ways import Path, UdpPath

TRY_S: Final = 5.0  # for one endpoint: a handshake is sent about as often
QUIET_S: Final = 20.0  # sent to and not heard for so long, an endpoint that worked is as good as the others


class PlainPath:
    """The path to one such peer."""

    __slots__ = ("_heard_at", "_sent_at", "_told", "_tried_at", "best", "changes", "kind", "latency_s")

    def __init__(self) -> None:
        self.kind = Kind.NONE
        self.best: Endpoint | None = None
        self.latency_s: float | None = None  # nothing measures it
        self.changes: collections.deque[Change] = collections.deque(maxlen=MAX_CHANGES)
        self._told: list[Endpoint] = []
        self._sent_at = -inf
        self._heard_at = -inf
        self._tried_at = -inf  # since when the present endpoint is tried; not while it answers

    @property
    def path(self) -> Path | None:
        """Where packets go to now."""
        return None if self.best is None else UdpPath(self.best)

    def is_active(self, now: float) -> bool:
        """Whether packets are sent."""
        return now - self._sent_at <= ACTIVE_S

    def tell(self, endpoints: Iterable[Endpoint], now: float) -> list[Wish]:
        """The netmap says where the peer is."""
        self._told = list(endpoints)[:MAX_TOLD]
        is_elsewhere = self.best not in self._told and now - self._heard_at > QUIET_S
        if self._told and (self.best is None or is_elsewhere):
            self._tried_at = -inf
            return self._take(self._told[0], "the netmap says so", now)
        return []

    def on_activity(self, now: float) -> list[Wish]:
        """Packets are about to be sent to the peer."""
        self._sent_at = now
        if now - self._heard_at <= QUIET_S or not self._told:
            return []
        if self._tried_at == -inf:
            self._tried_at = now
        if now - self._tried_at < TRY_S or self._told == [self.best]:
            return []
        self._tried_at = now
        following = self._told.index(self.best) + 1 if self.best in self._told else 0
        return self._take(self._told[following % len(self._told)], "the one before did not answer", now)

    def heard(self, endpoint: Endpoint, now: float) -> list[Wish]:
        """Something authentic came from there."""
        self._heard_at, self._tried_at = now, -inf
        return [] if endpoint == self.best else self._take(endpoint, "it is heard from there", now)

    def _take(self, endpoint: Endpoint, reason: str, now: float) -> list[Wish]:
        self.kind, self.best = Kind.DIRECT, endpoint
        change = Change(now, self.kind, endpoint, reason)
        self.changes.append(change)
        return [change]
