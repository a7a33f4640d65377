"""The WireGuard handshake, both roles (ring 0: keys and messages in, messages and session keys out).

Source: WireGuard paper 5.4.2 to 5.4.5, which is Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s with the identifier as prologue.

    initiator                                               responder
    initiate ------ E_i, sealed S_i, sealed time stamp ---> open_initiation -> who is it?
                                                            Incoming.timestamp -> not seen before?
    complete <----- E_r, sealed nothing ------------------- respond
       |                                                        |
    SessionKeys                                             SessionKeys (not used before the initiator did)

Bodies are the messages without their two MACs, which `cookie` adds and checks. What a stranger sends makes these
functions return None; they do not raise.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tsns.keys import NodePrivate, NodePublic
from tsns.wg.messages import INITIATION_HEAD, KEY_BYTES, RESPONSE_HEAD

CONSTRUCTION: Final = b"Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
IDENTIFIER: Final = b"WireGuard v1 zx2c4 Jason@zx2c4.com"
NO_PRESHARED_KEY: Final = bytes(KEY_BYTES)

_NONCE: Final = bytes(12)  # each handshake key seals one thing only


def hash_of(*parts: bytes) -> bytes:
    """BLAKE2s of the parts, 32 bytes."""
    return hashlib.blake2s(b"".join(parts)).digest()


def kdf(count: int, key: bytes, data: bytes) -> list[bytes]:
    """HKDF over HMAC-BLAKE2s: `count` values of 32 bytes. A key has 64 bytes at most.

    The HMAC (RFC 2104) is written out: half of what `hmac` takes is the making of its objects.
    """
    hashed = hashlib.blake2s
    inner, outer = _pads(key)
    inner, outer = _pads(hashed(outer + hashed(inner + data).digest()).digest())
    values: list[bytes] = []
    last = b""
    for number in range(1, count + 1):
        last = hashed(outer + hashed(inner + last + bytes((number,))).digest()).digest()
        values.append(last)
    return values


def _pads(key: bytes) -> tuple[bytes, bytes]:
    block = key.ljust(_BLOCK_BYTES, b"\0")
    return block.translate(_INNER), block.translate(_OUTER)


_BLOCK_BYTES: Final = hashlib.blake2s().block_size
_INNER: Final = bytes(byte ^ 0x36 for byte in range(256))
_OUTER: Final = bytes(byte ^ 0x5C for byte in range(256))

INITIAL_CHAIN_KEY: Final = hash_of(CONSTRUCTION)
INITIAL_HASH: Final = hash_of(INITIAL_CHAIN_KEY, IDENTIFIER)


class OwnKey:
    """Our static key with what never changes about it."""

    __slots__ = ("initial_hash", "private", "public")

    def __init__(self, key: NodePrivate) -> None:
        self.private = X25519PrivateKey.from_private_bytes(key.raw)
        self.public = self.private.public_key().public_bytes_raw()
        self.initial_hash = hash_of(INITIAL_HASH, self.public)


class PeerKey:
    """A peer's static key with what never changes between it and us. ValueError for a key of low order."""

    __slots__ = ("initial_hash", "preshared", "public", "raw", "static_static")

    def __init__(self, own: OwnKey, key: NodePublic, preshared: bytes) -> None:
        self.raw = key.raw
        self.public = X25519PublicKey.from_public_bytes(key.raw)
        self.static_static = own.private.exchange(self.public)
        self.initial_hash = hash_of(INITIAL_HASH, key.raw)
        self.preshared = preshared


@dataclass(frozen=True, slots=True)
class SessionKeys:
    """What a finished handshake leaves: two transport keys, and the indices by which each side names the session."""

    send: bytes = field(repr=False)
    receive: bytes = field(repr=False)
    local_index: bytes
    remote_index: bytes


class _Transcript:
    """Chain key and hash, as both sides advance them."""

    __slots__ = ("chain_key", "hash")

    def __init__(self, chain_key: bytes, transcript_hash: bytes) -> None:
        self.chain_key = chain_key
        self.hash = transcript_hash

    def copy(self) -> _Transcript:
        return _Transcript(self.chain_key, self.hash)

    def mix_hash(self, data: bytes) -> None:
        self.hash = hash_of(self.hash, data)

    def mix_key(self, data: bytes) -> None:
        [self.chain_key] = kdf(1, self.chain_key, data)

    def mix_cipher(self, data: bytes) -> ChaCha20Poly1305:
        self.chain_key, key = kdf(2, self.chain_key, data)
        return ChaCha20Poly1305(key)

    def mix_preshared(self, preshared: bytes) -> ChaCha20Poly1305:
        self.chain_key, tau, key = kdf(3, self.chain_key, preshared)
        self.mix_hash(tau)
        return ChaCha20Poly1305(key)

    def seal(self, cipher: ChaCha20Poly1305, data: bytes) -> bytes:
        sealed = cipher.encrypt(_NONCE, data, self.hash)
        self.mix_hash(sealed)
        return sealed

    def open(self, cipher: ChaCha20Poly1305, sealed: bytes) -> bytes:
        data = cipher.decrypt(_NONCE, sealed, self.hash)
        self.mix_hash(sealed)
        return data

    def split(self) -> list[bytes]:
        """The initiator's sending key and the responder's."""
        return kdf(2, self.chain_key, b"")


