"""The handshake, byte for byte, and what becomes of bytes that are not one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.counters import Counters
from tsns.keys import NodePrivate, NodePublic
from tsns.proto.virtio import PLAIN
from tsns.ways import Train
from tsns.wg.cookie import CookieGuard, CookieJar, mac
from tsns.wg.engines import PYTHON, maker
from tsns.wg.handshake import (
    INITIAL_CHAIN_KEY,
    INITIAL_HASH,
    OwnKey,
    PeerKey,
    Pending,
    SessionKeys,
    initiate,
    kdf,
    open_initiation,
)
from tsns.wg.session import Session

VECTORS: dict[str, str] = json.loads((Path(__file__).parent / "vectors.json").read_text())["handshake"]
KDF_VECTORS: list[dict[str, object]] = json.loads((Path(__file__).parent / "vectors.json").read_text())["kdf3"]

INITIATOR = NodePrivate.generate(b"\x11" * 32)
RESPONDER = NodePrivate.generate(b"\x22" * 32)
E_I, E_R = b"\x33" * 32, b"\x44" * 32
INDEX_I, INDEX_R = (0x01020304).to_bytes(4, "little"), (0x0A0B0C0D).to_bytes(4, "little")
TIMESTAMP = bytes.fromhex("400000006553f10a01000000")
PSK = bytes(32)


def vector(name: str) -> bytes:
    return bytes.fromhex(VECTORS[name])


def begin(preshared: bytes = PSK, peer: NodePublic = RESPONDER.public) -> tuple[OwnKey, PeerKey, bytes, Pending]:
    own = OwnKey(INITIATOR)
    key = PeerKey(own, peer, preshared)
    body, pending = initiate(own, key, ephemeral=E_I, index=INDEX_I, timestamp=TIMESTAMP, now=0.0)
    return own, key, body, pending


def answer(body: bytes, preshared: bytes = PSK) -> tuple[bytes, SessionKeys]:
    own = OwnKey(RESPONDER)
    key = PeerKey(own, INITIATOR.public, preshared)
    incoming = open_initiation(own, body)
    assert incoming is not None
    assert incoming.static == INITIATOR.public.raw
    assert incoming.timestamp(key) == TIMESTAMP
    return incoming.respond(key, ephemeral=E_R, index=INDEX_R)


def test_the_constants() -> None:
    assert vector("initial_chain_key") == INITIAL_CHAIN_KEY
    assert vector("initial_hash") == INITIAL_HASH
    assert INITIATOR.public.raw == vector("static_initiator")
    assert RESPONDER.public.raw == vector("static_responder")


@pytest.mark.parametrize("case", KDF_VECTORS)
def test_the_key_derivation(case: dict[str, str | list[str]]) -> None:
    assert isinstance(case["key"], str)
    assert isinstance(case["input"], str)
    values = kdf(3, bytes.fromhex(case["key"]), bytes.fromhex(case["input"]))
    assert [value.hex() for value in values] == case["output"]


def test_the_initiation() -> None:
    _, _, body, pending = begin()
    assert CookieJar(RESPONDER.public.raw).stamp(body, now=0.0) == vector("initiation")
    assert pending._transcript.chain_key == vector("chain_key_after_initiation")
    assert pending._transcript.hash == vector("hash_after_initiation")


def test_the_response() -> None:
    body, _ = answer(vector("initiation")[:116])
    assert CookieJar(INITIATOR.public.raw).stamp(body, now=0.0) == vector("response")


def test_both_sides_hold_the_same_keys() -> None:
    own, key, body, pending = begin()
    response, theirs = answer(body)
    ours = pending.complete(own, key, response)
    assert ours is not None
    assert (ours.send, ours.receive) == (theirs.receive, theirs.send) == (vector("t1"), vector("t2"))
    assert (ours.local_index, ours.remote_index) == (theirs.remote_index, theirs.local_index) == (INDEX_I, INDEX_R)


def test_the_first_keepalive() -> None:
    own, key, body, pending = begin()
    ours = pending.complete(own, key, answer(body)[0])
    assert ours is not None
    session = Session(None, ours, maker(PYTHON, join_udp=True), 0.0, is_initiator=True)  # type: ignore[arg-type]
    assert session.seal([PLAIN], 1280, Counters()) == [Train.of(vector("keepalive"))]


def test_the_cookie_reply_and_the_mac_made_with_it() -> None:
    class FixedCookie(CookieGuard):
        def _cookie(self, source: bytes, now: float) -> bytes:
            return bytes(range(0x64, 0x74))

    guard = FixedCookie(RESPONDER.public.raw, lambda size: bytes(range(size)))
    reply = guard.reply(vector("initiation"), b"somewhere", 0.0)
    assert reply == vector("cookie_reply")
    jar = CookieJar(RESPONDER.public.raw)
    _, _, body, _ = begin()
    jar.stamp(body, now=0.0)
    assert jar.receive(reply, now=1.0)
    assert jar.stamp(body, now=2.0)[-16:] == vector("mac2")
    assert mac(bytes(range(0x64, 0x74)), vector("initiation")[:-16]) == vector("mac2")


def test_a_preshared_key_counts() -> None:
    own, key, body, pending = begin(preshared=b"\x99" * 32)
    assert pending.complete(own, key, answer(body)[0]) is None
    assert pending.complete(own, key, answer(body, preshared=b"\x99" * 32)[0]) is not None


def test_a_forged_response_leaves_the_handshake_pending() -> None:
    own, key, body, pending = begin()
    response, _ = answer(body)
    assert pending.complete(own, key, response[:-1] + bytes((response[-1] ^ 1,))) is None
    assert pending.complete(own, key, response[:12] + bytes(32) + response[44:]) is None  # a point of low order
    assert pending.complete(own, key, response) is not None


def test_an_initiation_to_somebody_else_is_not_opened() -> None:
    _, _, body, _ = begin(peer=NodePrivate.generate(b"\x77" * 32).public)
    assert open_initiation(OwnKey(RESPONDER), body) is None
    assert open_initiation(OwnKey(RESPONDER), body[:8] + bytes(32) + body[40:]) is None


def test_a_stolen_name_does_not_make_a_time_stamp() -> None:
    _, _, body, _ = begin()
    own = OwnKey(RESPONDER)
    incoming = open_initiation(own, body)
    assert incoming is not None
    assert incoming.timestamp(PeerKey(own, NodePrivate.generate(b"\x77" * 32).public, PSK)) is None


def test_a_peer_key_of_low_order_is_refused() -> None:
    with pytest.raises(ValueError, match=r".*"):
        PeerKey(OwnKey(INITIATOR), NodePublic(bytes(32)), PSK)


def test_keys_are_not_shown() -> None:
    _, keys = answer(begin()[2])
    assert vector("t1").hex() not in repr(keys)
    assert repr(vector("t1"))[2:-1] not in repr(keys)


@given(st.binary(min_size=112, max_size=112))
def test_no_initiation_of_a_stranger_raises(body: bytes) -> None:
    assert open_initiation(OwnKey(RESPONDER), b"\1\0\0\0" + body) is None


@given(st.binary(min_size=56, max_size=56))
def test_no_response_of_a_stranger_raises(body: bytes) -> None:
    own, key, _, pending = begin()
    assert pending.complete(own, key, b"\2\0\0\0" + body) is None


@given(st.lists(st.binary(min_size=32, max_size=80), max_size=5))
def test_no_transport_message_of_a_stranger_raises(messages: list[bytes]) -> None:
    _, keys = answer(begin()[2])
    counters = Counters()
    session = Session(None, keys, maker(PYTHON, join_udp=True), 0.0, is_initiator=False)  # type: ignore[arg-type]
    opened = session.open([Train.of(message) for message in messages], counters)
    assert opened.frames == []
    assert opened.authentic_bytes == 0
    assert sum(counters.snapshot().values()) + len(opened.strays) == len(messages)
