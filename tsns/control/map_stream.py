"""The netmap stream as bytes: lengths, compression, JSON (ring 0).

Source: control/controlclient (direct.go) of Tailscale's module. The body of /machine/map repeats `length, 32 bits LITTLE endian | message`;
a message is one MapResponse as JSON, as a rule in one or several zstd frames. Where the body is cut into HTTP/2 frames means nothing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import zstandard

from tsns.control import map_message
from tsns.error import ProtocolError
from tsns.proto.types import MapResponse, encode
from tsns.steps import Steps, finish

MAX_COMPRESSED_BYTES: Final = 64 << 20
MAX_DECODED_BYTES: Final = 512 << 20
COMPRESSION_LEVEL: Final = 1
PIECE_BYTES: Final = 64 << 10  # of JSON, that are read at once
MAX_WINDOW_BYTES: Final = 128 << 20  # of the decompressor; a frame that states its content size may want all of it

_LENGTH: Final = struct.Struct("<I")


class MapStream:
    """Cuts the body of a map response into messages, however it arrives; holds at most one incomplete message."""

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._decompressor = zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW_BYTES)

    def messages(self, data: bytes) -> list[bytes]:
        """The messages that `data` completes, to be read by `reading`; ProtocolError, after which the stream is of no further use."""
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
            messages.append(bytes(memoryview(buffer)[start + _LENGTH.size : end]))
            start = end
        del buffer[:start]
        return messages

    def reading(self, message: bytes) -> Steps[MapResponse]:
        """Read one message, a large one in many steps; ProtocolError where that cannot be done."""
        # A server may leave the message uncompressed although it was asked to compress.
        if message.startswith(b"{"):
            return map_message.reading(lambda: _pieces(message))
        return map_message.reading(lambda: self._decompressed(message))

    def feed(self, data: bytes) -> list[MapResponse]:
        """The messages that `data` completes, read at once; ProtocolError as above."""
        return [finish(self.reading(message)) for message in self.messages(data)]

    def _decompressed(self, message: bytes) -> Iterator[bytes]:
        """All frames' content, piece by piece: sizes that frames announce are not trusted, and may be missing."""
        total = 0
        try:
            with self._decompressor.stream_reader(message, read_across_frames=True) as reader:
                while piece := reader.read(PIECE_BYTES):
                    total += len(piece)
                    if total > MAX_DECODED_BYTES:
                        raise ProtocolError(f"a map message of more than {MAX_DECODED_BYTES} bytes")
                    yield piece
        except (zstandard.ZstdError, MemoryError) as error:
            raise ProtocolError(f"a map message cannot be decompressed: {error}") from None


def _pieces(message: bytes) -> Iterator[bytes]:
    return (message[start : start + PIECE_BYTES] for start in range(0, len(message), PIECE_BYTES))


class FrameWriter:
    """One message, compressed, as a server writes it: its JSON by and by, and then all of it."""

    def __init__(self) -> None:
        self._compressor = zstandard.ZstdCompressor(level=COMPRESSION_LEVEL).compressobj()
        self._pieces: list[bytes] = []

    def write(self, json: bytes) -> None:
        """The next piece of it."""
        self._pieces.append(self._compressor.compress(json))

    def frame(self) -> bytes:
        """The frame, when everything is written."""
        self._pieces.append(self._compressor.flush())
        return _framed(b"".join(self._pieces))


def frame(message: MapResponse | bytes, *, compress: bool) -> bytes:
    """One message as a server writes it."""
    data = message if isinstance(message, bytes) else encode(message)
    return _framed(zstandard.compress(data, COMPRESSION_LEVEL) if compress else data)


def _framed(data: bytes) -> bytes:
    return _LENGTH.pack(len(data)) + data
