"""One pair of transport keys (ring 0).

Source: WireGuard paper 5.4.6 and 6.1. A session seals and opens lists of packets; it knows its own age and counters,
while `tunnel` decides which session is used for what.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tsns.counters import Counters
from tsns.wg.drops import Drop
from tsns.wg.handshake import SessionKeys
from tsns.wg.messages import TRANSPORT_HEAD
from tsns.wg.replay import REJECT_AFTER_MESSAGES, ReplayWindow

if TYPE_CHECKING:
    from tsns.wg.tunnel import Tunnel

REKEY_AFTER_MESSAGES: Final = 2**60
REKEY_AFTER_TIME_S: Final = 120.0
REJECT_AFTER_TIME_S: Final = 180.0
PADDING_MULTIPLE: Final = 16

_PADDING: Final = tuple(bytes(n) for n in range(PADDING_MULTIPLE))
_NONCE_HEAD: Final = bytes(4)


class Session:
    """Keys, counters and replay window of one finished handshake."""

    __slots__ = (
        "_header",
        "_opener",
        "_replay",
        "_sealer",
        "created_at",
        "is_initiator",
        "local_index",
        "rekey_after_s",
        "send_counter",
        "tunnel",
    )

    def __init__(self, tunnel: Tunnel, keys: SessionKeys, now: float, *, is_initiator: bool) -> None:
        self.tunnel = tunnel
        self.local_index = keys.local_index
        self.created_at = now
        self.is_initiator = is_initiator
        self.rekey_after_s = REKEY_AFTER_TIME_S
        self.send_counter = 0
        self._header = TRANSPORT_HEAD + keys.remote_index
        self._sealer: ChaCha20Poly1305 | None = ChaCha20Poly1305(keys.send)
        self._opener: ChaCha20Poly1305 | None = ChaCha20Poly1305(keys.receive)
        self._replay = ReplayWindow()

    def erase(self) -> None:
        """Let go of the keys."""
        self._sealer = self._opener = None

    def is_expired(self, now: float) -> bool:
        """Whether nothing may be sent or received with it any more, by age."""
        return now - self.created_at >= REJECT_AFTER_TIME_S

    def can_seal(self, count: int, now: float) -> bool:
        """Whether this many packets may still be sent."""
        return (
            self._sealer is not None
            and now - self.created_at < REJECT_AFTER_TIME_S
            and self.send_counter + count <= REJECT_AFTER_MESSAGES
        )

    def wants_rekey(self, now: float) -> bool:
        """Whether who sends with it should see to new keys: by age only the initiator, lest both do it at once."""
        return self.send_counter > REKEY_AFTER_MESSAGES or (
            self.is_initiator and now - self.created_at > self.rekey_after_s
        )

    def seal(self, packets: Iterable[bytes], mtu: int) -> list[bytes]:
        """Transport messages with these packets, padded to 16 bytes within the TUN's MTU. Ask `can_seal` first."""
        assert self._sealer is not None
        encrypt, header, counter = self._sealer.encrypt, self._header, self.send_counter
        messages = []
        for packet in packets:
            encoded = counter.to_bytes(8, "little")
            counter += 1
            size = len(packet)
            padding = -size % PADDING_MULTIPLE
            if padding:
                packet += _PADDING[padding if size + padding <= mtu else max(0, mtu - size)]  # noqa: PLW2901
            messages.append(header + encoded + encrypt(_NONCE_HEAD + encoded, packet, None))
        self.send_counter = counter
        return messages

    def open(self, messages: Iterable[bytes], counters: Counters) -> list[bytes]:
        """What these transport messages (at least 32 bytes each) hold, without those that are replayed or not
        authentic.

        Plaintexts still have their padding; an empty one is a keepalive.
        """
        if self._opener is None:
            return []
        decrypt, may_accept, accept = self._opener.decrypt, self._replay.may_accept, self._replay.accept
        plaintexts = []
        for message in messages:
            encoded = message[8:16]
            counter = int.from_bytes(encoded, "little")
            if not may_accept(counter):
                counters.add(Drop.REPLAYED)
                continue
            try:
                plaintext = decrypt(_NONCE_HEAD + encoded, message[16:], None)
            except InvalidTag:
                counters.add(Drop.NOT_AUTHENTIC)
                continue
            accept(counter)  # only now: a forged counter must not move the window
            plaintexts.append(plaintext)
        return plaintexts
