"""The lab's control server (ring 1): plain HTTP, the Noise upgrade, and what is served within.

Source: control/controlhttp/controlhttpserver and tstest/integration/testcontrol of Tailscale's module; hscontrol of Headscale. Both are
followed where they agree; `mode` says whose ways are taken where they do not.

    GET /key, HEAD|POST /machine/ping-response, GET /register/…, GET /generate_204     plain
    POST /ts2021 -> 101 -> Noise -> HTTP/2: POST /machine/register, POST /machine/map    (`http2`, `registrar`, `session`)

State lives in `tailnet`, and outlives `stop` and `start`.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import os
import urllib.parse
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from tsns.error import ProtocolError
from tsns.keys import KEY_BYTES, ChallengePublic, DiscoPublic, MachinePrivate, MachinePublic, NodePublic
from tsns.lab import http1, requests
from tsns.lab.http2 import Exchange, Http2Connection
from tsns.lab.listener import Listener
from tsns.lab.netmap import first_message
from tsns.lab.pings import ECHO_REQUEST, PingAnswer, Pings
from tsns.lab.registrar import Mode, Pending, Registrar
from tsns.lab.streams import StreamServer
from tsns.lab.tailnet import LabNode, Tailnet, User
from tsns.noise.framing import error_frame
from tsns.noise.handshake import INITIATION_BYTES
from tsns.noise.stream import ServerStream, early_payload
from tsns.proto.types import (
    ControlKeys,
    MapRequest,
    PingRequest,
    RegisterRequest,
    RegisterResponse,
    encode,
)

UPGRADE: Final = "tailscale-control-protocol"
FOLLOWUP_TIMEOUT_S: Final = 900.0
FIRST_NOISE_VERSION: Final = 39  # older clients get an empty answer from GET /key
MAX_RECORDED: Final = 1000  # requests and answers that are kept for tests
JSON_TYPE: Final = "application/json"
NOT_IMPLEMENTED: Final = frozenset(
    f"/machine/{name}"
    for name in ("set-dns", "feature/query", "id-token", "audit-log", "set-device-attr", "update-health", "whoami")
)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Recorded:
    """A request that came through Noise."""

    path: str
    machine: MachinePublic
    headers: Mapping[str, str] = field(repr=False)
    body: bytes = field(repr=False)


class ControlServer(StreamServer):
    """A control server."""

    def __init__(self, tailnet: Tailnet, *, mode: Mode = Mode.HEADSCALE) -> None:
        super().__init__(tailnet, Registrar(tailnet, mode, os.urandom))
        self.key = MachinePrivate.generate(os.urandom(KEY_BYTES))
        self.followup_timeout_s = FOLLOWUP_TIMEOUT_S
        self.visits_approve = True  # whoever visits a login URL has approved the login
        self.requests: deque[Recorded] = deque(maxlen=MAX_RECORDED)
        self._listener = Listener("control", self._serve)
        self._pings = Pings()
        self._logins_changed = asyncio.Event()

    # --- life

    @property
    def url(self) -> str:
        """What clients are given as login server."""
        host = f"[{self._listener.address}]" if ":" in self._listener.address else self._listener.address
        return f"http://{host}:{self._listener.port}"

    @property
    def answers(self) -> Sequence[PingAnswer]:
        """How pings were answered."""
        return self._pings.answers

    @property
    def mode(self) -> Mode:
        """Whose ways it has."""
        return self.registrar.mode

    @mode.setter
    def mode(self, mode: Mode) -> None:
        self.registrar.mode = mode

    async def start(self, address: str = "", port: int = 0) -> None:
        """Listen; without an address or port, on those of before the last `stop` (at first: any port of the loopback)."""
        await self._listener.start(address, port)
        self.registrar.base_url = self.url
        self._notices_leaving = True

    async def stop(self) -> None:
        """Drop everybody and listen no more; the tailnet stays as it is."""
        self._notices_leaving = False
        await self._listener.stop()
        self._forget_timers()
        self._pings.cancel()

    async def drop_connections(self) -> None:
        """Reset all connections, and go on listening."""
        await self._listener.drop_all()

    def replace_key(self) -> None:
        """Be another server from the next handshake on."""
        self.key = MachinePrivate.generate(os.urandom(KEY_BYTES))

    # --- what an admin does

    def add_auth_key(self, *, expired: bool = False, **options: Any) -> str:
        """A new auth key; options are those of `Tailnet.add_auth_key`."""
        if expired:
            options["expires_at"] = self.now() - 1
        return self.tailnet.add_auth_key(**options)

    def approve(self, url: str, user: User | None = None) -> LabNode:
        """A person logs in at this URL. KeyError where nobody waits for it."""
        node = self.registrar.approve(url, user=user, now=self.now())
        self._logins_changed.set()
        return node

    def refuse(self, url: str, text: str = "login refused") -> None:
        """A person declines at this URL. KeyError where nobody waits for it."""
        self.registrar.refuse(url, text)
        self._logins_changed.set()

    def authorize(self, node: LabNode | NodePublic | str) -> None:
        """Approve a device that waits for it."""
        self.tailnet.change(self.tailnet.find(node), authorized=True)

    def expire(self, node: LabNode | NodePublic | str, at: float | None = None) -> None:
        """Let a node's key expire, now or at a given time."""
        self.tailnet.change(self.tailnet.find(node), expires_at=self.now() if at is None else at)

    def remove(self, node: LabNode | NodePublic | str) -> None:
        """Delete a node; its streams end."""
        self.tailnet.remove_node(self.tailnet.find(node))

    def add_fake_peers(self, count: int) -> list[LabNode]:
        """Peers that only exist in the netmap."""
        return self.tailnet.add_fake_peers(count, now=self.now())

    async def ping(
        self,
        node: LabNode | NodePublic | str,
        types: str = "",
        *,
        ip: str | None = None,
        payload: bytes = ECHO_REQUEST,
        timeout_s: float = 5.0,
    ) -> PingAnswer:
        """Send a PingRequest and wait for the answer; TimeoutError where none comes.

        Without `types` a HEAD is asked for, with "c2n" the answer to the HTTP request in `payload`, else a ping to `ip`.
        """
        ask = PingRequest(
            url_is_noise=True if types == "c2n" else None,
            types=types or None,
            ip=ip,
            payload=base64.b64encode(payload).decode() if types == "c2n" else None,
        )
        return await self._pings.ask(ask, self.url, lambda message: self.send(node, message), timeout_s)

    # --- plain HTTP

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await http1.read_request(reader)) is not None:
            if request.path == "/ts2021":
                await self._upgrade(request, reader, writer)
                return
            writer.write(self._answer(request))
            await writer.drain()
            if not request.keeps_alive:
                return

    def _answer(self, request: http1.Request) -> bytes:
        head_only = request.method == "HEAD"
        failure = self.faults.next_failure(request.path)
        if failure is not None:
            headers = {"Retry-After": failure.retry_after} if failure.retry_after else None
            return http1.response(failure.status, failure.body, headers=headers, head_only=head_only)
        query = urllib.parse.parse_qs(request.target.partition("?")[2])
        if request.path == "/key":
            return self._key(query)
        if request.path == "/machine/ping-response":
            self._pings.take(query, PingAnswer(request.method, request.body, over_noise=False))
            return http1.response(200, head_only=head_only)
        if request.path.startswith("/register/"):
            return self._visit(request)
        if request.path == "/generate_204":
            return http1.response(204)
        if request.path == "/health":
            return http1.response(200, b'{"status":"pass"}', content_type=JSON_TYPE, head_only=head_only)
        return http1.response(404, "404 page not found\n", head_only=head_only)

    def _key(self, query: Mapping[str, list[str]]) -> bytes:
        try:
            version = int(query["v"][0])
        except (KeyError, ValueError):
            return http1.response(400, "capability version must be set\n")
        if version < FIRST_NOISE_VERSION:
            return http1.response(200)
        key = self.faults.announced_key or self.key.public
        keys = ControlKeys(legacy_public_key=str(MachinePublic(bytes(KEY_BYTES))), public_key=str(key))
        return http1.response(200, encode(keys), content_type=JSON_TYPE)

    def _visit(self, request: http1.Request) -> bytes:
        url = self.url + request.path
        if url not in self.registrar.pending:
            return http1.response(404, "nobody waits for this login\n")
        if not self.visits_approve:
            return http1.response(200, "this login waits for approval\n")
        node = self.approve(url)
        return http1.response(200, f"{self.tailnet.fqdn(node)} is in\n")

    async def _upgrade(
        self, request: http1.Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        refusal = _refusal(request)
        failure = self.faults.next_failure("/ts2021")
        if failure is not None or refusal is not None:
            status, text = (failure.status, failure.body) if failure is not None else (400, refusal or "")
            writer.write(http1.response(status, text + "\n"))
            await writer.drain()
            return
        switching = http1.switching(UPGRADE)
        initiation = base64.b64decode(request.headers["x-tailscale-handshake"])
        if self.faults.noise_error or len(initiation) != INITIATION_BYTES:
            writer.write(switching + error_frame(self.faults.noise_error or "wrong size of the initiation"))
            await writer.drain()
            return
        try:
            noise = ServerStream(self.key, initiation, os.urandom)
        except ProtocolError:
            writer.write(switching)  # and no more: whoever has a wrong key finds the connection closed
            raise
        if noise.version < self.faults.minimum_version:
            writer.write(switching)
            raise ProtocolError(f"capability version {noise.version} is too old")
        early = self.faults.early_records(early_payload(ChallengePublic(os.urandom(KEY_BYTES))))
        await Http2Connection(noise, reader, writer, self.faults, self._handle).run(switching, early)

    # --- within Noise

    async def _handle(self, exchange: Exchange) -> None:
        recorded = Recorded(exchange.path, exchange.machine, exchange.headers, bytes(exchange.body))
        self.requests.append(recorded)
        if self.faults.mute:
            await asyncio.Event().wait()
        failure = self.faults.next_failure(exchange.path)
        if failure is not None:
            headers = {"Retry-After": failure.retry_after} if failure.retry_after else None
            await exchange.respond(failure.status, failure.body, headers)
        elif exchange.too_large:
            await exchange.respond(413, "request body too large")
        elif exchange.path == "/machine/ping-response":
            query = urllib.parse.parse_qs(exchange.query)
            self._pings.take(query, PingAnswer(exchange.method, recorded.body, over_noise=True))
            await exchange.respond(200)
        elif exchange.path in NOT_IMPLEMENTED:
            await exchange.respond(501, "not implemented")
        elif exchange.path not in {"/machine/register", "/machine/map"}:
            await exchange.respond(404, "404 page not found")
        elif exchange.method != "POST":
            await exchange.respond(405, "method not allowed")
        else:
            try:
                await (self._register if exchange.path == "/machine/register" else self._map)(exchange)
            except (ProtocolError, ValueError) as error:  # ValueError: a text that is no key
                log.info("%s: a bad request: %s", exchange.path, error)
                await exchange.respond(400, "bad request")

    async def _register(self, exchange: Exchange) -> None:
        request, hostinfo = requests.read(bytes(exchange.body), RegisterRequest)
        if request.version < self.faults.minimum_version:
            await exchange.respond(400, f"unsupported client version: {request.version}")
            return
        answer = self.registrar.register(request, hostinfo or {}, exchange.machine, self.now())
        if isinstance(answer, Pending):
            if request.followup == answer.url:
                answer = await self._login(answer, request, hostinfo or {}, exchange.machine)
            else:
                answer = RegisterResponse(auth_url=answer.url)
        log.info("login of %s: %s", exchange.machine.short, _summary(answer))
        await exchange.respond(200, encode(answer), {"Content-Type": JSON_TYPE})

    async def _login(
        self, pending: Pending, request: RegisterRequest, hostinfo: Mapping[str, Any], machine: MachinePublic
    ) -> RegisterResponse:
        """Wait for a person, until the login's time is over: then there is another URL."""
        try:
            async with asyncio.timeout(self.followup_timeout_s):
                while pending.node is None and not pending.refused and pending.url in self.registrar.pending:
                    self._logins_changed.clear()
                    await self._logins_changed.wait()
        except TimeoutError:
            self.registrar.pending.pop(pending.url, None)
        if pending.refused:
            return RegisterResponse(error=pending.refused)
        if pending.node is not None:
            return self.registrar.answer(pending.node, self.now())
        again = self.registrar.register(request, hostinfo, machine, self.now())
        return RegisterResponse(auth_url=again.url) if isinstance(again, Pending) else again

    async def _map(self, exchange: Exchange) -> None:
        request, hostinfo = requests.read(bytes(exchange.body), MapRequest)
        if request.version < self.faults.minimum_version:
            await exchange.respond(400, f"unsupported client version: {request.version}")
            return
        node = self.tailnet.by_key(NodePublic.parse_optional(request.node_key))
        saas = self.mode is Mode.SAAS
        if node is None or node.machine != exchange.machine:
            mismatch = "node key in request does not match the one associated with this machine key"
            text = "node not found" if node is None or saas else mismatch
            await exchange.respond(400 if saas else 404, text)
            return
        if not (request.stream and saas):
            self._take_report(node, request, hostinfo)
        zstd = request.compress == "zstd"
        if request.stream:
            await self._stream(node, exchange, zstd=zstd)
        elif saas and not request.omit_peers:
            view = self._view(node)
            message = self.faults.message(node, first_message(view, now=self.now()), first=True) if view else b""
            await exchange.respond(200, self.faults.frame(message, zstd=zstd))
        else:
            await exchange.respond(200)

    def _take_report(self, node: LabNode, request: MapRequest, hostinfo: Mapping[str, Any] | None) -> None:
        """Believe what a node says of itself."""
        report: dict[str, Any] = {
            "cap": request.version,
            "disco": DiscoPublic.parse_optional(request.disco_key),
            "endpoints": tuple(request.endpoints or ()),
        }
        if hostinfo is not None:
            known = node.hostinfo.get("NetInfo")
            report["hostinfo"] = {"NetInfo": known, **hostinfo} if known and not hostinfo.get("NetInfo") else hostinfo
            net_info = report["hostinfo"].get("NetInfo") or {}
            report["home_derp"] = net_info.get("PreferredDERP") or 0
        self.tailnet.change(node, **report)


def _summary(answer: RegisterResponse) -> str:
    if answer.error:
        return answer.error
    if answer.auth_url:
        return "somebody has to approve it"
    if answer.node_key_expired:
        return "its node key is no longer good"
    return "accepted" if answer.machine_authorized else "the device has to be approved"


def _refusal(request: http1.Request) -> str | None:
    """Why this is no upgrade to Noise."""
    protocol = request.headers.get("upgrade", "")
    if not protocol:
        return "missing next protocol"
    if protocol.lower() != UPGRADE:
        return "unknown next protocol"
    handshake = request.headers.get("x-tailscale-handshake", "")
    if not handshake:
        return "missing Tailscale handshake header"
    try:
        base64.b64decode(handshake, validate=True)
    except binascii.Error:
        return "invalid tailscale handshake header"
    return None if request.method == "POST" else "unexpected request method"
