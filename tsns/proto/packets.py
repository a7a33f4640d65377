"""IP packets as far as a tunnel has to look into them: headers, checksums, ICMP echo, TSMP (ring 0).

Source: RFC 791, 8200, 792, 4443, 1071; net/packet of Tailscale's module for what counts as decodable and for TSMP, Tailscale's own
messages between nodes (IP protocol 99). All integers are big-endian.

Reading never raises, whatever the bytes: what is not understood is None, and whoever asked drops it.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final, TypeVar

Data = TypeVar("Data", bytes, memoryview)  # of a packet

IPV4_HEADER_BYTES: Final = 20
IPV6_HEADER_BYTES: Final = 40
FRAGMENT_HEADER_BYTES: Final = 8
UDP_HEADER_BYTES: Final = 8
TCP_HEADER_BYTES: Final = 20  # without options
ICMP_HEADER_BYTES: Final = 8  # of errors; what they are about follows
MAX_PACKET_BYTES: Final = 0xFFFF
HEAD_BYTES: Final = 128  # of a packet hold all headers that are looked at, and each of the short messages here whole
HOP_LIMIT: Final = 64
TOKEN_BYTES: Final = 8
DISCO_KEY_BYTES: Final = 32

# A later fragment must start behind the longest IPv4 header and a TCP header (in units of 8 bytes), so that no
# overlap can rewrite the ports by which the first one was judged.
MIN_FRAGMENT_OFFSET: Final = (60 + 20) // 8

TCP_SYN: Final = 0x02
TCP_RST: Final = 0x04
TCP_ACK: Final = 0x10
_V4_WITHOUT_OPTIONS: Final = 0x45
_V4_UDP_PAYLOAD: Final = IPV4_HEADER_BYTES + UDP_HEADER_BYTES
_V6_UDP_PAYLOAD: Final = IPV6_HEADER_BYTES + UDP_HEADER_BYTES
NO_ICMP: Final = -1  # `Packet.icmp_type` of everything else


class Protocol(enum.IntEnum):
    """IP protocol numbers with a meaning here."""

    ICMP = 1
    TCP = 6
    UDP = 17
    FRAGMENT = 44  # an IPv6 extension header
    ICMPV6 = 58
    TSMP = 99
    SCTP = 132


# What a packet must contain of its upper protocol, in bytes, to count as decodable.
_MIN_UPPER_BYTES: Final[dict[int, int]] = {
    Protocol.ICMP: 4,
    Protocol.ICMPV6: 4,
    Protocol.UDP: 8,
    Protocol.TCP: 20,
    Protocol.SCTP: 12,
    Protocol.TSMP: 7,
}
_WITH_PORTS: Final = frozenset({6, 17, 132})

# 0 is "unknown" on IPv4 and hop-by-hop options on IPv6. Extension headers (RFC 7045) could hide the ports, so nothing is looked for
# behind them. ESP is left out: it hides all that follows in any case, and a rule may name it.
_UNKNOWN_V4: Final = frozenset({0})
_UNKNOWN_V6: Final = frozenset({0, 43, 44, 51, 60, 135, 139, 140})


@dataclass(frozen=True, slots=True)
class Packet:
    """What the headers of one packet say."""

    version: int
    protocol: int
    source: bytes  # packed, 4 or 16 bytes
    destination: bytes
    source_port: int  # 0 where the protocol has none, and in later fragments
    destination_port: int
    tcp_flags: int
    icmp_type: int  # NO_ICMP where it is none
    is_later_fragment: bool
    header_bytes: int  # where the upper protocol starts
    length: int  # of the whole packet, by its own account

    @property
    def is_tcp_open(self) -> bool:
        """Whether this opens a TCP connection: SYN without ACK."""
        return (
            self.protocol == Protocol.TCP
            and not self.is_later_fragment
            and self.tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
        )


Fields = tuple[int, int, bytes, bytes, int, int, int, int, bool, int, int]


def parse(data: bytes) -> Packet | None:
    """Read the headers; None for what is cut short or not understood."""
    fields = decode(data)
    return None if fields is None else Packet(*fields)


def decode(data: bytes, size: int | None = None) -> Fields | None:
    """The same as `parse`, as a plain tuple in the order of Packet's fields: for code that sees every packet.

    With `size` the packet is so long, and `data` its first HEAD_BYTES at most.
    """
    version = data[0] >> 4 if data else 0
    if size is None:
        size = len(data)
    if version == 4:
        return _decode_v4(data, size)
    if version == 6:
        return _decode_v6(data, size)
    return None


def _decode_v4(data: bytes, size: int) -> Fields | None:
    if size < IPV4_HEADER_BYTES:
        return None
    length = data[2] << 8 | data[3]
    start = (data[0] & 0x0F) << 2
    protocol = data[9]
    if not IPV4_HEADER_BYTES <= start <= length <= size or protocol in _UNKNOWN_V4:
        return None
    offset = (data[6] & 0x1F) << 8 | data[7]
    more = bool(data[6] & 0x20)
    return _decode_upper(data, 4, protocol, data[12:16], data[16:20], start, length, offset, more)


def _decode_v6(data: bytes, size: int) -> Fields | None:
    if size < IPV6_HEADER_BYTES:
        return None
    length = IPV6_HEADER_BYTES + (data[4] << 8 | data[5])
    if length > size:
        return None
    protocol, start, offset, more = data[6], IPV6_HEADER_BYTES, 0, False
    if protocol == Protocol.FRAGMENT:
        start += FRAGMENT_HEADER_BYTES
        if start > length:
            return None
        protocol = data[40]
        offset = (data[42] << 8 | data[43]) >> 3
        more = bool(data[43] & 1)
        if protocol == Protocol.TSMP:
            return None
    if protocol in _UNKNOWN_V6:
        return None
    return _decode_upper(data, 6, protocol, data[8:24], data[24:40], start, length, offset, more)


def _decode_upper(
    data: bytes,
    version: int,
    protocol: int,
    source: bytes,
    destination: bytes,
    start: int,
    length: int,
    offset: int,
    more: bool,
) -> Fields | None:
    if (offset or more) and protocol == Protocol.TSMP:
        return None  # it would escape those who look for TSMP
    if offset:
        if offset < MIN_FRAGMENT_OFFSET:
            return None
        return version, protocol, source, destination, 0, 0, 0, NO_ICMP, True, start, length
    if length - start < _MIN_UPPER_BYTES.get(protocol, 0):
        return None
    source_port = destination_port = flags = 0
    icmp_type = NO_ICMP
    if protocol in _WITH_PORTS:
        source_port = data[start] << 8 | data[start + 1]
        destination_port = data[start + 2] << 8 | data[start + 3]
        if protocol == Protocol.TCP:
            flags = data[start + 13] & 0x3F
    elif protocol == (Protocol.ICMP if version == 4 else Protocol.ICMPV6):
        icmp_type = data[start]
    return (
        version,
        protocol,
        source,
        destination,
        source_port,
        destination_port,
        flags,
        icmp_type,
        False,
        start,
        length,
    )


Quoted = tuple[int, bytes, bytes, int | None, int | None]  # protocol, source, destination, ports


def quoted(data: bytes, fields: Fields) -> Quoted | None:
    """The packet that an ICMP error is about, as far as the error quotes it; None where it quotes none that could have been sent by us.

    `fields` are those of the error. Without ports are later fragments, and protocols that have none. An error may quote as little as 8 bytes
    behind the IP header (RFC 792).
    """
    version, start = fields[0], fields[9] + ICMP_HEADER_BYTES
    quote = data[start : fields[10]]
    if not quote or quote[0] >> 4 != version:
        return None
    if version == 4:
        if len(quote) < IPV4_HEADER_BYTES:
            return None
        protocol, source, destination = quote[9], quote[12:16], quote[16:20]
        upper, is_later = (quote[0] & 0x0F) << 2, bool(quote[6] & 0x1F or quote[7])
        if upper < IPV4_HEADER_BYTES or protocol in _UNKNOWN_V4:
            return None
    else:
        if len(quote) < IPV6_HEADER_BYTES:
            return None
        protocol, source, destination = quote[6], quote[8:24], quote[24:40]
        upper, is_later = IPV6_HEADER_BYTES, False
        if protocol == Protocol.FRAGMENT:
            if len(quote) < IPV6_HEADER_BYTES + FRAGMENT_HEADER_BYTES:
                return None
            protocol, upper = quote[40], upper + FRAGMENT_HEADER_BYTES
            is_later = bool(quote[42] or quote[43] >> 3)
        if protocol in _UNKNOWN_V6:
            return None
    if is_later or protocol not in _WITH_PORTS:
        return protocol, source, destination, None, None
    ports = quote[upper : upper + 4]
    if len(ports) < 4:
        return None
    return protocol, source, destination, ports[0] << 8 | ports[1], ports[2] << 8 | ports[3]


def trimmed(data: Data) -> Data | None:
    """The packet without what follows it (WireGuard pads); None where less arrived than its header says."""
    if len(data) < IPV4_HEADER_BYTES:
        return None
    version = data[0] >> 4
    if version == 4:
        length = data[2] << 8 | data[3]
        if length < IPV4_HEADER_BYTES:
            return None
    elif version == 6:
        length = IPV6_HEADER_BYTES + (data[4] << 8 | data[5])
    else:
        return None
    if length == len(data):
        return data
    return data[:length] if length < len(data) else None


def destination(data: bytes) -> bytes | None:
    """The packed destination address; None where there is none to see."""
    size = len(data)
    if size >= IPV4_HEADER_BYTES:
        version = data[0] >> 4
        if version == 4:
            return data[16:20]
        if version == 6 and size >= IPV6_HEADER_BYTES:
            return data[24:40]
    return None


def source(data: bytes) -> bytes | None:
    """The packed source address; None where there is none to see."""
    size = len(data)
    if size >= IPV4_HEADER_BYTES:
        version = data[0] >> 4
        if version == 4:
            return data[12:16]
        if version == 6 and size >= IPV6_HEADER_BYTES:
            return data[8:24]
    return None


def udp_carries(data: bytes, content: bytes) -> bool:
    """Whether this is a UDP packet, without options of IP, whose payload begins so."""
    if data[_V4_UDP_PAYLOAD : _V4_UDP_PAYLOAD + len(content)] == content:
        return data[0] == _V4_WITHOUT_OPTIONS and data[9] == Protocol.UDP
    return (
        data[_V6_UDP_PAYLOAD : _V6_UDP_PAYLOAD + len(content)] == content
        and data[0] >> 4 == 6
        and data[6] == Protocol.UDP
    )


# --- building ------------------------------------------------------------------------------------------------------

_IPV4: Final = struct.Struct(">BBHHHBBH4s4s")
_IPV6: Final = struct.Struct(">IHBB16s16s")
_ECHO_REST: Final = struct.Struct(">HH")  # identifier and sequence number; the payload follows
_DONT_FRAGMENT: Final = 0x4000
_CHECKSUM_AT_V4: Final = 10


def checksum16(data: bytes | bytearray | memoryview) -> int:
    """The Internet checksum (RFC 1071) as it goes into a header; 0 over data that holds its own right checksum."""
    value = int.from_bytes(data, "big")
    if len(data) & 1:
        value <<= 8
    # 2^16 is 1 modulo 2^16 - 1, so the remainder is the folded sum; but a sum that is not zero folds to 0xFFFF, not to 0.
    return 0xFFFF - (value % 0xFFFF or (0xFFFF if value else 0))


def upper_checksum(protocol: int, source: bytes, destination: bytes, segment: bytes) -> int:
    """The checksum of TCP, UDP and ICMPv6, which covers addresses and length too."""
    if len(source) == 4:
        pseudo = source + destination + struct.pack(">HH", protocol, len(segment))
    else:
        pseudo = source + destination + struct.pack(">II", len(segment), protocol)
    return checksum16(pseudo + segment)


def build(protocol: int, source: bytes, destination: bytes, payload: bytes, *, hop_limit: int = HOP_LIMIT) -> bytes:
    """One packet between two packed addresses of one family; ValueError where they are not, or where it gets too long."""
    if len(source) != len(destination) or len(source) not in (4, 16):
        raise ValueError("source and destination are not of one family")
    if len(source) == 16:
        if len(payload) > MAX_PACKET_BYTES:
            raise ValueError(f"{len(payload)} bytes do not fit into a packet")
        return _IPV6.pack(6 << 28, len(payload), protocol, hop_limit, source, destination) + payload
    length = IPV4_HEADER_BYTES + len(payload)
    if length > MAX_PACKET_BYTES:
        raise ValueError(f"{len(payload)} bytes do not fit into a packet")
    # Never fragmented, hence no identification is needed (RFC 6864).
    header = _IPV4.pack(0x45, 0, length, 0, _DONT_FRAGMENT, hop_limit, protocol, 0, source, destination)
    return b"".join(
        (
            header[:_CHECKSUM_AT_V4],
            checksum16(header).to_bytes(2, "big"),
            header[_CHECKSUM_AT_V4 + 2 :],
            payload,
        )
    )


class _Echo(enum.IntEnum):
    REPLY_V4 = 0
    REQUEST_V4 = 8
    REQUEST_V6 = 128
    REPLY_V6 = 129


def echo_request(source: bytes, destination: bytes, identifier: int, sequence: int, payload: bytes = b"") -> bytes:
    """A `ping` of ICMP, or ICMPv6 between IPv6 addresses."""
    kind = _Echo.REQUEST_V4 if len(source) == 4 else _Echo.REQUEST_V6
    return _echo(kind, source, destination, _ECHO_REST.pack(identifier & 0xFFFF, sequence & 0xFFFF) + payload)


def echo_reply(source: bytes, destination: bytes, identifier: int, sequence: int, payload: bytes = b"") -> bytes:
    """The answer to `echo_request`: source and destination are the reply's own."""
    kind = _Echo.REPLY_V4 if len(source) == 4 else _Echo.REPLY_V6
    return _echo(kind, source, destination, _ECHO_REST.pack(identifier & 0xFFFF, sequence & 0xFFFF) + payload)


