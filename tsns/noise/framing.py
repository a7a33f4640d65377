"""Frames of an established Noise connection: cutting the byte stream, sealing and opening records (ring 0).

Source: tailscale.com/control/controlbase (conn.go, messages.go). A frame is `type | length, 16 bits big endian | payload`, 4096 bytes at
most with its header. Records are numbered per direction, and the number is the nonce, big endian: the Noise specification has it the
other way round, which shows only from the second record on.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tsns.error import ProtocolError
from tsns.noise.handshake import TAG_BYTES
from tsns.proto.text import one_line

HEADER_BYTES: Final = 3
MAX_FRAME_BYTES: Final = 4096
MAX_PLAINTEXT_BYTES: Final = MAX_FRAME_BYTES - HEADER_BYTES - TAG_BYTES
MAX_RECORDS: Final = (1 << 64) - 1  # per direction; there is no rekeying
MAX_ERROR_CHARS: Final = 200

_HEADER: Final = struct.Struct(">BH")
_NONCE: Final = struct.Struct(">IQ")


class FrameType(enum.IntEnum):
    """Wire codes. An initiation has a header of its own and is no frame of this kind."""

    RESPONSE = 2
    ERROR = 3
    RECORD = 4


class FrameReader:
    """Cuts the byte stream into frames, however it arrives; holds at most one incomplete frame."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (type, payload) for each frame that `data` completes; ProtocolError for one that is too large."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= HEADER_BYTES:
                kind, length = _HEADER.unpack_from(buffer, start)
                if length > MAX_FRAME_BYTES - HEADER_BYTES:
                    raise ProtocolError(f"a Noise frame of type {kind} announces {length} bytes")
                end = start + HEADER_BYTES + length
                if len(buffer) < end:
                    break
                payload = bytes(buffer[start + HEADER_BYTES : end])
                start = end
                yield kind, payload
        finally:
            del buffer[:start]


class Sealer:
    """Our direction: turns plaintext into records."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._count = 0

    def seal(self, plaintext: bytes) -> bytes:
        """As many records as it takes; one that is empty for an empty plaintext."""
        view = memoryview(plaintext)
        records = bytearray()
        for start in range(0, len(view) or 1, MAX_PLAINTEXT_BYTES):
            if self._count >= MAX_RECORDS:
                raise ProtocolError("the Noise connection is used up")
            sealed = self._cipher.encrypt(_NONCE.pack(0, self._count), view[start : start + MAX_PLAINTEXT_BYTES], None)
            self._count += 1
            records += _HEADER.pack(FrameType.RECORD, len(sealed))
            records += sealed
        return bytes(records)


class Opener:
    """Their direction: opens the payloads of records."""

    def __init__(self, key: bytes) -> None:
        self._cipher = ChaCha20Poly1305(key)
        self._count = 0

    def open(self, sealed: bytes) -> bytes:
        """The plaintext of the next record; ProtocolError, after which nothing can be opened, where it is not authentic."""
        if self._count >= MAX_RECORDS:
            raise ProtocolError("the Noise connection is used up")
        try:
            plaintext = self._cipher.decrypt(_NONCE.pack(0, self._count), sealed, None)
        except InvalidTag:
            raise ProtocolError("a Noise record is not authentic") from None
        self._count += 1
        return plaintext


def error_frame(text: str) -> bytes:
    """What a server sends before it hangs up; nobody can authenticate it."""
    payload = one_line(text, MAX_ERROR_CHARS).encode()
    return _HEADER.pack(FrameType.ERROR, len(payload)) + payload


def error_text(payload: bytes) -> str:
    """What an error frame says, fit to be shown."""
    return one_line(payload, MAX_ERROR_CHARS)
