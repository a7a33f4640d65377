"""IP packets: what is read out of them, what is refused, and what we build ourselves."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.proto import packets
from tsns.proto.addresses import pack
from tsns.proto.packets import (
    NO_ICMP,
    Packet,
    Protocol,
    RejectReason,
    Tsmp,
    TsmpDiscoKey,
    TsmpPing,
    TsmpPong,
    TsmpReject,
    build,
    checksum16,
    parse,
    parse_tsmp,
    trimmed,
    tsmp_disco_key,
    tsmp_ping,
    tsmp_pong,
    tsmp_reject,
    upper_checksum,
)

A4, B4 = pack("100.64.0.1"), pack("100.64.0.2")
A6, B6 = pack("fd7a:115c:a1e0::1"), pack("fd7a:115c:a1e0::2")
TOKEN = b"8 bytes!"
TCP = struct.pack(">HHIIBBHHH", 40000, 22, 7, 0, 0x50, 0x02, 64240, 0, 0)
UDP = struct.pack(">HHHH", 5000, 53, 12, 0) + b"ask!"
SCTP = struct.pack(">HHII", 1, 2, 3, 4)


def fragment_v4(packet: bytes, *, offset: int, more: bool) -> bytes:
    """The same packet with other fragment bits; the offset counts units of 8 bytes."""
    return packet[:6] + struct.pack(">H", offset | (0x2000 if more else 0)) + packet[8:]


def fragment_v6(protocol: int, payload: bytes, *, offset: int, more: bool) -> bytes:
    header = struct.pack(">BBHI", protocol, 0, offset << 3 | more, 99)
    return build(Protocol.FRAGMENT, A6, B6, header + payload)


def slow_checksum(data: bytes) -> int:
    """RFC 1071 as its text says it, two bytes at a time."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


# --- reading -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "protocol", "ports", "flags", "icmp"),
    [
        (build(6, A4, B4, TCP), 6, (40000, 22), 0x02, NO_ICMP),
        (build(6, A6, B6, TCP), 6, (40000, 22), 0x02, NO_ICMP),
        (build(17, A4, B4, UDP), 17, (5000, 53), 0, NO_ICMP),
        (build(132, A6, B6, SCTP), 132, (1, 2), 0, NO_ICMP),
        (build(1, A4, B4, b"\x08\0\0\0"), 1, (0, 0), 0, 8),
        (build(58, A6, B6, b"\x80\0\0\0"), 58, (0, 0), 0, 128),
        (build(58, A4, B4, b"\x80\0\0\0"), 58, (0, 0), 0, NO_ICMP),
        (build(1, A6, B6, b"\x08\0\0\0"), 1, (0, 0), 0, NO_ICMP),
        (build(47, A4, B4, b""), 47, (0, 0), 0, NO_ICMP),
        (build(59, A6, B6, b""), 59, (0, 0), 0, NO_ICMP),
        (build(50, A6, B6, b"sealed"), 50, (0, 0), 0, NO_ICMP),
    ],
    ids=["TCP", "TCP6", "UDP", "SCTP6", "ICMP", "ICMPv6", "ICMPv6-in-4", "ICMP-in-6", "GRE", "no-next-header", "ESP6"],
)
def test_headers_are_read(data: bytes, protocol: int, ports: tuple[int, int], flags: int, icmp: int) -> None:
    packet = parse(data)
    assert packet is not None
    assert (packet.version, packet.protocol) == (data[0] >> 4, protocol)
    assert (packet.source, packet.destination) == ((A4, B4) if packet.version == 4 else (A6, B6))
    assert (packet.source_port, packet.destination_port) == ports
    assert (packet.tcp_flags, packet.icmp_type, packet.is_later_fragment) == (flags, icmp, False)
    assert (packet.header_bytes, packet.length) == (20 if packet.version == 4 else 40, len(data))


