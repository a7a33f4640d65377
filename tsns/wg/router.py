"""Between TUN, tunnel and network: which way packets go and who may send them (ring 0).

Source: magicsock's and tstun's order of things in Tailscale's module.

    TUN -> packet filter -> Device by destination -> the peer's path -> UDP datagrams or DERP frames

    UDP --> STUN            -> StunReply                                  DERP --> disco -> dropped
        |-> disco           -> dropped                                         `-> WireGuard
        `-> WireGuard --> Device: authentic, inner source allowed --> packet filter --> TUN
                                                                        |           `-> TSMP: answered here
                                                                        `-> refused TCP SYN on IPv4: a reject goes back

A peer is sent to by its path alone, never to where something came from. What DERP says about a frame's sender is
believed only as far as WireGuard authenticates it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from tsns.keys import NodePublic
from tsns.proto.packets import (
    RejectReason,
    TsmpDiscoKey,
    TsmpPing,
    TsmpPong,
    TsmpReject,
    is_tsmp,
    parse,
    parse_tsmp,
    tsmp_ping,
    tsmp_pong,
    tsmp_reject,
)
from tsns.wg import device as wg
from tsns.wg.counters import Counters
from tsns.wg.device import Device, SessionUp
from tsns.wg.endpoints import DerpPath, DerpSource, Path, Source, UdpPath, UdpSource

DISCO_MAGIC: Final = bytes.fromhex("5453f09f92ac")
STUN_COOKIE: Final = bytes.fromhex("2112a442")
STUN_HEADER_BYTES: Final = 20

KEEPALIVE: Final = b""  # the packet that is none
NO_PATH: Final = "no path to the peer"
DISCO: Final = "disco message"
TSMP_UNKNOWN: Final = "TSMP message of no use to us"
FILTERED_IN: Final = "refused from the tunnel: "
FILTERED_OUT: Final = "refused from the host: "


class Refusal(Protocol):
    """The packet filter's reason to drop a packet; as text it is what is counted."""

    @property
    def reject_reason(self) -> RejectReason | None:
        """What the sender is to be told, if anything."""


class PacketFilter(Protocol):
    """What decides about packets; None lets one pass."""

    def inbound(self, data: bytes, *, jailed: bool) -> Refusal | None: ...

    def outbound(self, data: bytes, *, jailed: bool) -> Refusal | None: ...


@dataclass(frozen=True, slots=True)
class SendDerp:
    """Give these to the relay of this region for the peer, a frame each."""

    region: int
    peer: NodePublic
    datagrams: list[bytes]


@dataclass(frozen=True, slots=True)
class SendUdp:
    """Send these datagrams to this numeric address and port."""

    address: tuple[str, int]
    datagrams: list[bytes]


@dataclass(frozen=True, slots=True)
class WriteTun:
    """Write these IP packets to the TUN."""

    packets: list[bytes]


@dataclass(frozen=True, slots=True)
class StunReply:
    """A STUN message came from this address."""

    data: bytes
    address: tuple[str, int]


@dataclass(frozen=True, slots=True)
class Pong:
    """The peer has answered a TSMP ping; `token` are the 8 bytes of the ping."""

    peer: NodePublic
    token: bytes


@dataclass(frozen=True, slots=True)
class Rejected:
    """The peer has refused a flow of ours."""

    peer: NodePublic
    reject: TsmpReject


Output = SendDerp | SendUdp | WriteTun | StunReply | Pong | Rejected | SessionUp


