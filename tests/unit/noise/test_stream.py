"""Records and the early payload, told as transcripts. The vectors were computed by an implementation that passes those of test_handshake."""

from __future__ import annotations

import struct
from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given
from hypothesis import strategies as st

from tsns.error import ProtocolError
from tsns.keys import ChallengePublic, MachinePrivate
from tsns.noise.framing import MAX_FRAME_BYTES, MAX_PLAINTEXT_BYTES, FrameReader, FrameType, Opener, Sealer, error_frame
from tsns.noise.handshake import Initiator
from tsns.noise.stream import (
    EARLY_MAGIC,
    MAX_EARLY_PAYLOAD_BYTES,
    ClientStream,
    NoiseStream,
    ServerStream,
    early_payload,
)

MACHINE = MachinePrivate(bytes(range(0x20)))
CONTROL = MachinePrivate(bytes(range(0x40, 0x60)))
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes.fromhex("000000040000000000")
CHALLENGE = ChallengePublic(b"\x11" * 32)
CLIENT_KEY = bytes.fromhex("1ffa520b7b784b83355f4ca5754d333f51f53ff31d9d98f697c22e8f79b66e22")
PREFACE_RECORD = "040028e42e01d8573d1173d84370e6f20edf94d699eeecda7e16e9df232e7952f0f78675a9b5941bce62c2"
EARLY_RECORD = (
    "040078970a14771ed6b75bbb3d2fac0e7cc8d329a68c95b5122cee65e7871a1726cd7d8fdf8f85a68097e5ee45bcf62157d9ac5acbf8817339b39e07a68c0946"
    "f60981a16ef5e5897fc46fc7b051c475f438ee90db99117d9be7d574d8eddea1c7c2f3695821636e73f94bea2df66dc1091ea97e31f8c34c7d7acc"
)
SETTINGS_RECORD = "040019e17b8ae7407ddb1ac91078b9e50b1d62391e39af7d758a4923"


def client_stream() -> ClientStream:
    return ClientStream(Initiator(MACHINE, CONTROL.public, 130, lambda size: bytes(range(0x20, 0x20 + size))))


def connection() -> tuple[ClientStream, ServerStream]:
    """Both ends; the response has not yet been delivered."""
    client = client_stream()
    return client, ServerStream(CONTROL, client.initiation, lambda size: bytes(range(0x60, 0x60 + size)))


def test_the_exchange_of_version_130() -> None:
    client, server = connection()
    assert (server.machine, server.version) == (MACHINE.public, 130)
    assert client.receive(server.response) == []
    assert client.established
    assert client.handshake_hash == server.handshake_hash
    sent = client.send(PREFACE)
    assert sent.hex() == PREFACE_RECORD
    assert server.receive(sent) == [PREFACE]

    early = server.send(early_payload(CHALLENGE))
    settings = server.send(SETTINGS)
    assert (early.hex(), settings.hex()) == (EARLY_RECORD, SETTINGS_RECORD)
    assert client.receive(early) == []
    assert client.early is not None
    assert client.early.node_key_challenge == str(CHALLENGE)
    assert client.receive(settings) == [SETTINGS]


def test_record_256_tells_big_endian_nonces_from_little_endian_ones() -> None:
    sealer = Sealer(CLIENT_KEY)
    sealer.seal(bytes(255 * MAX_PLAINTEXT_BYTES))
    sealer.seal(b"")
    assert sealer.seal(b"").hex() == "040010f4ac9971cf2aff7c6a3a663791216cef"


def test_the_nonce_of_record_7() -> None:
    """From GeiserX/tailscale-rs, tests/vectors/control_noise_be_aead.json; there with associated data, so that only the nonce compares."""
    nonce = bytes.fromhex("000000000000000000000007")
    cipher = ChaCha20Poly1305(b"\x42" * 32)
    assert cipher.encrypt(nonce, b"hello wireKAT", bytes.fromhex("0102030405060708")).hex() == (
        "7b0294364fe1db3a5103032cdafb17a16a78348e953af8d63604bc1c13"
    )
    sealer, opener = Sealer(b"\x42" * 32), Opener(b"\x42" * 32)
    for _ in range(7):
        opener.open(sealer.seal(b"")[3:])
    assert sealer.seal(b"hello")[3:] == cipher.encrypt(nonce, b"hello", None)
    assert opener.open(cipher.encrypt(nonce, b"hello", None)) == b"hello"


def test_large_plaintext_is_cut_into_records_of_4096_bytes() -> None:
    client, server = connection()
    client.receive(server.response)
    data = bytes(range(256)) * 40
    sent = client.send(data)
    frames = list(FrameReader().feed(sent))
    assert [3 + len(payload) for _, payload in frames] == [MAX_FRAME_BYTES, MAX_FRAME_BYTES, len(data) - 2 * 4077 + 19]
    assert b"".join(server.receive(sent)) == data