@pytest.mark.parametrize(
    ("flags", "opens"), [(0x02, True), (0x12, False), (0x10, False), (0x04, False), (0x03, True), (0xC2, True)]
)
def test_a_connection_opens_with_syn_but_not_ack(flags: int, opens: bool) -> None:
    packet = parse(build(6, A4, B4, TCP[:13] + bytes((flags,)) + TCP[14:]))
    assert packet is not None
    assert packet.is_tcp_open is opens


def test_ipv4_options_move_the_upper_header() -> None:
    plain = build(17, A4, B4, bytes(4) + UDP)
    packet = parse(b"\x46" + plain[1:])
    assert packet is not None
    assert (packet.header_bytes, packet.destination_port) == (24, 53)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x45",
        build(17, A4, B4, UDP)[:19],
        build(17, A6, B6, UDP)[:39],
        b"\x55" + build(17, A4, B4, UDP)[1:],
        build(17, A4, B4, UDP)[:-1],
        build(17, A6, B6, UDP)[:-1],
        b"\x44" + build(17, A4, B4, UDP)[1:],
        b"\x4f" + build(17, A4, B4, UDP)[1:],
        build(0, A4, B4, UDP),
        build(0, A6, B6, bytes(8) + UDP),
        build(43, A6, B6, bytes(8) + UDP),
        build(60, A6, B6, bytes(8) + UDP),
        build(51, A6, B6, bytes(16) + UDP),
        build(6, A4, B4, TCP[:19]),
        build(17, A4, B4, UDP[:7]),
        build(132, A4, B4, SCTP[:11]),
        build(1, A4, B4, bytes(3)),
        build(99, A4, B4, bytes(6)),
        build(99, A6, B6, bytes(6)),
        build(44, A6, B6, bytes(7)),
        fragment_v6(60, bytes(64), offset=0, more=True),
        fragment_v6(44, bytes(64), offset=0, more=True),
    ],
    ids=[
        "empty",
        "one byte",
        "less than an IPv4 header",
        "less than an IPv6 header",
        "version 5",
        "shorter than it says",
        "shorter than it says, IPv6",
        "header length 16",
        "header longer than the packet",
        "protocol 0",
        "hop-by-hop options",
        "routing header",
        "destination options",
        "authentication header",
        "half a TCP header",
        "half a UDP header",
        "half an SCTP header",
        "half an ICMP header",
        "half a TSMP message",
        "half a TSMP message, IPv6",
        "half a fragment header",
        "destination options in a fragment",
        "a fragment header in a fragment",
    ],
)
def test_what_is_not_understood_is_none(data: bytes) -> None:
    assert parse(data) is None


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (fragment_v4(build(17, A4, B4, UDP), offset=0, more=True), "first"),
        (fragment_v4(build(6, A4, B4, TCP[:16]), offset=0, more=True), None),
        (fragment_v4(build(6, A4, B4, bytes(8)), offset=1, more=True), None),
        (fragment_v4(build(6, A4, B4, bytes(8)), offset=9, more=False), None),
        (fragment_v4(build(6, A4, B4, bytes(8)), offset=10, more=False), "later"),
        (fragment_v4(build(99, A4, B4, bytes(64)), offset=0, more=True), None),
        (fragment_v4(build(99, A4, B4, bytes(64)), offset=10, more=False), None),
        (fragment_v6(17, UDP, offset=0, more=True), "first"),
        (fragment_v6(17, UDP, offset=0, more=False), "first"),
        (fragment_v6(17, UDP[:7], offset=0, more=True), None),
        (fragment_v6(17, bytes(8), offset=9, more=False), None),
        (fragment_v6(17, bytes(8), offset=10, more=False), "later"),
        (fragment_v6(99, bytes(64), offset=0, more=False), None),
    ],
)
def test_fragments(data: bytes, verdict: str | None) -> None:
    packet = parse(data)
    seen = None if packet is None else ("later" if packet.is_later_fragment else "first")
    assert seen == verdict
    if packet is not None and verdict == "first":
        assert packet.destination_port == 53
    if packet is not None and verdict == "later":
        assert (packet.source_port, packet.destination_port) == (0, 0)


