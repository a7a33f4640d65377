"""The control client: login, the netmap stream, and what to do when they end (ring 1).

Source: control/controlclient of Tailscale's module.

    CONNECT --key, upgrade, Noise--> LOGIN (where due) --> FOLLOW the netmap, with updates and pings beside it
       ^                               ^      `--------------^  |
       |                               `--not known, expired----'
       `------- back-off ------------- any end, 120 s of silence

A node with a key that control once accepted goes to FOLLOW directly, unless it has an auth key as well: some servers take a login without a
proof for a logout. A new key becomes the node's own when control has accepted it, not before; until then the netmap is followed with the
key that we have, as long as control permits it, so that a login which waits for a person disturbs nobody, and an administrator who extends
the key ends the waiting.

While control does not answer, the netmap of the last time may stand in for it (`cached`).

What only a person can mend ends `run` with a UserError. A server that does not look like a control server is such a case for a new node
only: for one that has been there before, it is a proxy whose server is away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import secrets
import ssl
import time
from collections.abc import AsyncIterator, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

from tsns.config import NodeConfig
from tsns.control.backoff import Backoff, wish_of
from tsns.control.connection import Connection, Exchange, HandshakeError
from tsns.control.dial import Dialer, Server
from tsns.control.login import LoginEvents, Logins
from tsns.control.map_stream import MapStream
from tsns.control.netmap import NetMap, NetMapChange
from tsns.control.pings import Pings
from tsns.control.register import Accepted
from tsns.control.updates import MAP_PATH, Updates, load_balancing, refuses
from tsns.error import ProtocolError, RetryableError, UserError
from tsns.keys import DiscoPublic, MachinePublic, NodePrivate
from tsns.netns.underlay import Underlay
from tsns.noise.handshake import Initiator
from tsns.noise.stream import ClientStream
from tsns.proto.text import one_line
from tsns.proto.types import Debug, Hostinfo, MapResponse, NetInfo, Node, encode
from tsns.slices import in_slices
from tsns.state import Identity
from tsns.steps import Steps, finish

WATCHDOG_S: Final = 120.0  # control sends something every minute
STABLE_S: Final = 10.0  # a stream that lasted this long was a success
MAX_SLEEP_S: Final = 300.0
MAX_ERROR_BODY_BYTES: Final = 4096
CACHE_PATIENCE_S: Final = 2.0  # for control's first answer; then the cached netmap counts
MAX_EXPIRY_SLEEP_S: Final = 3600.0
EXPIRY_SLACK_S: Final = 0.05

log = logging.getLogger(__name__)


class ControlEvents(LoginEvents, Protocol):
    """What the client tells its owner; plain calls from the event loop, which must not block."""

    def netmap(self, netmap: NetMap, change: NetMapChange) -> Steps[None]:
        """The netmap has changed: apply that in short steps. It is the client's, and always the same object."""

    def connected(self, up: bool) -> None:
        """The netmap is being followed, or no longer."""

    def approval_pending(self, pending: bool) -> None:
        """An admin has yet to approve the node, or has."""

    def key_lost(self, lost: bool) -> None:
        """Control no longer takes our node key, which has expired or is unknown there; or takes it again."""


@dataclass(frozen=True, slots=True)
class AskedLogin:
    """What became of the login that a person asked for."""

    pending: bool = False
    error: str = ""
    hint: str = ""


class _KeyRefusedError(Exception):
    """Control does not know our node key (any more)."""