def test_empty_records_are_passed_over() -> None:
    client, server = connection()
    client.receive(server.response + server.send(b"") + server.send(SETTINGS) + server.send(b""))
    assert client.receive(server.send(b"")) == []
    assert client.receive(server.send(b"") + server.send(b"data")) == [b"data"]


def test_without_an_early_payload_http2_begins_at_once() -> None:
    client, server = connection()
    assert client.receive(server.response + server.send(SETTINGS + b"more")) == [SETTINGS + b"more"]
    assert client.early is None


@given(
    with_early=st.booleans(),
    record_cuts=st.lists(st.integers(0, 120), max_size=8),
    byte_cuts=st.lists(st.integers(0, 400), max_size=12),
)
def test_where_records_and_bytes_are_cut_does_not_matter(
    with_early: bool, record_cuts: list[int], byte_cuts: list[int]
) -> None:
    client, server = connection()
    plaintext = (early_payload(CHALLENGE) if with_early else b"") + SETTINGS + b"tail"
    bounds = [0, *sorted(min(cut, len(plaintext)) for cut in record_cuts), len(plaintext)]
    wire = server.response + b"".join(server.send(plaintext[a:b]) for a, b in pairwise(bounds))
    heard = []
    bounds = [0, *sorted(min(cut, len(wire)) for cut in byte_cuts), len(wire)]
    for a, b in pairwise(bounds):
        heard += client.receive(wire[a:b])
    assert b"".join(heard) == SETTINGS + b"tail"
    assert (client.early is not None) == with_early


@pytest.mark.parametrize(
    ("early", "reason"),
    [
        (EARLY_MAGIC + struct.pack(">I", MAX_EARLY_PAYLOAD_BYTES + 1), "announces 65537 bytes"),
        (EARLY_MAGIC + struct.pack(">I", 4) + b"true", "EarlyNoise"),
    ],
)
def test_an_early_payload_that_breaks_the_rules(early: bytes, reason: str) -> None:
    client, server = connection()
    client.receive(server.response)
    with pytest.raises(ProtocolError, match=reason):
        client.receive(server.send(early))


@pytest.mark.parametrize(
    ("came", "reason"),
    [
        (error_frame("unsupported\n\x1b[31m version"), r"refuses the Noise handshake: unsupported \[31m version$"),
        (b"HTTP/1.1 400 Bad Request\r\n", "not a Noise response"),
        (b"\x02\x00\x31" + bytes(60), "not a Noise response"),
        (b"\x03\x10\x00", "announces 4096 bytes"),
    ],
)
def test_a_handshake_that_is_refused(came: bytes, reason: str) -> None:
    client = client_stream()
    with pytest.raises(ProtocolError, match=reason):
        client.receive(came)
    assert not client.established


def test_an_error_frame_waits_for_its_end() -> None:
    client = client_stream()
    frame = error_frame("no")
    assert client.receive(frame[:-1]) == []
    with pytest.raises(ProtocolError, match="handshake: no"):
        client.receive(frame[-1:])


@pytest.mark.parametrize(
    ("came", "reason"),
    [
        (error_frame("x" * 9999), "gives up: x{199}…$"),
        (b"\x02\x00\x00", "type 2 among the records"),
        (b"\x04\x00\x05hello", "not authentic"),
        (b"\x04\x00\x10" + bytes(16), "not authentic"),
        (b"\x04\x0f\xfe", "announces 4094 bytes"),
    ],
)
def test_records_that_break_the_rules(came: bytes, reason: str) -> None:
    _, server = connection()
    with pytest.raises(ProtocolError, match=reason):
        server.receive(came)


def test_a_record_is_good_only_once_and_in_its_place() -> None:
    client, server = connection()
    client.receive(server.response)
    first, second = client.send(b"1"), client.send(b"2")
    with pytest.raises(ProtocolError, match="not authentic"):
        server.receive(second)
    _, server = connection()
    assert server.receive(first) == [b"1"]
    with pytest.raises(ProtocolError, match="not authentic"):
        server.receive(first)


def test_frames_before_a_bad_one_are_cut_off_once() -> None:
    reader = FrameReader()
    frames = reader.feed(b"\x04\x00\x01a\x04\xff\xff")
    assert next(frames) == (FrameType.RECORD, b"a")
    with pytest.raises(ProtocolError):
        next(frames)


@given(st.binary(max_size=300))
def test_no_bytes_of_a_stranger_raise_anything_else(data: bytes) -> None:
    client, server = connection()
    established = client_stream()
    established.receive(server.response)
    for stream in (client, server, established):
        assert isinstance(stream, NoiseStream | ClientStream)
        try:
            heard = stream.receive(data)
        except ProtocolError:
            continue
        assert heard == []
