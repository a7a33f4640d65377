"""The two MACs of handshake messages, and cookies both ways (ring 0).

Source: WireGuard paper 5.4.4, 5.4.7 and 5.3 (denial of service). mac1 shows that the sender knows whom it writes to;
under load mac2 shows in addition that it receives what is sent to its address, by a cookie that we gave it there.

    under load:   message, mac2 wrong --> cookie reply, nothing else      (64 bytes for 148 or 92: nothing is amplified)
                  message, mac2 right --> the handshake, within the limits of `admission`
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable
from typing import Final

from nacl.bindings import (
    crypto_aead_xchacha20poly1305_ietf_decrypt,
    crypto_aead_xchacha20poly1305_ietf_encrypt,
)
from nacl.exceptions import CryptoError

from tsns.wg.messages import (
    COOKIE_BYTES,
    COOKIE_NONCE_BYTES,
    COOKIE_REPLY_HEAD,
    KEY_BYTES,
    MAC_BYTES,
    MACS_BYTES,
)

COOKIE_LIFETIME_S: Final = 120.0  # COOKIE_REFRESH_TIME of the paper, for secrets as for cookies
LABEL_MAC1: Final = b"mac1----"
LABEL_COOKIE: Final = b"cookie--"

_NO_MAC: Final = bytes(MAC_BYTES)


def mac(key: bytes, data: bytes) -> bytes:
    """Keyed BLAKE2s, 16 bytes."""
    return hashlib.blake2s(data, digest_size=MAC_BYTES, key=key).digest()


def _derived(label: bytes, public: bytes) -> bytes:
    return hashlib.blake2s(label + public).digest()


class CookieJar:
    """The MACs of what we send to one peer, with the cookie it gave us."""

    __slots__ = ("_cookie", "_cookie_at", "_cookie_key", "_last_mac1", "_mac1_key")

    def __init__(self, peer_public: bytes) -> None:
        self._mac1_key = _derived(LABEL_MAC1, peer_public)
        self._cookie_key = _derived(LABEL_COOKIE, peer_public)
        self._last_mac1 = b""
        self._cookie = b""
        self._cookie_at = 0.0

    def stamp(self, body: bytes, now: float) -> bytes:
        """The body of a handshake message with its MACs; mac2 is zero without a cookie, as some peers insist on."""
        mac1 = self._last_mac1 = mac(self._mac1_key, body)
        message = body + mac1
        if not self._cookie or now - self._cookie_at >= COOKIE_LIFETIME_S:
            return message + _NO_MAC
        return message + mac(self._cookie, message)

    def receive(self, reply: bytes, now: float) -> bool:
        """Take a cookie reply (64 bytes) for the next message; False where it does not answer our last one."""
        if not self._last_mac1:
            return False
        try:
            cookie = crypto_aead_xchacha20poly1305_ietf_decrypt(
                reply[32:64], self._last_mac1, reply[8:32], self._cookie_key
            )
        except CryptoError:
            return False
        self._cookie, self._cookie_at = cookie, now
        self._last_mac1 = b""  # one reply for one message
        return True


class CookieGuard:
    """Checks the MACs of what comes to us, and makes cookies."""

    __slots__ = ("_cookie_key", "_mac1_key", "_random", "_secret", "_secret_at")

    def __init__(self, own_public: bytes, random: Callable[[int], bytes]) -> None:
        self._mac1_key = _derived(LABEL_MAC1, own_public)
        self._cookie_key = _derived(LABEL_COOKIE, own_public)
        self._random = random
        self._secret = b""
        self._secret_at = 0.0

    def knows_us(self, message: bytes) -> bool:
        """Whether mac1 of this handshake message is right."""
        expected = mac(self._mac1_key, message[:-MACS_BYTES])
        return hmac.compare_digest(expected, message[-MACS_BYTES:-MAC_BYTES])

    def lives_there(self, message: bytes, source: bytes, now: float) -> bool:
        """Whether mac2 of this handshake message was made with the cookie of this source."""
        if message.endswith(_NO_MAC):  # as in nearly all messages: no reason to compute anything
            return False
        expected = mac(self._cookie(source, now), message[:-MAC_BYTES])
        return hmac.compare_digest(expected, message[-MAC_BYTES:])

    def reply(self, message: bytes, source: bytes, now: float) -> bytes:
        """The cookie reply to a handshake message from this source."""
        nonce = self._random(COOKIE_NONCE_BYTES)
        mac1 = message[-MACS_BYTES:-MAC_BYTES]
        sealed = crypto_aead_xchacha20poly1305_ietf_encrypt(self._cookie(source, now), mac1, nonce, self._cookie_key)
        return b"".join((COOKIE_REPLY_HEAD, message[4:8], nonce, sealed))

    def _cookie(self, source: bytes, now: float) -> bytes:
        if not self._secret or now - self._secret_at >= COOKIE_LIFETIME_S:
            self._secret, self._secret_at = self._random(KEY_BYTES), now
        return hashlib.blake2s(source, digest_size=COOKIE_BYTES, key=self._secret).digest()
