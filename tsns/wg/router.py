"""Between TUN, tunnel and network: which way packets go and who may send them (ring 0).

Source: magicsock's and tstun's order of things in Tailscale's module.

    TUN -> packet filter -> Device by destination -> the peer's path -> UDP datagrams or DERP frames, or both

    UDP --> STUN            -> StunReply                                  DERP --> disco -> PeerPaths
        |-> disco           -> PeerPaths                                       `-> WireGuard
        `-> WireGuard --> Device: authentic, inner source allowed --> packet filter --> TUN
                                                                        |           `-> TSMP: answered here
                                                                        `-> refused TCP SYN on IPv4: a reject goes back

A reject that comes for a TCP connection of ours becomes a reset for the program that wants it (filter.opening).

A peer is sent to by its path alone, never to where something came from. What DERP says about a frame's sender is
believed only as far as WireGuard authenticates it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tsns.counters import Counters
from tsns.disco.messages import MAGIC as DISCO_MAGIC
from tsns.disco.messages import Sealer
from tsns.filter.opening import Openings, refusal_text
from tsns.keys import DiscoPrivate, DiscoPublic, NodePublic
from tsns.paths.peer_paths import PathChanged, PathStatus, PeerPaths, Ponged, WantEndpoints
from tsns.proto.packets import (
    HEAD_BYTES,
    Packet,
    RejectReason,
    TsmpDiscoKey,
    TsmpPing,
    TsmpPong,
    TsmpReject,
    decode,
    echo_reply_payload,
    echo_request,
    is_tsmp,
    parse_tsmp,
    tsmp_ping,
    tsmp_pong,
    tsmp_reject,
    udp_carries,
)
from tsns.proto.virtio import HEADER_BYTES, Frame, frame_of, packet_of, packets_in
from tsns.ways import (
    BothPaths,
    DerpPath,
    DerpSource,
    Path,
    SendDerp,
    SendUdp,
    Source,
    Train,
    UdpPath,
    UdpSource,
    messages,
    udp_source,
)
from tsns.wg import device as wg
from tsns.wg.device import Device, SessionUp
from tsns.wg.peer import PeerStatistics

STUN_COOKIE: Final = bytes.fromhex("2112a442")
STUN_HEADER_BYTES: Final = 20
ECHO_IDENTIFIER: Final = 0x7473  # of ICMP pings of our own; the token in them tells them from the host's
MAX_ECHOES: Final = 64  # that wait for their replies

KEEPALIVE: Final = b""  # the packet that is none
NO_PATH: Final = "no path to the peer"
TSMP_UNKNOWN: Final = "TSMP message of no use to us"
FILTERED_IN: Final = "refused from the tunnel: "
FILTERED_OUT: Final = "refused from the host: "
OWN_DISCO: Final = "our own search for paths, in the tunnel"


class Refusal(Protocol):
    """The packet filter's reason to drop a packet; as text it is what is counted."""

    @property
    def reject_reason(self) -> RejectReason | None:
        """What the sender is to be told, if anything."""


class PacketFilter(Protocol):
    """What decides about packets by their first HEAD_BYTES and their size; None lets one pass. Super-packets are judged as one."""

    def inbound(self, data: bytes, size: int, *, jailed: bool) -> Refusal | None: ...

    def outbound(self, data: bytes, size: int, *, jailed: bool) -> Refusal | None: ...


@dataclass(frozen=True, slots=True)
class WriteTun:
    """Write these frames to the TUN."""

    frames: list[Frame]

    @property
    def packets(self) -> list[bytes]:
        """What is in frames that hold one packet each."""
        return [packet_of(frame) for frame in self.frames]


@dataclass(frozen=True, slots=True)
class StunReply:
    """A STUN message came from this address."""

    data: bytes
    address: tuple[str, int]


@dataclass(frozen=True, slots=True)
class Pong:
    """The peer has answered a ping through the tunnel; `token` are the 8 bytes of the ping."""

    peer: NodePublic
    token: bytes