def echo_reply_payload(data: bytes, identifier: int) -> bytes | None:
    """What an answer to an `echo_request` of this identifier carries back; None for every other packet."""
    packet = parse(data)
    if packet is None or packet.is_later_fragment or packet.icmp_type not in {_Echo.REPLY_V4, _Echo.REPLY_V6}:
        return None
    rest = data[packet.header_bytes + 4 : packet.length]
    return rest[_ECHO_REST.size :] if rest[:2] == identifier.to_bytes(2, "big") else None


def _echo(kind: int, source: bytes, destination: bytes, rest: bytes) -> bytes:
    blank = bytes((kind, 0, 0, 0)) + rest
    if len(source) == 4:
        protocol, checksum = Protocol.ICMP, checksum16(blank)
    else:
        protocol, checksum = Protocol.ICMPV6, upper_checksum(Protocol.ICMPV6, source, destination, blank)
    return build(protocol, source, destination, struct.pack(">BBH", kind, 0, checksum) + rest)


# --- TSMP ----------------------------------------------------------------------------------------------------------


class RejectReason(enum.IntEnum):
    """Why a flow was refused, as the byte in a reject message."""

    ACL = ord("A")
    SHIELDS_UP = ord("S")
    FORWARDING_OFF = ord("F")
    HOST_FIREWALL = ord("W")
    UNKNOWN_ADDRESS = ord("T")