@pytest.mark.parametrize(
    ("data", "rest"),
    [
        (build(17, A4, B4, UDP), b""),
        (build(17, A4, B4, UDP), bytes(15)),
        (build(17, A6, B6, UDP), bytes(15)),
    ],
)
def test_padding_is_cut(data: bytes, rest: bytes) -> None:
    assert trimmed(data + rest) == data
    assert trimmed(data[:-1]) is None


@pytest.mark.parametrize("data", [b"", bytes(40), b"\x45\0\0\x13" + bytes(16), b"\x60" + bytes(30)])
def test_what_is_no_packet_is_not_trimmed(data: bytes) -> None:
    assert trimmed(data) is None


def test_addresses_by_the_fast_path() -> None:
    for source, destination in ((A4, B4), (A6, B6)):
        data = build(17, source, destination, UDP)
        assert packets.source(data) == source
        assert packets.destination(data) == destination
        assert packets.source(data[:19]) is None
        assert packets.destination(data[:19]) is None


@given(st.binary(max_size=120))
def test_no_bytes_raise(data: bytes) -> None:
    parse(data)
    parse_tsmp(data)
    trimmed(data)
    packets.source(data)
    packets.destination(data)


@given(
    st.sampled_from([b"\x45", b"\x46", b"\x60"]),
    st.sampled_from([0, 1, 6, 17, 44, 58, 99, 132]),
    st.binary(min_size=60, max_size=90),
)
def test_nearly_right_packets_do_not_raise_either(first: bytes, protocol: int, rest: bytes) -> None:
    length = 1 + len(rest) - (40 if first == b"\x60" else 0)
    data = bytearray(first + rest)
    if first == b"\x60":
        data[4:7] = struct.pack(">HB", length, protocol)
    else:
        data[2:4], data[9] = struct.pack(">H", length), protocol
    packet = parse(bytes(data))
    parse_tsmp(bytes(data))
    if packet is not None:
        assert packet.header_bytes <= packet.length == len(data)
        assert (packet.source, packet.destination) == (packets.source(bytes(data)), packets.destination(bytes(data)))


# --- building ------------------------------------------------------------------------------------------------------


def test_an_ipv4_header_by_hand() -> None:
    # Version and length, no service, 24 bytes, no fragment, 64 hops, protocol 99; only the checksum is left to the slow way.
    data = build(99, A4, B4, b"abcd")
    assert data[:10].hex() == "45000018000040004063"
    assert data[12:] == A4 + B4 + b"abcd"
    assert slow_checksum(data[:20]) == 0
    assert int.from_bytes(data[10:12], "big") == slow_checksum(data[:10] + data[12:20])


def test_an_ipv6_header_by_hand() -> None:
    assert build(17, A6, B6, b"abcd", hop_limit=3) == bytes.fromhex("6000000000041103") + A6 + B6 + b"abcd"


@pytest.mark.parametrize(
    ("source", "destination", "payload"),
    [
        (A4, B6, b""),
        (b"", b"", b""),
        (A4, B4, bytes(65516)),
        (A6, B6, bytes(65536)),
    ],
)
def test_what_is_no_packet_is_not_built(source: bytes, destination: bytes, payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"family|fit"):
        build(17, source, destination, payload)


def test_the_largest_packets() -> None:
    assert len(build(17, A4, B4, bytes(65515))) == 65535
    assert len(build(17, A6, B6, bytes(65535))) == 65575


def test_checksum_of_a_known_header() -> None:
    # The example header that Wikipedia's "Internet checksum" computes.
    assert checksum16(bytes.fromhex("45000073000040004011c0a80001c0a800c7")) == 0xB861


@given(st.binary(max_size=200))
def test_checksum_agrees_with_the_slow_way(data: bytes) -> None:
    assert checksum16(data) == slow_checksum(data)


@pytest.mark.parametrize("data", [b"", bytes(8), b"\xff" * 8, b"\xff\xff\0\0", b"\x01"])
def test_checksum_at_the_edges(data: bytes) -> None:
    assert checksum16(data) == slow_checksum(data)


