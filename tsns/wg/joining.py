"""Packets of one flow joined to the super-packet that the kernel cuts into them again (ring 0).

Source: net/ipv4/tcp_offload.c and udp_offload.c of Linux, from which follows what may differ between the segments of one super-packet:
lengths, checksums, IPv4 id and TCP sequence (both counting on), FIN and PSH on the last, CWR on the first. Any other difference ends a run.
So does a checksum that the kernel would not have written: what was damaged before it was sealed has to stay so.

There is one run at a time: packets leave in the order in which they came.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from tsns.proto import packets as ip
from tsns.proto.packets import IPV4_HEADER_BYTES, IPV6_HEADER_BYTES, TCP_HEADER_BYTES, checksum16
from tsns.proto.virtio import ECN, HEADER, NEEDS_CHECKSUM, PLAIN, Kind
from tsns.wg.segments import (
    ACK,
    CWR,
    ECE,
    FIN,
    PSH,
    TCP_CHECKSUM_AT,
    U16,
    U32,
    UDP_CHECKSUM_AT,
    UDP_HEADER_BYTES,
)
from tsns.wg.transport import MAX_JOINED, MAX_JOINED_BYTES

_DONT_FRAGMENT: Final = 0x40
_JOINABLE_FLAGS: Final = FIN | PSH | ECE | CWR  # besides ACK, which has to be there


class Segment(NamedTuple):
    """A packet that may be part of a run, by its headers alone."""

    packet: bytes | memoryview
    is_v4: bool
    is_tcp: bool
    start: int  # where TCP or UDP begins
    header: int  # where the payload begins

    def has_intact_ip(self) -> bool:
        """Whether the checksum of its IPv4 header is the one that the kernel writes, which knows but one form of zero."""
        packet = self.packet
        return not self.is_v4 or not (checksum16(packet[: self.start]) or packet[10:12] == b"\xff\xff")

    def is_intact(self) -> bool:
        """Whether all its checksums are those that the kernel writes."""
        packet, is_v4, is_tcp, start, _ = self
        if not self.has_intact_ip():
            return False
        if is_tcp and packet[start + 16 : start + 18] == b"\xff\xff":
            return False
        # The addresses stand right before TCP and UDP.
        covered = packet[12 if is_v4 else 8 :]
        total = int.from_bytes(covered, "big") << 8 * (len(packet) & 1)
        return not (total + (ip.Protocol.TCP if is_tcp else ip.Protocol.UDP) + len(packet) - start) % 0xFFFF


def segment_of(packet: bytes | memoryview, *, join_udp: bool) -> Segment | None:
    """A packet (without padding, and not shorter than its IP header says) that has payload and may be joined to others."""
    if packet[0] == 0x45:
        if packet[6] & ~_DONT_FRAGMENT or packet[7]:
            return None
        is_v4, protocol, start = True, packet[9], IPV4_HEADER_BYTES
    elif packet[0] >> 4 == 6:
        is_v4, protocol, start = False, packet[6], IPV6_HEADER_BYTES
    else:
        return None
    length = len(packet)
    if protocol == ip.Protocol.TCP:
        if length <= start + TCP_HEADER_BYTES or packet[start + 13] & ~_JOINABLE_FLAGS != ACK:
            return None
        header = start + (packet[start + 12] >> 4) * 4
        return Segment(packet, is_v4, True, start, header) if start + TCP_HEADER_BYTES <= header < length else None
    if protocol == ip.Protocol.UDP and join_udp:
        header = start + UDP_HEADER_BYTES
        if length <= header or packet[start + 4] << 8 | packet[start + 5] != length - start:
            return None
        has_checksum = packet[start + 6] or packet[start + 7]
        return Segment(packet, is_v4, False, start, header) if has_checksum else None
    return None


class Equal(Protocol):
    """Intact packets that are known to follow one another, with payloads of one size."""

    count: int
    size: int  # of a payload, bytes
    closing: int  # FIN and PSH of the last one; the others have none

    def packet(self, index: int) -> bytes:
        """One of them."""

    def payload(self, start: int, end: int) -> bytes:
        """The payloads of these, one behind the other."""


class Run:
    """What becomes one super-packet: its first packet, and the payloads of those that follow."""

    __slots__ = ("_bytes", "_closing", "_count", "_first", "_is_ended", "_is_intact", "_parts", "_size")

    def __init__(self, first: Segment) -> None:
        packet = first.packet
        self._first = first
        self._size = len(packet) - first.header  # of each payload, but the last one's
        self._parts: list[bytes | memoryview] = [packet]
        self._count = 1
        self._bytes = len(packet)
        self._is_intact = False  # not known as yet: nobody looks at a packet that stays alone
        self._closing = packet[first.start + 13] & (FIN | PSH) if first.is_tcp else 0
        self._is_ended = bool(self._closing)

    def take(self, segment: Segment) -> bool:
        """Add it, if it follows and there is room."""
        packet, _, is_tcp, start, header = segment
        size = len(packet) - header
        if size > self._size or not self.room(size) or not self._precedes(segment) or not segment.is_intact():
            return False
        if not self._is_intact and not self._first.is_intact():
            return False
        self.extend(memoryview(packet)[header:], 1, packet[start + 13] & (FIN | PSH) if is_tcp else 0)
        return True

    def room(self, size: int) -> int:
        """How many payloads of this size (bytes) it still takes."""
        if self._is_ended:
            return 0
        return min(MAX_JOINED - self._count, (MAX_JOINED_BYTES - self._bytes) // size)

    def extend(self, payload: bytes | memoryview, count: int, closing: int) -> None:
        """Add the payload of `count` packets that follow, all of them and the first intact; `closing`: FIN and PSH of the last one."""
        self._is_intact = True
        self._parts.append(payload)
        self._count += count
        self._bytes += len(payload)
        self._closing = closing
        self._is_ended = bool(closing) or len(payload) < count * self._size

    def frame(self) -> bytes:
        """One packet as it came, or a super-packet."""
        if self._count == 1:
            return b"".join((PLAIN, *self._parts))
        packet, is_v4, is_tcp, start, header = self._first
        headers = bytearray(packet[:header])
        length = self._bytes
        if is_v4:
            U16.pack_into(headers, 2, length)
            U16.pack_into(headers, 10, 0)
            U16.pack_into(headers, 10, checksum16(headers[:start]))
            kind = Kind.TCP_V4
        else:
            U16.pack_into(headers, 4, length - start)
            kind = Kind.TCP_V6
        addresses = int.from_bytes(headers[12 if is_v4 else 8 : start], "big")
        if is_tcp:
            protocol, checksum_at = ip.Protocol.TCP, TCP_CHECKSUM_AT
            headers[start + 13] |= self._closing
            ecn = ECN if headers[start + 13] & CWR else 0
        else:
            protocol, checksum_at, kind, ecn = ip.Protocol.UDP, UDP_CHECKSUM_AT, Kind.UDP, 0
            U16.pack_into(headers, start + 4, length - start)
        # A sum that is not zero folds to 0xFFFF, not to 0.
        U16.pack_into(headers, start + checksum_at, (addresses + protocol + length - start) % 0xFFFF or 0xFFFF)
        virtio = HEADER.pack(NEEDS_CHECKSUM, kind | ecn, header, self._size, start, checksum_at)
        return b"".join((virtio, headers, packet[header:], *self._parts[1:]))

    def _precedes(self, segment: Segment) -> bool:
        """Whether the kernel would cut a packet with these headers next."""
        first, is_v4, is_tcp, start, header = self._first
        packet = segment.packet
        if segment[1:] != self._first[1:]:
            return False
        if is_v4:
            identification = (first[4] << 8 | first[5]) + self._count
            # identification; type of service; DF, TTL and protocol; addresses and ports
            if (
                (not first[6] & _DONT_FRAGMENT and (packet[4] << 8 | packet[5]) != identification & 0xFFFF)
                or packet[1] != first[1]
                or packet[6:10] != first[6:10]
                or packet[12:24] != first[12:24]
            ):
                return False
        elif packet[:4] != first[:4] or packet[6:44] != first[6:44]:
            return False
        if not is_tcp:
            return True
        sequence = U32.unpack_from(first, start + 4)[0] + self._count * self._size
        return bool(
            U32.unpack_from(packet, start + 4)[0] == sequence & 0xFFFFFFFF
            and packet[start + 8 : start + 13] == first[start + 8 : start + 13]
            and packet[start + 13] & ~(FIN | PSH) == first[start + 13] & ~CWR
            and packet[start + 14 : start + 16] == first[start + 14 : start + 16]
            and packet[start + 18 : header] == first[start + 18 : header]
        )


class Joiner:
    """Makes frames of packets."""

    __slots__ = ("_frames", "_join_udp", "_run")

    def __init__(self, *, join_udp: bool) -> None:
        self._join_udp = join_udp
        self._frames: list[bytes | memoryview] = []
        self._run: Run | None = None

    def add(self, packet: bytes | memoryview) -> None:
        """The next packet, without padding."""
        segment = segment_of(packet, join_udp=self._join_udp)
        if segment is None:
            self._flush()
            self._frames.append(PLAIN + packet)
        elif self._run is None or not self._run.take(segment):
            self._flush()
            self._run = Run(segment)

    def add_equal(self, packets: Equal) -> None:
        """Several, each of which follows the one before."""
        self.add(packets.packet(0))
        at = 1
        while at < packets.count:
            assert self._run is not None
            end = min(packets.count, at + self._run.room(packets.size))
            if at < end:
                self._run.extend(packets.payload(at, end), end - at, packets.closing if end == packets.count else 0)
            else:
                self.add(packets.packet(at))
                end += 1
            at = end

    def finish(self) -> list[bytes | memoryview]:
        """All frames."""
        self._flush()
        return self._frames

    def _flush(self) -> None:
        if self._run is not None:
            self._frames.append(self._run.frame())
            self._run = None
