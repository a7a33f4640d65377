"""Who has been heard over one DERP connection: a way back to peers that are not connected to their home (ring 0)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tsns.keys import NodePublic

MAX_HEARD: Final = 4096  # peers remembered; whoever was silent longest is forgotten first


class Heard:
    """Peers by the time (monotonic seconds) at which they were last heard."""

    def __init__(self) -> None:
        self._at: dict[NodePublic, float] = {}  # in the order of time

    def note(self, packets: Iterable[tuple[NodePublic, bytes]], now: float) -> None:
        """These packets came."""
        previous = None
        for peer, _ in packets:
            if peer is not previous:  # a train has one and the same object
                self._at.pop(peer, None)
                self._at[peer] = now
                previous = peer
        while len(self._at) > MAX_HEARD:
            del self._at[next(iter(self._at))]

    def at(self, peer: NodePublic) -> float | None:
        """When this peer was last heard; None if never, or forgotten."""
        return self._at.get(peer)

    def forget(self, peer: NodePublic) -> None:
        """The peer has left."""
        self._at.pop(peer, None)

    def clear(self) -> None:
        """The connection is lost."""
        self._at.clear()