def test_upper_checksum_of_a_known_datagram() -> None:
    # UDP 1 -> 2 with "hi" between 10.0.0.1 and 10.0.0.2: words 0a00 0001 0a00 0002 0011 000a | 0001 0002 000a 0000 6869.
    segment = struct.pack(">HHHH", 1, 2, 10, 0) + b"hi"
    assert upper_checksum(17, pack("10.0.0.1"), pack("10.0.0.2"), segment) == 0xFFFF - 0x7C94


@pytest.mark.parametrize(
    ("source", "destination", "asks", "answers", "protocol"), [(A4, B4, 8, 0, 1), (A6, B6, 128, 129, 58)]
)
def test_echo(source: bytes, destination: bytes, asks: int, answers: int, protocol: int) -> None:
    for maker, kind in ((packets.echo_request, asks), (packets.echo_reply, answers)):
        data = maker(source, destination, 0x1234, 5, b"odd")
        packet = parse(data)
        assert packet is not None
        assert (packet.protocol, packet.icmp_type) == (protocol, kind)
        body = data[packet.header_bytes :]
        assert body[4:] == bytes.fromhex("12340005") + b"odd"
        pseudo = b"" if protocol == 1 else source + destination + struct.pack(">II", len(body), 58)
        assert slow_checksum(pseudo + body) == 0


# --- what ICMP errors are about ------------------------------------------------------------------------------------


def error_about(quote: bytes) -> bytes:
    """An ICMP error that quotes this."""
    if quote[:1] and quote[0] >> 4 == 6:
        return build(58, B6, A6, bytes((1, 4)) + bytes(6) + quote)
    return build(1, B4, A4, bytes((3, 3)) + bytes(6) + quote)


@pytest.mark.parametrize(
    ("quote", "found"),
    [
        (build(17, A4, B4, UDP), (17, A4, B4, 5000, 53)),
        (build(6, A6, B6, TCP), (6, A6, B6, 40000, 22)),
        (build(17, A4, B4, UDP)[:24], (17, A4, B4, 5000, 53)),
        (build(17, A4, B4, UDP)[:23], None),
        (build(1, A4, B4, bytes(8)), (1, A4, B4, None, None)),
        (fragment_v4(build(17, A4, B4, UDP), offset=1, more=False), (17, A4, B4, None, None)),
        (fragment_v4(build(17, A4, B4, UDP), offset=0, more=True), (17, A4, B4, 5000, 53)),
        (fragment_v6(17, UDP, offset=0, more=True), (17, A6, B6, 5000, 53)),
        (fragment_v6(17, UDP, offset=2, more=True), (17, A6, B6, None, None)),
        (fragment_v6(17, UDP, offset=0, more=True)[:47], None),
        (fragment_v6(60, UDP, offset=0, more=True), None),
        (build(60, A6, B6, bytes(8)), None),
        (build(0, A4, B4, bytes(8)), None),
        (b"\x44" + build(17, A4, B4, UDP)[1:], None),
        (build(17, A4, B4, UDP)[:19], None),
        (build(17, A6, B6, UDP)[:39], None),
        (b"\x15" + bytes(40), None),
        (b"", None),
    ],
)
def test_what_an_error_quotes(quote: bytes, found: tuple[object, ...] | None) -> None:
    error = error_about(quote)
    fields = packets.decode(error)
    assert fields is not None
    assert packets.quoted(error, fields) == found


@given(st.binary(max_size=80), st.sampled_from([0x45, 0x4F, 0x60]))
def test_no_quote_raises(rest: bytes, first: int) -> None:
    error = error_about(bytes((first,)) + rest)
    fields = packets.decode(error)
    assert fields is not None
    packets.quoted(error, fields)


@pytest.mark.parametrize(
    ("data", "carries"),
    [
        (build(17, A4, B4, UDP), True),
        (build(17, A6, B6, UDP), True),
        (build(6, A4, B4, UDP), False),
        (build(6, A6, B6, UDP), False),
        (build(17, A4, B4, b"1" + UDP), False),
        (b"\x46" + build(17, A4, B4, UDP)[1:], False),
        (b"", False),
    ],
)
def test_what_udp_carries(data: bytes, carries: bool) -> None:
    assert packets.udp_carries(data, b"ask!") is carries


