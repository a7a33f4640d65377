"""DERP, the client's side of one connection (ring 0).

Source: derp/derp_client.go of Tailscale's module. A session begins where the HTTP upgrade succeeded and ends with its connection.

    AWAIT_KEY --SERVER_KEY--> AWAIT_INFO --SERVER_INFO--> READY
    any state --a frame against the rules, or silence--> CLOSED

From AWAIT_INFO on packets may be sent: a relay reads them in order behind our CLIENT_INFO. What is legal when stands in one table,
`Session._HANDLERS`. Until READY a known frame that it lacks is the relay's error; in READY a frame that is not for clients is passed
over like one that nobody knows yet.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Final

import msgspec

from tsns.derp.framing import (
    HEADER_BYTES,
    KEY_BYTES,
    MAGIC,
    MAX_PACKET_BYTES,
    MAX_SERVER_KEY_BYTES,
    PING_BYTES,
    PROTOCOL_VERSION,
    ClientInfo,
    FrameReader,
    FrameType,
    ServerInfo,
    frame,
    parse_restarting,
    split_key,
)
from tsns.error import ProtocolError
from tsns.keys import NodePrivate, NodePublic
from tsns.sealed_box import SealedBox

SILENCE_S: Final = 120.0  # two of the relay's keep-alives missed
PONG_S: Final = 3.0  # how long the answer to our own ping may take
MAX_HEALTH_CHARS: Final = 500

_KNOWN: Final = frozenset(FrameType)


@dataclass(frozen=True, slots=True)
class Send:
    """Write these bytes to the connection."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Opened:
    """The relay has our name: from now on packets may be written."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The relay accepted us: peers can reach us here."""


@dataclass(frozen=True, slots=True)
class Received:
    """Packets for us, in order, each with the node that sent it."""

    packets: list[tuple[NodePublic, bytes]]


@dataclass(frozen=True, slots=True)
class PeerGone:
    """The relay cannot reach this node here: forget that it was heard on this connection."""

    peer: NodePublic


@dataclass(frozen=True, slots=True)
class Health:
    """The relay's own complaint about this connection; empty when it is over."""

    complaint: str


@dataclass(frozen=True, slots=True)
class Restarting:
    """The relay is about to go away: wait, then try to come back for some time before this counts as a failure."""

    reconnect_in_s: float
    try_for_s: float


@dataclass(frozen=True, slots=True)
class Closed:
    """Nothing more will come; close the connection."""

    reason: str


Output = Send | Opened | Ready | Received | PeerGone | Health | Restarting | Closed


class TokenBucket:
    """How much may be sent: `rate` bytes a second, and `burst` bytes at once."""

    def __init__(self, rate: float, burst: float, now: float) -> None:
        self._rate = rate
        self._burst = burst
        self._tokens = burst
        self._filled_at = now

    def take(self, size: int, now: float) -> bool:
        """Whether `size` bytes may go now; they are then taken out."""
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        if size > self._tokens:
            return False
        self._tokens -= size
        return True


class _State(enum.Enum):
    AWAIT_KEY = enum.auto()
    AWAIT_INFO = enum.auto()
    READY = enum.auto()
    CLOSED = enum.auto()


