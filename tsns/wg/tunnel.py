"""The tunnel to one peer: handshakes, the keypair slots, the timers' consequences (ring 0).

Source: WireGuard paper 5 and 6. Ours alone are the quick first initiations, the patience of an unconfirmed responder
and the depth of `previous`; none of them is visible to the other side but as a message that the paper has too.

    slots                      next                previous            current
    we got a response          -> previous         <- current, next    <- new
    we sent a response         <- new
    first packet on next       -> current          <- current          <- next

Only `current` seals. All of them open: a packet that is under way when the keys change must not be lost. Where both
sides began at once there are two fresh sessions, and each side may have chosen the other one: that is why `previous`
holds up to three, where the paper's one would lose what is under way when the keys change next.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from math import inf
from typing import Final, Protocol

from tsns.counters import Counters
from tsns.proto import virtio
from tsns.ways import Train
from tsns.wg import tai64n
from tsns.wg.cookie import CookieJar
from tsns.wg.drops import Drop
from tsns.wg.handshake import Incoming, OwnKey, PeerKey, Pending, SessionKeys, initiate
from tsns.wg.indices import IndexTable
from tsns.wg.messages import INITIATION_BYTES, KEY_BYTES, MACS_BYTES, RESPONSE_BYTES
from tsns.wg.peer import Peer
from tsns.wg.session import Session
from tsns.wg.staging import StagedQueue, StagedTotal
from tsns.wg.timers import LAST_MINUTE_AFTER_S, MAX_JITTER_S, MAX_RETRIES, REKEY_TIMEOUT_S, Timer, Timers
from tsns.wg.transport import MakeTransport, Opened

log = logging.getLogger(__name__)

# While nothing ever came back from a peer its first initiations are repeated after these gaps, hence 0.25, 0.5, 1 and 2
# s after the first: a peer that has not heard of us yet drops the first one, and the paper's 5 s are long for somebody
# who waits.
QUICK_RETRIES_AFTER_S: Final = (0.25, 0.25, 0.5, 1.0)
MIN_INITIATION_GAP_S: Final = 0.02  # between accepted initiations of one peer
UNCONFIRMED_PATIENCE_S: Final = 1.0  # how long a responder without other keys waits before it begins a handshake itself
MAX_PREVIOUS: Final = 3
PEERS_OWN_S: Final = 5.0  # see `begin_anew`: control may tell of a new process after that has begun to speak
YIELD_S: Final = (
    5.0  # how much later the side with the lesser key rekeys, so that two who began at once do not do so for ever
)

_KEEPALIVE: Final = (virtio.PLAIN,)


class Shared(Protocol):
    """What the tunnels of a device have in common."""

    own: OwnKey
    random: Callable[[int], bytes]
    wall_clock: Callable[[], float]
    indices: IndexTable
    counters: Counters
    staged_total: StagedTotal
    mtu: int
    make_transport: MakeTransport


class Effects:
    """What one call to a tunnel brought about."""

    __slots__ = ("heard", "is_calm", "session_up", "trains")

    def __init__(self) -> None:
        self.is_calm = False  # no timer was set but those of data, which are never nearer than KEEPALIVE_TIMEOUT_S
        self.trains: list[Train] = []  # to be sent to the peer, in this order
        self.heard = False  # what came was authentic
        self.session_up = False


class Tunnel:
    """The state of one peer in use. Calls add to the `Effects` they are given."""

    __slots__ = (
        "_current",
        "_heard",
        "_jar",
        "_key",
        "_last_accepted_at",
        "_last_initiation_at",
        "_last_response_at",
        "_next",
        "_patience_jitter_s",
        "_peer",
        "_pending",
        "_previous",
        "_quick_retries",
        "_shared",
        "_staged",
        "_timers",
        "scheduled_at",
    )

    def __init__(self, peer: Peer, shared: Shared, key: PeerKey, now: float) -> None:
        self._peer = peer
        self._shared = shared
        self._key = key
        self._jar = CookieJar(peer.key.raw)
        self._timers = Timers()
        self._timers.idle(now)
        self._staged = StagedQueue(shared.staged_total, shared.counters)
        self._current: Session | None = None
        self._next: Session | None = None
        self._patience_jitter_s = self._jitter()
        self._previous: list[Session] = []  # the older one first
        self._pending: list[Pending] = []  # our unanswered initiations, the newest last
        self._quick_retries = 0
        self._heard = False  # whether anything authentic ever came
        self._last_initiation_at = -inf
        self._last_response_at = -inf
        self._last_accepted_at = -inf
        self.scheduled_at = inf  # the device's: when it will call `tick`

    @property
    def peer(self) -> Peer:
        """Whose tunnel this is."""
        return self._peer

    @property
    def key(self) -> PeerKey:
        """The peer's key, ready for handshakes."""
        return self._key

    # --- sending ---------------------------------------------------------------------------------------------------

    def send(self, frames: Sequence[bytes], now: float, effects: Effects) -> None:
        """Seal what is in these frames, or let them wait for the session that is then asked for."""
        session = self._current
        if session is not None and session.can_seal(frames, now):
            effects.is_calm = True
            self._seal(session, frames, now, effects)
            self._timers.data_sent(now, self._patience_jitter_s)
        else:
            self._staged.put(frames, now)
            self._begin_handshake(now, effects)

    def set_preshared(self) -> None:
        """The peer's preshared key has changed: it counts from the next handshake on."""
        self._key.preshared = self._peer.preshared

    def _seal(self, session: Session, frames: Sequence[bytes], now: float, effects: Effects) -> None:
        self._transmit(session.seal(frames, self._shared.mtu, self._shared.counters), effects)
        if session.wants_rekey(now):
            self._begin_handshake(now, effects)

    def _send_keepalive(self, now: float, effects: Effects) -> None:
        session = self._current
        if session is not None and session.can_seal(_KEEPALIVE, now):
            self._seal(session, _KEEPALIVE, now, effects)
        else:
            self._begin_handshake(now, effects)

    def _send_staged(self, now: float, effects: Effects) -> bool:
        """Send what has waited for the session that has just come about; whether there was anything."""
        frames = self._staged.take(now)
        if frames:
            self.send(frames, now, effects)
        return bool(frames)

    def _transmit(self, trains: Sequence[Train], effects: Effects) -> None:
        effects.trains += trains
        self._peer.tx_bytes += sum([len(train.data) for train in trains])
        self._timers.sent()

    # --- receiving -------------------------------------------------------------------------------------------------

    def receive(self, session: Session, trains: Sequence[Train], now: float, effects: Effects) -> Opened | None:
        """Open transport messages that begin with one of our sessions; None where that is too old."""
        if session.is_expired(now):
            self._shared.counters.add(Drop.SESSION_EXPIRED, sum([len(train.messages()) for train in trains]))
            return None
        opened = session.open(trains, self._shared.counters)
        if opened.authentic_bytes:
            self._peer.rx_bytes += opened.authentic_bytes
            self._authentic(session, now, effects, has_data=opened.packets > 0)
        return opened

    def _authentic(self, session: Session, now: float, effects: Effects, *, has_data: bool) -> None:
        """The peer has used this session."""
        self._heard = effects.heard = effects.is_calm = True
        timers = self._timers
        timers.received()
        if has_data:
            timers.data_received(now)
        if session is self._next:
            effects.is_calm = False
            log.debug("%s: the session is confirmed", self._peer.key.short)
            self._retire(self._current, now)
            self._current, self._next = session, None
            self._handshake_complete(effects)
            self._send_staged(now, effects)
        elif (
            session is self._current
            and session.is_initiator
            and not timers.sent_last_minute_handshake
            and now - session.created_at > LAST_MINUTE_AFTER_S
        ):
            timers.sent_last_minute_handshake = True
            self._begin_handshake(now, effects)

    def receive_initiation(self, incoming: Incoming, timestamp: bytes, now: float, effects: Effects) -> None:
        """Answer an initiation of this peer's, whose time stamp is newer than any other."""
        counters, peer = self._shared.counters, self._peer
        if now - self._last_accepted_at <= MIN_INITIATION_GAP_S:
            counters.add(Drop.INITIATION_TOO_SOON)
            return
        index = self._shared.indices.allocate()
        body, keys = incoming.respond(self._key, ephemeral=self._shared.random(KEY_BYTES), index=index)
        peer.greatest_timestamp = timestamp
        peer.rx_bytes += INITIATION_BYTES
        self._last_accepted_at = self._last_response_at = now
        self._heard = effects.heard = True
        log.debug("%s: initiation received, sending the response", peer.key.short)
        self._drop(self._next)
        self._next = self._new_session(keys, now, is_initiator=False)
        self._timers.received()
        self._transmit([Train.of(self._jar.stamp(body, now))], effects)

    def receive_response(self, pending: Pending, message: bytes, now: float, effects: Effects) -> None:
        """Take the response to one of our initiations."""
        counters = self._shared.counters
        keys = pending.complete(self._shared.own, self._key, message[:-MACS_BYTES])
        if keys is None:
            counters.add(Drop.BAD_HANDSHAKE)
            return
        self._heard = effects.heard = True
        if pending is not self._pending[-1]:
            # The later initiation will have reached the peer before anything we could send now, and made it forget
            # these keys: its response is what we want, and we know now how long that takes.
            counters.add(Drop.SUPERSEDED_RESPONSE)
            self._forget_pending(pending)
            round_trip_s = now - pending.sent_at
            self._timers.retransmit = self._last_initiation_at + min(2 * round_trip_s, REKEY_TIMEOUT_S) + self._jitter()
            return
        log.debug("%s: response received, the session is up", self._peer.key.short)
        self._peer.rx_bytes += RESPONSE_BYTES
        self._forget_all_pending()
        self._retire(self._current, now)
        self._retire(self._next, now)
        self._next = None
        self._current = self._new_session(keys, now, is_initiator=True)
        self._timers.received()
        self._handshake_complete(effects)
        if not self._send_staged(now, effects):
            self._send_keepalive(now, effects)  # the peer may not send before it has seen these keys in use

    def begin_anew(self, now: float, effects: Effects) -> None:
        """The peer's process is another one, which does not know our keys: ask for new ones, and keep what is to be sent until then.

        Keys that the peer itself asked for a moment ago are likely its new process's, and stay in use meanwhile.
        """
        session = self._current
        if session is None or session.is_initiator or now - session.created_at >= PEERS_OWN_S:
            self._retire(session, now)  # what is on its way may still be opened
            self._current = None
        self._forget_all_pending()
        self._timers.retransmit = inf
        self._last_initiation_at = self._last_response_at = -inf
        self._begin_handshake(now, effects)

    def receive_cookie(self, message: bytes, now: float) -> None:
        """Keep the cookie for the next handshake message; the timers send that one."""
        if self._jar.receive(message, now):
            log.debug("%s: cookie received", self._peer.key.short)
        else:
            self._shared.counters.add(Drop.BAD_COOKIE_REPLY)

    # --- handshakes ------------------------------------------------------------------------------------------------

    def _begin_handshake(self, now: float, effects: Effects) -> None:
        """Begin a handshake, unless one is on its way or was a moment ago."""
        effects.is_calm = False
        timers = self._timers
        timers.attempts = 0
        if timers.retransmit != inf:
            return
        usable = self._current is not None and self._current.can_seal(_KEEPALIVE, now)
        patience_s = REKEY_TIMEOUT_S if usable else UNCONFIRMED_PATIENCE_S
        earliest = max(self._last_initiation_at + REKEY_TIMEOUT_S, self._last_response_at + patience_s)
        if now >= earliest:
            self._quick_retries = 0
            self._send_initiation(now, effects)
        elif not usable:
            timers.retransmit = earliest + self._jitter()

    def _send_initiation(self, now: float, effects: Effects) -> None:
        shared, peer = self._shared, self._peer
        delay = self._quick_delay()
        if delay is None:
            self._forget_all_pending()
            delay = REKEY_TIMEOUT_S + self._jitter()
        index = shared.indices.allocate()
        peer.last_stamp = max(tai64n.stamp(shared.wall_clock()), tai64n.following(peer.last_stamp))
        body, pending = initiate(
            shared.own,
            self._key,
            ephemeral=shared.random(KEY_BYTES),
            index=index,
            timestamp=tai64n.encode(peer.last_stamp),
            now=now,
        )
        self._pending.append(pending)
        shared.indices.pending[index] = (self, pending)
        self._last_initiation_at = now
        self._timers.retransmit = now + delay
        log.debug("%s: sending a handshake initiation", peer.key.short)
        self._transmit([Train.of(self._jar.stamp(body, now))], effects)

    def _quick_delay(self) -> float | None:
        if self._heard or self._quick_retries >= len(QUICK_RETRIES_AFTER_S):
            return None
        delay = QUICK_RETRIES_AFTER_S[self._quick_retries]
        self._quick_retries += 1
        return delay

    def _retransmit(self, now: float, effects: Effects) -> None:
        quick = not self._heard and self._quick_retries < len(QUICK_RETRIES_AFTER_S)
        if not quick:
            if self._timers.attempts > MAX_RETRIES:
                log.debug("%s: no response to %d initiations, giving up", self._peer.key.short, self._timers.attempts)
                self._forget_all_pending()
                self._timers.given_up()
                self._staged.drop_all(Drop.STAGED_GIVEN_UP)
                return
            self._timers.attempts += 1
        self._send_initiation(now, effects)

    def _handshake_complete(self, effects: Effects) -> None:
        self._timers.handshake_complete()
        self._peer.last_handshake = self._shared.wall_clock()
        effects.session_up = True

    # --- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: float, effects: Effects) -> bool:
        """Do what has come due; False when the tunnel has been idle for so long that it can be forgotten."""
        self._staged.expire(now)
        for timer in self._timers.due(now):
            if timer is Timer.ZERO_KEYS:
                log.debug("%s: no new keys for long, erasing the old ones", self._peer.key.short)
                self.erase()
                return False
            if timer is Timer.RETRANSMIT:
                self._retransmit(now, effects)
            elif timer is Timer.KEEPALIVE:
                self._send_keepalive(now, effects)
                self._timers.keepalive_sent(now)
            else:
                log.debug("%s: nothing heard for long, beginning a handshake", self._peer.key.short)
                self._begin_handshake(now, effects)
        return True

    def deadline(self) -> float:
        """When `tick` is due; infinity when never."""
        timers = self._timers
        return min(timers.retransmit, timers.keepalive, timers.new_handshake, timers.zero_keys, self._staged.deadline())

    def erase(self) -> None:
        """Let go of all keys and of what waits for them."""
        self._forget_all_pending()
        for session in (self._current, self._next, *self._previous):
            self._drop(session)
        self._current = self._next = None
        self._previous.clear()
        self._staged.drop_all(Drop.STAGED_GIVEN_UP)

    # --- slots -----------------------------------------------------------------------------------------------------

    def _new_session(self, keys: SessionKeys, now: float, *, is_initiator: bool) -> Session:
        session = Session(self, keys, self._shared.make_transport, now, is_initiator=is_initiator)
        if self._shared.own.public < self._key.raw:
            session.rekey_after_s += YIELD_S
        self._shared.indices.sessions[session.local_index] = session
        self._timers.session_derived(now)
        return session

    def _retire(self, session: Session | None, now: float) -> None:
        if session is None:
            return
        self._previous.append(session)
        while len(self._previous) > MAX_PREVIOUS or self._previous[0].is_expired(now):
            self._drop(self._previous.pop(0))
            if not self._previous:
                return

    def _drop(self, session: Session | None) -> None:
        if session is not None:
            self._shared.indices.sessions.pop(session.local_index, None)
            session.erase()

    def _forget_pending(self, pending: Pending) -> None:
        self._pending.remove(pending)
        self._shared.indices.pending.pop(pending.index, None)

    def _forget_all_pending(self) -> None:
        for pending in self._pending:
            self._shared.indices.pending.pop(pending.index, None)
        self._pending.clear()

    def _jitter(self) -> float:
        return int.from_bytes(self._shared.random(2), "big") / 0x10000 * MAX_JITTER_S