@dataclass(frozen=True, slots=True)
class TsmpPing:
    """A node asks for a sign of life through the tunnel."""

    source: bytes
    destination: bytes
    token: bytes


@dataclass(frozen=True, slots=True)
class TsmpPong:
    """The answer to a ping; `peerapi_port` is 0 where the node has no PeerAPI."""

    source: bytes
    destination: bytes
    token: bytes
    peerapi_port: int


@dataclass(frozen=True, slots=True)
class TsmpReject:
    """A node refused a flow of ours. Source, destination and ports are the flow's; this message came the other way."""

    source: bytes
    destination: bytes
    protocol: int
    source_port: int
    destination_port: int
    reason: int  # of RejectReason, or one of the future
    maybe_broken: bool


@dataclass(frozen=True, slots=True)
class TsmpDiscoKey:
    """A node announces its present disco key (32 bytes)."""

    source: bytes
    destination: bytes
    key: bytes


Tsmp = TsmpPing | TsmpPong | TsmpReject | TsmpDiscoKey

_PING: Final = ord("p")
_PONG: Final = ord("o")
_REJECT: Final = ord("!")
_DISCO_KEY: Final = ord("a")
_MAYBE_BROKEN: Final = 0x01


def is_tsmp(data: bytes) -> bool:
    """Whether the header says protocol 99: such a packet never leaves the engine towards the host, decodable or not."""
    if not data:
        return False
    version = data[0] >> 4
    if version == 4:
        return len(data) > 9 and data[9] == Protocol.TSMP
    if version == 6:
        return len(data) > 6 and (
            data[6] == Protocol.TSMP or (data[6] == Protocol.FRAGMENT and data[40:41] == bytes((Protocol.TSMP,)))
        )
    return False


