"""Whole nodes on the small internet: routers with all that is pure in them, and as much of an edge as they need.

The edge does what `tsns/node` does: it asks STUN servers, tells control and peers where the node is reached, and says when the host's
network has changed. `Tailnet` is control. A `Stream` is a program that sends numbered packets to a program at another node.
"""

from __future__ import annotations

import collections
import itertools
from collections.abc import Callable, Iterable
from math import inf
from typing import Final

from tests.unit.paths.network import STUN_SERVERS, Internet, Machine
from tests.unit.wg.shuttle import WALL_CLOCK_AT_0, entropy, udp
from tsns.disco.messages import MAGIC as DISCO_MAGIC
from tsns.keys import DiscoPrivate, NodePrivate, NodePublic
from tsns.paths import stun
from tsns.paths.endpoints import OwnEndpoints
from tsns.paths.peer_path import Change, Kind
from tsns.paths.peer_paths import PathChanged, Ponged, Reach, WantEndpoints
from tsns.proto.addresses import Endpoint, Prefix, endpoint_text, pack
from tsns.proto.packets import is_tsmp
from tsns.proto.virtio import frame_of
from tsns.ways import SendDerp, SendUdp, Train
from tsns.wg.device import Device
from tsns.wg.drops import Drop
from tsns.wg.messages import MIN_TRANSPORT_BYTES
from tsns.wg.router import Output, Router, StunReply, WriteTun

CONTROL_S: Final = 0.05  # until peers have heard
STUN_SPACING_S: Final = 2.0
STUN_EVERY_S: Final = 23.0  # while there is traffic
TURN_S: Final = 7.0  # between looks whether there is traffic
HOME: Final = 1
DISCO_TYPES: Final = {124: "ping", 110: "pong"}  # by the length of the datagram; the rest are call-me-maybes
WIREGUARD_TYPES: Final = {1: "initiation", 2: "response", 3: "cookie", 4: "transport"}
IP_AND_UDP_BYTES: Final = 28
JUST_NOW_S: Final = 0.5  # what was sent since then may still be on its way


class Open:
    """A packet filter that has nothing against anything."""

    def inbound(self, data: bytes, size: int, *, jailed: bool) -> None:
        return None

    def outbound(self, data: bytes, size: int, *, jailed: bool) -> None:
        return None


