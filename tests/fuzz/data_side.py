"""Targets that relays, peers, the programs inside and anybody with a UDP socket reach."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import warnings
from datetime import UTC, datetime

from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tests.fuzz.control_side import RULES
from tests.fuzz.material import OURS, THEIRS, WALL_CLOCK, Instructions, cut, entropy, finish, step, stream
from tsns.control.nodes import prefixes
from tsns.derp import dial
from tsns.derp.certificate import fault_of_name, fault_of_pin
from tsns.derp.framing import MAGIC, MAX_PAYLOAD_BYTES, FrameReader, FrameType, frame, restarting
from tsns.derp.session import Closed, Session
from tsns.disco.messages import (
    CALL_ME_MAYBE,
    MAX_CALLED_ENDPOINTS,
    PING,
    PONG,
    CallMeMaybe,
    Message,
    Ping,
    Pong,
    Sealer,
    sender,
)
from tsns.disco.messages import MAGIC as DISCO_MAGIC
from tsns.disco.messages import decode as decode_disco
from tsns.disco.messages import encode as encode_disco
from tsns.error import ProtocolError
from tsns.filter.packet_filter import PacketFilter
from tsns.keys import DiscoPrivate, NodePublic
from tsns.paths import stun
from tsns.paths.candidates import MAX_LEARNT, MAX_TOLD
from tsns.paths.peer_path import PeerPath
from tsns.paths.peer_paths import Reach
from tsns.proto import packets
from tsns.proto.addresses import pack, pack_endpoint
from tsns.proto.types import DERPNode, FilterRule, decode
from tsns.proto.virtio import frame_of
from tsns.sealed_box import SealedBox
from tsns.ways import DerpSource, SendUdp, Train, UdpSource
from tsns.wg.cookie import CookieGuard, CookieJar
from tsns.wg.device import Deliver, Device, Output, SessionUp, Transmit
from tsns.wg.handshake import NO_PRESHARED_KEY, OwnKey, PeerKey, SessionKeys, initiate
from tsns.wg.messages import COOKIE_REPLY_HEAD, INITIATION_HEAD, RESPONSE_HEAD, TRANSPORT_HEAD
from tsns.wg.router import Router, StunReply, WriteTun
from tsns.wg.tunnel import Effects

US, PEER = pack("100.64.0.1"), pack("100.64.0.2")
US6, PEER6 = pack("fd7a:115c:a1e0::1"), pack("fd7a:115c:a1e0::2")
THERE = ("192.0.2.2", 41641)
STRANGER = NodePublic(b"\x09" * 32)
OUR_DISCO, THEIR_DISCO = DiscoPrivate(bytes(range(32))), DiscoPrivate(bytes(range(0x20, 0x40)))
MAX_CANDIDATES = MAX_TOLD + MAX_CALLED_ENDPOINTS + MAX_LEARNT

# --- DERP ----------------------------------------------------------------------------------------------------------


KINDS = frozenset(FrameType)


def derp_frames(data: bytes) -> None:
    """A byte stream cut into frames is the same frames, however it comes."""
    whole: list[tuple[int, bytes]] = []
    parts: list[tuple[int, bytes]] = []
    failed = [False, False]
    try:
        whole += FrameReader().feed(data[1:])
    except ProtocolError:
        failed[0] = True
    reader = FrameReader()
    try:
        for piece in cut(data):
            parts += reader.feed(piece)
    except ProtocolError:
        failed[1] = True
    assert failed[0] == failed[1]
    assert failed[0] or whole == parts


def derp_session(data: bytes) -> None:
    """What a relay says: before its name, after it, and once it has accepted us; all of it, or only what it seals."""
    instructions = Instructions(data)
    session = Session(OURS, entropy(), 0.0)
    state = instructions.byte() % 3
    if state:
        session.receive(frame(FrameType.SERVER_KEY, MAGIC, THEIRS.public.raw), 0.0)
    if state > 1:
        session.receive(frame(FrameType.SERVER_INFO, _sealed(b"{}")), 0.0)
    now = 0.0
    for what, piece in instructions.steps(8):
        now += 0.5
        content = frame(what, piece) if what in KINDS else piece
        if what == FrameType.SERVER_INFO + 0x80:
            content = frame(FrameType.SERVER_INFO, _sealed(piece))
        outputs = session.receive(content, now)
        session.prefer(home=True)
        session.ping(now)
        session.forward(THEIRS.public, [bytes(100)], now)
        assert sum(isinstance(output, Closed) for output in outputs) <= 1
    deadline = session.deadline()
    if deadline is not None:
        session.tick(deadline)
    assert len(session._reader._rest) <= MAX_PAYLOAD_BYTES


@functools.cache
def _box() -> SealedBox:
    return SealedBox(THEIRS, OURS.public.raw)


def _sealed(text: bytes) -> bytes:
    return _box().seal(text, entropy())


def derp_session_seeds() -> list[bytes]:
    info = b'{"version":2,"TokenBucketBytesPerSecond":1000,"TokenBucketBytesBurst":2000}'
    packet = THEIRS.public.raw + b"\4\0\0\0 packet"
    relay = [
        step(FrameType.RECV_PACKET, packet) * 2,
        step(FrameType.PEER_GONE, THEIRS.public.raw + b"\1"),
        step(FrameType.PING, b"12345678") + step(FrameType.KEEP_ALIVE, b""),
        step(FrameType.HEALTH, b"bad \xff\x1b[2J"),
        step(0, restarting(1.0, 2.0)),
        step(0, frame(FrameType.RECV_PACKET, packet)[:20]) + step(0, frame(FrameType.RECV_PACKET, packet)[20:]),
    ]
    key = frame(FrameType.SERVER_KEY, MAGIC, THEIRS.public.raw)
    return [
        b"\0" + step(0, key) + step(FrameType.SERVER_INFO + 0x80, info) + b"".join(relay),
        b"\1" + step(FrameType.SERVER_INFO + 0x80, info),
        *(b"\2" + each for each in relay),
    ]


def derp_answer(data: bytes) -> None:
    """A relay's answers to the request to upgrade, and to a latency check."""
    node = DERPNode(host_name="derp.example")
    with contextlib.suppress(ProtocolError):
        finish(dial._latency_check(stream(data), node))
    finish(dial._upgrade(stream(data), node, "7a"))