def parse_tsmp(data: bytes) -> Tsmp | None:
    """Read a whole IP packet as TSMP; None for other packets, fragments, and messages that we do not know."""
    if not is_tsmp(data):
        return None
    packet = parse(data)
    if packet is None or packet.protocol != Protocol.TSMP:
        return None
    kind, body = data[packet.header_bytes], data[packet.header_bytes + 1 : packet.length]
    token = body[:TOKEN_BYTES]
    if kind == _PING and len(token) == TOKEN_BYTES:
        return TsmpPing(packet.source, packet.destination, token)
    if kind == _PONG and len(token) == TOKEN_BYTES:
        port = body[TOKEN_BYTES : TOKEN_BYTES + 2]
        return TsmpPong(packet.source, packet.destination, token, int.from_bytes(port, "big") if len(port) == 2 else 0)
    if kind == _DISCO_KEY and len(body) >= DISCO_KEY_BYTES:
        return TsmpDiscoKey(packet.source, packet.destination, body[:DISCO_KEY_BYTES])
    if kind == _REJECT:  # its 6 bytes are there: `parse` wants 7 of any TSMP
        protocol, reason, source_port, destination_port = struct.unpack_from(">BBHH", body)
        return TsmpReject(
            source=packet.destination,
            destination=packet.source,
            protocol=protocol,
            source_port=source_port,
            destination_port=destination_port,
            reason=reason,
            maybe_broken=len(body) > 6 and bool(body[6] & _MAYBE_BROKEN),
        )
    return None


