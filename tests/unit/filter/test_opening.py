"""Connections that a peer refuses: the program gets a reset that it takes for the other end's, and nobody else any."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.filter.opening import MAX_OPENINGS, Openings, refusal_text
from tsns.proto.addresses import pack
from tsns.proto.packets import HEAD_BYTES, RejectReason, TsmpReject, build, parse, upper_checksum

US, PEER = pack("100.64.0.1"), pack("100.64.0.2")
US6, PEER6 = pack("fd7a:115c:a1e0::1"), pack("fd7a:115c:a1e0::2")
SYN, ACK, RST_ACK = 0x02, 0x10, 0x14
FIRST = 0xFFFFFFFF  # the highest sequence number: what is acknowledged is 0


def tcp(flags: int, *, port: int = 22, source: bytes = US, destination: bytes = PEER, data: bytes = b"") -> bytes:
    header = struct.pack(">HHIIBBHHH", 40000, port, FIRST, 0, 0x50, flags, 64240, 0, 0)
    return build(6, source, destination, header + data)


def reject(*, port: int = 22, source: bytes = US, destination: bytes = PEER, **other: int) -> TsmpReject:
    told = {"protocol": 6, "reason": RejectReason.ACL, "maybe_broken": False, **other}
    return TsmpReject(
        source, destination, told["protocol"], 40000, port, told["reason"], maybe_broken=bool(told["maybe_broken"])
    )


def noted(*packets: bytes) -> Openings:
    openings = Openings()
    for packet in packets:
        openings.note(packet[:HEAD_BYTES], len(packet))
    return openings


@pytest.mark.parametrize(("here", "there"), [(US, PEER), (US6, PEER6)])
def test_a_refused_connection_is_reset(here: bytes, there: bytes) -> None:
    openings = noted(tcp(SYN, source=here, destination=there))
    reset = openings.refused(reject(source=here, destination=there))
    assert reset is not None
    packet = parse(reset)
    assert packet is not None
    assert (packet.source, packet.destination, packet.tcp_flags) == (there, here, RST_ACK)
    assert (packet.source_port, packet.destination_port) == (22, 40000)
    segment = reset[packet.header_bytes :]
    assert segment[8:12] == bytes(4), "what it acknowledges is what comes after the SYN"
    assert upper_checksum(6, there, here, segment) == 0
    assert openings.refused(reject(source=here, destination=there)) is None, "once"


@pytest.mark.parametrize(
    "refusal",
    [
        reject(port=23),
        reject(destination=pack("100.64.0.3")),
        reject(source=pack("100.64.0.9")),
        reject(protocol=17),
        reject(maybe_broken=1),
    ],
    ids=["another port", "another peer", "another source", "another protocol", "perhaps only broken"],
)
def test_nothing_else_is_reset(refusal: TsmpReject) -> None:
    assert noted(tcp(SYN)).refused(refusal) is None


@pytest.mark.parametrize("flags", [ACK, SYN | ACK, 0x04, 0])
def test_a_connection_that_stands_cannot_be_refused(flags: int) -> None:
    assert noted(tcp(flags)).refused(reject()) is None


def test_a_syn_with_data_and_one_with_options_of_ip_are_connections_too() -> None:
    plain = tcp(SYN, data=b"fast open")
    assert noted(plain).refused(reject()) is not None
    optional = b"\x46" + plain[1:2] + struct.pack(">H", len(plain) + 4) + plain[4:20] + b"\1\1\1\1" + plain[20:]
    assert noted(optional).refused(reject()) is not None


def test_the_oldest_is_forgotten_first() -> None:
    openings = noted(*(tcp(SYN, port=port) for port in range(1, MAX_OPENINGS + 2)))
    assert openings.refused(reject(port=1)) is None
    assert openings.refused(reject(port=2)) is not None


@given(st.binary(max_size=HEAD_BYTES), st.integers(0, 200))
def test_no_bytes_raise(head: bytes, more: int) -> None:
    Openings().note(head, len(head) + more if len(head) == HEAD_BYTES else len(head))


def test_reasons_are_a_bounded_number_of_texts() -> None:
    assert len({refusal_text(reason) for reason in range(256)}) == 5
