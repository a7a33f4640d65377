"""What waits for one relay: packets in trains, bounded in bytes and in age (ring 0).

The oldest goes first when there is too much: for the connections inside the tunnel old packets are worth least.
"""

from __future__ import annotations

import collections
import enum
from dataclasses import dataclass, replace
from typing import Final

from tsns.derp.framing import HEADER_BYTES, KEY_BYTES
from tsns.keys import NodePublic

QUEUE_BYTES: Final = 512 << 10  # what may wait for one relay
QUEUE_AGE_S: Final = 5.0  # what has waited longer is not worth sending

_FRAME_BYTES: Final = HEADER_BYTES + KEY_BYTES


class Drop(enum.StrEnum):
    """Why a packet was not handed to a relay."""

    NO_REGION = "no such DERP region"
    NOT_CONNECTED = "DERP queue full before the connection stood"
    QUEUE_FULL = "DERP queue full"
    STUCK = "DERP connection stuck"
    TOO_OLD = "waited too long for DERP"
    TOO_LONG = "too long for DERP"
    RATE_LIMITED = "the relay's rate limit"
    LEFT = "DERP region left"


@dataclass(frozen=True, slots=True)
class _Train:
    at: float
    peer: NodePublic
    packets: list[bytes]


def _size(packets: list[bytes]) -> int:
    """In bytes as frames."""
    return sum(map(len, packets)) + _FRAME_BYTES * len(packets)


class PacketQueue:
    """Trains of packets, each for one peer; what has to be dropped is counted in `drops`."""

    def __init__(self, drops: collections.Counter[Drop], max_bytes: int, max_age_s: float) -> None:
        self.bytes = 0
        self._drops = drops
        self._max_bytes = max_bytes
        self._max_age_s = max_age_s
        self._trains: collections.deque[_Train] = collections.deque()

    def __bool__(self) -> bool:
        return bool(self._trains)

    def push(self, peer: NodePublic, packets: list[bytes], now: float, reason: Drop) -> None:
        """Add a train; `reason` is why others have to go if there are too many. The last train always stays."""
        self._trains.append(_Train(now, peer, packets))
        self.bytes += _size(packets)
        while self.bytes > self._max_bytes and len(self._trains) > 1:
            self._drop_oldest(reason)

    def take(self, count: int, now: float) -> list[tuple[NodePublic, list[bytes]]]:
        """Take out so many of the oldest packets; what has waited too long is dropped."""
        taken: list[tuple[NodePublic, list[bytes]]] = []
        while self._trains and count > 0:
            if now - self._trains[0].at > self._max_age_s:
                self._drop_oldest(Drop.TOO_OLD)
                continue
            train = self._trains.popleft()
            packets, rest = train.packets[:count], train.packets[count:]
            if rest:
                self._trains.appendleft(replace(train, packets=rest))
            self.bytes -= _size(packets)
            taken.append((train.peer, packets))
            count -= len(packets)
        return taken

    def clear(self, reason: Drop) -> None:
        """Drop everything."""
        while self._trains:
            self._drop_oldest(reason)

    def _drop_oldest(self, reason: Drop) -> None:
        train = self._trains.popleft()
        self.bytes -= _size(train.packets)
        self._drops[reason] += len(train.packets)
