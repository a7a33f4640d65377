"""Frames cut into the packets they stand for, every header and checksum complete (ring 0).

Source: OASIS virtio 1.2, 5.1.6.2; RFC 9293 and 768 for the fields; tcp_gso_segment and __udp_gso_segment of Linux for what differs between
segments: IPv4 id and TCP sequence count on, FIN and PSH belong to the last one, CWR to the first.

A super-packet's own lengths are not looked at, they are written anew. Where its headers end is read from them: what the frame says of it is
how much lies in one piece, which is the headers at least, but for a forwarded packet may be all of it (virtio_net_hdr_from_skb of Linux).
"""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

from tsns.proto.packets import IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, TCP_HEADER_BYTES, checksum16
from tsns.proto.virtio import ECN, HEADER, HEADER_BYTES, NEEDS_CHECKSUM, Kind
from tsns.wg.messages import MIN_TRANSPORT_BYTES
from tsns.wg.transport import MAX_SEGMENTS, MAX_TRAIN_BYTES

FIN: Final = 0x01
PSH: Final = 0x08
ACK: Final = 0x10
ECE: Final = 0x40
CWR: Final = 0x80

TCP_CHECKSUM_AT: Final = 16  # in its header
UDP_CHECKSUM_AT: Final = 6
UDP_HEADER_BYTES: Final = 8
MAX_PACKET_BYTES: Final = MAX_TRAIN_BYTES - MIN_TRANSPORT_BYTES  # more than this no message can carry

U16: Final = struct.Struct(">H")
U32: Final = struct.Struct(">I")


class Cut(NamedTuple):
    """How a super-packet is to be cut; offsets and sizes in bytes, of the packet."""

    is_tcp: bool
    is_v4: bool
    start: int  # where TCP or UDP begins
    header: int  # where the payload begins
    size: int  # of a segment's payload, but the last one's
    segments: int  # how many
    payload: int  # of all of them


def packets_of(frame: bytes) -> list[bytes | bytearray]:
    """The packets of a frame; none where it makes no sense."""
    if frame[1] == Kind.NONE:
        packet = single(frame)
        return [] if packet is None else [packet]
    cut = cut_of(frame)
    return [] if cut is None else [segment(frame, cut, index) for index in range(cut.segments)]


def single(frame: bytes) -> bytes | bytearray | None:
    """The packet of a frame of kind NONE, with its checksum; None where there is no place for one."""
    packet = frame[HEADER_BYTES:]
    if len(packet) > MAX_PACKET_BYTES:
        return None
    if not frame[0] & NEEDS_CHECKSUM:
        return packet
    start: int
    offset: int
    _, _, _, _, start, offset = HEADER.unpack_from(frame)
    if start + offset + 2 > len(packet):
        return None
    completed = bytearray(packet)
    # Nobody looked whether it is UDP, where a zero would say that there is none (RFC 768). Elsewhere the two forms of zero are equal, and
    # skb_checksum_help of Linux does the same.
    U16.pack_into(completed, start + offset, checksum16(completed[start:]) or 0xFFFF)
    return completed


def cut_of(frame: bytes) -> Cut | None:
    """How to cut a frame of another kind than NONE; None where it makes no sense."""
    flags: int
    kind: int
    in_one_piece: int
    size: int
    start: int
    offset: int
    flags, kind, in_one_piece, size, start, offset = HEADER.unpack_from(frame)
    kind &= ~ECN
    is_tcp = kind != Kind.UDP
    length = len(frame) - HEADER_BYTES
    least = TCP_HEADER_BYTES if is_tcp else UDP_HEADER_BYTES
    if (
        not flags & NEEDS_CHECKSUM
        or not size
        or offset != (TCP_CHECKSUM_AT if is_tcp else UDP_CHECKSUM_AT)
        or not start + least <= length <= start + 0xFFFF
    ):
        return None
    first = frame[HEADER_BYTES]
    if first >> 4 == 4:
        is_v4, starts = True, start == (first & 0x0F) * 4 >= IPV4_HEADER_BYTES
    elif first >> 4 == 6:
        # What stands between the headers of IPv6 and TCP is not looked at: the sum in the field covers what it must.
        is_v4, starts = False, start >= IPV6_HEADER_BYTES
    else:
        return None
    if not starts or kind not in {Kind.UDP, Kind.TCP_V4 if is_v4 else Kind.TCP_V6}:
        return None
    upper = (frame[HEADER_BYTES + start + 12] >> 4) * 4 if is_tcp else UDP_HEADER_BYTES
    header = start + upper
    if upper < least or not header <= in_one_piece <= length:
        return None
    payload = length - header
    segments = max(1, -(-payload // size))
    if segments > MAX_SEGMENTS or header + min(size, payload) > MAX_PACKET_BYTES:
        return None
    return Cut(is_tcp, is_v4, start, header, size, segments, payload)


def segment(frame: bytes, cut: Cut, index: int) -> bytearray:
    """One of the packets that a super-packet is cut into."""
    at = HEADER_BYTES + cut.header + index * cut.size
    payload = frame[at : at + cut.size]
    packet = headers(frame, cut, index, len(payload))
    packet += payload
    checksum = checksum16(packet[cut.start :])
    if cut.is_tcp:
        U16.pack_into(packet, cut.start + TCP_CHECKSUM_AT, checksum)
    else:
        U16.pack_into(packet, cut.start + UDP_CHECKSUM_AT, checksum or 0xFFFF)
    return packet


def headers(frame: bytes, cut: Cut, index: int, payload: int) -> bytearray:
    """The headers of a segment with `payload` bytes; in place of the checksum of TCP or UDP stands the sum of the pseudo-header."""
    is_tcp, is_v4, start, header, size, segments, _ = cut
    written = bytearray(frame[HEADER_BYTES : HEADER_BYTES + header])
    length = header + payload
    if is_v4:
        U16.pack_into(written, 2, length)
        U16.pack_into(written, 4, ((written[4] << 8 | written[5]) + index) & 0xFFFF)
        U16.pack_into(written, 10, 0)
        U16.pack_into(written, 10, checksum16(written[:start]))
    else:
        U16.pack_into(written, 4, length - IPV6_HEADER_BYTES)
    if is_tcp:
        (sequence,) = U32.unpack_from(written, start + 4)
        U32.pack_into(written, start + 4, (sequence + index * size) & 0xFFFFFFFF)
        if index:
            written[start + 13] &= ~CWR
        if index < segments - 1:
            written[start + 13] &= ~(FIN | PSH)
    else:
        U16.pack_into(written, start + 4, length - start)
    # The sum is there, but with the length of the whole.
    field = start + (TCP_CHECKSUM_AT if is_tcp else UDP_CHECKSUM_AT)
    difference = length - (len(frame) - HEADER_BYTES)
    U16.pack_into(written, field, (U16.unpack_from(written, field)[0] + difference) % 0xFFFF)
    return written