DERP_ANSWER_SEEDS = [
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\n\r\n" + MAGIC,
    b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    b"HTTP/1.1 302 Found\r\nLocation: https://x/\r\n\r\n",
]

NAMES = ("derp.example", "*.example", "192.0.2.1", "2001:db8::1")


def certificate(data: bytes) -> None:
    """A relay's certificate. The library's warnings about odd ones are for whoever makes certificates."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _judge(data)


def _judge(data: bytes) -> None:
    for name in NAMES:
        fault_of_name(data, name)
        pin = "sha256-raw:" + hashlib.sha256(data).hexdigest()
        fault_of_pin(data, pin, name, datetime(2026, 1, 1, tzinfo=UTC))


# --- WireGuard -----------------------------------------------------------------------------------------------------

INDEX, THEIR_INDEX = b"\x11\x22\x33\x44", b"\x55\x66\x77\x88"
TO_THEM, TO_US = bytes(range(32)), bytes(range(32, 64))
_CIPHER = ChaCha20Poly1305(TO_US)


class Line:
    """A device with one peer, a session with it, and the other side's half of that as bytes."""

    def __init__(self) -> None:
        self.device = Device(OURS, entropy(), wall_clock=lambda: WALL_CLOCK)
        key = THEIRS.public
        self.device.set_peer(key, prefixes(["100.64.0.2/32", "fd7a:115c:a1e0::2/128"]))
        tunnel = self.device._tunnel(self.device._peers[key], 0.0)
        assert tunnel is not None
        keys = SessionKeys(TO_THEM, TO_US, INDEX, THEIR_INDEX)
        tunnel._current = tunnel._new_session(keys, 0.0, is_initiator=True)
        self.tunnel = tunnel
        self._jar = CookieJar(OURS.public.raw)
        self._counter = 0

    def message(self, what: int, data: bytes) -> bytes:
        """A datagram: `data` as it is, or dressed up as far as somebody could who knows our key or is our peer."""
        match what % 8:
            case 1:
                return self.transport(data)
            case 2:
                return self._stamped(INITIATION_HEAD + data[:112].ljust(112, b"\0"))
            case 3:
                index = self.begun() if what & 8 else INDEX
                return self._stamped(RESPONSE_HEAD + THEIR_INDEX + index + data[:48].ljust(48, b"\0"))
            case 4:
                index = self.begun() if what & 8 else INDEX
                return COOKIE_REPLY_HEAD + index + data[:56].ljust(56, b"\0")
            case 5:
                return TRANSPORT_HEAD + INDEX + data
            case 6:
                body, _ = initiate(
                    _them(),
                    _us(),
                    ephemeral=(data[12:44] or b"e").ljust(32, b"e"),
                    index=THEIR_INDEX,
                    timestamp=data[:12].ljust(12, b"\xff"),
                    now=0.0,
                )
                return self._stamped(body)
            case 7 if what & 8:  # a cookie for what we sent last
                self.begun()
                last = self.tunnel._jar._last_mac1
                return CookieGuard(THEIRS.public.raw, entropy()).reply(
                    bytes(4) + data[:100] + last + bytes(16), b"x", 0.0
                )
            case _:
                return data

    def transport(self, plaintext: bytes) -> bytes:
        """A packet of the peer's."""
        nonce = bytes(4) + self._counter.to_bytes(8, "little")
        self._counter += 1
        return TRANSPORT_HEAD + INDEX + nonce[4:] + _CIPHER.encrypt(nonce, plaintext, None)

    def begun(self) -> bytes:
        """The index of an initiation of ours."""
        if not self.device.indices.pending:
            self.tunnel._heard = True
            self.tunnel._begin_handshake(10.0, Effects())
        return next(iter(self.device.indices.pending), INDEX)

    def _stamped(self, body: bytes) -> bytes:
        return self._jar.stamp(body, 0.0)


