"""NaCl's box, in the wire form of DERP's login and of disco: nonce, tag, ciphertext (ring 0).

Source: NaCl crypto_box (Curve25519, XSalsa20, Poly1305); types/key/node.go and disco.go of Tailscale's module for the order on the wire.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from nacl.exceptions import CryptoError
from nacl.public import Box, PrivateKey, PublicKey

from tsns.error import ProtocolError
from tsns.keys import X25519Private

NONCE_BYTES: Final = Box.NONCE_SIZE
OVERHEAD_BYTES: Final = NONCE_BYTES + 16


class SealedBox:
    """Seals for, and opens what comes from, the owner of one public key (32 bytes).

    ProtocolError for a key of low order: with such a key there is no secret.
    """

    def __init__(self, private: X25519Private, public: bytes) -> None:
        try:
            self._box = Box(PrivateKey(private.raw), PublicKey(public))
        except (CryptoError, ValueError) as error:
            raise ProtocolError("the other side's key is worthless") from error

    def seal(self, message: bytes, random: Callable[[int], bytes]) -> bytes:
        """The message as it goes on the wire."""
        return bytes(self._box.encrypt(message, random(NONCE_BYTES)))

    def open(self, sealed: bytes) -> bytes:
        """The message within; ProtocolError where the owner of the key did not write it."""
        try:
            return self._box.decrypt(sealed)
        except (CryptoError, ValueError) as error:  # ValueError: shorter than a nonce
            raise ProtocolError("a sealed message is not from the owner of the key") from error
