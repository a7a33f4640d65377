"""DERP frames: the stream may be cut anywhere, and nothing may be too large."""

from __future__ import annotations

import struct

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsns.derp.framing import (
    HEADER_BYTES,
    MAGIC,
    MAX_PAYLOAD_BYTES,
    ClientInfo,
    FrameReader,
    FrameType,
    ServerInfo,
    frame,
    parse_restarting,
    restarting,
    split_key,
)
from tsns.error import ProtocolError

KEY = b"\x77" * 32


def test_the_magic_is_derp_and_a_key() -> None:
    assert MAGIC.hex() == "44455250f09f9491"


def test_a_frame_on_the_wire() -> None:
    assert frame(FrameType.SEND_PACKET, b"ab", b"cde").hex() == "04000000056162636465"
    assert frame(FrameType.KEEP_ALIVE).hex() == "0600000000"


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    frames=st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=60)), max_size=6),
    cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_where_the_stream_is_cut_does_not_matter(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    stream = b"".join(frame(kind, payload) for kind, payload in frames)
    reader, heard, start = FrameReader(), list[tuple[int, bytes]](), 0
    for cut in [*sorted(cuts), len(stream)]:
        heard += reader.feed(stream[start:cut])
        start = max(start, cut)
    assert heard == frames


def test_byte_by_byte() -> None:
    reader = FrameReader()
    heard = [found for byte in frame(FrameType.PING, b"8 bytes!") for found in reader.feed(bytes([byte]))]
    assert heard == [(FrameType.PING, b"8 bytes!")]


def test_the_largest_payload_is_taken_and_no_larger_one() -> None:
    largest = frame(FrameType.HEALTH, bytes(MAX_PAYLOAD_BYTES))
    assert [len(payload) for _, payload in FrameReader().feed(largest)] == [MAX_PAYLOAD_BYTES]
    with pytest.raises(ProtocolError, match="announces 1048577 bytes"):
        list(FrameReader().feed(struct.pack(">BI", FrameType.HEALTH, MAX_PAYLOAD_BYTES + 1)))


def test_a_server_sets_its_own_limit_and_raises_it_later() -> None:
    reader = FrameReader(limit=4)
    assert list(reader.feed(frame(FrameType.PING, b"1234"))) == [(FrameType.PING, b"1234")]
    reader.limit = 5
    assert list(reader.feed(frame(FrameType.PING, b"12345"))) == [(FrameType.PING, b"12345")]
    with pytest.raises(ProtocolError):
        list(reader.feed(frame(FrameType.PING, b"123456")))


def test_frames_before_an_oversized_one_are_heard() -> None:
    frames = FrameReader().feed(frame(FrameType.KEEP_ALIVE) + b"\x14\xff\xff\xff\xff")
    assert next(frames) == (FrameType.KEEP_ALIVE, b"")
    with pytest.raises(ProtocolError):
        next(frames)


def test_times_of_a_restart() -> None:
    data = restarting(1.5, 60)
    assert data[HEADER_BYTES:].hex() == "000005dc0000ea60"
    assert parse_restarting(data[HEADER_BYTES:] + b"of the future") == (1.5, 60.0)
    with pytest.raises(ProtocolError):
        parse_restarting(bytes(7))


def test_a_payload_that_begins_with_a_key() -> None:
    assert split_key(KEY + b"rest", "PEER_GONE") == (KEY, b"rest")
    with pytest.raises(ProtocolError, match="PEER_GONE without a key"):
        split_key(KEY[:31], "PEER_GONE")


def test_names_of_what_both_sides_tell() -> None:
    assert msgspec.json.encode(ClientInfo(version=2, can_ack_pings=True)) == b'{"version":2,"CanAckPings":true}'
    info = msgspec.json.decode(
        b'{"version":2,"TokenBucketBytesPerSecond":1000,"TokenBucketBytesBurst":10,"x":1}', type=ServerInfo
    )
    assert info == ServerInfo(version=2, bytes_per_second=1000, bytes_burst=10)