class Node:
    """One node on a machine."""

    def __init__(self, tailnet: Tailnet, machine: Machine, *, home: int | None) -> None:
        self.tailnet, self.machine = tailnet, machine
        self.internet = tailnet.internet
        self.number = len(tailnet.nodes) + 1
        self.home = home
        self.speaks_disco, self.plain = True, False
        self.key = NodePrivate.generate(entropy(self.number)(32))
        self.public = self.key.public
        self.address = pack(f"100.64.0.{self.number}")
        self.arrived: dict[bytes, list[float]] = collections.defaultdict(list)
        self.changes: list[tuple[NodePublic, Change]] = []
        self.ponged: list[Ponged] = []
        self.sent: list[tuple[float, str]] = []  # when, and what
        self.stun_sent: list[float] = []
        self.repeated = 0  # transport messages that came more than once
        self._came: set[bytes] = set()
        self._lives = 0
        self._is_turning = False
        self._deadline, self._deadlines_set = inf, -1
        self._seen_this_round: set[str] = set()
        machine.station = self
        self.start()
        self.internet.stations.append(self)

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin, or begin anew: only the node key is what it was."""
        self._lives += 1
        random = entropy(100 * self._lives + self.number)
        self.disco = DiscoPrivate.generate(random(32))
        self.device = Device(self.key, random, wall_clock=lambda: WALL_CLOCK_AT_0 + self.internet.now)
        self.router = Router(self.device, Open(), self.disco)
        self.endpoints = OwnEndpoints()
        self._stun_at = -inf
        self._stun_is_due = False
        self._set_local()
        self.ask_stun()

    def restart(self, port: int) -> None:
        self.machine.port = port
        self.start()
        self.tailnet.restarted(self)

    def leave(self) -> None:
        """Be switched off."""
        self.internet.stations.remove(self)
        self.machine.station = None

    def _turn(self) -> None:
        self._is_turning = self.router.paths.is_active(self.internet.now)
        if self._is_turning:
            if self.internet.now - self._stun_at >= STUN_EVERY_S:
                self.ask_stun()
            self.internet.after(TURN_S, self._turn)

    # --- where it is -----------------------------------------------------------------------------------------------

    def ask_stun(self) -> None:
        self._stun_is_due = False
        self._stun_at = self.internet.now
        self._seen_this_round.clear()
        for number, server in enumerate(STUN_SERVERS):
            self.stun_sent.append(self.internet.now)
            self.machine.send(server, stun.request(bytes((number,) * 12)))

    def network_changed(self) -> None:
        """What the edge does when it has seen that."""
        self.endpoints.forget_seen()
        self._set_local()
        self.tell()
        self.router.paths.network_changed("the host's network has changed", self.internet.now)
        self.ask_stun()

    def _set_local(self) -> None:
        self.endpoints.set_local(self.machine.addresses, dict.fromkeys((4, 16), self.machine.port))

    def tell(self) -> None:
        endpoints = [endpoint for endpoint, _ in self.endpoints.all(self.internet.now)]
        self.router.paths.set_endpoints(endpoints, self.internet.now)
        self.tailnet.tell(self)

    def _receive_stun(self, reply: StunReply) -> None:
        found = stun.parse_response(reply.data)
        assert found is not None
        family = "v6" if ":" in found.address[0] else "v4"
        if family not in self._seen_this_round:
            self._seen_this_round.add(family)
            self.endpoints.note_seen([found.address], varies=None, now=self.internet.now)
            self.tell()

    # --- the station -----------------------------------------------------------------------------------------------

    def receive_udp(self, datagram: bytes, source: Endpoint) -> None:
        self._note(datagram)
        self.do(self.router.inbound_udp([(Train.of(datagram), source)], self.internet.now))

    def receive_derp(self, region: int, sender: NodePublic, frame: bytes) -> None:
        self._note(frame)
        self.do(self.router.inbound_derp(region, [(sender, frame)], self.internet.now))

    def _note(self, datagram: bytes) -> None:
        if datagram[:1] == b"\4":
            self.repeated += datagram in self._came
            self._came.add(datagram)

    def deadline(self) -> float | None:
        """As the pump goes by it: while `deadlines_set` is the same, a deadline may only move away."""
        deadline, deadlines_set = self.router.deadline(), self.router.deadlines_set
        assert deadlines_set != self._deadlines_set or (inf if deadline is None else deadline) >= self._deadline
        self._deadline, self._deadlines_set = inf if deadline is None else deadline, deadlines_set
        return deadline

    def tick(self) -> None:
        self.do(self.router.tick(self.internet.now))

    def do(self, outputs: Iterable[Output]) -> None:
        if not self._is_turning:
            self._is_turning = True
            self.internet.after(TURN_S, self._turn)
        for output in outputs:
            match output:
                case WriteTun():
                    for packet in output.packets:
                        assert not is_tsmp(packet)
                        self.arrived[packet[IP_AND_UDP_BYTES:]].append(self.internet.now)
                case SendUdp(address):
                    for datagram in output.datagrams:
                        self._count(datagram, "udp")
                        self.machine.send(address, datagram)
                case SendDerp(region, peer):
                    for datagram in output.datagrams:
                        self._count(datagram, "derp")
                    self.tailnet.relay(self, region, peer, output.datagrams)
                case StunReply():
                    self._receive_stun(output)
                case WantEndpoints() if not self._stun_is_due:
                    self._stun_is_due = True
                    wait_s = self._stun_at + STUN_SPACING_S - self.internet.now
                    self.internet.after(max(wait_s, 0.0), self.ask_stun)
                case PathChanged(peer, change):
                    self.changes.append((peer, change))
                case Ponged():
                    self.ponged.append(output)

    def _count(self, datagram: bytes, way: str) -> None:
        disco = datagram.startswith(DISCO_MAGIC)
        what = DISCO_TYPES.get(len(datagram), "call") if disco else WIREGUARD_TYPES[datagram[0]]
        self.sent.append((self.internet.now, f"{what} {way}"))

    # --- control -----------------------------------------------------------------------------------------------------

    def know(self, other: Node) -> None:
        """Hear of another node, and where it is."""
        self.device.set_peer(other.public, [Prefix(other.address, 32)])
        texts = [endpoint_text(endpoint) for endpoint, _ in other.endpoints.all(self.internet.now)]
        disco = other.disco.public if other.speaks_disco else None
        self.router.paths.set_peer(other.public, Reach(disco, texts, other.home, other.plain), self.internet.now)

    def know_anew(self, other: Node) -> None:
        """Hear that another node's process has begun anew: it has lost our session."""
        self.know(other)
        self.do(self.router.begin_anew(other.public, self.internet.now))

    # --- what tests want -------------------------------------------------------------------------------------------

    def kind(self, peer: Node) -> Kind:
        return self.router.path_status(peer.public).kind

    def is_direct(self, peer: Node) -> bool:
        return self.kind(peer) is Kind.DIRECT

    def best(self, peer: Node) -> Endpoint | None:
        return self.router.path_status(peer.public).endpoint

    def send(self, peer: Node, payload: bytes) -> None:
        self.do(self.router.outbound([frame_of(udp(self.address, peer.address, payload))], self.internet.now))

    def packets(self, since: float, what: str = "") -> int:
        """How many packets it has sent since then, to other nodes."""
        return sum(at >= since and kind.startswith(what) for at, kind in self.sent)

    @property
    def came(self) -> int:
        """How many different packets have come, keepalives left out."""
        return sum(len(message) > MIN_TRANSPORT_BYTES for message in self._came)

    @property
    def replayed(self) -> int:
        return self.router.counters[Drop.REPLAYED]


