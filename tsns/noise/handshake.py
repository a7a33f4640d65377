"""The Noise handshake with control: Noise_IK_25519_ChaChaPoly_BLAKE2s, both sides (ring 0).

Source: The Noise Protocol Framework, revision 34, sections 5, 7.5 and 9; tailscale.com/control/controlbase for the framing.

    initiator                                                    responder
      knows control's static key                                   knows its own
      initiation: version, e, es, s, ss (101 bytes) -------------> receive
      finish <------------------------- response: e, ee, se (51 bytes)

The prologue names the protocol version, so both sides must mean the same one. Each handshake key seals one message only: its nonce is zero.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tsns.error import ProtocolError
from tsns.keys import KEY_BYTES, MachinePrivate, MachinePublic

PROTOCOL_NAME: Final = b"Noise_IK_25519_ChaChaPoly_BLAKE2s"
PROLOGUE: Final = "Tailscale Control Protocol v{}"
TAG_BYTES: Final = 16
INITIATION_TYPE: Final = 1
RESPONSE_TYPE: Final = 2
INITIATION_BYTES: Final = 101
RESPONSE_BYTES: Final = 51

_INITIATION_HEADER: Final = struct.Struct(">HBH")  # version, type, bytes that follow
_RESPONSE_HEADER: Final = struct.Struct(">BH")
_NONCE: Final = bytes(12)

Random = Callable[[int], bytes]


@dataclass(frozen=True, slots=True)
class Keys:
    """What a finished handshake leaves: a key for each direction, and a hash that both sides share."""

    send: bytes = field(repr=False)
    receive: bytes = field(repr=False)
    handshake_hash: bytes = field(repr=False)


class Symmetric:
    """Noise's symmetric state: the running hash, the chaining key, and the key of the next message."""

    def __init__(self, prologue: bytes) -> None:
        self.hash = hashlib.blake2s(PROTOCOL_NAME).digest()  # the name is longer than a hash, hence hashed
        self._chaining_key = self.hash
        self._key = bytes(KEY_BYTES)
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        """Bind what both sides have seen."""
        self.hash = hashlib.blake2s(self.hash + data).digest()

    def mix_shared(self, private: MachinePrivate, public: bytes) -> None:
        """Mix in a Diffie-Hellman result; ProtocolError for a public key of low order."""
        try:
            theirs = X25519PublicKey.from_public_bytes(public)
            shared = X25519PrivateKey.from_private_bytes(private.raw).exchange(theirs)
        except ValueError:
            raise ProtocolError("a Noise key of low order") from None
        self._chaining_key, self._key = self._expand(shared)

    def seal(self, plaintext: bytes) -> bytes:
        """Encrypt a part of a handshake message and bind it."""
        sealed = ChaCha20Poly1305(self._key).encrypt(_NONCE, plaintext, self.hash)
        self.mix_hash(sealed)
        return sealed

    def open(self, sealed: bytes) -> bytes:
        """Decrypt a part of a handshake message and bind it; ProtocolError where it is not authentic."""
        try:
            plaintext = ChaCha20Poly1305(self._key).decrypt(_NONCE, sealed, self.hash)
        except InvalidTag:
            raise ProtocolError("the Noise handshake is not authentic") from None
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        """The keys of the two directions, the initiator's first."""
        return self._expand(b"")

    def _expand(self, material: bytes) -> tuple[bytes, bytes]:
        """HKDF (RFC 5869) with the chaining key as salt and no info: two outputs."""
        secret = hmac.digest(self._chaining_key, material, "blake2s")
        first = hmac.digest(secret, b"\x01", "blake2s")
        return first, hmac.digest(secret, first + b"\x02", "blake2s")


class Initiator:
    """The client's half: `message` goes out, the answer to it into `finish`. `version` is the capability version."""

    def __init__(self, machine: MachinePrivate, control: MachinePublic, version: int, random: Random) -> None:
        self._machine = machine
        self._control = control
        self._version = version
        self._ephemeral = MachinePrivate.generate(random(KEY_BYTES))
        self._state: Symmetric | None = None

    def message(self) -> bytes:
        """The initiation (101 bytes); ProtocolError where control's key is worthless."""
        self._state = state = Symmetric(PROLOGUE.format(self._version).encode())
        state.mix_hash(self._control.raw)
        ephemeral = self._ephemeral.public.raw
        state.mix_hash(ephemeral)
        state.mix_shared(self._ephemeral, self._control.raw)
        static = state.seal(self._machine.public.raw)
        state.mix_shared(self._machine, self._control.raw)
        body = ephemeral + static + state.seal(b"")
        return _INITIATION_HEADER.pack(self._version, INITIATION_TYPE, len(body)) + body

    def finish(self, response: bytes) -> Keys:
        """Take the response (51 bytes); ProtocolError where it is not the work of control's key."""
        state, self._state = self._state, None
        assert state is not None, "finish() follows message(), once"
        body = response[_RESPONSE_HEADER.size :]
        header = _RESPONSE_HEADER.pack(RESPONSE_TYPE, RESPONSE_BYTES - _RESPONSE_HEADER.size)
        if len(response) != RESPONSE_BYTES or not response.startswith(header):
            raise ProtocolError("not a Noise response")
        ephemeral = body[:KEY_BYTES]
        state.mix_hash(ephemeral)
        state.mix_shared(self._ephemeral, ephemeral)
        state.mix_shared(self._machine, ephemeral)
        state.open(body[KEY_BYTES:])
        ours, theirs = state.split()
        return Keys(ours, theirs, state.hash)


class Responder:
    """Control's half: one for each initiation."""

    def __init__(self, private: MachinePrivate, random: Random) -> None:
        self._private = private
        self._random = random

    def receive(self, initiation: bytes) -> tuple[Keys, bytes, MachinePublic, int]:
        """Answer an initiation: keys, response, and the machine and version that it came from.

        ProtocolError where it is malformed or not made for our key.
        """
        if len(initiation) != INITIATION_BYTES:
            raise ProtocolError(f"a Noise initiation of {len(initiation)} bytes")
        version, kind, length = _INITIATION_HEADER.unpack_from(initiation)
        if kind != INITIATION_TYPE or length != INITIATION_BYTES - _INITIATION_HEADER.size:
            raise ProtocolError("not a Noise initiation")
        body = initiation[_INITIATION_HEADER.size :]
        theirs, static = body[:KEY_BYTES], body[KEY_BYTES:-TAG_BYTES]
        state = Symmetric(PROLOGUE.format(version).encode())
        state.mix_hash(self._private.public.raw)
        state.mix_hash(theirs)
        state.mix_shared(self._private, theirs)
        machine = MachinePublic(state.open(static))
        state.mix_shared(self._private, machine.raw)
        state.open(body[-TAG_BYTES:])

        ephemeral = MachinePrivate.generate(self._random(KEY_BYTES))
        state.mix_hash(ephemeral.public.raw)
        state.mix_shared(ephemeral, theirs)
        state.mix_shared(ephemeral, machine.raw)
        answer = ephemeral.public.raw + state.seal(b"")
        to_us, to_them = state.split()
        response = _RESPONSE_HEADER.pack(RESPONSE_TYPE, len(answer)) + answer
        return Keys(to_them, to_us, state.hash), response, machine, version
