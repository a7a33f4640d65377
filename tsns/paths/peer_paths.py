"""The paths to all peers: what disco says, to whom and from whom (ring 0).

Source: wgengine/magicsock/magicsock.go of Tailscale's module.

    whoever carries packets --on_activity, heard--> PeerPaths --set_path--> whoever carries packets
    UDP, DERP --disco message--> receive --> whose key? --> open --> ping: pong, the way it came
                                                                |--> pong: of a ping of ours? --> that peer's path
                                                                '--> call-me-maybe: by relay, from its owner? --> that peer's path

Three calls join this to what carries packets, whatever that is: `set_path` is called there with a peer's new path; `on_activity` here when
packets are about to be sent; and what a relay brings is injected there. Ten thousand peers are known and a dozen are spoken with: a peer
costs a few words until its path is used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Final

from tsns.agenda import Agenda
from tsns.counters import Counters
from tsns.disco.messages import TRANSACTION_BYTES, CallMeMaybe, Message, Ping, Pong, Sealer, sender
from tsns.error import ProtocolError
from tsns.keys import DiscoPublic, NodePublic
from tsns.paths.candidates import is_loopback, may_be_pinged
from tsns.paths.disco_keys import DiscoKeys
from tsns.paths.peer_path import HEARTBEAT_S, Call, Change, Kind, PeerPath, Probe, Wish
from tsns.paths.plain_path import PlainPath
from tsns.paths.sent_pings import SentPing, SentPings
from tsns.proto.addresses import Endpoint, pack, parse_endpoint
from tsns.ways import DerpPath, DerpSource, Path, SendDerp, SendUdp, Source, Train, UdpPath, UdpSource, derp_path

_IN_OUTBOX: Final = 1 << 48
# Our own endpoints are looked up again when a peer is told older ones: a NAT forgets after 30 s, or at once if it begins anew.
FRESH_S: Final = 27.0
FRESH_IN_DOUBT_S: Final = 5.0
MAX_OWN_ENDPOINTS: Final = 32  # told to a peer
RELAY_ADDRESS: Final = "127.3.3.40"  # stands for "by relay" where an address has to stand; the port is the region

DISCO_STRANGER: Final = "disco message of a stranger"
DISCO_NOT_AUTHENTIC: Final = "disco message not authentic"
DISCO_UNKNOWN: Final = "disco message of no use to us"
DISCO_UNASKED: Final = "disco pong that nobody waits for"


@dataclass(frozen=True, slots=True)
class Reach:
    """What the netmap says of the ways to a peer. Endpoints are texts: of most peers nobody ever reads them."""

    disco: DiscoPublic | None
    endpoints: Sequence[str] = ()
    relay: int | None = None
    plain: bool = False  # speaks WireGuard only


@dataclass(frozen=True, slots=True)
class PathChanged:
    """The path to a peer is another one."""

    peer: NodePublic
    change: Change


@dataclass(frozen=True, slots=True)
class Ponged:
    """A ping that a person asked for is answered; `token` is theirs."""

    peer: NodePublic
    token: bytes
    path: UdpPath | DerpPath
    latency_s: float


@dataclass(frozen=True, slots=True)
class WantEndpoints:
    """Peers are told where we may be reached, and what we know of that is old."""


Output = SendUdp | SendDerp | PathChanged | Ponged | WantEndpoints


@dataclass(frozen=True, slots=True)
class PathStatus:
    """A peer's path as a person wants to see it."""

    kind: Kind
    endpoint: Endpoint | None = None
    relay: int | None = None
    latency_s: float | None = None
    changes: tuple[Change, ...] = ()


@dataclass(slots=True, eq=False)
class _Peer:
    key: NodePublic
    reach: Reach
    path: PeerPath | PlainPath | None = None
    scheduled_at: float = inf