class Pending:
    """An initiation of ours that waits for its response."""

    __slots__ = ("_ephemeral", "_transcript", "index", "sent_at")

    def __init__(self, index: bytes, transcript: _Transcript, ephemeral: X25519PrivateKey, sent_at: float) -> None:
        self.index = index
        self.sent_at = sent_at
        self._transcript = transcript
        self._ephemeral = ephemeral

    def complete(self, own: OwnKey, peer: PeerKey, body: bytes) -> SessionKeys | None:
        """Take the body of a response; None where it is not the peer's answer to this, which stays pending."""
        transcript = self._transcript.copy()
        remote_ephemeral = body[12:44]
        try:
            remote = X25519PublicKey.from_public_bytes(remote_ephemeral)
            transcript.mix_hash(remote_ephemeral)
            transcript.mix_key(remote_ephemeral)
            transcript.mix_key(self._ephemeral.exchange(remote))
            transcript.mix_key(own.private.exchange(remote))
            transcript.open(transcript.mix_preshared(peer.preshared), body[44:60])
        except (InvalidTag, ValueError):
            return None
        send, receive = transcript.split()
        return SessionKeys(send, receive, local_index=self.index, remote_index=body[4:8])


def initiate(
    own: OwnKey, peer: PeerKey, *, ephemeral: bytes, index: bytes, timestamp: bytes, now: float
) -> tuple[bytes, Pending]:
    """The body of an initiation (116 bytes) and what its response will need; `ephemeral` are 32 random bytes."""
    private = X25519PrivateKey.from_private_bytes(ephemeral)
    public = private.public_key().public_bytes_raw()
    transcript = _Transcript(INITIAL_CHAIN_KEY, peer.initial_hash)
    transcript.mix_key(public)
    transcript.mix_hash(public)
    static = transcript.seal(transcript.mix_cipher(private.exchange(peer.public)), own.public)
    stamp = transcript.seal(transcript.mix_cipher(peer.static_static), timestamp)
    body = b"".join((INITIATION_HEAD, index, public, static, stamp))
    return body, Pending(index, transcript, private, now)


class Incoming:
    """An initiation that was opened as far as the sender's name: `static`, which nobody has proved yet."""

    __slots__ = ("_ephemeral", "_sealed_timestamp", "_transcript", "remote_index", "static")

    def __init__(self, static: bytes, transcript: _Transcript, body: bytes) -> None:
        self.static = static
        self.remote_index = body[4:8]
        self._ephemeral = body[8:40]
        self._sealed_timestamp = body[88:116]
        self._transcript = transcript

    def timestamp(self, peer: PeerKey) -> bytes | None:
        """The time stamp (12 bytes), which proves the sender to be this peer, or None. To be called once."""
        try:
            return self._transcript.open(self._transcript.mix_cipher(peer.static_static), self._sealed_timestamp)
        except InvalidTag:
            return None

    def respond(self, peer: PeerKey, *, ephemeral: bytes, index: bytes) -> tuple[bytes, SessionKeys]:
        """The body of the response (60 bytes) and the keys; to be called once, after `timestamp`."""
        transcript = self._transcript
        private = X25519PrivateKey.from_private_bytes(ephemeral)
        public = private.public_key().public_bytes_raw()
        transcript.mix_hash(public)
        transcript.mix_key(public)
        # Neither key is of low order, or we had not come so far: no exchange raises.
        transcript.mix_key(private.exchange(X25519PublicKey.from_public_bytes(self._ephemeral)))
        transcript.mix_key(private.exchange(peer.public))
        empty = transcript.seal(transcript.mix_preshared(peer.preshared), b"")
        receive, send = transcript.split()
        body = b"".join((RESPONSE_HEAD, index, self.remote_index, public, empty))
        return body, SessionKeys(send, receive, local_index=index, remote_index=self.remote_index)


def open_initiation(own: OwnKey, body: bytes) -> Incoming | None:
    """Open the body of an initiation to us as far as its sender's name; None where it was not made for our key."""
    ephemeral = body[8:40]
    transcript = _Transcript(INITIAL_CHAIN_KEY, own.initial_hash)
    transcript.mix_key(ephemeral)
    transcript.mix_hash(ephemeral)
    try:
        shared = own.private.exchange(X25519PublicKey.from_public_bytes(ephemeral))
        static = transcript.open(transcript.mix_cipher(shared), body[40:88])
    except (InvalidTag, ValueError):
        return None
    return Incoming(static, transcript, body)
