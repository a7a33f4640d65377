"""The netmap stream as bytes: lengths, compression, JSON (ring 0).

Source: control/controlclient (direct.go) of Tailscale's module. The body of /machine/map repeats `length, 32 bits LITTLE endian | message`;
a message is one MapResponse as JSON, as a rule in one or several zstd frames. Where the body is cut into HTTP/2 frames means nothing.
"""

from __future__ import annotations

import struct
from typing import Final

import zstandard

from tsns.error import ProtocolError
from tsns.proto.types import MapResponse, decode, encode

MAX_COMPRESSED_BYTES: Final = 64 << 20
MAX_DECODED_BYTES: Final = 512 << 20
MAX_WINDOW_BYTES: Final = 128 << 20  # of the decompressor; a frame that states its content size may want all of it

_LENGTH: Final = struct.Struct("<I")
_FIRST_READ_BYTES: Final = 64 << 10
_MAX_READ_BYTES: Final = 16 << 20


class MapStream:
    """Cuts the body of a map response into messages, however it arrives; holds at most one incomplete message."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)

    def feed(self, data: bytes) -> list[MapResponse]:
        """The messages that `data` completes; ProtocolError, after which the stream is of no further use."""
        buffer = self._buffer
        buffer += data
        messages = []
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if not 0 < length <= MAX_COMPRESSED_BYTES:
                raise ProtocolError(f"a map message announces {length} bytes")
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            messages.append(self._decode(bytes(memoryview(buffer)[start + _LENGTH.size : end])))
            start = end
        del buffer[:start]
        return messages

    def _decode(self, message: bytes) -> MapResponse:
        # A server may leave the message uncompressed although it was asked to compress.
        return decode(message if message.startswith(b"{") else self._decompressed(message), MapResponse)

    def _decompressed(self, message: bytes) -> bytes:
        """All frames' content, read in pieces: sizes that frames announce are not trusted, and may be missing."""
        pieces: list[bytes] = []
        total = 0
        size = _FIRST_READ_BYTES
        try:
            with self._decompressor.stream_reader(message, read_across_frames=True) as reader:
                while piece := reader.read(size):
                    pieces.append(piece)
                    total += len(piece)
                    if total > MAX_DECODED_BYTES:
                        raise ProtocolError(f"a map message of more than {MAX_DECODED_BYTES} bytes")
                    size = min(2 * size, _MAX_READ_BYTES)
        except (zstandard.ZstdError, MemoryError) as error:
            raise ProtocolError(f"a map message cannot be decompressed: {error}") from None
        return b"".join(pieces)


def frame(message: MapResponse | bytes, *, compress: bool) -> bytes:
    """One message as a server writes it."""
    data = message if isinstance(message, bytes) else encode(message)
    if compress:
        data = zstandard.compress(data, 1)
    return _LENGTH.pack(len(data)) + data
