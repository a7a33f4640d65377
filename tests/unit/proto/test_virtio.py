"""Frames, as far as they are looked at without an engine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.wg.train_reference import TCP, UDP, Flow, Super
from tsns.proto.virtio import HEADER, HEADER_BYTES, PLAIN, frame_of, packet_of, packets_in

FLOWS = [
    Flow(version=version, protocol=protocol, source=bytes(size), destination=bytes(size), tcp_options=options)
    for version, size in ((4, 4), (6, 16))
    for protocol, options in ((TCP, b""), (TCP, b"\1" * 12), (UDP, b""))
]


def test_a_packet_by_itself() -> None:
    assert packet_of(frame_of(b"a packet")) == b"a packet"
    assert packets_in(frame_of(b"a packet")) == 1
    assert packets_in(PLAIN) == 1  # a keepalive


@pytest.mark.parametrize("flow", FLOWS)
@pytest.mark.parametrize(
    ("payload", "size", "count"), [(1, 1000, 1), (1000, 1000, 1), (1001, 1000, 2), (49_000, 1000, 49)]
)
def test_how_many_packets_a_super_packet_holds(flow: Flow, payload: int, size: int, count: int) -> None:
    frame = Super(flow, bytes(payload), size).frame()
    assert packets_in(frame) == count
    for hint in (0, len(frame)):  # what the kernel says of the headers may be anything
        flags, kind, _, segment, start, offset = HEADER.unpack_from(frame)
        hinted = HEADER.pack(flags, kind, hint, segment, start, offset) + frame[HEADER_BYTES:]
        assert packets_in(hinted) == count


@given(st.binary(min_size=HEADER_BYTES, max_size=200))
def test_no_frame_raises(frame: bytes) -> None:
    assert 1 <= packets_in(frame) <= len(frame)
