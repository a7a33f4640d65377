"""Disco messages, sealed and in the clear (ring 0).

Source: disco/disco.go of Tailscale's module.

    MAGIC (6) | the sender's disco key (32) | nonce (24) | sealed: type (1), version (1), body

    PING          12 transaction, 32 node key of the sender [, padding]    by UDP, and by relay when a person asks
    PONG          12 transaction, 16 + 2 where the ping came from          the way back that the ping came
    CALL_ME_MAYBE n * (16 + 2): where the sender may be reached            by relay only

What a datagram holds beyond that is passed over, and so are types that nobody knows here: upstream has more, for relays among peers.
"""

from __future__ import annotations

import collections
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tsns.keys import KEY_BYTES, DiscoPrivate, DiscoPublic, NodePublic
from tsns.proto.addresses import ENDPOINT_BYTES, Endpoint, pack_endpoint, unpack_endpoint
from tsns.sealed_box import NONCE_BYTES, SealedBox

MAGIC: Final = bytes.fromhex("5453f09f92ac")  # "TS", a speech balloon
TRANSACTION_BYTES: Final = 12
VERSION: Final = 0
PING: Final = 1
PONG: Final = 2
CALL_ME_MAYBE: Final = 3
MAX_CALLED_ENDPOINTS: Final = 32  # of a call-me-maybe; the others are passed over
MAX_BOXES: Final = (
    128  # shared secrets kept, of half a kilobyte each: the rest are worked out anew when they are needed
)

_HEAD_BYTES: Final = len(MAGIC) + KEY_BYTES


@dataclass(frozen=True, slots=True)
class Ping:
    """Who gets this answers with a pong. `node_key` says who asks; older peers leave it out."""

    transaction: bytes
    node_key: NodePublic | None


@dataclass(frozen=True, slots=True)
class Pong:
    """The answer to a ping, which came from `seen_from`."""

    transaction: bytes
    seen_from: Endpoint


@dataclass(frozen=True, slots=True)
class CallMeMaybe:
    """Ping me at these, for I am pinging you: our NATs will then take one's pings for answers to the other's."""

    endpoints: tuple[Endpoint, ...]


Message = Ping | Pong | CallMeMaybe


def encode(message: Message) -> bytes:
    """A message before it is sealed."""
    match message:
        case Ping(transaction, node_key):
            return bytes((PING, VERSION)) + transaction + (node_key.raw if node_key else b"")
        case Pong(transaction, seen_from):
            return bytes((PONG, VERSION)) + transaction + pack_endpoint(seen_from)
        case CallMeMaybe(endpoints):
            return bytes((CALL_ME_MAYBE, VERSION)) + b"".join(map(pack_endpoint, endpoints))


def decode(payload: bytes) -> Message | None:
    """Read a message that was sealed; None for what is none, or none that we know."""
    if len(payload) < 2:
        return None
    kind, version, body = payload[0], payload[1], payload[2:]
    transaction, rest = body[:TRANSACTION_BYTES], body[TRANSACTION_BYTES:]
    if kind == PING and len(transaction) == TRANSACTION_BYTES:
        return Ping(transaction, NodePublic(rest[:KEY_BYTES]) if len(rest) >= KEY_BYTES else None)
    if kind == PONG and len(rest) >= ENDPOINT_BYTES:
        return Pong(transaction, unpack_endpoint(rest))
    if kind == CALL_ME_MAYBE:
        if version != VERSION or len(body) % ENDPOINT_BYTES:
            return CallMeMaybe(())
        starts = range(0, len(body), ENDPOINT_BYTES)[:MAX_CALLED_ENDPOINTS]
        return CallMeMaybe(tuple(unpack_endpoint(body[start:]) for start in starts))
    return None


def sender(datagram: bytes) -> DiscoPublic | None:
    """Whose key a datagram names in the clear; None for what is no disco message."""
    if len(datagram) < _HEAD_BYTES + NONCE_BYTES or not datagram.startswith(MAGIC):
        return None
    return DiscoPublic(datagram[len(MAGIC) : _HEAD_BYTES])


class Sealer:
    """Seals what we say and opens what is said to us. `random(n)` gives n bytes fit for nonces."""

    def __init__(self, private: DiscoPrivate, random: Callable[[int], bytes]) -> None:
        self.public = private.public
        self._private = private
        self._random = random
        self._boxes: collections.OrderedDict[DiscoPublic, SealedBox] = collections.OrderedDict()

    def seal(self, receiver: DiscoPublic, message: Message) -> bytes:
        """The whole datagram. ProtocolError where the receiver's key is worthless."""
        return MAGIC + self.public.raw + self._box(receiver).seal(encode(message), self._random)

    def open(self, datagram: bytes, whose: DiscoPublic) -> Message | None:
        """What a datagram of `sender` says; None for what we do not know. ProtocolError where it is not theirs."""
        return decode(self._box(whose).open(datagram[_HEAD_BYTES:]))

    def _box(self, key: DiscoPublic) -> SealedBox:
        box = self._boxes.get(key)
        if box is None:
            box = self._boxes[key] = SealedBox(self._private, key.raw)
            if len(self._boxes) > MAX_BOXES:
                self._boxes.popitem(last=False)
        return box