@functools.cache
def _them() -> OwnKey:
    return OwnKey(THEIRS)


@functools.cache
def _us() -> PeerKey:
    return PeerKey(_them(), OURS.public, NO_PRESHARED_KEY)


def wireguard(data: bytes) -> None:
    """Messages to a device, with right outer forms too; time passes between them."""
    line, now = Line(), 0.0
    device = line.device
    for what, piece in Instructions(data).steps(8):
        now += what >> 4
        source = UdpSource(THERE) if what & 8 else DerpSource(7, THEIRS.public)
        _check(device.receive([Train.of(line.message(what, piece)), Train.of(piece)], source, now))
        deadline = device.deadline()
        if deadline is not None and what & 0x40:
            now = max(now, deadline)
            _check(device.tick(now))
    assert len(device.indices.sessions) <= 5
    assert len(device.indices.pending) <= 5


def _check(outputs: list[Output]) -> None:
    for output in outputs:
        match output:
            case Deliver(peer=peer):
                assert peer == THEIRS.public
                assert all(packets.source(each) in {PEER, PEER6} for each in output.packets)
            case Transmit(peer=peer) | SessionUp(peer=peer):
                assert peer == THEIRS.public


def wireguard_seeds() -> list[bytes]:
    udp = packets.build(17, PEER, US, b"\x10\0\x20\0\0\x0d\0\0hello")
    return [
        step(1, udp) + step(1, b"") + step(5, bytes(40)),
        step(2, bytes(112)),
        step(6, b"\x40" + bytes(11) + bytes(range(32))) + step(6, b"\x41" + bytes(11)),
        step(0xFB, bytes(48)) + step(0xFC, bytes(56)) + step(0xFF, b"") + step(0xF1, udp),
        step(0, b"\1\0\0\0" + bytes(144)) + step(0, b"\2\0\0\0" + bytes(88)) + step(0, b"\3\0\0\0" + bytes(60)),
    ]


