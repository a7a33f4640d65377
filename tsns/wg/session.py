"""One pair of transport keys (ring 0).

Source: WireGuard paper 5.4.6 and 6.1. A session knows its age and what its counter still allows; sealing and opening is its transport's,
and `tunnel` decides which session is used for what.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from tsns.counters import Counters
from tsns.proto.virtio import packets_in
from tsns.ways import Train
from tsns.wg.drops import Drop
from tsns.wg.handshake import SessionKeys
from tsns.wg.replay import REJECT_AFTER_MESSAGES
from tsns.wg.transport import MAX_SEGMENTS, MakeTransport, Opened, Transport

if TYPE_CHECKING:
    from tsns.wg.tunnel import Tunnel

REKEY_AFTER_MESSAGES: Final = 2**60
REKEY_AFTER_TIME_S: Final = 120.0
REJECT_AFTER_TIME_S: Final = 180.0

_NOTHING: Final = Opened([], 0, 0, 0, 0, 0, 0, [])


class Session:
    """Keys, counters and replay window of one finished handshake."""

    __slots__ = ("_transport", "created_at", "is_initiator", "local_index", "rekey_after_s", "tunnel")

    def __init__(
        self, tunnel: Tunnel, keys: SessionKeys, make: MakeTransport, now: float, *, is_initiator: bool
    ) -> None:
        self.tunnel = tunnel
        self.local_index = keys.local_index
        self.created_at = now
        self.is_initiator = is_initiator
        self.rekey_after_s = REKEY_AFTER_TIME_S
        self._transport: Transport | None = make(keys.send, keys.receive, keys.remote_index, keys.local_index)

    @property
    def send_counter(self) -> int:
        """Of the message that is sealed next."""
        return 0 if self._transport is None else self._transport.counter

    @send_counter.setter
    def send_counter(self, counter: int) -> None:
        assert self._transport is not None
        self._transport.counter = counter

    def erase(self) -> None:
        """Let go of the keys."""
        self._transport = None

    def is_expired(self, now: float) -> bool:
        """Whether nothing may be sent or received with it any more, by age."""
        return now - self.created_at >= REJECT_AFTER_TIME_S

    def can_seal(self, frames: Sequence[bytes], now: float) -> bool:
        """Whether all of these may still be sent."""
        if self._transport is None or now - self.created_at >= REJECT_AFTER_TIME_S:
            return False
        left = REJECT_AFTER_MESSAGES - self._transport.counter
        return len(frames) * MAX_SEGMENTS <= left or sum(map(packets_in, frames)) <= left

    def wants_rekey(self, now: float) -> bool:
        """Whether who sends with it should see to new keys: by age only the initiator, lest both do it at once."""
        return self.send_counter > REKEY_AFTER_MESSAGES or (
            self.is_initiator and now - self.created_at > self.rekey_after_s
        )

    def seal(self, frames: Sequence[bytes], mtu: int, counters: Counters) -> list[Train]:
        """Transport messages with these frames' packets, padded within the TUN's MTU. Ask `can_seal` first."""
        assert self._transport is not None
        sealed = self._transport.seal_train(frames, mtu)
        if sealed.malformed:
            counters.add(Drop.BAD_FRAME, sealed.malformed)
        return sealed.trains

    def open(self, trains: Sequence[Train], counters: Counters) -> Opened:
        """What these transport messages hold; what is replayed, not authentic or no packet is counted."""
        if self._transport is None:
            return _NOTHING
        opened = self._transport.open_train(trains)
        if opened.replayed or opened.forged or opened.malformed:
            counters.add(Drop.REPLAYED, opened.replayed)
            counters.add(Drop.NOT_AUTHENTIC, opened.forged)
            counters.add(Drop.BAD_INNER_PACKET, opened.malformed)
        return opened