class Session:
    """One connection to one relay.

    Whoever owns the connection writes what `Send` holds and what `forward`, `prefer` and `ping` return, and calls `tick` no later
    than `deadline`. Times are seconds on the caller's monotonic clock.
    """

    def __init__(self, private: NodePrivate, random: Callable[[int], bytes], now: float) -> None:
        self._private = private
        self._random = random
        self._state = _State.AWAIT_KEY
        self._reader = FrameReader()
        self._box: SealedBox | None = None
        self._bucket: TokenBucket | None = None
        self._pong_due: float | None = None
        self._source = NodePublic(bytes(KEY_BYTES))  # of the last packet: trains come from one peer
        self._now = now
        self.is_open = False  # packets may be written
        self.is_ready = False  # the relay accepted us
        self.last_frame_at = now
        self.rate_limited = 0  # packets that the relay's token bucket refused
        self.too_long = 0  # packets that no relay would take

    def receive(self, data: bytes, now: float) -> list[Output]:
        """Take what the connection delivered; never raises for what a relay may send."""
        out: list[Output] = []
        if self._state is _State.CLOSED:
            return out
        self._now = now
        try:
            for kind, payload in self._reader.feed(data):
                self.last_frame_at = now
                self._pong_due = None  # any frame shows that the relay is there
                self._handle(kind, payload, out)
        except ProtocolError as error:
            out += self._close(str(error))
        return out

    def tick(self, now: float) -> list[Output]:
        """Let time pass."""
        if self._pong_due is not None and now >= self._pong_due:
            return self._close("no answer to a ping")
        if now >= self.last_frame_at + SILENCE_S:  # as in `deadline`, to the last bit
            return self._close(f"nothing heard for {now - self.last_frame_at:.0f} s")
        return []

    def deadline(self) -> float | None:
        """When `tick` is due at the latest; None once closed."""
        if self._state is _State.CLOSED:
            return None
        silence_at = self.last_frame_at + SILENCE_S
        return silence_at if self._pong_due is None else min(silence_at, self._pong_due)

    def forward(self, peer: NodePublic, packets: Sequence[bytes], now: float) -> bytes:
        """The frames that ask the relay to pass these packets to a peer, as one piece; empty where none may be sent.

        What is too long for any relay, or more than this one wants, is left out and counted.
        """
        if not self.is_open:
            return b""
        frames = []
        for packet in packets:
            if len(packet) > MAX_PACKET_BYTES:
                self.too_long += 1
            elif self._bucket and not self._bucket.take(HEADER_BYTES + KEY_BYTES + len(packet), now):
                self.rate_limited += 1
            else:
                frames.append(frame(FrameType.SEND_PACKET, peer.raw, packet))
        return b"".join(frames)

    def prefer(self, home: bool) -> bytes:
        """The frame that tells the relay whether it is our home; empty before we may write."""
        return frame(FrameType.NOTE_PREFERRED, b"\x01" if home else b"\x00") if self.is_open else b""

    def ping(self, now: float) -> bytes:
        """The frame that asks for a sign of life within PONG_S; empty before the login is done."""
        if not self.is_ready:
            return b""
        if self._pong_due is None:
            self._pong_due = now + PONG_S
        return frame(FrameType.PING, self._random(PING_BYTES))

    def _handle(self, kind: int, payload: bytes, out: list[Output]) -> None:
        handler = self._HANDLERS[self._state].get(kind)
        if handler is not None:
            handler(self, payload, out)
        elif kind in _KNOWN and self._state is not _State.READY:
            raise ProtocolError(f"{FrameType(kind).name} in state {self._state.name}")

    def _on_server_key(self, payload: bytes, out: list[Output]) -> None:
        if not payload.startswith(MAGIC) or not len(MAGIC) + KEY_BYTES <= len(payload) <= MAX_SERVER_KEY_BYTES:
            raise ProtocolError("this is not a DERP relay")
        self._box = SealedBox(self._private, payload[len(MAGIC) :][:KEY_BYTES])
        about = msgspec.json.encode(ClientInfo(version=PROTOCOL_VERSION, can_ack_pings=True))
        sealed = self._box.seal(about, self._random)
        out += [Send(frame(FrameType.CLIENT_INFO, self._private.public.raw, sealed)), Opened()]
        self._state = _State.AWAIT_INFO
        self.is_open = True

    def _on_server_info(self, payload: bytes, out: list[Output]) -> None:
        assert self._box is not None  # set on the way to AWAIT_INFO
        try:
            info = msgspec.json.decode(self._box.open(payload), type=ServerInfo)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            raise ProtocolError("SERVER_INFO holds no information") from None
        rate = info.bytes_per_second or 0
        self._bucket = TokenBucket(rate, info.bytes_burst or rate, self._now) if rate > 0 else None
        if self._state is not _State.READY:
            self._state = _State.READY
            self.is_ready = True
            out.append(Ready())

    def _on_recv_packet(self, payload: bytes, out: list[Output]) -> None:
        source, packet = split_key(payload, "RECV_PACKET")
        if source != self._source.raw:
            self._source = NodePublic(source)
        if out and isinstance(out[-1], Received):
            out[-1].packets.append((self._source, packet))
        else:
            out.append(Received([(self._source, packet)]))

    def _on_peer_gone(self, payload: bytes, out: list[Output]) -> None:
        peer, _ = split_key(payload, "PEER_GONE")
        out.append(PeerGone(NodePublic(peer)))

    def _on_ping(self, payload: bytes, out: list[Output]) -> None:
        out.append(Send(frame(FrameType.PONG, payload[:PING_BYTES])))

    def _on_health(self, payload: bytes, out: list[Output]) -> None:
        text = payload[: 4 * MAX_HEALTH_CHARS].decode(errors="replace")
        out.append(Health("".join(c if c.isprintable() else " " for c in text[:MAX_HEALTH_CHARS]).strip()))

    def _on_restarting(self, payload: bytes, out: list[Output]) -> None:
        out.append(Restarting(*parse_restarting(payload)))

    def _on_nothing(self, payload: bytes, out: list[Output]) -> None:
        """The frame's arrival was its message."""

    def _close(self, reason: str) -> list[Output]:
        if self._state is _State.CLOSED:
            return []
        self._state = _State.CLOSED
        self.is_open = self.is_ready = False
        return [Closed(reason)]

    _Handler = Callable[["Session", bytes, list[Output]], None]
    _HANDLERS: ClassVar[dict[_State, dict[int, _Handler]]] = {
        _State.AWAIT_KEY: {
            FrameType.SERVER_KEY: _on_server_key,
        },
        _State.AWAIT_INFO: {
            FrameType.SERVER_INFO: _on_server_info,
            FrameType.KEEP_ALIVE: _on_nothing,
        },
        _State.READY: {
            FrameType.SERVER_INFO: _on_server_info,
            FrameType.RECV_PACKET: _on_recv_packet,
            FrameType.PEER_GONE: _on_peer_gone,
            FrameType.PING: _on_ping,
            FrameType.PONG: _on_nothing,
            FrameType.KEEP_ALIVE: _on_nothing,
            FrameType.HEALTH: _on_health,
            FrameType.RESTARTING: _on_restarting,
        },
        _State.CLOSED: {},
    }