class PeerPaths:
    """See the module. `own()` is our node key; `set_path(peer, path)` is told of each new path, None where there is none.

    Without `direct` all goes by relay, and peers learn nothing of where we are.
    """

    def __init__(
        self,
        sealer: Sealer,
        random: Callable[[int], bytes],
        *,
        own: Callable[[], NodePublic],
        set_path: Callable[[NodePublic, Path | None], None],
        counters: Counters,
        direct: bool = True,
    ) -> None:
        self._sealer = sealer
        self._random = random
        self._own = own
        self._set_path = set_path
        self._counters = counters
        self._direct = direct
        self._peers: dict[NodePublic, _Peer] = {}
        self._disco_keys = DiscoKeys()
        self._used: dict[NodePublic, _Peer] = {}  # those that have a path
        self._sent = SentPings()
        self._agenda: Agenda[_Peer] = Agenda()
        self._outbox: list[Output] = []  # for the next tick
        self._endpoints: tuple[Endpoint, ...] = ()
        self._endpoints_at = -inf
        self._loopback = False  # whether we are reached there

    # --- what is known: what it leads to comes with the next tick, which is due at once -------------------------------

    def set_peer(self, key: NodePublic, reach: Reach, now: float) -> None:
        """Add a peer, or say what is known of it by now."""
        peer = self._peers.get(key)
        if peer is None:
            peer = self._peers[key] = _Peer(key, reach)
            if reach.plain:
                self._use(peer, now)
            else:
                self._set_path(key, None if reach.relay is None else derp_path(reach.relay))
        elif peer.reach.plain != reach.plain:
            self.remove_peer(key)
            self.set_peer(key, reach, now)
            return
        else:
            before, peer.reach = peer.reach, reach
            self._disco_keys.unname(before.disco, key)
            self._follow(peer, before, now)
        self._disco_keys.name(reach.disco, key)

    def _follow(self, peer: _Peer, before: Reach, now: float) -> None:
        """A peer that is known already may be elsewhere."""
        reach, path = peer.reach, peer.path
        if path is None:
            if before.relay != reach.relay:
                self._set_path(peer.key, None if reach.relay is None else derp_path(reach.relay))
            return
        if before.relay != reach.relay or before.endpoints != reach.endpoints:
            self._do(peer, self._tell(path, reach, now), now, self._outbox)
            self._set_path(peer.key, path.path)
        if before.disco != reach.disco and isinstance(path, PeerPath):
            self._do(peer, path.begin_anew("the peer has begun anew", now), now, self._outbox)

    def set_disco(self, key: NodePublic, disco: DiscoPublic, now: float) -> None:
        """The peer itself has named its disco key, which control may not know yet."""
        peer = self._peers.get(key)
        if peer is not None and peer.reach.disco != disco:
            self.set_peer(key, replace(peer.reach, disco=disco), now)

    def remove_peer(self, key: NodePublic) -> None:
        """Forget a peer; nothing happens where there is none."""
        peer = self._peers.pop(key, None)
        if peer is not None:
            self._used.pop(key, None)
            self._agenda.drop(peer)
            self._disco_keys.unname(peer.reach.disco, key)
            self._set_path(key, None)

    def set_endpoints(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """Where we ourselves may be reached, best first, as of now: peers that we look for are told."""
        told = tuple(endpoints[:MAX_OWN_ENDPOINTS]) if self._direct else ()
        self._endpoints_at = now
        if told == self._endpoints:
            return
        self._endpoints = told
        self._loopback = any(is_loopback(pack(host)) for host, _ in told)
        for peer in self._used.values():
            if isinstance(peer.path, PeerPath) and peer.path.is_searching(now):
                self._do(peer, [Call()], now, self._outbox)

    def network_changed(self, why: str, now: float) -> None:
        """The host's network is another one: nothing that was found out about paths holds for sure."""
        self._endpoints_at = -inf
        for peer in self._used.values():
            if isinstance(peer.path, PeerPath):
                self._do(peer, peer.path.begin_anew(why, now), now, self._outbox)

    # --- the seam --------------------------------------------------------------------------------------------------

    def on_activity(self, key: NodePublic, now: float) -> list[Output]:
        """Packets are about to be sent to this peer."""
        peer = self._used.get(key)
        if peer is None:
            known = self._peers.get(key)
            if known is None:
                return []
            peer = self._use(known, now)
        assert peer.path is not None
        wishes = peer.path.on_activity(now)
        out: list[Output] = []
        if wishes:
            self._do(peer, wishes, now, out)
        elif peer.scheduled_at > now + HEARTBEAT_S:  # a heartbeat is all that it can have set
            self._schedule(peer)
        return out

    def heard(self, key: NodePublic, source: Source, now: float) -> list[Output]:
        """WireGuard has found authentic what came from there in this peer's name: anything by UDP, by relay the beginning of a handshake."""
        peer = self._used.get(key)
        out: list[Output] = []
        if peer is None or peer.path is None:
            return out
        if isinstance(source, UdpSource):
            wishes = peer.path.heard(source.address, now)
        else:
            wishes = peer.path.heard_by_relay(now) if isinstance(peer.path, PeerPath) else []
        if wishes:
            self._do(peer, wishes, now, out)
        return out

    def is_plain(self, key: NodePublic) -> bool:
        """Whether this peer speaks WireGuard and nothing else: neither disco nor, in the tunnel, TSMP."""
        peer = self._peers.get(key)
        return peer is not None and peer.reach.plain

    def is_active(self, now: float) -> bool:
        """Whether packets are sent to anybody."""
        return any(peer.path is not None and peer.path.is_active(now) for peer in self._used.values())

    # --- disco -----------------------------------------------------------------------------------------------------

    def receive(self, datagram: bytes, source: Source, now: float) -> list[Output]:
        """Take what began with disco's magic."""
        out: list[Output] = []
        disco = sender(datagram)
        owners = () if disco is None else self._disco_keys.owners(disco)
        if disco is None or not owners:
            self._counters.add(DISCO_STRANGER)
            return out
        try:
            message = self._sealer.open(datagram, disco)
        except ProtocolError:
            self._counters.add(DISCO_NOT_AUTHENTIC)
            return out
        match message:
            case Ping():
                self._receive_ping(message, disco, self._whose(message, source, owners), source, now, out)
            case Pong():
                self._receive_pong(message, disco, source, now, out)
            case CallMeMaybe():
                self._receive_call(message, disco, source, now, out)
            case None:
                self._counters.add(DISCO_UNKNOWN)
        return out

    def _whose(self, ping: Ping, source: Source, owners: Sequence[NodePublic]) -> _Peer:
        """The peer that has pinged, of those that have its key."""
        for key in (source.peer if isinstance(source, DerpSource) else None, ping.node_key):
            if key is not None and key in owners:
                return self._peers[key]
        return self._peers[owners[-1]]

    def _receive_ping(
        self, ping: Ping, disco: DiscoPublic, peer: _Peer, source: Source, now: float, out: list[Output]
    ) -> None:
        """Answer it, always to where it came from: that is what its NAT waits for."""
        if isinstance(source, DerpSource):
            pong = Pong(ping.transaction, (RELAY_ADDRESS, source.region))
            out.append(SendDerp(source.region, peer.key, [Train.of(self._sealer.seal(disco, pong))]))
            return
        if not self._direct:
            return
        out.append(
            SendUdp(source.address, [Train.of(self._sealer.seal(disco, Pong(ping.transaction, source.address)))])
        )
        if not self._may_ping(source.address):
            return
        path = self._use(peer, now).path
        if isinstance(path, PeerPath):
            self._do(peer, path.receive_ping(source.address, now), now, out)

    def _receive_pong(self, pong: Pong, disco: DiscoPublic, source: Source, now: float, out: list[Output]) -> None:
        sent = self._sent.get(pong.transaction, now)
        peer = None if sent is None else self._peers.get(sent.peer)
        by_relay = isinstance(source, DerpSource)
        if sent is None or peer is None or peer.reach.disco != disco or by_relay != isinstance(sent.path, DerpPath):
            self._counters.add(DISCO_UNASKED)  # what came the other way proves one direction only
            return
        self._sent.answered(pong.transaction)
        latency_s = now - sent.at
        if isinstance(peer.path, PeerPath) and isinstance(sent.path, UdpPath):
            self._do(peer, peer.path.receive_pong(sent.path.address, latency_s, now), now, out)
        if sent.token is not None:
            out.append(Ponged(peer.key, sent.token, sent.path, latency_s))

    def _receive_call(
        self, call: CallMeMaybe, disco: DiscoPublic, source: Source, now: float, out: list[Output]
    ) -> None:
        """Only a relay carries it, and only for the owner of the key: nobody else makes us ping others."""
        peer = self._peers.get(source.peer) if isinstance(source, DerpSource) else None
        if peer is None or peer.reach.disco != disco:
            self._counters.add(DISCO_UNKNOWN)
            return
        path = self._use(peer, now).path
        if isinstance(path, PeerPath):
            self._do(peer, path.receive_call(self._possible(call.endpoints), now), now, out)

    # --- people ----------------------------------------------------------------------------------------------------

    def ping(self, key: NodePublic, token: bytes, now: float) -> list[Output]:
        """Ping a peer by its path, or while none is trusted by every way there may be; pongs come as Ponged with this token."""
        out: list[Output] = []
        known = self._peers.get(key)
        path = None if known is None else self._use(known, now).path
        if known is None or not isinstance(path, PeerPath):
            return out
        out += self.on_activity(key, now)
        for way in path.ways_to_ask(now):
            self._ping(known, way, token, now, out)
        return out

    def status(self, key: NodePublic) -> PathStatus:
        """The path to this peer."""
        peer = self._peers.get(key)
        if peer is None:
            return PathStatus(Kind.NONE)
        relay, path = peer.reach.relay, peer.path
        if path is None:
            return PathStatus(Kind.NONE if relay is None else Kind.RELAYED, relay=relay)
        return PathStatus(path.kind, path.best, relay, path.latency_s, tuple(path.changes))

    # --- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Output]:
        """Let time pass."""
        out, self._outbox = self._outbox, []
        for peer in self._agenda.due(now):
            if isinstance(peer.path, PeerPath):
                self._do(peer, peer.path.tick(now), now, out)
        return out

    @property
    def deadlines_set(self) -> int:
        """How often a deadline came nearer so far, and another number while something waits for the next tick."""
        return self._agenda.entries + (_IN_OUTBOX if self._outbox else 0)

    def deadline(self) -> float | None:
        """When `tick` is due at the latest; None when nothing is."""
        return 0.0 if self._outbox else self._agenda.deadline()

    # --- what paths want -------------------------------------------------------------------------------------------

    def _use(self, peer: _Peer, now: float) -> _Peer:
        """The peer, with a path."""
        if peer.path is None:
            peer.path = PlainPath() if peer.reach.plain else PeerPath(now)
            self._used[peer.key] = peer
            self._do(peer, self._tell(peer.path, peer.reach, now), now, self._outbox)
        return peer

    def _tell(self, path: PeerPath | PlainPath, reach: Reach, now: float) -> list[Wish]:
        endpoints = self._possible(_parsed(reach.endpoints))
        return path.tell(endpoints, now) if isinstance(path, PlainPath) else path.tell(endpoints, reach.relay, now)

    def _possible(self, endpoints: Iterable[Endpoint]) -> list[Endpoint]:
        return [endpoint for endpoint in endpoints if self._may_ping(endpoint)]

    def _may_ping(self, endpoint: Endpoint) -> bool:
        return self._direct and may_be_pinged(endpoint, loopback=self._loopback)

    def _do(self, peer: _Peer, wishes: Iterable[Wish], now: float, out: list[Output]) -> None:
        for wish in wishes:
            match wish:
                case Probe(endpoint):
                    self._ping(peer, UdpPath(endpoint), None, now, out)
                case Call(fresh):
                    self._call(peer, FRESH_IN_DOUBT_S if fresh else FRESH_S, now, out)
                case Change():
                    assert peer.path is not None
                    self._set_path(peer.key, peer.path.path)
                    out.append(PathChanged(peer.key, wish))
        self._schedule(peer)

    def _schedule(self, peer: _Peer) -> None:
        if isinstance(peer.path, PeerPath):
            self._agenda.schedule(peer, peer.path.deadline())

    def _ping(self, peer: _Peer, path: UdpPath | DerpPath, token: bytes | None, now: float, out: list[Output]) -> None:
        transaction = self._random(TRANSACTION_BYTES)
        if self._say(peer, path, Ping(transaction, self._own()), out):
            self._sent.add(transaction, SentPing(now, peer.key, path, token))

    def _call(self, peer: _Peer, fresh_s: float, now: float, out: list[Output]) -> None:
        if peer.reach.relay is None or peer.reach.disco is None:
            return
        if now - self._endpoints_at > fresh_s:
            out.append(WantEndpoints())  # those that are found to be others are told then; these are likely still right
        if self._endpoints:
            self._say(peer, derp_path(peer.reach.relay), CallMeMaybe(self._endpoints), out)

    def _say(self, peer: _Peer, path: UdpPath | DerpPath, message: Message, out: list[Output]) -> bool:
        if peer.reach.disco is None:
            return False
        try:
            datagram = self._sealer.seal(peer.reach.disco, message)
        except ProtocolError:  # a key of low order
            self._counters.add(DISCO_UNKNOWN)
            return False
        if isinstance(path, UdpPath):
            out.append(SendUdp(path.address, [Train.of(datagram)]))
        else:
            out.append(SendDerp(path.region, peer.key, [Train.of(datagram)]))
        return True


def _parsed(texts: Iterable[str]) -> Iterable[Endpoint]:
    for text in texts:
        try:
            yield parse_endpoint(text)
        except ValueError:
            continue  # of a kind that we do not know yet