def tsmp_ping(source: bytes, destination: bytes, token: bytes) -> bytes:
    """Ask the node at `destination` for a pong with this token (8 bytes)."""
    return build(Protocol.TSMP, source, destination, bytes((_PING,)) + _token(token))


def tsmp_pong(source: bytes, destination: bytes, token: bytes, *, peerapi_port: int = 0) -> bytes:
    """Answer a ping: source and destination are the pong's own."""
    return build(Protocol.TSMP, source, destination, bytes((_PONG,)) + _token(token) + peerapi_port.to_bytes(2, "big"))


def tsmp_reject(refused: Packet, reason: RejectReason, *, maybe_broken: bool = False) -> bytes:
    """Tell the sender of this packet that its flow is refused. The message goes from its destination to its source."""
    body = struct.pack(
        ">BBBHH", _REJECT, refused.protocol, reason, refused.source_port, refused.destination_port
    ) + bytes((_MAYBE_BROKEN,) if maybe_broken else ())
    return build(Protocol.TSMP, refused.destination, refused.source, body)


def tsmp_disco_key(source: bytes, destination: bytes, key: bytes) -> bytes:
    """Announce our disco key (32 bytes) to the node at `destination`."""
    if len(key) != DISCO_KEY_BYTES:
        raise ValueError(f"a disco key has {DISCO_KEY_BYTES} bytes, not {len(key)}")
    return build(Protocol.TSMP, source, destination, bytes((_DISCO_KEY,)) + key)


def _token(token: bytes) -> bytes:
    if len(token) != TOKEN_BYTES:
        raise ValueError(f"a TSMP token has {TOKEN_BYTES} bytes, not {len(token)}")
    return token