# --- TSMP ----------------------------------------------------------------------------------------------------------


def refused(source: bytes, destination: bytes) -> Packet:
    packet = parse(build(6, source, destination, TCP))
    assert packet is not None
    return packet


@pytest.mark.parametrize(
    ("data", "body"),
    [
        (tsmp_ping(A4, B4, TOKEN), b"p8 bytes!"),
        (tsmp_pong(A4, B4, TOKEN, peerapi_port=258), b"o8 bytes!\x01\x02"),
        (tsmp_reject(refused(B4, A4), RejectReason.ACL), b"!\x06A" + bytes.fromhex("9c400016")),
        (
            tsmp_reject(refused(B4, A4), RejectReason.SHIELDS_UP, maybe_broken=True),
            b"!\x06S" + bytes.fromhex("9c40001601"),
        ),
        (tsmp_disco_key(A4, B4, b"k" * 32), b"a" + b"k" * 32),
    ],
    ids=["ping", "pong", "reject", "reject, perhaps broken", "disco key"],
)
def test_tsmp_on_the_wire(data: bytes, body: bytes) -> None:
    assert (data[9], data[12:16], data[16:20]) == (99, A4, B4)
    assert data[20:] == body


@pytest.mark.parametrize(("here", "there"), [(A4, B4), (A6, B6)])
def test_tsmp_is_read_as_it_was_built(here: bytes, there: bytes) -> None:
    told: list[tuple[bytes, Tsmp]] = [
        (tsmp_ping(here, there, TOKEN), TsmpPing(here, there, TOKEN)),
        (tsmp_pong(here, there, TOKEN), TsmpPong(here, there, TOKEN, 0)),
        (tsmp_pong(here, there, TOKEN, peerapi_port=80), TsmpPong(here, there, TOKEN, 80)),
        (tsmp_disco_key(here, there, b"k" * 32), TsmpDiscoKey(here, there, b"k" * 32)),
        (
            tsmp_reject(refused(there, here), RejectReason.ACL),
            TsmpReject(there, here, 6, 40000, 22, RejectReason.ACL, maybe_broken=False),
        ),
        (
            tsmp_reject(refused(there, here), RejectReason.ACL, maybe_broken=True),
            TsmpReject(there, here, 6, 40000, 22, RejectReason.ACL, maybe_broken=True),
        ),
    ]
    for data, message in told:
        assert packets.is_tsmp(data)
        assert parse_tsmp(data) == message


@pytest.mark.parametrize(
    "data",
    [
        build(17, A4, B4, b"p8 bytes!"),
        build(99, A4, B4, b"p7 bytes"),
        build(99, A4, B4, b"o7 bytes"),
        build(99, A4, B4, b"a" + bytes(31)),
        build(99, A4, B4, b"?8 bytes!"),
        build(99, A4, B4, b"!AAAAA"),
        fragment_v4(tsmp_ping(A4, B4, TOKEN), offset=0, more=True),
        fragment_v6(99, b"p8 bytes!", offset=0, more=False),
    ],
)
def test_what_is_no_tsmp_of_ours(data: bytes) -> None:
    assert parse_tsmp(data) is None


def test_tsmp_is_seen_even_where_it_cannot_be_read() -> None:
    assert packets.is_tsmp(fragment_v4(tsmp_ping(A4, B4, TOKEN), offset=10, more=False))
    assert packets.is_tsmp(fragment_v6(99, b"p8 bytes!", offset=0, more=False))
    assert packets.is_tsmp(build(99, A6, B6, b"")[:40])
    assert not packets.is_tsmp(build(17, A6, B6, UDP))
    assert not packets.is_tsmp(fragment_v6(17, UDP, offset=0, more=False))


def test_builders_check_their_sizes() -> None:
    with pytest.raises(ValueError, match="token"):
        tsmp_ping(A4, B4, b"short")
    with pytest.raises(ValueError, match="disco key"):
        tsmp_disco_key(A4, B4, b"short")
