"""Who has been heard over one DERP connection: a way back to peers that are not connected to their home (ring 0)."""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final

from tsns.keys import NodePublic

RETURN_S: Final = 10.0  # so long do peers take to come back to a relay that was away
MAX_GONE: Final = 256
MAX_HEARD: Final = 4096  # peers remembered; whoever was silent longest is forgotten first


class Heard:
    """Peers by the time (monotonic seconds) at which they were last heard, on a connection that has stood `since`."""

    def __init__(self, since: float = -inf) -> None:
        self._since = since
        self._at: dict[NodePublic, float] = {}  # in the order of time
        self._gone: dict[NodePublic, None] = {}  # whom the relay does not know, by its word

    def note(self, packets: Iterable[tuple[NodePublic, bytes]], now: float) -> None:
        """These packets came."""
        previous = None
        for peer, _ in packets:
            if peer is not previous:  # a train has one and the same object
                self._at.pop(peer, None)
                self._at[peer] = now
                if self._gone:
                    self._gone.pop(peer, None)
                previous = peer
        while len(self._at) > MAX_HEARD:
            del self._at[next(iter(self._at))]

    def at(self, peer: NodePublic) -> float | None:
        """When this peer was last heard; None if never, or forgotten."""
        return self._at.get(peer)

    def forget(self, peer: NodePublic) -> None:
        """The peer has left, or was not there at all."""
        self._at.pop(peer, None)
        self._gone[peer] = None
        while len(self._gone) > MAX_GONE:
            del self._gone[next(iter(self._gone))]

    def may_be_absent(self, peer: NodePublic, now: float) -> bool:
        """Whether the peer may not be connected to this relay although it should be: the relay said so, or has come back a moment ago."""
        return peer in self._gone or (now < self._since + RETURN_S and peer not in self._at)