class Tailnet:
    """Control and the relays: who is there, and what everybody knows of everybody."""

    def __init__(self, internet: Internet) -> None:
        self.internet = internet
        self.nodes: list[Node] = []
        self.is_there = True
        self.delays_s: dict[Node, float] = {}  # of those that hear later than others

    def add(self, machine: Machine, *, home: int | None = HOME) -> Node:
        node = Node(self, machine, home=home)
        for other in self.nodes:
            self._say(node, lambda other=other: node.know(other))  # type: ignore[misc]
            self._say(other, lambda other=other: other.know(node))  # type: ignore[misc]
        self.nodes.append(node)
        return node

    def _say(self, listener: Node, news: Callable[[], None]) -> None:
        self.internet.after(self.delays_s.get(listener, CONTROL_S), news)

    def tell(self, node: Node) -> None:
        """Everybody hears where a node is."""
        for other in self.nodes:
            if other is not node and node in self.nodes:
                self._say(other, lambda other=other: self._tell(other, node))  # type: ignore[misc]

    def _tell(self, listener: Node, node: Node) -> None:
        if self.is_there and node.public in listener.device.peers():
            listener.know(node)

    def restarted(self, node: Node) -> None:
        """A node's process has begun anew: it hears of everybody, and everybody of that."""
        for other in self.nodes:
            if other is not node:
                self._say(node, lambda other=other: node.know(other))  # type: ignore[misc]
                self._say(other, lambda other=other: other.know_anew(node))  # type: ignore[misc]

    def relay(self, sender: Node, region: int, peer: NodePublic, datagrams: Iterable[bytes]) -> None:
        """A relay brings to a node only what was given to the relay of its home."""
        target = next(node for node in self.nodes if node.public == peer)
        if target.home == region:
            self.internet.relay(region, sender.public, target, datagrams)


class Stream:
    """Numbered packets, one every `every_s`, from one node to another."""

    def __init__(self, source: Node, target: Node, *, every_s: float = 0.1, seconds: float = inf) -> None:
        self.source, self.target, self.every_s = source, target, every_s
        self.sent: list[float] = []
        self._payloads: list[bytes] = []
        self.began = source.internet.now
        self.ends = self.began + seconds
        self._send()

    def _send(self) -> None:
        internet = self.source.internet
        if internet.now > self.ends:
            return
        number = len(self._payloads)
        payload = bytes((self.source.number,)) + self.began.hex().encode() + number.to_bytes(4, "big")
        self._payloads.append(payload)
        self.sent.append(internet.now)
        self.source.send(self.target, payload)
        internet.after(self.every_s, self._send)

    def stop(self) -> None:
        self.ends = -inf

    def _packets(self) -> list[tuple[float, list[float]]]:
        """Of each packet: when it was sent, and when it arrived."""
        arrived = self.target.arrived
        return [(at, arrived.get(payload, [])) for at, payload in zip(self.sent, self._payloads, strict=True)]

    @property
    def first_s(self) -> float:
        """How long until the first packet came."""
        return min(arrived[0] for _, arrived in self._packets() if arrived) - self.began

    def lost(self, since: float = -inf) -> int:
        """How many packets that were sent since then, and not just now, never came."""
        just_now = self.source.internet.now - JUST_NOW_S
        return sum(not arrived for at, arrived in self._packets() if since <= at <= just_now)

    def repeated(self) -> int:
        """How many came to the program more than once."""
        return sum(len(arrived) > 1 for _, arrived in self._packets())

    def gap(self, since: float) -> float:
        """The longest time without a packet since then."""
        came = sorted(at for _, arrived in self._packets() for at in arrived if at >= since)
        return max(later - earlier for earlier, later in itertools.pairwise([since, *came, self.source.internet.now]))
