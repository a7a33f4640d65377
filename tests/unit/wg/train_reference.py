"""What trains are judged by: packets written field by field, one at a time, and the kernel's cutting of super-packets.

Source: RFC 791, 8200, 9293, 768, 1071; OASIS virtio 1.2, 5.1.6. Nothing of tsns's own packet code is used here.
"""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, field, replace

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

FIN, SYN, RST, PSH, ACK, URG, ECE, CWR = (1 << n for n in range(8))
TCP, UDP = 6, 17
NONE, TCP_V4, TCP_V6, USO, ECN = 0, 1, 4, 5, 0x80
VIRTIO = struct.Struct("=BBHHHH")
PLAIN = bytes(10)


def ones_sum(data: bytes) -> int:
    """16-bit words added with the carry going round."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def checksum(data: bytes) -> int:
    return ones_sum(data) ^ 0xFFFF


@dataclass(frozen=True)
class Flow:
    """What all packets of a flow have in common."""

    version: int = 4
    protocol: int = TCP
    source: bytes = bytes((100, 64, 0, 1))
    destination: bytes = bytes((100, 64, 0, 2))
    ports: tuple[int, int] = (40000, 443)
    traffic_class: int = 0
    ttl: int = 64
    fragmentation: int = 0x4000  # DF
    ip_options: bytes = b""
    extension: bytes = b""  # an IPv6 header of destination options
    acknowledged: int = 77
    reserved: int = 0
    window: int = 502
    urgent: int = 0
    tcp_options: bytes = b""

    @property
    def network_header(self) -> int:
        return 20 + len(self.ip_options) if self.version == 4 else 40 + len(self.extension)

    @property
    def header(self) -> int:
        return self.network_header + (20 + len(self.tcp_options) if self.protocol == TCP else 8)

    def pseudo(self, length: int) -> bytes:
        """The pseudo-header over `length` bytes of TCP or UDP."""
        return self.source + self.destination + struct.pack(">II", length, self.protocol)

    def ip(self, length: int, identification: int) -> bytes:
        """The header of a packet with `length` bytes of TCP or UDP."""
        if self.version == 6:
            following = 60 if self.extension else self.protocol
            first = 6 << 28 | self.traffic_class << 20 | 0x12345
            fixed = struct.pack(">IHBB", first, len(self.extension) + length, following, self.ttl)
            return fixed + self.source + self.destination + self.extension
        words = self.network_header // 4
        total = self.network_header + length
        before = struct.pack(">BBHHH", 4 << 4 | words, self.traffic_class, total, identification, self.fragmentation)
        before += struct.pack(">BB", self.ttl, self.protocol)
        after = self.source + self.destination + self.ip_options
        return before + struct.pack(">H", checksum(before + b"\0\0" + after)) + after

    def upper(self, sequence: int, flags: int, length: int, check: int) -> bytes:
        """The header of TCP or UDP."""
        if self.protocol == UDP:
            return struct.pack(">HHHH", *self.ports, 8 + length, check)
        words = 5 + len(self.tcp_options) // 4
        numbers = struct.pack(">HHII", *self.ports, sequence & 0xFFFFFFFF, self.acknowledged)
        offset = words << 4 | self.reserved
        return numbers + struct.pack(">BBHHH", offset, flags, self.window, check, self.urgent) + self.tcp_options

    def packet(self, payload: bytes, *, sequence: int = 0, flags: int = ACK, identification: int = 0) -> bytes:
        """One packet with everything right."""
        blank = self.upper(sequence, flags, len(payload), 0) + payload
        check = checksum(self.pseudo(len(blank)) + blank)
        if self.protocol == UDP and not check:
            check = 0xFFFF
        upper = self.upper(sequence, flags, len(payload), check)
        return self.ip(len(blank), identification & 0xFFFF) + upper + payload


@dataclass(frozen=True)
class Super:
    """A super-packet: one send of a program, as the kernel hands it to the TUN."""

    flow: Flow
    payload: bytes = field(repr=False)
    size: int
    sequence: int = 1000
    flags: int = ACK
    identification: int = 1

    def frame(self) -> bytes:
        """With the sum of the pseudo-header only, and lengths of the whole."""
        flow = self.flow
        is_tcp = flow.protocol == TCP
        length = flow.header - flow.network_header + len(self.payload)
        upper = flow.upper(self.sequence, self.flags, len(self.payload), ones_sum(flow.pseudo(length)))
        kind = USO if not is_tcp else TCP_V4 if flow.version == 4 else TCP_V6
        kind |= ECN if is_tcp and self.flags & CWR else 0
        virtio = VIRTIO.pack(1, kind, flow.header, self.size, flow.network_header, 16 if is_tcp else 6)
        return virtio + flow.ip(length, self.identification) + upper + self.payload

    def packets(self) -> list[bytes]:
        """What has to be on the wire."""
        starts = range(0, len(self.payload), self.size) or range(1)
        packets = []
        for index, start in enumerate(starts):
            flags = self.flags
            if index:
                flags &= ~CWR
            if index < len(starts) - 1:
                flags &= ~(FIN | PSH)
            packets.append(
                self.flow.packet(
                    self.payload[start : start + self.size],
                    sequence=self.sequence + start,
                    flags=flags,
                    identification=self.identification + index,
                )
            )
        return packets


def unfinished(flow: Flow, payload: bytes, *, sequence: int = 0, flags: int = ACK, identification: int = 0) -> bytes:
    """A frame with one packet, whose checksum is still to be completed."""
    blank = flow.upper(sequence, flags, len(payload), 0) + payload
    upper = flow.upper(sequence, flags, len(payload), ones_sum(flow.pseudo(len(blank))))
    virtio = VIRTIO.pack(1, NONE, 0, 0, flow.network_header, 16 if flow.protocol == TCP else 6)
    return virtio + flow.ip(len(blank), identification) + upper + payload


def recut(frame: bytes) -> list[bytes]:
    """The packets that the kernel makes of a frame that is written to a TUN; it has to be as the kernel wants it."""
    flags, kind, header, size, start, offset = VIRTIO.unpack_from(frame)
    packet = bytes(frame[10:])
    if kind == NONE:
        assert (flags, header, size, start, offset) == (0, 0, 0, 0, 0)
        return [packet]
    assert flags == 1
    version = packet[0] >> 4
    assert kind in {USO, TCP_V4 if version == 4 else TCP_V6} or kind == (TCP_V4 if version == 4 else TCP_V6) | ECN
    protocol = UDP if kind == USO else TCP
    assert start == (20 if version == 4 else 40)
    assert len(packet) <= 0xFFFF
    if version == 4:
        assert packet[0] == 0x45
        assert checksum(packet[:20]) == 0
        assert int.from_bytes(packet[2:4], "big") == len(packet)
        assert packet[9] == protocol
        addresses = packet[12:20]
    else:
        assert int.from_bytes(packet[4:6], "big") == len(packet) - 40
        assert packet[6] == protocol
        addresses = packet[8:40]
    upper, payload = packet[start:header], packet[header:]
    length = len(packet) - start
    assert ones_sum(addresses + struct.pack(">II", length, protocol)) == int.from_bytes(
        upper[offset : offset + 2], "big"
    )
    flow = Flow(
        version=version,
        protocol=protocol,
        source=addresses[: len(addresses) // 2],
        destination=addresses[len(addresses) // 2 :],
    )
    if version == 4:
        flow = replace(flow, traffic_class=packet[1], ttl=packet[8], fragmentation=int.from_bytes(packet[6:8], "big"))
    whole = Super(flow, payload, size, identification=int.from_bytes(packet[4:6], "big"))
    if protocol == TCP:
        source, destination, sequence, acknowledged, offset_byte, tcp_flags, window, _, urgent = struct.unpack(
            ">HHIIBBHHH", upper[:20]
        )
        assert offset == 16
        assert header == start + (offset_byte >> 4) * 4
        assert bool(kind & ECN) == bool(tcp_flags & CWR)
        flow = replace(
            flow,
            ports=(source, destination),
            acknowledged=acknowledged,
            reserved=offset_byte & 15,
            window=window,
            urgent=urgent,
            tcp_options=upper[20:],
        )
        whole = replace(whole, flow=flow, sequence=sequence, flags=tcp_flags)
    else:
        assert offset == 6
        assert header == start + 8
        ports_and_length = struct.unpack(">HHH", upper[:6])
        assert ports_and_length[2] == length
        whole = replace(whole, flow=replace(flow, ports=ports_and_length[:2]))
    packets = whole.packets()
    if version == 6:  # the class and label of the flow are the super-packet's, and so is the hop limit
        packets = [packet[:4] + each[4:7] + packet[7:8] + each[8:] for each in packets]
    assert 2 <= len(packets) <= 64
    return packets


def inner(plain: bytes) -> bytes | None:
    """The packet in a plaintext, without padding; None where there is none."""
    length = 0
    if len(plain) >= 20 and plain[0] >> 4 == 4:
        length = int.from_bytes(plain[2:4], "big")
        length = 0 if length < 20 else length
    elif len(plain) >= 40 and plain[0] >> 4 == 6:
        length = 40 + int.from_bytes(plain[4:6], "big")
    return plain[:length] if 0 < length <= len(plain) else None


def meaning(packet: bytes) -> bytes:
    """A packet without what means nothing: the identification of IPv4 where DF is set (RFC 6864), if the checksum over it is right."""
    if packet[0] >> 4 != 4 or not packet[6] & 0x40 or checksum(packet[: (packet[0] & 15) * 4]):
        return packet
    return packet[:4] + b"\0\0" + packet[6:10] + b"\0\0" + packet[12:]


def sealed(key: bytes, plain: bytes, index: bytes, counter: int) -> bytes:
    """One message, by `cryptography` alone."""
    encoded = counter.to_bytes(8, "little")
    return b"\4\0\0\0" + index + encoded + ChaCha20Poly1305(key).encrypt(bytes(4) + encoded, plain, None)


def plain_of(key: bytes, message: bytes, index: bytes, counter: int) -> bytes:
    """What one message holds, by `cryptography` alone; its head has to be right."""
    assert message[:16] == b"\4\0\0\0" + index + counter.to_bytes(8, "little")
    return ChaCha20Poly1305(key).decrypt(bytes(4) + message[8:16], message[16:], None)


def random_flow(choice: random.Random, *, plain: bool = False) -> Flow:
    """A flow of any kind; `plain`: one whose packets may be joined, if it is TCP or datagrams are."""
    version = choice.choice((4, 4, 6))
    addresses = [choice.randbytes(4 if version == 4 else 16) for _ in range(2)]
    odd = not plain and choice.random() < 0.2
    flow = Flow(
        version=version,
        protocol=choice.choice((TCP, TCP, TCP, UDP)),
        source=addresses[0],
        destination=addresses[1],
        ports=(choice.randrange(1, 65536), choice.randrange(1, 65536)),
        traffic_class=choice.choice((0, 2, 0xB8)),
        ttl=choice.choice((64, 63, 1)),
        fragmentation=choice.choice((0, 0x4000)),
        ip_options=bytes((1,)) * choice.choice((4, 8, 40)) if odd and version == 4 else b"",
        extension=bytes((TCP, 0, 1, 4, 0, 0, 0, 0)) if odd and version == 6 else b"",
        acknowledged=choice.getrandbits(32),
        reserved=choice.choice((0, 0, 0, 1)),
        window=choice.randrange(65536),
        urgent=choice.choice((0, 0, 0, 7)),
        tcp_options=choice.choice((b"", b"\1\1\x08\x0a" + choice.randbytes(8), b"\1" * choice.randrange(0, 41, 4))),
    )
    return replace(flow, extension=bytes((flow.protocol,)) + flow.extension[1:]) if flow.extension else flow