def router(data: bytes) -> None:
    """Datagrams and relayed frames to everything between network and TUN: first bytes, tunnel, paths, filter, TSMP."""
    line = Line()
    judge = PacketFilter()
    instructions = Instructions(data)
    if instructions.byte() & 1:
        _let(judge)
    way = Router(line.device, judge, OUR_DISCO)
    way.paths.set_endpoints([THERE], 0.0)
    way.paths.set_peer(THEIRS.public, Reach(THEIR_DISCO.public, ["192.0.2.2:41641", "?"], 7), 0.0)
    now = 0.0
    for what, piece in instructions.steps(8):
        now += 1.0
        if what & 0x80:
            now += 4.0 * (what & 3)
            message = _said(way, piece, is_answer=bool(what & 8))
        else:
            message = line.message(what, piece)
        before = way.path_status(THEIRS.public)
        if what & 0x10:
            outputs = way.inbound_udp([(Train.of(message), THERE), (Train.of(piece), ("fe80::1%eth0", 9))], now)
        elif what & 0x20:
            outputs = way.outbound([frame_of(piece), frame_of(message)], now)
        else:
            way.set_jailed(THEIRS.public, bool(what & 0x40))
            outputs = way.inbound_derp(7, [(THEIRS.public, message), (STRANGER, piece)], now)
        if not (what & 0x80 and what & 0x10 and piece[:1] == bytes((PONG,))):
            assert way.path_status(THEIRS.public).endpoint in {None, before.endpoint}  # only a pong makes a path
        for output in (*outputs, *way.tick(now)):
            if isinstance(output, WriteTun):
                for packet in output.packets:
                    assert not packets.is_tsmp(packet)
                    assert packets.source(packet) in {PEER, PEER6}
            elif isinstance(output, StunReply):
                stun.parse_response(output.data)
            elif isinstance(output, SendUdp):
                assert output.address[1]
        deadline = way.paths.deadline()
        assert deadline is None or deadline > now
    path = way.paths._peers[THEIRS.public].path
    assert not isinstance(path, PeerPath) or len(path._candidates) <= MAX_CANDIDATES


def _said(way: Router, payload: bytes, *, is_answer: bool) -> bytes:
    """A disco message of the peer's with this payload, perhaps with the transaction of a ping of ours."""
    waiting = list(way.paths._sent._waiting)
    if is_answer and waiting:
        payload = payload[:2] + waiting[payload[-1] % len(waiting) if payload else 0] + payload[14:]
    return DISCO_MAGIC + THEIR_DISCO.public.raw + _disco_box().seal(payload, entropy(len(payload)))


@functools.cache
def _disco_box() -> SealedBox:
    return SealedBox(THEIR_DISCO, OUR_DISCO.public.raw)


def router_seeds() -> list[bytes]:
    ping = packets.tsmp_ping(PEER, US, b"12345678")
    syn = packets.build(6, PEER, US, b"\x10\0\0\x50" + bytes(8) + b"\x50\x02\x10\0" + bytes(4))
    seen_from = pack_endpoint(THERE)
    call = bytes((CALL_ME_MAYBE, 0)) + seen_from + pack_endpoint(("2001:db8::2", 9)) + pack_endpoint(("127.0.0.1", 9))
    return [
        b"\1" + step(1, ping) + step(1, packets.tsmp_pong(PEER, US, b"12345678")),
        b"\1" + step(1, syn) + step(1, packets.echo_request(PEER6, US6, 1, 2, b"x")),
        b"\0" + step(1, syn),
        b"\1" + step(0x10, stun.response(bytes(12), THERE)) + step(0, DISCO_MAGIC + bytes(60)),
        b"\1" + step(0x21, packets.echo_request(US, PEER, 1, 2)) + step(0x41, packets.echo_reply(PEER, US, 1, 2)),
        b"\1" + step(1, packets.tsmp_disco_key(PEER, US, bytes(32))),
        b"\1" + step(0x90, bytes((PING, 0)) + bytes(12) + THEIRS.public.raw) + step(0x80, bytes((PING, 0)) + bytes(12)),
        b"\1" + step(0x80, call) + step(0x98, bytes((PONG, 0)) + bytes(12) + seen_from) + step(0x21, ping),
    ]


# --- disco ---------------------------------------------------------------------------------------------------------


