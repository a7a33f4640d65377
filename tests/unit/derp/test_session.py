"""The client's half of DERP, told as transcripts: what came, what must go out."""

from __future__ import annotations

import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsns.derp.framing import MAGIC, MAX_PACKET_BYTES, MAX_PAYLOAD_BYTES, FrameReader, FrameType, frame, restarting
from tsns.derp.session import (
    MAX_HEALTH_CHARS,
    PONG_S,
    SILENCE_S,
    Closed,
    Health,
    Opened,
    Output,
    PeerGone,
    Ready,
    Received,
    Restarting,
    Send,
    Session,
    TokenBucket,
)
from tsns.keys import NodePrivate, NodePublic
from tsns.sealed_box import SealedBox

CLIENT = NodePrivate(b"\x55" * 32)
RELAY = NodePrivate(b"\x66" * 32)
PEER = NodePublic(b"\x77" * 32)
OTHER = NodePublic(b"\x88" * 32)


def counting(size: int) -> bytes:
    return bytes(range(size))


def greeting(*more: bytes) -> bytes:
    return frame(FrameType.SERVER_KEY, MAGIC, RELAY.public.raw, *more)


def welcome(relay: NodePrivate = RELAY, info: bytes = b'{"version":2}') -> bytes:
    return frame(FrameType.SERVER_INFO, SealedBox(relay, CLIENT.public.raw).seal(info, counting))


def from_peer(peer: NodePublic, packet: bytes) -> bytes:
    return frame(FrameType.RECV_PACKET, peer.raw, packet)


def new_session() -> Session:
    return Session(CLIENT, counting, now=0.0)


@pytest.fixture
def ready() -> Session:
    session = new_session()
    assert session.receive(greeting() + welcome(), now=0.0)[-1] == Ready()
    return session


def test_login_proves_our_key_to_the_relay() -> None:
    session = new_session()
    sent, opened = session.receive(greeting(b"of the future"), now=0.0)
    assert isinstance(sent, Send)
    assert opened == Opened()
    [(kind, payload)] = FrameReader().feed(sent.data)
    assert kind == FrameType.CLIENT_INFO
    assert payload[:32] == CLIENT.public.raw
    assert SealedBox(RELAY, payload[:32]).open(payload[32:]) == b'{"version":2,"CanAckPings":true}'
    assert not session.is_ready
    assert session.receive(welcome(), now=0.1) == [Ready()]
    assert session.is_ready


def test_packets_need_not_wait_for_server_info_but_for_the_login() -> None:
    session = new_session()
    assert session.forward(PEER, [b"too soon"], now=0.0) == b""
    assert session.prefer(home=True) == b""
    session.receive(greeting(), now=0.0)
    expected = frame(FrameType.SEND_PACKET, PEER.raw, b"one") + frame(FrameType.SEND_PACKET, PEER.raw, b"two")
    assert session.forward(PEER, [b"one", b"two"], now=0.0) == expected
    assert session.prefer(home=True) == frame(FrameType.NOTE_PREFERRED, b"\x01")
    assert session.prefer(home=False) == frame(FrameType.NOTE_PREFERRED, b"\x00")


@pytest.mark.parametrize(
    ("came", "goes_out"),
    [
        (from_peer(PEER, b"hello"), [Received([(PEER, b"hello")])]),
        (frame(FrameType.PEER_GONE, PEER.raw), [PeerGone(PEER)]),
        (frame(FrameType.PEER_GONE, PEER.raw, b"\x01"), [PeerGone(PEER)]),
        (frame(FrameType.PING, b"8 bytes!"), [Send(frame(FrameType.PONG, b"8 bytes!"))]),
        (frame(FrameType.PING, b"8 bytes! and more"), [Send(frame(FrameType.PONG, b"8 bytes!"))]),
        (frame(FrameType.HEALTH, b"duplicate client"), [Health("duplicate client")]),
        (frame(FrameType.HEALTH), [Health("")]),
        (frame(FrameType.HEALTH, b"\xff\x1b[31mred\n"), [Health("\ufffd [31mred")]),
        (frame(FrameType.HEALTH, b"x" * 5000), [Health("x" * MAX_HEALTH_CHARS)]),
        (restarting(1.5, 60), [Restarting(1.5, 60.0)]),
        (frame(FrameType.KEEP_ALIVE), []),
        (frame(FrameType.PONG, b"8 bytes!"), []),
        (frame(FrameType.PEER_PRESENT, PEER.raw), []),
        (struct.pack(">BI", 0xEE, 3) + b"new", []),
        (welcome(), []),
    ],
)
def test_once_ready(ready: Session, came: bytes, goes_out: list[Output]) -> None:
    assert ready.receive(came, now=1.0) == goes_out


def test_packets_of_one_read_are_handed_over_together_and_in_order(ready: Session) -> None:
    came = from_peer(PEER, b"1") + from_peer(PEER, b"2") + from_peer(OTHER, b"3")
    gone = frame(FrameType.PEER_GONE, OTHER.raw)
    assert ready.receive(came + gone + from_peer(PEER, b"4"), now=1.0) == [
        Received([(PEER, b"1"), (PEER, b"2"), (OTHER, b"3")]),
        PeerGone(OTHER),
        Received([(PEER, b"4")]),
    ]


