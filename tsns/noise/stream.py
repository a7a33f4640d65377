"""A Noise connection as a byte stream, from the bytes after the HTTP upgrade to the plaintext within (ring 0).

Source: tailscale.com/control/controlbase (conn.go) and control/ts2021 (conn.go) for the early payload.

    client: AWAIT_RESPONSE --response--> AWAIT_EARLY --9 bytes of plaintext--> OPEN
    server: OPEN from the start: its handshake came with the HTTP upgrade

The early payload is `ff ff ff 'T' 'S' | length, 32 bits big endian | JSON` where HTTP/2 would begin, and need not be there. It knows nothing
of records: it may span several, or share one with what follows. Nine bytes are as many as an HTTP/2 frame header has, so waiting for
them never waits in vain.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

from tsns.error import ProtocolError
from tsns.keys import ChallengePublic, MachinePrivate
from tsns.noise.framing import FrameReader, FrameType, Opener, Sealer, error_text
from tsns.noise.handshake import RESPONSE_BYTES, Initiator, Keys, Random, Responder
from tsns.proto.types import EarlyNoise, decode, encode

EARLY_MAGIC: Final = b"\xff\xff\xffTS"
EARLY_HEADER_BYTES: Final = len(EARLY_MAGIC) + 4
MAX_EARLY_PAYLOAD_BYTES: Final = 64 << 10


class NoiseStream:
    """One side of an established connection. After a ProtocolError it is of no further use."""

    def __init__(self, keys: Keys) -> None:
        self._reader = FrameReader()
        self._sealer = Sealer(keys.send)
        self._opener = Opener(keys.receive)

    def receive(self, data: bytes) -> list[bytes]:
        """The plaintext that `data` completes, in pieces, none of them empty."""
        plaintext = []
        for kind, payload in self._reader.feed(data):
            if kind == FrameType.ERROR:
                raise ProtocolError(f"the other side gives up: {error_text(payload)}")
            if kind != FrameType.RECORD:
                raise ProtocolError(f"a Noise frame of type {kind} among the records")
            piece = self._opener.open(payload)
            if piece:
                plaintext.append(piece)
        return plaintext

    def send(self, plaintext: bytes) -> bytes:
        """Records to write, all of them: one that is written in part ends the connection."""
        return self._sealer.seal(plaintext)


class _ClientState(enum.Enum):
    AWAIT_RESPONSE = enum.auto()
    AWAIT_EARLY = enum.auto()
    OPEN = enum.auto()


class ClientStream:
    """The client's whole side: handshake answer, early payload, then plaintext.

    `initiation` goes into the upgrade request. Once `established`, `send` works, and the client should speak first: a server may wait for
    its HTTP/2 preface before it says anything.
    """

    def __init__(self, initiator: Initiator) -> None:
        self.initiation = initiator.message()
        self.early: EarlyNoise | None = None
        self.handshake_hash = b""
        self._initiator = initiator
        self._state = _ClientState.AWAIT_RESPONSE
        self._buffer = bytearray()  # the response at first, then the early payload
        self._stream: NoiseStream | None = None

    @property
    def established(self) -> bool:
        """Whether the handshake is done."""
        return self._stream is not None

    def receive(self, data: bytes) -> list[bytes]:
        """The plaintext, early payload excluded, that `data` completes; ProtocolError ends the connection."""
        if self._stream is None:
            self._buffer += data
            data = self._finish_handshake()
            if self._stream is None:
                return []
        plaintext = self._stream.receive(data)
        if self._state is _ClientState.AWAIT_EARLY:
            self._buffer += b"".join(plaintext)
            plaintext = self._skip_early()
        return plaintext

    def send(self, plaintext: bytes) -> bytes:
        """Records to write."""
        assert self._stream is not None, "not before the handshake"
        return self._stream.send(plaintext)

    def _finish_handshake(self) -> bytes:
        """Take the response out of the buffer once it is whole; what came after it is returned."""
        buffer = self._buffer
        if buffer[:1] == bytes([FrameType.ERROR]):
            for _, payload in FrameReader().feed(bytes(buffer)):
                raise ProtocolError(f"control refuses the Noise handshake: {error_text(payload)}")
            return b""
        if buffer[:1] not in (b"", bytes([FrameType.RESPONSE])):
            raise ProtocolError("not a Noise response")
        if len(buffer) < RESPONSE_BYTES:
            return b""
        keys = self._initiator.finish(bytes(buffer[:RESPONSE_BYTES]))
        rest = bytes(buffer[RESPONSE_BYTES:])
        buffer.clear()
        self.handshake_hash = keys.handshake_hash
        self._stream = NoiseStream(keys)
        self._state = _ClientState.AWAIT_EARLY
        return rest

    def _skip_early(self) -> list[bytes]:
        """Plaintext that belongs to HTTP/2, once it is known where that begins."""
        buffer = self._buffer
        if len(buffer) < EARLY_HEADER_BYTES:
            return []
        start = 0
        if buffer.startswith(EARLY_MAGIC):
            (length,) = struct.unpack_from(">I", buffer, len(EARLY_MAGIC))
            if length > MAX_EARLY_PAYLOAD_BYTES:
                raise ProtocolError(f"the early payload announces {length} bytes")
            start = EARLY_HEADER_BYTES + length
            if len(buffer) < start:
                return []
            self.early = decode(bytes(buffer[EARLY_HEADER_BYTES:start]), EarlyNoise)
        rest = bytes(buffer[start:])
        buffer.clear()
        self._state = _ClientState.OPEN
        return [rest] if rest else []


class ServerStream(NoiseStream):
    """The server's whole side, made from the initiation that came with the upgrade request; ProtocolError where that is worthless.

    `response` is to be sent first, then `early_payload` if wanted, then HTTP/2.
    """

    def __init__(self, private: MachinePrivate, initiation: bytes, random: Random) -> None:
        keys, self.response, self.machine, self.version = Responder(private, random).receive(initiation)
        self.handshake_hash = keys.handshake_hash
        super().__init__(keys)


def early_payload(challenge: ChallengePublic) -> bytes:
    """The early payload as plaintext, for `send`."""
    body = encode(EarlyNoise(node_key_challenge=str(challenge)))
    return EARLY_MAGIC + struct.pack(">I", len(body)) + body
