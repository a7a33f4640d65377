"""DERP frames, as either side reads and writes them (ring 0).

Source: derp/derp.go of Tailscale's module, protocol version 2. A frame is its type (one byte), the length of its payload
(32 bits, big-endian) and the payload. Types that nobody knows yet are read over: `FrameReader` hands them out as plain numbers.

    client                                            server
       | <- SERVER_KEY   magic, 32 key [, more later]    |
       | -> CLIENT_INFO  32 key, sealed JSON             |
       | <- SERVER_INFO  sealed JSON                     |     "sealed" is what `sealed_box` makes of it
       | -> SEND_PACKET  32 destination, packet          |     allowed from CLIENT_INFO on
       | <- RECV_PACKET  32 source, packet               |
       | -> NOTE_PREFERRED  1 byte: whether this is home |
       | <- PEER_GONE    32 key [, reason]               |
       | <- KEEP_ALIVE, HEALTH text, RESTARTING 2 x u32  |
       | <> PING, PONG   8 bytes                         |
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Iterator
from typing import Final

import msgspec

from tsns.error import ProtocolError

PROTOCOL_VERSION: Final = 2
MAGIC: Final = "DERP🔑".encode()  # 8 bytes
KEY_BYTES: Final = 32
PING_BYTES: Final = 8
HEADER_BYTES: Final = 5
MAX_PAYLOAD_BYTES: Final = 1 << 20  # what a client takes
MAX_CLIENT_INFO_BYTES: Final = 256 << 10  # what a server takes before it knows the client
MAX_SERVER_KEY_BYTES: Final = 1024
MAX_PACKET_BYTES: Final = 64 << 10  # above it a server hangs up
MAX_SEND_PAYLOAD_BYTES: Final = KEY_BYTES + MAX_PACKET_BYTES  # what a server takes from a client it knows

_HEADER: Final = struct.Struct(">BI")
_RESTARTING: Final = struct.Struct(">II")


class FrameType(enum.IntEnum):
    """Wire codes of the frames."""

    SERVER_KEY = 0x01
    CLIENT_INFO = 0x02
    SERVER_INFO = 0x03
    SEND_PACKET = 0x04
    RECV_PACKET = 0x05
    KEEP_ALIVE = 0x06
    NOTE_PREFERRED = 0x07
    PEER_GONE = 0x08
    PEER_PRESENT = 0x09  # this and the next: among the servers of a region
    FORWARD_PACKET = 0x0A
    WATCH_CONNS = 0x10
    CLOSE_PEER = 0x11
    PING = 0x12
    PONG = 0x13
    HEALTH = 0x14
    RESTARTING = 0x15


class GoneReason(enum.IntEnum):
    """Why a peer is gone; other codes may come."""

    DISCONNECTED = 0x00
    NOT_HERE = 0x01


class ClientInfo(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a client tells of itself in CLIENT_INFO."""

    version: int | None = None
    can_ack_pings: bool | None = msgspec.field(default=None, name="CanAckPings")


class ServerInfo(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What a server tells in SERVER_INFO; with a rate, the client drops what exceeds that token bucket."""

    version: int | None = None
    bytes_per_second: int | None = msgspec.field(default=None, name="TokenBucketBytesPerSecond")
    bytes_burst: int | None = msgspec.field(default=None, name="TokenBucketBytesBurst")


class FrameReader:
    """Cuts a byte stream into frames, however it arrives; holds at most one incomplete frame.

    `limit` is the largest payload that is taken; whoever raises trust in the other side may change it between frames.
    """

    def __init__(self, limit: int = MAX_PAYLOAD_BYTES) -> None:
        self.limit = limit
        self._rest = bytearray()
        self._needed = HEADER_BYTES  # bytes of `_rest` without which nothing new can be said

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield (type, payload) for each frame that `data` completes; ProtocolError, and for good, at an oversized one.

        Run each iterator to its end before the next call.
        """
        if self._rest:
            self._rest += data
            if len(self._rest) < self._needed:
                return
            data = bytes(self._rest)
            self._rest.clear()
        start, size = 0, len(data)
        self._needed = HEADER_BYTES
        while size - start >= HEADER_BYTES:
            kind, length = _HEADER.unpack_from(data, start)
            if length > self.limit:
                raise ProtocolError(f"a frame of type {kind:#04x} announces {length} bytes, {self.limit} are allowed")
            end = start + HEADER_BYTES + length
            if end > size:
                self._needed = end - start
                break
            payload = data[start + HEADER_BYTES : end]
            start = end
            yield kind, payload
        self._rest += data[start:]


def frame(kind: int, *parts: bytes) -> bytes:
    """One frame as it goes on the wire; its payload is the parts, joined."""
    return _HEADER.pack(kind, sum(map(len, parts))) + b"".join(parts)


def restarting(reconnect_in_s: float, try_for_s: float) -> bytes:
    """A server's RESTARTING frame."""
    return frame(FrameType.RESTARTING, _RESTARTING.pack(round(reconnect_in_s * 1000), round(try_for_s * 1000)))


def parse_restarting(payload: bytes) -> tuple[float, float]:
    """(reconnect in, then try for) in seconds; ProtocolError where they are missing."""
    if len(payload) < _RESTARTING.size:
        raise ProtocolError("RESTARTING without its times")
    reconnect_in_ms, try_for_ms = _RESTARTING.unpack_from(payload)
    return reconnect_in_ms / 1000, try_for_ms / 1000


def split_key(payload: bytes, what: str) -> tuple[bytes, bytes]:
    """(the 32 bytes of key, the rest) of a payload that begins with a key; ProtocolError, naming `what`, if it is shorter."""
    if len(payload) < KEY_BYTES:
        raise ProtocolError(f"{what} without a key")
    return payload[:KEY_BYTES], payload[KEY_BYTES:]