class ControlClient:
    """One node's client. Made with a URL that is none, it raises UserError."""

    def __init__(
        self,
        identity: Identity,
        config: NodeConfig,
        *,
        underlay: Underlay,
        tls: ssl.SSLContext,
        hostinfo: Hostinfo,
        disco: DiscoPublic,
        events: ControlEvents,
        cached: MapResponse | None = None,
    ) -> None:
        self._config = config
        self._events = events
        self._server = Server.parse(config.login_server)
        self._dialer = Dialer(
            self._server, config.capability_version, underlay=underlay, tls=tls, fraction=random.random
        )
        self._logins = Logins(identity, config, hostinfo, events)
        self._netmap = NetMap()
        self._pings = Pings(self._dialer)
        self._backoff = Backoff(random.random)
        self._login_backoff = Backoff(random.random)
        self._cached = cached
        self._kicked = asyncio.Event()  # something else is to be done than a moment ago
        self._updates = Updates(config.capability_version, hostinfo, disco, on_refusal=self._kicked.set)
        self._saying_goodbye = asyncio.Lock()
        self._expiry_timer: asyncio.TimerHandle | None = None
        self._expired = False
        self._told: tuple[str | None, NodePrivate | None, bool] = None, None, False
        self._key_lost = False
        self.asked_login = AskedLogin()
        self._control_key: MachinePublic | None = None
        self._connection: Connection | None = None
        self._pending_approval = False
        self._connected = False
        self._logged_out = False
        self._lock_warned = False

    @property
    def identity(self) -> Identity:
        """Who the node is by now."""
        return self._logins.identity

    @property
    def netmap(self) -> NetMap:
        """The netmap as it is by now."""
        return self._netmap

    def set_hostinfo(self, hostinfo: Hostinfo) -> None:
        """Tell control what the node is by now: its name, the routes that it offers."""
        self._updates.set_hostinfo(hostinfo)
        self._logins.set_hostinfo(hostinfo)

    def set_net_info(self, net_info: NetInfo) -> None:
        """Tell control what our network looks like, the home region above all."""
        self._updates.set_net_info(net_info)

    def set_endpoints(self, endpoints: Sequence[tuple[str, int]]) -> None:
        """Tell control where we may be reached: (`address:port`, tailcfg.EndpointType)."""
        self._updates.set_endpoints(endpoints)

    def network_changed(self, addresses: Collection[str]) -> None:
        """The host's network is another one, with these addresses: see soon whether the connection survived it, or try again at once."""
        if self._connection is not None:
            self._connection.check(addresses)
        else:
            self._kicked.set()

    async def home_accepted(self, region: int) -> None:
        """Wait until control has accepted this region as our home."""
        await self._updates.home_accepted(region)

    async def run(self) -> NoReturn:
        """Log in and follow the netmap until cancelled; UserError where only a person can help."""
        self._check_identity()
        self._events.progress(f"contacting {self._server}")
        patience = asyncio.get_running_loop().call_later(CACHE_PATIENCE_S, self._stand_in)
        try:
            while True:
                while self._idle:
                    await self._kick(None)
                wish = None
                try:
                    await self._session()
                    reason = "control ended the netmap stream"
                except (RetryableError, ProtocolError) as error:
                    reason = one_line(str(error))
                    wish = error.retry_after_s if isinstance(error, RetryableError) else None
                if self._idle:
                    continue
                self._stand_in()
                delay = self._backoff.failed(wish)
                log.info("control: %s; trying again in %.1f s", reason, delay)
                self._events.progress(f"waiting for {self._server}: {reason}")
                await self._kick(delay)
        finally:
            patience.cancel()
            if self._expiry_timer is not None:
                self._expiry_timer.cancel()
            await self._pings.close()
            self._dialer.close()

    def login(self, auth_key: str | None) -> None:
        """Log in anew with a fresh node key, by this auth key or else by a URL; `asked_login` says what becomes of it.

        Until control has accepted it the node goes on with the key that it has.
        """
        self._logins.ask(auth_key)
        self.asked_login = AskedLogin(pending=True)
        self._kicked.set()

    def cancel_login(self) -> None:
        """Nobody waits any more for the login that was asked for: all is as before."""
        if self._logins.asked:
            self._end_asked_login("it was cancelled", "")

    async def logout(self) -> None:
        """Give the node key up: an ephemeral node is then deleted. RetryableError or UserError where control does not do it.

        Afterwards the client rests until somebody asks for a login.
        """
        async with self._saying_goodbye:
            before, self._logged_out = self._logged_out, True  # before the answer: the stream may end first
            try:
                if self.identity.node_key is not None:
                    if self._connection is not None and self._connection.usable:
                        await self._logins.logout(self._connection)
                    else:
                        async with self._connect() as connection:
                            await self._logins.logout(connection)
            except BaseException:
                self._logged_out = before
                raise
            self._logins.withdraw()
            self.asked_login = AskedLogin()
            self._kicked.set()

    @property
    def _idle(self) -> bool:
        return self._logged_out and not self._logins.due

    async def _kick(self, timeout_s: float | None) -> None:
        """Wait until something else is to be done, or for so long."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._kicked.wait()
        self._kicked.clear()

    # --- connection ------------------------------------------------------------------------------------------------

    async def _session(self) -> None:
        """One connection: returns when the server ends the netmap stream in good order, or there is nothing to do."""
        async with self._connect() as connection:
            self._connection = connection
            login: asyncio.Task[Accepted | None] | None = None
            follow: asyncio.Task[None] | None = None
            generation, node_key = -1, self.identity.node_key
            try:
                while not self._idle:
                    self._kicked.clear()
                    if login is not None and generation != self._logins.generation:
                        await _cancelled(login)
                        login = None
                    if follow is not None and (node_key != self.identity.node_key or self._updates.refused):
                        await _cancelled(follow)
                        follow = None
                    self._updates.refused = False
                    if login is None and self._logins.due:
                        generation = self._logins.generation
                        login = asyncio.create_task(self._log_in(connection), name="control login")
                    if follow is None and self._logins.may_follow and (node_key := self.identity.node_key):
                        follow = asyncio.create_task(self._follow(connection, node_key), name="control stream")
                    kicked = asyncio.create_task(self._kicked.wait())
                    waiting = [task for task in (login, follow, kicked) if task is not None]
                    try:
                        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        kicked.cancel()
                    if login is not None and login.done():
                        ended, login = login, None
                        self._on_login(ended)
                    if follow is not None and follow.done():
                        stream, follow = follow, None
                        if await self._on_stream_end(stream):
                            return
            finally:
                for task in (login, follow):
                    if task is not None:
                        await _cancelled(task)
                async with self._saying_goodbye:  # a logout has its answer first
                    self._connection = None

    async def _log_in(self, connection: Connection) -> Accepted | None:
        """One login. What goes wrong without the connection's fault is tried again on it: a stream may live there."""
        while True:
            try:
                pin = None if self._dialer.way.secure else self._control_key
                return await self._logins.run(connection, str(self._server), pin)
            except (RetryableError, ProtocolError) as error:
                if not connection.usable:
                    raise
                delay = self._login_backoff.failed(error.retry_after_s if isinstance(error, RetryableError) else None)
                reason = one_line(str(error))
                log.info("control: %s; trying again in %.1f s", reason, delay)
                self._events.progress(f"waiting for {self._server}: {reason}")
                await asyncio.sleep(delay)

    def _on_login(self, task: asyncio.Task[Accepted | None]) -> None:
        try:
            accepted = task.result()
        except UserError as error:
            if not self._logins.asked:
                raise
            log.warning("%s", error.message)
            self._end_asked_login(error.message, error.hint)
            return
        if accepted is None:
            return
        self._logged_out = False
        self._tell_key()
        self._login_backoff.succeeded()
        if self.asked_login.pending:
            self.asked_login = AskedLogin()
        if not accepted.authorized:
            self._set_pending_approval(True)

    def _end_asked_login(self, error: str, hint: str) -> None:
        """Go on as if nobody had asked."""
        self._logins.withdraw()
        self.asked_login = AskedLogin(error=error, hint=hint)
        if not self._logged_out and (self.identity.node_key is None or self._key_lost):
            self._logins.renew_key()
        self._kicked.set()

    async def _on_stream_end(self, task: asyncio.Task[None]) -> bool:
        """Whether the connection is done with; the stream's error where it had one."""
        try:
            task.result()
        except _KeyRefusedError:
            self._logins.key_refused = True
            self._tell_key()
            if not self._logins.due and not self._logged_out:
                self._logins.due = True
                await asyncio.sleep(self._backoff.failed())
            return False
        return True

    @contextlib.asynccontextmanager
    async def _connect(self) -> AsyncIterator[Connection]:
        """Key, upgrade, handshake."""
        try:
            if self._control_key is None:
                key = await self._dialer.control_key()
                await self._check_control_key(key)
                self._control_key = key
            initiator = Initiator(
                self.identity.machine_key, self._control_key, self._config.capability_version, secrets.token_bytes
            )
            noise = ClientStream(initiator)
            stream, leftover = await self._dialer.upgrade(noise.initiation)
        except UserError as error:
            if self._logins.known and not isinstance(error, _ControlKeyChangedError):
                raise RetryableError(error.message) from None
            raise
        try:
            connection = await Connection.open(stream, leftover, noise, self._server.authority)
        except HandshakeError:
            self._control_key = None  # it may have another one by now
            raise
        try:
            yield connection
        finally:
            await connection.close()

    def _check_identity(self) -> None:
        """A node key is good at one server only."""
        url = self.identity.control_url
        if url and self.identity.node_key is not None and Server.parse(url) != self._server:
            raise UserError(
                f"node {self._config.name} is logged in at {url}, not at {self._server}",
                f"use another name, or give that login up with `tsns rm {self._config.name}`",
            )

    async def _check_control_key(self, key: MachinePublic) -> None:
        """Over plain http, trust the key that was there first."""
        pinned = self.identity.control_key
        if self._dialer.way.secure or key == pinned:
            return
        if pinned is not None:
            raise _ControlKeyChangedError(
                f"{self._server} has another key than when this node first logged in",
                f"if the server was really set up anew, run `tsns rm {self._config.name}` and log in again",
            )
        if self.identity.node_key is not None:
            await self._logins.pin(key)

    # --- the netmap ------------------------------------------------------------------------------------------------

    async def _follow(self, connection: Connection, private: NodePrivate) -> None:
        """Follow the netmap stream; _KeyRefusedError where control does not know us."""
        node_key = private.public
        body = encode(self._updates.request(node_key, stream=True))
        stream = MapStream()
        self._netmap.begin_stream()
        updates: asyncio.Task[None] | None = None
        started = time.monotonic()
        self._events.progress("waiting for the netmap")
        try:
            async with connection.exchange("POST", MAP_PATH, body, load_balancing(node_key)) as exchange:
                await self._check_map_head(exchange)
                while (chunk := await _watched(exchange)) is not None:
                    await asyncio.sleep(0)  # the others' turn, however fast control talks
                    for message in stream.messages(chunk):
                        response = await in_slices(stream.reading(message))
                        if response.ping_request is not None:
                            self._pings.take(response.ping_request, connection)
                        await self._take(response)
                    if updates is None and self._connected:
                        updates = asyncio.create_task(self._updates.run(connection, node_key), name="control updates")
        finally:
            if self._connected and time.monotonic() - started >= STABLE_S:
                self._backoff.succeeded()
            self._set_connected(False)
            if updates is not None:
                updates.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await updates

    async def _check_map_head(self, exchange: Exchange) -> None:
        try:
            async with asyncio.timeout(WATCHDOG_S):
                head = await exchange.head()
                if head.status == 200:
                    return
                text = bytearray()
                while len(text) < MAX_ERROR_BODY_BYTES and (chunk := await exchange.read()) is not None:
                    text += chunk
        except TimeoutError:
            raise RetryableError(f"control does not answer {MAP_PATH} within {WATCHDOG_S:.0f} s") from None
        problem = f"control answers {MAP_PATH} with HTTP {head.status} ({one_line(bytes(text))})"
        if not refuses(head.status) or b"unsupported client version" in text:
            raise RetryableError(problem, wish_of(head.status, head.retry_after, time.time(), random.random))
        if self._logins.refusal is not None:
            raise self._logins.refusal
        log.info("%s: logging in again", problem)
        raise _KeyRefusedError

    async def _take(self, response: MapResponse) -> None:
        """One message of the stream."""
        now = time.time()
        netmap = self._netmap
        if response.pop_browser_url:
            log.info("control asks for this page to be opened: %s", one_line(response.pop_browser_url))
        netmap.observe_time(response.control_time, now)
        if response.control_dial_plan is not None:
            self._dialer.set_plan(response.control_dial_plan)
        if not response.keep_alive:
            await self._obey(response.debug)
            # Wholly, since the next message tells differences to this one.
            change = await in_slices(self._folding(response, now), even_if_cancelled=True)
            if change.first:
                self._logins.known = self._logins.settled = True
                self._logins.refusal = self._cached = None
                self._set_connected(True)
        if netmap.self_node is not None:
            self._updates.heard(netmap.self_node)
            self._check_expiry()
            # Headscale, which has no approval, calls a node unauthorised whose key has expired.
            waits = not netmap.self_node.machine_authorized and not netmap.expired(netmap.self_node, now)
            self._set_pending_approval(waits)

    def _folding(self, response: MapResponse, now: float) -> Steps[NetMapChange]:
        """Fold a message in, and have what it changes applied."""
        change = yield from self._netmap.applying(response, now)
        self._check_lock()
        if change:
            yield from self._events.netmap(self._netmap, change)
        return change

    def _check_expiry(self) -> None:
        """See whether our key is still good, now and when it runs out."""
        itself, key = self._netmap.self_node, self.identity.node_key
        if itself is None or key is None or not self._is_told_of(itself, key):
            return  # the netmap speaks of a key whose login has yet to be answered
        now = time.time()
        expired = self._netmap.expired(itself, now)
        if expired and not self._expired:
            log.info("our node key has expired")
            if not self._logins.due:
                self._logins.renew_key()
            self._kicked.set()
        elif self._expired and not expired and self._logins.due and not self._logins.asked:
            log.info("our node key is good again: no login is needed")
            self._logins.withdraw()
            self._kicked.set()
        self._expired = expired
        self._tell_key()
        if self._expiry_timer is not None:
            self._expiry_timer.cancel()
            self._expiry_timer = None
        due = self._netmap.expiry(itself)
        if due is not None and not expired:
            delay_s = min(max(due - now, 0.0), MAX_EXPIRY_SLEEP_S) + EXPIRY_SLACK_S
            self._expiry_timer = asyncio.get_running_loop().call_later(delay_s, self._check_expiry)

    def _is_told_of(self, itself: Node, key: NodePrivate) -> bool:
        """Whether our node in the netmap has this key of ours; worked out once for each pair."""
        if self._told[:2] != (itself.key, key):
            self._told = itself.key, key, itself.key == str(key.public)
        return self._told[2]

    def _tell_key(self) -> None:
        lost = self._expired or self._logins.key_refused
        if lost != self._key_lost:
            self._key_lost = lost
            self._events.key_lost(lost)

    def _stand_in(self) -> None:
        """Control is away: go by the netmap of the last time, if there is one and no netmap yet."""
        cached, netmap = self._cached, self._netmap
        if cached is None or cached.node is None or self._connection is not None or netmap.self_node is not None:
            return
        self._cached = None
        now = time.time()
        locked = cached.tka_info is not None and not cached.tka_info.disabled
        if netmap.expired(cached.node, now) or (locked and not self._config.accept_unverified_peers):
            return
        netmap.begin_stream()
        try:
            change = netmap.apply(cached, now)
        except ProtocolError as error:
            log.warning("the cached netmap cannot be used: %s", error)
            return
        netmap.begin_stream()
        log.info("control does not answer: going by the netmap of the last time")
        finish(self._events.netmap(netmap, change))  # nobody is talked to yet

    def _check_lock(self) -> None:
        if not self._netmap.locked:
            return
        if not self._config.accept_unverified_peers:
            raise UserError(
                "this tailnet uses Tailnet Lock, and tsns cannot verify its peers' signatures yet",
                "to trust control's word for who is a peer, pass --accept-unverified-peers",
            )
        if not self._lock_warned:
            log.warning("this tailnet uses Tailnet Lock: its peers are NOT verified (--accept-unverified-peers)")
            self._lock_warned = True

    async def _obey(self, debug: Debug | None) -> None:
        """Control's wishes for this process, of which ending it is not ours to grant: other nodes may live in it."""
        if debug is None:
            return
        if debug.exit is not None:
            log.warning("control asks this node to exit with status %d; it stays", debug.exit)
        if debug.sleep_seconds and debug.sleep_seconds > 0:
            await asyncio.sleep(min(debug.sleep_seconds, MAX_SLEEP_S))

    def _set_connected(self, up: bool) -> None:
        if up != self._connected:
            self._connected = up
            self._events.connected(up)

    def _set_pending_approval(self, pending: bool) -> None:
        if pending != self._pending_approval:
            self._pending_approval = pending
            self._events.approval_pending(pending)


class _ControlKeyChangedError(UserError):
    """Over http, a server's key is what makes it the same server."""


async def _cancelled(task: asyncio.Task[Any]) -> None:
    """End a task, and wait for its end."""
    task.cancel()
    await asyncio.wait([task])
    if not task.cancelled():
        task.exception()  # seen: it would be told as forgotten


async def _watched(exchange: Exchange) -> bytes | None:
    """The next piece of the stream; RetryableError when it takes longer than control may be silent."""
    try:
        async with asyncio.timeout(WATCHDOG_S):
            return await exchange.read()
    except TimeoutError:
        raise RetryableError(f"nothing on the netmap stream for {WATCHDOG_S:.0f} s") from None