@dataclass(frozen=True, slots=True)
class Rejected:
    """The peer has refused a flow of ours."""

    peer: NodePublic
    reject: TsmpReject


Event = SessionUp | StunReply | Pong | Rejected | PathChanged | Ponged | WantEndpoints
Output = SendDerp | SendUdp | WriteTun | Event


class Router:
    """Routes between one TUN and one device's peers. `disco` is the key by which peers look for paths to us; without `direct` there are none.

    `counters` are the device's own: all drops in one place. `paths` is to be told who the peers are, and where we may be reached.
    """

    def __init__(
        self, device: Device, packet_filter: PacketFilter, disco: DiscoPrivate, *, direct: bool = True
    ) -> None:
        self.device = device
        self.paths = PeerPaths(
            Sealer(disco, device.random),
            device.random,
            own=lambda: NodePublic(device.own.public),
            set_path=self.set_path,
            counters=device.counters,
            direct=direct,
        )
        self._filter = packet_filter
        self._openings = Openings()
        self._own_disco = DISCO_MAGIC + disco.public.raw
        self._paths: dict[NodePublic, Path] = {}
        self._jailed: set[NodePublic] = set()
        self._echoes: dict[bytes, float] = {}  # ICMP pings of ours by their tokens: when they were sent

    @property
    def counters(self) -> Counters:
        """What became of packets that went no further."""
        return self.device.counters

    def statistics(self, peer: NodePublic) -> PeerStatistics:
        """What was exchanged with this peer."""
        return self.device.statistics(peer)

    def path_status(self, peer: NodePublic) -> PathStatus:
        """How packets to this peer go."""
        return self.paths.status(peer)

    # --- configuration ---------------------------------------------------------------------------------------------

    def set_path(self, peer: NodePublic, path: Path | None) -> None:
        """Say where the peer is sent to from now on; None where that is not known: what is for it is dropped."""
        if path is None:
            self._paths.pop(peer, None)
        else:
            self._paths[peer] = path

    def path(self, peer: NodePublic) -> Path | None:
        """Where the peer is sent to."""
        return self._paths.get(peer)

    def set_jailed(self, peer: NodePublic, jailed: bool) -> None:
        """Whether this peer may begin nothing with us: the filter judges its packets, and those to it, by that."""
        (self._jailed.add if jailed else self._jailed.discard)(peer)

    # --- from the host ---------------------------------------------------------------------------------------------

    def outbound(self, frames: Iterable[bytes], now: float) -> list[Output]:
        """Take frames from the TUN."""
        judge, note, counters = self._filter.outbound, self._openings.note, self.counters
        passed = []
        for frame in frames:
            head, size = frame[HEADER_BYTES : HEADER_BYTES + HEAD_BYTES], len(frame) - HEADER_BYTES
            refusal: object = judge(head, size, jailed=bool(self._jailed) and self._is_for_jailed(head))
            if refusal is None and udp_carries(head, self._own_disco):
                refusal = OWN_DISCO
            if refusal is None:
                note(head, size)
                passed.append(frame)
            else:
                counters.add(f"{FILTERED_OUT}{refusal}", packets_in(frame))
        out: list[Output] = []
        if passed:
            self._route(self.device.send(passed, now), now, out)
        return out

    def ask(self, peer: NodePublic, token: bytes, now: float) -> list[Output]:
        """Send disco pings by all ways there may be; see `PeerPaths.ping`."""
        return [*self.paths.ping(peer, token, now)]

    def ping(self, peer: NodePublic, source: bytes, destination: bytes, token: bytes, now: float) -> list[Output]:
        """Send a TSMP ping through the tunnel between two packed addresses; the 8 bytes `token` return in a Pong."""
        out: list[Output] = []
        self._route(self.device.send_to(peer, [tsmp_ping(source, destination, token)], now), now, out)
        return out

    def echo(self, peer: NodePublic, source: bytes, destination: bytes, token: bytes, now: float) -> list[Output]:
        """Send an ICMP echo request through the tunnel; the reply with the 8 bytes `token` comes as a Pong, not to the host."""
        self._echoes[token] = now
        while len(self._echoes) > MAX_ECHOES:
            del self._echoes[next(iter(self._echoes))]
        out: list[Output] = []
        packet = echo_request(source, destination, ECHO_IDENTIFIER, 0, token)
        self._route(self.device.send_to(peer, [packet], now), now, out)
        return out

    def greet(self, peer: NodePublic, now: float) -> list[Output]:
        """See to it that there is a session with this peer, which then knows the way to us."""
        out: list[Output] = []
        self._route(self.device.send_to(peer, [KEEPALIVE], now), now, out)
        return out

    def begin_anew(self, peer: NodePublic, now: float) -> list[Output]:
        """The peer's process is another one; see `Device.begin_anew`."""
        out: list[Output] = []
        self._route(self.device.begin_anew(peer, now), now, out)
        return out

    # --- from the network ------------------------------------------------------------------------------------------

    def inbound_derp(self, region: int, frames: Iterable[tuple[NodePublic, bytes]], now: float) -> list[Output]:
        """Take frames from the relay of a region, each with the node that it says it is from."""
        out: list[Output] = []
        run: list[Train] = []
        sender: NodePublic | None = None
        for peer, frame in frames:
            if frame.startswith(DISCO_MAGIC):
                out += self.paths.receive(frame, DerpSource(region, peer), now)
                continue
            if peer != sender:
                if sender is not None:
                    self._receive(run, DerpSource(region, sender), now, out)
                    run = []
                sender = peer
            run.append(Train.of(frame))
        if sender is not None:
            self._receive(run, DerpSource(region, sender), now, out)
        return out

    def inbound_udp(self, trains: Iterable[tuple[Train, tuple[str, int]]], now: float) -> list[Output]:
        """Take datagrams from our UDP sockets, in the trains that they came in, each with where it came from."""
        out: list[Output] = []
        run: list[Train] = []
        sender: tuple[str, int] | None = None
        for train, address in trains:
            data = train.data
            if _is_stun(data) or data.startswith(DISCO_MAGIC):
                for message in train.messages():
                    self._receive_message(message, udp_source(address), now, out)
                continue
            if address != sender:
                if sender is not None:
                    self._receive(run, udp_source(sender), now, out)
                    run = []
                sender = address
            run.append(train)
        if sender is not None:
            self._receive(run, udp_source(sender), now, out)
        return out

    def _receive_message(self, message: bytes, source: Source, now: float, out: list[Output]) -> None:
        """Take one message, of whatever protocol it is."""
        if isinstance(source, UdpSource) and _is_stun(message):
            out.append(StunReply(message, source.address))
        elif message.startswith(DISCO_MAGIC):
            out += self.paths.receive(message, source, now)
        else:
            self._receive([Train.of(message)], source, now, out)

    def _receive(self, trains: Sequence[Train], source: Source, now: float, out: list[Output]) -> None:
        self._route(self.device.receive(trains, source, now), now, out)

    # --- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Output]:
        """Let time pass."""
        out: list[Output] = [*self.paths.tick(now)]
        self._route(self.device.tick(now), now, out)
        return out

    def deadline(self) -> float | None:
        """When `tick` is due at the latest; None when nothing is."""
        soonest = [at for at in (self.device.deadline(), self.paths.deadline()) if at is not None]
        return min(soonest) if soonest else None

    @property
    def deadlines_set(self) -> int:
        """How often a deadline came nearer so far: while it stays the same, so does what `deadline` says, or it is later."""
        return self.device.deadlines_set + self.paths.deadlines_set

    # --- what the device wants -------------------------------------------------------------------------------------

    def _route(self, outputs: Iterable[wg.Output], now: float, out: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, wg.Transmit):
                self._transmit(output.peer, output.trains, now, out)
            elif isinstance(output, wg.Deliver):
                self._deliver(output.peer, output.frames, now, out)
            elif isinstance(output, wg.Strays):
                for message in output.messages:
                    self._receive_message(message, output.source, now, out)
            elif isinstance(output, wg.Heard):
                out += self.paths.heard(output.peer, output.source, now)
            elif isinstance(output, wg.Reply):
                source = output.source
                if isinstance(source, UdpSource):
                    out.append(SendUdp(source.address, [Train.of(output.datagram)]))
                else:
                    out.append(SendDerp(source.region, source.peer, [Train.of(output.datagram)]))
            else:
                out.append(output)

    def _transmit(self, peer: NodePublic, trains: list[Train], now: float, out: list[Output]) -> None:
        out += self.paths.on_activity(peer, now)
        path = self._paths.get(peer)
        if isinstance(path, BothPaths):
            out += (SendUdp(path.direct.address, trains), SendDerp(path.relay.region, peer, trains))
        elif isinstance(path, UdpPath):
            out.append(SendUdp(path.address, trains))
        elif isinstance(path, DerpPath):
            out.append(SendDerp(path.region, peer, trains))
        else:
            self.counters.add(NO_PATH, len(messages(trains)))

    def _deliver(self, peer: NodePublic, frames: Iterable[Frame], now: float, out: list[Output]) -> None:
        judge, jailed = self._filter.inbound, peer in self._jailed
        accepted: list[Frame] = []
        answers: list[bytes] = []
        for frame in frames:
            head, size = bytes(frame[HEADER_BYTES : HEADER_BYTES + HEAD_BYTES]), len(frame) - HEADER_BYTES
            refusal = judge(head, size, jailed=jailed)
            if refusal is not None:
                self.counters.add(f"{FILTERED_IN}{refusal}", packets_in(frame))
                if refusal.reject_reason is not None and not self.paths.is_plain(peer):
                    _add_reject(head, size, refusal.reject_reason, answers)
            elif is_tsmp(head):
                self._receive_tsmp(peer, packet_of(frame), now, answers.append, accepted, out)
            elif udp_carries(head, self._own_disco):
                self.counters.add(f"{FILTERED_IN}{OWN_DISCO}", packets_in(frame))
            elif self._echoes and (token := echo_reply_payload(head, ECHO_IDENTIFIER)) in self._echoes:
                del self._echoes[token]
                out.append(Pong(peer, token))
            else:
                accepted.append(frame)
        if accepted:
            out.append(WriteTun(accepted))
        if answers:
            self._route(self.device.send_to(peer, answers, now), now, out)

    def _receive_tsmp(
        self,
        peer: NodePublic,
        packet: bytes,
        now: float,
        answer: Callable[[bytes], None],
        accepted: list[Frame],
        out: list[Output],
    ) -> None:
        match None if self.paths.is_plain(peer) else parse_tsmp(packet):
            case TsmpPing(source, destination, token):
                answer(tsmp_pong(destination, source, token))
            case TsmpPong(token=token):
                out.append(Pong(peer, token))
            case TsmpReject() as reject:
                out.append(Rejected(peer, reject))
                reset = self._openings.refused(reject)
                if reset is not None:
                    self.counters.add(refusal_text(reject.reason))
                    accepted.append(frame_of(reset))
            case TsmpDiscoKey(key=disco):
                self.paths.set_disco(peer, DiscoPublic(disco), now)
            case None:
                self.counters.add(TSMP_UNKNOWN)

    def _is_for_jailed(self, packet: bytes) -> bool:
        return self.device.peer_of(packet) in self._jailed


def _is_stun(data: bytes) -> bool:
    return data[1:2] == b"\x01" and len(data) >= STUN_HEADER_BYTES and data[0] & 0xC0 == 0 and data[4:8] == STUN_COOKIE


def _add_reject(head: bytes, size: int, reason: RejectReason, answers: list[bytes]) -> None:
    """Tell the sender of a TCP SYN why nothing will come of it; IPv4 only, as Tailscale does."""
    fields = decode(head, size)
    if fields is not None and len(fields[2]) == 4 and (packet := Packet(*fields)).is_tcp_open:
        answers.append(tsmp_reject(packet, reason))