@pytest.mark.parametrize(
    ("came", "reason"),
    [
        (frame(FrameType.SERVER_KEY, b"HTTP" * 12), "not a DERP relay"),
        (frame(FrameType.SERVER_KEY, MAGIC, b"short"), "not a DERP relay"),
        (greeting(bytes(1024)), "not a DERP relay"),
        (frame(FrameType.SERVER_KEY, MAGIC, bytes(32)), "key is worthless"),
        (from_peer(PEER, b"early"), "RECV_PACKET in state AWAIT_KEY"),
        (greeting() + greeting(), "SERVER_KEY in state AWAIT_INFO"),
        (greeting() + from_peer(PEER, b"early"), "RECV_PACKET in state AWAIT_INFO"),
        (greeting() + welcome(NodePrivate(b"\x11" * 32)), "not from the owner of the key"),
        (greeting() + welcome(info=b"[]"), "holds no information"),
        (greeting() + welcome() + frame(FrameType.RECV_PACKET, b"x" * 31), "RECV_PACKET without a key"),
        (greeting() + welcome() + frame(FrameType.PEER_GONE), "PEER_GONE without a key"),
        (greeting() + welcome() + frame(FrameType.RESTARTING, b"soon"), "without its times"),
        (struct.pack(">BI", FrameType.HEALTH, MAX_PAYLOAD_BYTES + 1), "announces 1048577 bytes"),
    ],
)
def test_a_relay_that_breaks_the_rules_is_left(came: bytes, reason: str) -> None:
    session = new_session()
    closed = session.receive(came, now=0.0)[-1]
    assert isinstance(closed, Closed)
    assert reason in closed.reason
    assert session.receive(greeting(), now=0.0) == []
    assert session.forward(PEER, [b"too late"], now=0.0) == b""
    assert session.deadline() is None


def test_unknown_frames_are_read_over_from_the_start() -> None:
    assert new_session().receive(frame(0x7F, b"new") + greeting() + frame(0x7F) + welcome(), now=0.0)[-1] == Ready()


def test_silence_ends_the_connection_and_any_frame_breaks_it(ready: Session) -> None:
    ready.receive(frame(FrameType.KEEP_ALIVE), now=100.0)
    assert ready.deadline() == 100.0 + SILENCE_S
    assert ready.tick(now=219.9) == []
    assert ready.tick(now=220.0) == [Closed("nothing heard for 120 s")]
    assert ready.tick(now=230.0) == []


def test_half_a_frame_does_not_break_the_silence(ready: Session) -> None:
    ready.receive(b"\x06\x00", now=100.0)
    assert ready.deadline() == SILENCE_S


def test_an_unanswered_ping_ends_the_connection(ready: Session) -> None:
    assert ready.ping(now=10.0) == frame(FrameType.PING, bytes(range(8)))
    assert ready.deadline() == 10.0 + PONG_S
    assert ready.tick(now=12.9) == []
    assert ready.tick(now=13.0) == [Closed("no answer to a ping")]


def test_any_frame_answers_a_ping(ready: Session) -> None:
    ready.ping(now=10.0)
    ready.ping(now=12.0)  # does not give it more time
    assert ready.deadline() == 10.0 + PONG_S
    ready.receive(frame(FrameType.KEEP_ALIVE), now=11.0)
    assert ready.tick(now=13.0) == []
    assert ready.deadline() == 11.0 + SILENCE_S


def test_a_ping_waits_for_the_login() -> None:
    session = new_session()
    session.receive(greeting(), now=0.0)
    assert session.ping(now=0.0) == b""


def test_a_packet_that_no_relay_takes_is_left_out(ready: Session) -> None:
    sent = ready.forward(PEER, [bytes(MAX_PACKET_BYTES + 1), bytes(MAX_PACKET_BYTES)], now=0.0)
    assert [len(payload) for _, payload in FrameReader().feed(sent)] == [32 + MAX_PACKET_BYTES]
    assert ready.too_long == 1


def test_the_relays_token_bucket_is_kept() -> None:
    session = new_session()
    info = b'{"version":2,"TokenBucketBytesPerSecond":100,"TokenBucketBytesBurst":120}'
    session.receive(greeting() + welcome(info=info), now=0.0)
    packet = b"x" * (60 - 37)  # sixty bytes as a frame
    assert session.forward(PEER, [packet] * 3, now=0.0) == 2 * frame(FrameType.SEND_PACKET, PEER.raw, packet)
    assert session.rate_limited == 1
    assert session.forward(PEER, [packet], now=0.5) == b""
    assert session.forward(PEER, [packet], now=0.7) != b""
    session.receive(welcome(), now=1.0)  # a later one lifts the limit
    assert len(session.forward(PEER, [packet] * 10, now=1.0)) == 10 * 60


def test_a_token_bucket_never_holds_more_than_its_burst() -> None:
    bucket = TokenBucket(rate=10, burst=20, now=0.0)
    assert bucket.take(20, now=1000.0)
    assert not bucket.take(1, now=1000.0)
    assert bucket.take(10, now=1001.0)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.integers(0, 300)))
def test_where_the_stream_is_cut_does_not_matter(cuts: list[int]) -> None:
    stream = greeting() + welcome() + from_peer(PEER, b"x" * 99)
    session, heard, start = new_session(), list[Output](), 0
    for cut in [*sorted(cuts), len(stream)]:
        heard += session.receive(stream[start:cut], now=0.0)
        start = max(start, cut)
    assert [type(output) for output in heard] == [Send, Opened, Ready, Received]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=400), st.booleans())
def test_no_bytes_of_a_stranger_raise(data: bytes, logged_in: bool) -> None:
    new_session().receive((greeting() + welcome() if logged_in else greeting()) + data, now=0.0)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.sampled_from(FrameType), st.binary(max_size=80)), max_size=8))
def test_no_frames_of_a_stranger_raise(frames: list[tuple[FrameType, bytes]]) -> None:
    session = new_session()
    for kind, payload in frames:
        session.receive(frame(kind, payload), now=0.0)
    session = new_session()
    session.receive(greeting() + welcome() + b"".join(frame(*one) for one in frames), now=0.0)
