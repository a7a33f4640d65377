"""Frames: packets as a TUN with IFF_VNET_HDR reads and writes them (ring 0).

Source: include/uapi/linux/virtio_net.h of Linux; OASIS virtio 1.2, 5.1.6. Ten bytes, in the host's byte order, stand before each packet:

    flags 0   kind 1   header bytes 2:4   segment bytes 4:6   checksum start 6:8   checksum offset 8:10

A frame of kind NONE holds one packet; one of another kind is a super-packet: headers and the payload of many packets of one flow, to
be cut into segments. With NEEDS_CHECKSUM the field at start + offset holds the sum of the pseudo-header only, for a super-packet
with the length of the whole.
"""

from __future__ import annotations

import enum
import struct
from typing import Final

HEADER: Final = struct.Struct("=BBHHHH")
HEADER_BYTES: Final = HEADER.size
MAX_FRAME_BYTES: Final = HEADER_BYTES + 0xFFFF
PLAIN: Final = bytes(HEADER_BYTES)  # before one packet whose checksums are right
NEEDS_CHECKSUM: Final = 1
_UDP_HEADER_BYTES: Final = 8
ECN: Final = 0x80  # a flag in `kind`: the first segment alone says CWR


Frame = bytes | memoryview


class Kind(enum.IntEnum):
    """What a frame is to be cut into."""

    NONE = 0
    TCP_V4 = 1
    TCP_V6 = 4
    UDP = 5  # USO: datagrams of one size, the last one maybe shorter


def frame_of(packet: bytes) -> bytes:
    """A packet whose checksums are right as a frame; an empty one makes a keepalive."""
    return PLAIN + packet


def packet_of(frame: Frame) -> bytes:
    """What follows the frame's own header."""
    return bytes(frame[HEADER_BYTES:])


def packets_in(frame: Frame) -> int:
    """How many packets a frame becomes, if it makes sense. Its count of header bytes is no more than a hint and not looked at."""
    kind: int
    segment_bytes: int
    start: int
    _, kind, _, segment_bytes, start, _ = HEADER.unpack_from(frame)
    if not kind or not segment_bytes:
        return 1
    start += HEADER_BYTES
    start += _UDP_HEADER_BYTES if kind == Kind.UDP else (frame[start + 12] >> 4) * 4 if start + 12 < len(frame) else 0
    return max(1, -(-(len(frame) - start) // segment_bytes))
