"""All peers of a node as one WireGuard device (ring 0: frames, trains and times in; outputs and a deadline out).

Source: WireGuard paper 5 and 6. What comes is told apart by its first byte:

    initiation --> by relay: from a peer? --> admission --> whose? --> Tunnel.receive_initiation --> Transmit the response
    response   --> index --> admission --> Tunnel.receive_response --> Transmit, SessionUp
    cookie     --> index --> Tunnel.receive_cookie
    transport  --> index --> Tunnel.receive --> inner source allowed for this peer? --> Deliver

Nothing that comes raises; what goes no further is counted in `counters`. Random bytes, wall clock and times are the
caller's.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tsns.agenda import Agenda
from tsns.counters import Counters
from tsns.keys import NodePrivate, NodePublic
from tsns.proto.addresses import Prefix
from tsns.proto.packets import HEAD_BYTES, destination, source
from tsns.proto.virtio import HEADER_BYTES, Frame, frame_of, packet_of, packets_in
from tsns.ways import DerpSource, Source, Train, UdpSource, messages
from tsns.wg import tai64n
from tsns.wg.admission import Admission
from tsns.wg.allowed_ips import AllowedIPs
from tsns.wg.drops import Drop
from tsns.wg.engines import choose, maker
from tsns.wg.handshake import NO_PRESHARED_KEY, OwnKey, PeerKey, open_initiation
from tsns.wg.indices import IndexTable
from tsns.wg.masquerade import Masquerade
from tsns.wg.messages import (
    COOKIE_REPLY_BYTES,
    COOKIE_REPLY_HEAD,
    INITIATION_BYTES,
    INITIATION_HEAD,
    MACS_BYTES,
    MIN_TRANSPORT_BYTES,
    RESPONSE_BYTES,
    RESPONSE_HEAD,
    TRANSPORT_HEAD,
)
from tsns.wg.peer import Peer, PeerStatistics
from tsns.wg.session import Session
from tsns.wg.staging import StagedTotal
from tsns.wg.timers import KEEPALIVE_TIMEOUT_S
from tsns.wg.transport import MakeTransport
from tsns.wg.tunnel import Effects, Tunnel

log = logging.getLogger(__name__)

DEFAULT_MTU: Final = 1280  # of the TUN: padding never goes beyond it


@dataclass(frozen=True, slots=True)
class Transmit:
    """Send these messages to the peer, in their order, by whatever path leads there."""

    peer: NodePublic
    trains: list[Train]

    @property
    def datagrams(self) -> list[bytes]:
        """The messages, each by itself."""
        return messages(self.trains)


@dataclass(frozen=True, slots=True)
class Reply:
    """Send this datagram to where something came from (a cookie reply: whose it is nobody knows yet)."""

    source: Source
    datagram: bytes


@dataclass(frozen=True, slots=True)
class Deliver:
    """These frames came from the peer, and their packets' sources are its own."""

    peer: NodePublic
    frames: list[Frame]

    @property
    def packets(self) -> list[bytes]:
        """What is in frames that hold one packet each."""
        return [packet_of(frame) for frame in self.frames]


@dataclass(frozen=True, slots=True)
class Strays:
    """These messages came in one train with others, and are not the device's to judge."""

    messages: list[bytes]
    source: Source


@dataclass(frozen=True, slots=True)
class SessionUp:
    """There are new keys with this peer that both sides have."""

    peer: NodePublic


@dataclass(frozen=True, slots=True)
class Heard:
    """Something authentic of this peer's came from there: anything by UDP, by relay only what begins a handshake."""

    peer: NodePublic
    source: Source


Output = Transmit | Reply | Deliver | Strays | SessionUp | Heard

_NOTHING: Final = PeerStatistics(0, 0, None)