class Router:
    """Routes between one TUN and one device's peers. `counters` are the device's own: all drops in one place."""

    def __init__(self, device: Device, packet_filter: PacketFilter) -> None:
        self.device = device
        self._filter = packet_filter
        self._paths: dict[NodePublic, Path] = {}
        self._jailed: frozenset[NodePublic] = frozenset()

    @property
    def counters(self) -> Counters:
        """What became of packets that went no further."""
        return self.device.counters

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

    def set_jailed(self, peers: Collection[NodePublic]) -> None:
        """Name the peers that may answer us but not begin anything."""
        self._jailed = frozenset(peers)

    # --- from the host ---------------------------------------------------------------------------------------------

    def outbound(self, packets: Iterable[bytes], now: float) -> list[Output]:
        """Take packets from the TUN."""
        judge, counters = self._filter.outbound, self.counters
        passed = []
        for packet in packets:
            refusal = judge(packet, jailed=bool(self._jailed) and self._is_for_jailed(packet))
            if refusal is None:
                passed.append(packet)
            else:
                counters.add(f"{FILTERED_OUT}{refusal}")
        out: list[Output] = []
        if passed:
            self._route(self.device.send(passed, now), now, out)
        return out

    def ping(self, peer: NodePublic, source: bytes, destination: bytes, token: bytes, now: float) -> list[Output]:
        """Send a TSMP ping through the tunnel between two packed addresses; the 8 bytes `token` return in a Pong."""
        out: list[Output] = []
        self._route(self.device.send_to(peer, [tsmp_ping(source, destination, token)], now), now, out)
        return out

    def greet(self, peer: NodePublic, now: float) -> list[Output]:
        """See to it that there is a session with this peer, which then knows the way to us."""
        out: list[Output] = []
        self._route(self.device.send_to(peer, [KEEPALIVE], now), now, out)
        return out

    # --- from the network ------------------------------------------------------------------------------------------

    def inbound_derp(self, region: int, frames: Iterable[tuple[NodePublic, bytes]], now: float) -> list[Output]:
        """Take frames from the relay of a region, each with the node that it says it is from."""
        out: list[Output] = []
        train: list[bytes] = []
        sender: NodePublic | None = None
        for peer, frame in frames:
            if frame.startswith(DISCO_MAGIC):
                self._receive_disco()
                continue
            if peer != sender:
                if sender is not None:
                    self._receive(train, DerpSource(region, sender), now, out)
                    train = []
                sender = peer
            train.append(frame)
        if sender is not None:
            self._receive(train, DerpSource(region, sender), now, out)
        return out

    def inbound_udp(self, datagrams: Iterable[tuple[bytes, tuple[str, int]]], now: float) -> list[Output]:
        """Take datagrams from our UDP sockets, each with where it came from."""
        out: list[Output] = []
        train: list[bytes] = []
        sender: tuple[str, int] | None = None
        for data, address in datagrams:
            if data[1:2] == b"\x01" and _is_stun(data):
                out.append(StunReply(data, address))
                continue
            if data.startswith(DISCO_MAGIC):
                self._receive_disco()
                continue
            if address != sender:
                if sender is not None:
                    self._receive(train, UdpSource(sender), now, out)
                    train = []
                sender = address
            train.append(data)
        if sender is not None:
            self._receive(train, UdpSource(sender), now, out)
        return out

    def _receive_disco(self) -> None:
        """Disco finds direct paths; without it a message of its is only counted."""
        self.counters.add(DISCO)

    def _receive(self, datagrams: Sequence[bytes], source: Source, now: float, out: list[Output]) -> None:
        self._route(self.device.receive(datagrams, source, now), now, out)

    # --- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Output]:
        """Let time pass."""
        out: list[Output] = []
        self._route(self.device.tick(now), now, out)
        return out

    def deadline(self) -> float | None:
        """When `tick` is due at the latest; None when nothing is."""
        return self.device.deadline()

    # --- what the device wants -------------------------------------------------------------------------------------

    def _route(self, outputs: Iterable[wg.Output], now: float, out: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, wg.Transmit):
                self._transmit(output.peer, output.datagrams, out)
            elif isinstance(output, wg.Deliver):
                self._deliver(output.peer, output.packets, now, out)
            elif isinstance(output, wg.Reply):
                source = output.source
                if isinstance(source, UdpSource):
                    out.append(SendUdp(source.address, [output.datagram]))
                else:
                    out.append(SendDerp(source.region, source.peer, [output.datagram]))
            else:
                out.append(output)

    def _transmit(self, peer: NodePublic, datagrams: list[bytes], out: list[Output]) -> None:
        path = self._paths.get(peer)
        if isinstance(path, DerpPath):
            out.append(SendDerp(path.region, peer, datagrams))
        elif isinstance(path, UdpPath):
            out.append(SendUdp(path.address, datagrams))
        else:
            self.counters.add(NO_PATH, len(datagrams))

    def _deliver(self, peer: NodePublic, packets: Iterable[bytes], now: float, out: list[Output]) -> None:
        judge, jailed = self._filter.inbound, peer in self._jailed
        accepted: list[bytes] = []
        answers: list[bytes] = []
        for packet in packets:
            refusal = judge(packet, jailed=jailed)
            if refusal is not None:
                self.counters.add(f"{FILTERED_IN}{refusal}")
                if refusal.reject_reason is not None:
                    _add_reject(packet, refusal.reject_reason, answers)
            elif is_tsmp(packet):
                self._receive_tsmp(peer, packet, answers.append, out)
            else:
                accepted.append(packet)
        if accepted:
            out.append(WriteTun(accepted))
        if answers:
            self._route(self.device.send_to(peer, answers, now), now, out)

    def _receive_tsmp(
        self, peer: NodePublic, packet: bytes, answer: Callable[[bytes], None], out: list[Output]
    ) -> None:
        match parse_tsmp(packet):
            case TsmpPing(source, destination, token):
                answer(tsmp_pong(destination, source, token))
            case TsmpPong(token=token):
                out.append(Pong(peer, token))
            case TsmpReject() as reject:
                out.append(Rejected(peer, reject))
            case TsmpDiscoKey() | None:
                self.counters.add(TSMP_UNKNOWN)

    def _is_for_jailed(self, packet: bytes) -> bool:
        return self.device.peer_of(packet) in self._jailed


def _is_stun(data: bytes) -> bool:
    return len(data) >= STUN_HEADER_BYTES and data[0] & 0xC0 == 0 and data[4:8] == STUN_COOKIE


def _add_reject(packet: bytes, reason: RejectReason, answers: list[bytes]) -> None:
    """Tell the sender of a TCP SYN why nothing will come of it; IPv4 only, as Tailscale does."""
    refused = parse(packet)
    if refused is not None and refused.version == 4:
        answers.append(tsmp_reject(refused, reason))
