"""The control client: login, the netmap stream, and what to do when they end (ring 1).

Source: control/controlclient of Tailscale's module.

    CONNECT --key, upgrade, Noise--> LOGIN (where due) --> FOLLOW the netmap, with updates and pings beside it
       ^                               ^                      |         |
       |                               `--not known, expired--'         |
       `------- back-off ------------- any end, 120 s of silence -------'

A node with a key that control once accepted goes to FOLLOW directly, unless it has an auth key as well: some servers take a login without a
proof for a logout. A new key becomes the node's own when control has accepted it, not before.

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
from collections.abc import AsyncIterator, Sequence
from typing import Final, NoReturn, Protocol

from tsns.config import NodeConfig
from tsns.control.backoff import Backoff, retry_after_s
from tsns.control.connection import Connection, Exchange, HandshakeError
from tsns.control.dial import Dialer, Server
from tsns.control.login import LoginEvents, Logins
from tsns.control.map_stream import MapStream
from tsns.control.netmap import NetMap, NetMapChange
from tsns.control.pings import Pings
from tsns.control.updates import MAP_PATH, Updates, load_balancing
from tsns.error import ProtocolError, RetryableError, UserError
from tsns.keys import DiscoPublic, MachinePublic
from tsns.netns.underlay import Underlay
from tsns.noise.handshake import Initiator
from tsns.noise.stream import ClientStream
from tsns.proto.text import one_line
from tsns.proto.types import Debug, Hostinfo, MapResponse, NetInfo, encode
from tsns.state import Identity

WATCHDOG_S: Final = 120.0  # control sends something every minute
STABLE_S: Final = 10.0  # a stream that lasted this long was a success
MAX_SLEEP_S: Final = 300.0
MAX_ERROR_BODY_BYTES: Final = 4096

log = logging.getLogger(__name__)


class ControlEvents(LoginEvents, Protocol):
    """What the client tells its owner; plain calls from the event loop, which must not block."""

    def netmap(self, netmap: NetMap, change: NetMapChange) -> None:
        """The netmap has changed. It is the client's, and always the same object."""

    def connected(self, up: bool) -> None:
        """The netmap is being followed, or no longer."""

    def approval_pending(self, pending: bool) -> None:
        """An admin has yet to approve the node, or has."""


class _LoginDueError(Exception):
    """Control does not take our node key (any more)."""


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
    ) -> None:
        self._config = config
        self._events = events
        self._server = Server.parse(config.login_server)
        self._dialer = Dialer(
            self._server, config.capability_version, underlay=underlay, tls=tls, fraction=random.random
        )
        self._logins = Logins(identity, config, hostinfo, events)
        self._netmap = NetMap()
        self._updates = Updates(config.capability_version, hostinfo, disco)
        self._pings = Pings(self._dialer)
        self._backoff = Backoff(random.random)
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

    def set_net_info(self, net_info: NetInfo) -> None:
        """Tell control what our network looks like, the home region above all."""
        self._updates.set_net_info(net_info)

    def set_endpoints(self, endpoints: Sequence[tuple[str, int]]) -> None:
        """Tell control where we may be reached: (`address:port`, tailcfg.EndpointType)."""
        self._updates.set_endpoints(endpoints)

    async def home_accepted(self, region: int) -> None:
        """Wait until control has accepted this region as our home."""
        await self._updates.home_accepted(region)

    async def run(self) -> NoReturn:
        """Log in and follow the netmap until cancelled; UserError where only a person can help."""
        self._check_identity()
        self._events.progress(f"contacting {self._server}")
        try:
            while True:
                wish = None
                try:
                    await self._session()
                    reason = "control ended the netmap stream"
                except (RetryableError, ProtocolError) as error:
                    reason = one_line(str(error))
                    wish = error.retry_after_s if isinstance(error, RetryableError) else None
                if self._logged_out:
                    await asyncio.Event().wait()
                delay = self._backoff.failed(wish)
                log.info("control: %s; trying again in %.1f s", reason, delay)
                self._events.progress(f"waiting for {self._server}: {reason}")
                await asyncio.sleep(delay)
        finally:
            await self._pings.close()
            self._dialer.close()

    async def logout(self) -> None:
        """Give the node key up: an ephemeral node is then deleted. RetryableError or UserError where control does not do it."""
        self._logged_out = True
        if self.identity.node_key is None:
            return
        if self._connection is not None and self._connection.usable:
            await self._logins.logout(self._connection)
        else:
            async with self._connect() as connection:
                await self._logins.logout(connection)

    # --- connection ------------------------------------------------------------------------------------------------

    async def _session(self) -> None:
        """One connection: returns when the server ends the netmap stream in good order."""
        async with self._connect() as connection:
            self._connection = connection
            try:
                while True:
                    if self._logins.due:
                        await self._log_in(connection)
                    try:
                        await self._follow(connection)
                    except _LoginDueError:
                        if self._logged_out:
                            return
                        self._logins.due = True
                        await asyncio.sleep(self._backoff.failed())
                    else:
                        return
            finally:
                self._connection = None

    async def _log_in(self, connection: Connection) -> None:
        pin = None if self._server.secure else self._control_key
        accepted = await self._logins.run(connection, str(self._server), pin)
        if accepted is not None and not accepted.authorized:
            self._set_pending_approval(True)

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
        if self._server.secure or key == pinned:
            return
        if pinned is not None:
            raise _ControlKeyChangedError(
                f"{self._server} has another key than when this node first logged in",
                f"if the server was really set up anew, run `tsns rm {self._config.name}` and log in again",
            )
        if self.identity.node_key is not None:
            await self._logins.pin(key)

    # --- the netmap ------------------------------------------------------------------------------------------------

    async def _follow(self, connection: Connection) -> None:
        """Follow the netmap stream; _LoginDueError where control does not know us."""
        assert self.identity.node_key is not None
        node_key = self.identity.node_key.public
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
                    for response in stream.feed(chunk):
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
        if head.status == 429:
            raise RetryableError(problem, retry_after_s(head.retry_after, time.time(), random.random))
        if head.status >= 500 or b"unsupported client version" in text:
            raise RetryableError(problem)
        if self._logins.refusal is not None:
            raise self._logins.refusal
        log.info("%s: logging in again", problem)
        raise _LoginDueError

    async def _take(self, response: MapResponse) -> None:
        """One message of the stream."""
        now = time.time()
        netmap = self._netmap
        if response.pop_browser_url:
            log.info("control asks for this page to be opened: %s", one_line(response.pop_browser_url))
        netmap.observe_time(response.control_time, now)
        if not response.keep_alive:
            await self._obey(response.debug)
            change = netmap.apply(response, now)
            self._check_lock()
            if change:
                self._events.netmap(netmap, change)
            if change.first:
                self._logins.known = True
                self._logins.refusal = None
                self._set_connected(True)
        itself = netmap.self_node
        if itself is None:
            return
        if self._connected and netmap.expired(itself, now):
            log.info("our node key has expired")
            self._logins.renew_key()
            raise _LoginDueError
        self._set_pending_approval(not itself.machine_authorized)

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


async def _watched(exchange: Exchange) -> bytes | None:
    """The next piece of the stream; RetryableError when it takes longer than control may be silent."""
    try:
        async with asyncio.timeout(WATCHDOG_S):
            return await exchange.read()
    except TimeoutError:
        raise RetryableError(f"nothing on the netmap stream for {WATCHDOG_S:.0f} s") from None
