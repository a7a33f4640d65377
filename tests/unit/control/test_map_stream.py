"""Framing and compression of the netmap stream."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from tsns.control import map_stream
from tsns.control.map_stream import MAX_COMPRESSED_BYTES, MapStream, frame
from tsns.error import ProtocolError
from tsns.proto.types import MapResponse

KEEP_ALIVE = b'{"KeepAlive":true}'


def framed(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


@pytest.mark.parametrize(
    "message",
    [
        bytes.fromhex("120000007b224b656570416c697665223a747275657d"),
        bytes.fromhex("1b00000028b52ffd20129100007b224b656570416c697665223a747275657d"),
        framed(zstandard.ZstdCompressor(write_content_size=False).compress(KEEP_ALIVE)),
        framed(zstandard.compress(KEEP_ALIVE[:7]) + zstandard.compress(b"") + zstandard.compress(KEEP_ALIVE[7:])),
        framed(b'{"KeepAlive":true,"Unheard-Of":[1,{}]}'),
    ],
    ids=["plain", "zstd of another encoder", "without its size", "several frames", "members of the future"],
)
def test_forms_of_one_message(message: bytes) -> None:
    assert MapStream().feed(message) == [MapResponse(keep_alive=True)]


@given(st.lists(st.integers(0, 200)), st.booleans())
def test_where_the_stream_is_cut_does_not_matter(cuts: list[int], compress: bool) -> None:
    messages = [MapResponse(keep_alive=True), MapResponse(domain="example.test"), MapResponse(peers_removed=[1, 2])]
    wire = b"".join(frame(message, compress=compress) for message in messages)
    stream, heard = MapStream(), []
    for a, b in pairwise([0, *sorted(min(cut, len(wire)) for cut in cuts), len(wire)]):
        heard += stream.feed(wire[a:b])
    assert heard == messages


@pytest.mark.parametrize(
    ("wire", "reason"),
    [
        (bytes(4), "announces 0 bytes"),
        (struct.pack("<I", MAX_COMPRESSED_BYTES + 1), "announces 67108865 bytes"),
        (framed(b"no zstd"), "cannot be decompressed"),
        (framed(zstandard.compress(KEEP_ALIVE) + b"junk"), "cannot be decompressed"),
        (framed(zstandard.compress(KEEP_ALIVE)[:-3]), "MapResponse"),
        (framed(zstandard.compress(b"")), "MapResponse"),
        (framed(b'{"Peers":{}}'), "MapResponse"),
        (framed(b'{"Node":' * 9999), "MapResponse"),
    ],
)
def test_messages_that_break_the_rules(wire: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        MapStream().feed(wire)


@pytest.mark.parametrize("with_size", [True, False])
def test_a_bomb_is_not_unpacked(monkeypatch: pytest.MonkeyPatch, with_size: bool) -> None:
    monkeypatch.setattr(map_stream, "MAX_DECODED_BYTES", 1 << 20)
    bomb = zstandard.ZstdCompressor(write_content_size=with_size).compress(b'{"Domain":"' + bytes(64 << 20))
    assert len(bomb) < 10_000
    with pytest.raises(ProtocolError, match="more than 1048576 bytes"):
        MapStream().feed(framed(bomb))


def test_a_window_that_is_too_large_is_not_allocated() -> None:
    block = b"\x11\x00\x00{}"
    assert MapStream().feed(framed(b"\x28\xb5\x2f\xfd\x00\x88" + block)) == [MapResponse()], "128 MiB"
    data = b"\x28\xb5\x2f\xfd\x00\x98" + block  # 512 MiB
    with pytest.raises(ProtocolError, match="cannot be decompressed"):
        MapStream().feed(framed(data))


@given(st.binary(max_size=200))
def test_no_bytes_of_a_stranger_raise_anything_else(data: bytes) -> None:
    for wire in (data, framed(data), framed(b"\x28\xb5\x2f\xfd" + data), framed(b"{" + data)):
        try:
            heard = MapStream().feed(wire)
        except ProtocolError:
            continue
        assert all(isinstance(message, MapResponse) for message in heard)