class Device:
    """A WireGuard device.

    `random(n)` gives n bytes fit for keys. `wall_clock()` is the Unix time for time stamps, which must not go back from
    one run of the program to the next: `latest_time` is the latest that runs before this one had. Within a run the
    device sees to that itself. `mtu` is the TUN's, `make_transport` the engine that seals and opens, by
    default the best that there is.
    """

    def __init__(
        self,
        private: NodePrivate,
        random: Callable[[int], bytes],
        *,
        wall_clock: Callable[[], float],
        latest_time: float = 0.0,
        mtu: int = DEFAULT_MTU,
        make_transport: MakeTransport | None = None,
    ) -> None:
        self.random = random
        self.wall_clock = wall_clock
        self.mtu = mtu
        self.make_transport = make_transport or maker(choose(), join_udp=True)
        self.counters = Counters()
        self.staged_total = StagedTotal()
        self.indices = IndexTable(random)
        self.own = OwnKey(private)
        self._admission = Admission(self.own.public, random)
        self._peers: dict[NodePublic, Peer] = {}
        self._allowed: AllowedIPs[Peer] = AllowedIPs()
        # The greatest time stamp sent to peers that were removed, or that runs before us may have sent to any.
        self._stamp_floor = tai64n.stamp(latest_time)
        self._agenda: Agenda[Tunnel] = Agenda()

    # --- configuration ---------------------------------------------------------------------------------------------

    def carries(self, address: bytes) -> bool:
        """Whether packets to this packed address go to some peer."""
        return self._allowed.lookup(address) is not None

    def covers(self, address: bytes) -> bool:
        """Whether they do so by more than a default route."""
        return self._allowed.covers(address)

    def set_peer(self, key: NodePublic, allowed: Sequence[Prefix], *, preshared: bytes = NO_PRESHARED_KEY) -> None:
        """Add or change a peer. Its session stays, as do those of all others; a prefix that another peer had moves to
        this one.

        A changed preshared key (32 bytes) counts from the next handshake on.
        """
        peer = self._peers.get(key)
        if peer is None:
            peer = self._peers[key] = Peer(key)
            peer.last_stamp = self._stamp_floor
        else:
            self._allowed.remove(peer.allowed, peer)
        peer.allowed = tuple(allowed)
        self._allowed.add(peer.allowed, peer)
        if peer.preshared != preshared:
            peer.preshared = preshared
            if peer.tunnel is not None:
                peer.tunnel.set_preshared()

    def set_masquerade(self, key: NodePublic, masquerade: Masquerade | None) -> None:
        """Say by which addresses a peer knows us, where these are not our own."""
        peer = self._peers.get(key)
        if peer is not None:
            peer.masquerade = masquerade or None

    def remove_peer(self, key: NodePublic) -> None:
        """Forget a peer, its session and what waits for it; nothing happens where there is none."""
        peer = self._peers.pop(key, None)
        if peer is not None:
            self._allowed.remove(peer.allowed, peer)
            self._stamp_floor = max(self._stamp_floor, peer.last_stamp)
            self._end(peer)

    def set_private_key(self, key: NodePrivate) -> None:
        """Become somebody else: all sessions end, the peers stay known."""
        for peer in self._peers.values():
            self._end(peer)
            peer.is_usable = True
        self.own = OwnKey(key)
        self._admission = Admission(self.own.public, self.random)

    def peers(self) -> Iterable[NodePublic]:
        """All that are known."""
        return self._peers.keys()

    def peer_for(self, address: bytes) -> NodePublic | None:
        """The peer that packets to this packed address go to; None where there is none."""
        peer = self._allowed.lookup(address)
        return None if peer is None else peer.key

    def peer_of(self, packet: bytes) -> NodePublic | None:
        """The peer that this IP packet goes to; None where there is none."""
        address = destination(packet)
        return None if address is None else self.peer_for(address)

    def statistics(self, key: NodePublic) -> PeerStatistics:
        """What was exchanged with this peer."""
        peer = self._peers.get(key)
        return _NOTHING if peer is None else peer.statistics()

    def begin_anew(self, key: NodePublic, now: float) -> list[Output]:
        """Ask a peer whose process is another one for new keys, if we had any with it."""
        out: list[Output] = []
        peer = self._peers.get(key)
        if peer is not None and peer.tunnel is not None:
            effects = Effects()
            peer.tunnel.begin_anew(now, effects)
            self._finish(peer.tunnel, effects, now, out)
        return out

    # --- sending ---------------------------------------------------------------------------------------------------

    def send(self, frames: Iterable[bytes], now: float) -> list[Output]:
        """Send frames to the peers that their destinations belong to."""
        queues: dict[Peer, list[bytes]] = {}
        lookup = self._allowed.lookup
        last_address: bytes | None = None
        queue: list[bytes] | None = None
        for frame in frames:
            address = destination(frame[HEADER_BYTES : HEADER_BYTES + HEAD_BYTES])
            if address != last_address:
                last_address = address
                peer = None if address is None else lookup(address)
                queue = None if peer is None else queues.setdefault(peer, [])
            if queue is None:
                self.counters.add(Drop.NO_PEER, packets_in(frame))
            else:
                queue.append(frame)
        out: list[Output] = []
        for peer, queue in queues.items():
            self._send(peer, queue, now, out)
        return out

    def send_to(self, key: NodePublic, packets: Sequence[bytes], now: float) -> list[Output]:
        """Send IP packets to this peer, whatever their destinations."""
        out: list[Output] = []
        peer = self._peers.get(key)
        if peer is None:
            self.counters.add(Drop.NO_PEER, len(packets))
        elif packets:
            self._send(peer, [frame_of(packet) for packet in packets], now, out)
        return out

    def _send(self, peer: Peer, frames: Sequence[bytes], now: float, out: list[Output]) -> None:
        tunnel = self._tunnel(peer, now)
        if tunnel is None:
            self.counters.add(Drop.BAD_PEER_KEY, sum(map(packets_in, frames)))
            return
        if peer.masquerade is not None:
            frames = peer.masquerade.outbound(frames)
        effects = Effects()
        tunnel.send(frames, now, effects)
        self._finish(tunnel, effects, now, out)

    # --- receiving -------------------------------------------------------------------------------------------------

    def receive(self, trains: Iterable[Train], source: Source, now: float) -> list[Output]:
        """Take what came from one source, in its order."""
        out: list[Output] = []
        run: list[Train] = []
        run_session: Session | None = None
        for session, train in self._parted(trains):
            if session is not run_session:
                if run_session is not None:
                    self._receive_transport(run_session, run, source, now, out)
                run, run_session = [], session
            if session is not None:
                run.append(train)
            else:
                self._receive_other(train.data, source, now, out)
        if run_session is not None:
            self._receive_transport(run_session, run, source, now, out)
        return out

    def _parted(self, trains: Iterable[Train]) -> Iterator[tuple[Session | None, Train]]:
        """Trains with the session that they begin with; one that begins otherwise in parts, for what follows may be a session's."""
        for train in trains:
            session = self._session_of(train.data)
            if session is None and len(train.data) > train.stride:
                for message in train.messages():
                    yield self._session_of(message), Train.of(message)
            else:
                yield session, train

    def _session_of(self, message: bytes) -> Session | None:
        is_transport = message[:4] == TRANSPORT_HEAD and len(message) >= MIN_TRANSPORT_BYTES
        return self.indices.sessions.get(message[4:8]) if is_transport else None

    def _receive_transport(
        self, session: Session, trains: Sequence[Train], source: Source, now: float, out: list[Output]
    ) -> None:
        tunnel, effects = session.tunnel, Effects()
        opened = tunnel.receive(session, trains, now, effects)
        self._finish(tunnel, effects, now, out, source if isinstance(source, UdpSource) else None)
        if opened is None:
            return
        if opened.frames:
            peer = tunnel.peer
            accepted = self._checked(peer, opened.frames)
            if peer.masquerade is not None:
                accepted = peer.masquerade.inbound(accepted)
            if accepted:
                out.append(Deliver(peer.key, accepted))
        if opened.strays:
            out.append(Strays(opened.strays, source))

    def _checked(self, peer: Peer, frames: Iterable[Frame]) -> list[Frame]:
        """The frames whose sources belong to the peer that sent them: one look at each, for what was joined has one source."""
        accepted = []
        lookup = self._allowed.lookup
        last_address: bytes | None = None
        for frame in frames:
            address = source(bytes(frame[HEADER_BYTES : HEADER_BYTES + HEAD_BYTES]))
            if address is None:
                self.counters.add(Drop.BAD_INNER_PACKET)
                continue
            if address != last_address:
                if lookup(address) is not peer:
                    self.counters.add(Drop.SOURCE_NOT_ALLOWED, packets_in(frame))
                    continue
                last_address = address
            accepted.append(frame)
        return accepted

    def _receive_other(self, datagram: bytes, source: Source, now: float, out: list[Output]) -> None:
        head, size = datagram[:4], len(datagram)
        if head == INITIATION_HEAD and size == INITIATION_BYTES:
            if isinstance(source, DerpSource) and source.peer not in self._peers:
                self.counters.add(Drop.UNKNOWN_SENDER)  # a relay may lie, but hardly in a stranger's favour
            elif self._admits(datagram, source, now, out):
                self._receive_initiation(datagram, source, now, out)
        elif head == RESPONSE_HEAD and size == RESPONSE_BYTES:
            if datagram[8:12] not in self.indices.pending:
                self.counters.add(Drop.UNKNOWN_INDEX)
            elif self._admits(datagram, source, now, out):
                self._receive_response(datagram, source, now, out)
        elif head == COOKIE_REPLY_HEAD and size == COOKIE_REPLY_BYTES:
            self._receive_cookie(datagram, now)
        elif head == TRANSPORT_HEAD and size >= MIN_TRANSPORT_BYTES:
            self.counters.add(Drop.UNKNOWN_INDEX)
        else:
            self.counters.add(Drop.MALFORMED)

    def _admits(self, message: bytes, source: Source, now: float, out: list[Output]) -> bool:
        """Whether this message is worth the arithmetic of a handshake."""
        verdict = self._admission.admits(message, source, now)
        if verdict is None:
            return True
        if isinstance(verdict, Drop):
            self.counters.add(verdict)
        else:
            self.counters.add(Drop.UNDER_LOAD)
            out.append(Reply(source, verdict))
        return False

    def _receive_initiation(self, message: bytes, source: Source, now: float, out: list[Output]) -> None:
        incoming = open_initiation(self.own, message[:-MACS_BYTES])
        if incoming is None:
            self.counters.add(Drop.BAD_HANDSHAKE)
            return
        peer = self._peers.get(NodePublic(incoming.static))
        key = None if peer is None else self._key_of(peer)
        if peer is None or key is None:
            self.counters.add(Drop.UNKNOWN_SENDER)
            return
        # Anybody can name a peer: nothing is made for it before it has proved to be there, now.
        timestamp = incoming.timestamp(key)
        if timestamp is None:
            self.counters.add(Drop.BAD_HANDSHAKE)
        elif timestamp <= peer.greatest_timestamp:
            self.counters.add(Drop.REPLAYED_INITIATION)
        else:
            if peer.tunnel is None:
                peer.tunnel = Tunnel(peer, self, key, now)
            effects = Effects()
            peer.tunnel.receive_initiation(incoming, timestamp, now, effects)
            self._finish(peer.tunnel, effects, now, out, source)

    def _receive_response(self, message: bytes, source: Source, now: float, out: list[Output]) -> None:
        tunnel, pending = self.indices.pending[message[8:12]]
        effects = Effects()
        tunnel.receive_response(pending, message, now, effects)
        self._finish(tunnel, effects, now, out, source if isinstance(source, UdpSource) else None)

    def _receive_cookie(self, message: bytes, now: float) -> None:
        index = message[4:8]
        found = self.indices.pending.get(index)
        session = self.indices.sessions.get(index)
        if found is not None:
            found[0].receive_cookie(message, now)
        elif session is not None:
            session.tunnel.receive_cookie(message, now)
        else:
            self.counters.add(Drop.UNKNOWN_INDEX)

    # --- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Output]:
        """Let time pass."""
        out: list[Output] = []
        for tunnel in self._agenda.due(now):
            effects = Effects()
            if not tunnel.tick(now, effects):
                tunnel.peer.tunnel = None
            self._finish(tunnel, effects, now, out)
        return out

    def deadline(self) -> float | None:
        """When `tick` is due at the latest; None when nothing is. It may be early, and never is late."""
        return self._agenda.deadline()

    @property
    def deadlines_set(self) -> int:
        """How often a deadline came nearer so far."""
        return self._agenda.entries

    # --- peers in use ----------------------------------------------------------------------------------------------

    def _tunnel(self, peer: Peer, now: float) -> Tunnel | None:
        """The peer's tunnel, made now if need be; None where its key is of low order."""
        if peer.tunnel is None:
            key = self._key_of(peer)
            if key is not None:
                peer.tunnel = Tunnel(peer, self, key, now)
        return peer.tunnel

    def _key_of(self, peer: Peer) -> PeerKey | None:
        """The peer's key, ready for handshakes; None where it is of low order."""
        if peer.tunnel is not None:
            return peer.tunnel.key
        if not peer.is_usable:
            return None
        try:
            return PeerKey(self.own, peer.key, peer.preshared)
        except ValueError:
            log.warning("%s: this peer's key is worthless, nothing is sent to it", peer.key.short)
            peer.is_usable = False
            return None

    def _end(self, peer: Peer) -> None:
        if peer.tunnel is not None:
            peer.tunnel.erase()
            self._agenda.drop(peer.tunnel)
            peer.tunnel = None

    def _finish(
        self, tunnel: Tunnel, effects: Effects, now: float, out: list[Output], source: Source | None = None
    ) -> None:
        peer = tunnel.peer
        if effects.heard and source is not None:
            out.append(Heard(peer.key, source))
        if effects.session_up:
            out.append(SessionUp(peer.key))
        if effects.trains:
            out.append(Transmit(peer.key, effects.trains))
        if effects.is_calm and tunnel.scheduled_at <= now + KEEPALIVE_TIMEOUT_S:
            return  # as with nearly all data
        if peer.tunnel is tunnel:
            self._agenda.schedule(tunnel, tunnel.deadline())