def disco(data: bytes) -> None:
    """A payload that a peer has sealed, and a datagram that anybody may have sent."""
    payload = data[1:]
    message = decode_disco(payload)
    if message is not None:
        again = encode_disco(message)
        assert decode_disco(again) == message
        assert not isinstance(message, CallMeMaybe) or len(message.endpoints) <= MAX_CALLED_ENDPOINTS
    sealer = Sealer(OUR_DISCO, entropy())
    sealed = DISCO_MAGIC + THEIR_DISCO.public.raw + _disco_box().seal(payload, entropy())
    assert sender(sealed) == THEIR_DISCO.public
    assert sealer.open(sealed, THEIR_DISCO.public) == message
    at = data[0] * len(sealed) // 256 if data else 0
    for datagram in (payload, DISCO_MAGIC + payload, sealed[:at] + payload[:1] + sealed[at:], sealed[:at]):
        whose = sender(datagram)
        if whose is not None and datagram != sealed:
            with contextlib.suppress(ProtocolError):
                sealer.open(datagram, whose)
                raise AssertionError("what nobody sealed was opened")


def disco_seeds() -> list[bytes]:
    messages: list[Message] = [
        Ping(bytes(12), None),
        Ping(bytes(12), THEIRS.public),
        Pong(bytes(12), THERE),
        Pong(bytes(12), ("2001:db8::2", 9)),
        CallMeMaybe(()),
        CallMeMaybe((THERE, ("2001:db8::2", 9), ("fe80::1", 1))),
    ]
    return [*(b"\x40" + encode_disco(message) for message in messages), b"\x40\x04\0" + bytes(72)]


# --- packets -------------------------------------------------------------------------------------------------------


def _let(judge: PacketFilter) -> None:
    judge.update(
        _rules(),
        prefixes(["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]),
        shields_up=False,
        capability_holders=lambda _: [],
    )


@functools.cache
def _rules() -> list[FilterRule]:
    return [decode(json.dumps(rule).encode(), FilterRule) for rule in RULES]


def packet(data: bytes) -> None:
    """One IP packet."""
    whole = packets.trimmed(data)
    assert whole is None or data.startswith(whole)
    packets.source(data)
    packets.destination(data)
    parsed = packets.parse(data)
    if parsed is not None:
        assert parsed.header_bytes <= len(data)
        assert parsed.length <= len(data)
        if parsed.version == 4:
            packets.tsmp_reject(parsed, packets.RejectReason.ACL)
        if packets.is_tsmp(data):
            packets.parse_tsmp(data)
    packets.udp_carries(data, DISCO_MAGIC)


def packet_seeds() -> list[bytes]:
    syn = packets.build(6, PEER, US, b"\x10\0\0\x50" + bytes(8) + b"\x50\x02\x10\0" + bytes(4))
    parsed = packets.parse(syn)
    assert parsed is not None
    options = b"\x46" + syn[1:20] + b"\x94\x04\0\0" + syn[20:]
    fragment = syn[:6] + b"\0\x10" + syn[8:]
    hop_by_hop = packets.build(0, PEER6, US6, b"\x3a\0" + bytes(6) + b"\x80\0\0\0\0\1\0\2")
    return [
        syn,
        options,
        fragment,
        hop_by_hop,
        packets.echo_request(PEER6, US6, 1, 2, b"x"),
        packets.build(17, PEER6, US6, b"\0\x35\x10\0\0\x08\0\0"),
        packets.build(132, PEER, US, b"\x10\0\0\x50" + bytes(8)),
        packets.tsmp_ping(PEER, US, b"12345678"),
        packets.tsmp_pong(PEER, US, b"12345678", peerapi_port=80),
        packets.tsmp_reject(parsed, packets.RejectReason.ACL, maybe_broken=True),
        packets.tsmp_disco_key(PEER, US, bytes(32)),
    ]


def stun_message(data: bytes) -> None:
    """Answers to our requests; requests to a relay."""
    stun.parse_request(data)
    answer = stun.parse_response(data)
    if answer is not None:
        assert stun.parse_response(stun.response(answer.txid, answer.address)) == answer


def stun_seeds() -> list[bytes]:
    txid = bytes(range(12))
    legacy = b"\1\1\0\x0c\x21\x12\xa4\x42" + txid + b"\0\1\0\x08\0\1\x12\x34\xc0\0\2\1"
    return [stun.request(txid), stun.response(txid, THERE), stun.response(txid, ("2001:db8::1", 1)), legacy]
