"""A peer that knows us by other addresses: what is rewritten, and that checksums stay as right or as wrong as they were."""

from __future__ import annotations

import random
from itertools import product

import pytest

from tests.unit.wg.train_reference import UDP, Flow, Super, unfinished
from tsns.proto.addresses import pack
from tsns.proto.packets import Protocol, build, echo_request, parse, upper_checksum
from tsns.proto.virtio import HEADER_BYTES, frame_of
from tsns.wg.masquerade import Masquerade
from tsns.wg.segments import packets_of

OWN = {4: pack("100.64.0.1"), 6: pack("fd7a:115c:a1e0::1")}
WORN = {4: pack("100.101.102.103"), 6: pack("fd7a:115c:a1e0:ab12::7")}
PEER = {4: pack("100.64.0.2"), 6: pack("fd7a:115c:a1e0::2")}
MASQUERADE = Masquerade((OWN[version], WORN[version]) for version in (4, 6))
VERSIONS = pytest.mark.parametrize("version", [4, 6])


def flow(version: int, protocol: int = Protocol.TCP, *, inbound: bool = False, worn: bool = False) -> Flow:
    us, peer = (WORN if worn else OWN)[version], PEER[version]
    return Flow(version, source=peer if inbound else us, destination=us if inbound else peer, protocol=protocol)


def through(frame: bytes, *, inbound: bool = False) -> bytes:
    [out] = MASQUERADE.inbound([frame]) if inbound else MASQUERADE.outbound([frame])
    return bytes(out)


@pytest.mark.parametrize(("version", "protocol", "inbound"), list(product([4, 6], [Protocol.TCP, UDP], [False, True])))
def test_a_packet_is_what_it_would_have_been_with_the_other_address(version: int, protocol: int, inbound: bool) -> None:
    """Of every kind: finished, left to be completed, and many in one."""
    generator = random.Random(version)
    for size in (0, 1, 500, 1000):
        before, after = (
            flow(version, protocol, inbound=inbound, worn=worn)
            for worn in ((True, False) if inbound else (False, True))
        )
        payload = generator.randbytes(size)
        wanted = after.packet(payload)
        assert packets_of(through(frame_of(before.packet(payload)), inbound=inbound)) == [wanted]
        assert packets_of(through(unfinished(before, payload), inbound=inbound)) == [wanted]
        if size:
            super_packets = [Super(kind, payload, 300).frame() for kind in (before, after)]
            assert packets_of(through(super_packets[0], inbound=inbound)) == packets_of(super_packets[1])


@VERSIONS
def test_pings_too(version: int) -> None:
    ping = echo_request(OWN[version], PEER[version], 1, 2, b"abc")
    wanted = echo_request(WORN[version], PEER[version], 1, 2, b"abc")
    assert through(frame_of(ping)) == frame_of(wanted)


@VERSIONS
def test_a_wrong_checksum_stays_wrong(version: int) -> None:
    packet = bytearray(flow(version).packet(b"payload"))
    packet[-1] ^= 0x10
    rewritten = through(frame_of(bytes(packet)))[HEADER_BYTES:]
    fields = parse(rewritten)
    assert fields is not None
    assert upper_checksum(Protocol.TCP, fields.source, fields.destination, rewritten[fields.header_bytes :])


def test_udp_without_a_checksum_has_none_afterwards() -> None:
    packet = build(UDP, OWN[4], PEER[4], bytes.fromhex("1234 0035 000b 0000") + b"abc")
    assert through(frame_of(packet)) == frame_of(build(UDP, WORN[4], PEER[4], packet[20:]))


def test_a_checksum_of_udp_never_becomes_none() -> None:
    generator = random.Random(1)
    for _ in range(3):
        payload = bytearray(generator.randbytes(10))
        after = flow(4, UDP, worn=True)
        bare = after.packet(bytes(payload) + b"\0\0")
        payload += bare[26:28]  # so that the sum comes out as zero
        packet = flow(4, UDP).packet(bytes(payload))
        assert packets_of(through(frame_of(packet))) == [after.packet(bytes(payload))]
        assert through(frame_of(packet))[HEADER_BYTES + 26 :][:2] == b"\xff\xff"


@VERSIONS
def test_later_fragments_have_no_checksum_to_adjust(version: int) -> None:
    if version == 4:
        fragment = bytearray(build(UDP, OWN[4], PEER[4], bytes(range(40))))
        fragment[6:8] = (100).to_bytes(2, "big")
    else:
        header = bytes((UDP, 0)) + (100 << 3).to_bytes(2, "big") + bytes(4)
        fragment = bytearray(build(Protocol.FRAGMENT, OWN[6], PEER[6], header + bytes(range(40))))
    rewritten = through(frame_of(bytes(fragment)))
    assert rewritten.endswith(bytes(range(40)))
    assert WORN[version] in rewritten


@VERSIONS
def test_what_is_not_ours_is_left_alone(version: int) -> None:
    others = Flow(version, source=PEER[version], destination=OWN[version]).packet(b"x")
    assert through(frame_of(others)) == frame_of(others)
    assert through(frame_of(others), inbound=True) == frame_of(others)
    assert through(frame_of(b"")) == frame_of(b"")


def test_random_bytes_harm_nobody() -> None:
    generator = random.Random(7)
    for _ in range(2000):
        packet = bytearray(generator.randbytes(generator.randrange(0, 70)))
        if len(packet) >= 20 and generator.random() < 0.7:
            packet[0] = generator.choice((0x45, 0x46, 0x4F, 0x60))
            at = (12, 8)[packet[0] >> 4 == 6]
            packet[at : at + 4] = OWN[4]
        virtio = bytes((generator.randrange(2), 0, *generator.randbytes(8)))
        assert len(through(virtio + packet)) == len(virtio) + len(packet)
