"""Ways to control before Noise: its URL, its key, the upgrade, and plain requests (ring 1).

Source: control/controlclient (direct.go, loadServerPubKeys) and control/controlhttp of Tailscale's module; RFC 9110 7.8 for the upgrade.

The key from GET /key is what all trust in control rests on: over https it is as good as the certificate; over http, which is for loopback and
private networks alone, the client pins it. An http:// server that turns out to be elsewhere is reached by https on port 443 instead. The
connection that brought the key is kept for the upgrade that follows.

    proxy for this server? --yes--> CONNECT
            `--no--> control's own dial plan, if it has sent one --none of it answers--> DNS

Whatever looks as if it would never work is a UserError here; whoever knows better, since it has worked before, tries again.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import ipaddress
import logging
import ssl
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import h11

from tsns.control.backoff import wish_of
from tsns.error import ProtocolError, RetryableError, UserError
from tsns.keys import MachinePublic
from tsns.netns.connecting import Way, open_by_proxy, race
from tsns.netns.underlay import CONNECT_TIMEOUT_S, Stream, Underlay
from tsns.proto.text import one_line
from tsns.proto.types import ControlDialPlan, ControlKeys, decode

UPGRADE: Final = "tailscale-control-protocol"
REQUEST_TIMEOUT_S: Final = 15.0
MAX_BODY_BYTES: Final = 64 << 10
READ_BYTES: Final = 64 << 10
DEFAULT_PORTS: Final = {"http": 80, "https": 443}
MAX_CANDIDATES: Final = 16  # of a dial plan
MAX_PLAN_DELAY_S: Final = 10.0
MIN_PLAN_TIMEOUT_S: Final = 1.0

Fields = tuple[tuple[str, str], ...]

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Server:
    """A control server's URL, taken apart."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> Server:
        """Read a login server's URL; UserError where it is none."""
        try:
            parts = urllib.parse.urlsplit(url)
            host, port = parts.hostname or "", parts.port or DEFAULT_PORTS.get(parts.scheme, 0)
            if parts.scheme not in DEFAULT_PORTS:
                raise ValueError("neither http nor https")
        except ValueError:
            host, port = "", 0
        if not host or not port or parts.path not in ("", "/") or parts.query or parts.fragment or parts.username:
            raise UserError(
                f"the login server {one_line(url)} is not a URL of the form https://HOST[:PORT]",
                "see --login-server and TS_LOGIN_SERVER",
            )
        return cls(parts.scheme, host, port)

    @property
    def secure(self) -> bool:
        """Whether it is reached over TLS."""
        return self.scheme == "https"

    @property
    def authority(self) -> str:
        """Host, and port where it is not the usual one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    def __str__(self) -> str:
        return f"{self.scheme}://{self.authority}"


@dataclass(frozen=True, slots=True)
class Candidate:
    """An address at which control wants to be dialled."""

    address: str
    delay_s: float
    timeout_s: float


@dataclass(frozen=True, slots=True)
class Answer:
    """A response to a plain HTTP/1.1 request; header names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes = b""


class _HangUpError(RetryableError):
    """The connection ended before its answer did."""


class _Http1:
    """One HTTP/1.1 connection. RetryableError when it breaks, ProtocolError when it is not HTTP."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_BODY_BYTES)
        self._eof = False

    async def request(self, method: str, target: str, fields: Fields) -> Answer:
        """Ask, and wait for the answer; an upgrade (status 101) has no body."""
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                request = h11.Request(method=method, target=target, headers=list(fields))
                self._write(self._http.send(request), self._http.send(h11.EndOfMessage()))
                return await self._answer(target)
        except TimeoutError:
            raise RetryableError(f"no answer to {method} {target} within {REQUEST_TIMEOUT_S:.0f} s") from None
        except h11.ProtocolError as error:
            if self._eof:
                raise _HangUpError(f"the server hangs up on {method} {target}") from None
            raise ProtocolError(f"the answer to {method} {target} is not HTTP: {one_line(str(error))}") from None
        except OSError as error:
            raise _HangUpError(f"the connection broke in {method} {target}: {error.strerror or error}") from None

    @property
    def leftover(self) -> bytes:
        """What came after an upgrade's answer."""
        return self._http.trailing_data[0]

    def reuse(self) -> bool:
        """Make ready for another request; False where the server wants no more."""
        if self._http.our_state is not h11.DONE or self._http.their_state is not h11.DONE:
            return False
        self._http.start_next_cycle()
        return True

    def close(self) -> None:
        """Drop the connection."""
        self.stream[1].transport.abort()

    def _write(self, *pieces: bytes | None) -> None:
        self.stream[1].write(b"".join(piece or b"" for piece in pieces))

    async def _answer(self, target: str) -> Answer:
        answer: Answer | None = None
        body = bytearray()
        first = True  # h11 would wait for the end of a head that never comes
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                data = await self.stream[0].read(READ_BYTES)
                self._eof = not data
                if first and data and not data.startswith(b"HTTP/"[: len(data)]):
                    raise ProtocolError(f"the answer to {target} is not HTTP")
                first = False
                self._http.receive_data(data)
            elif isinstance(event, h11.Response) or (
                isinstance(event, h11.InformationalResponse) and event.status_code == 101
            ):
                headers = {
                    bytes(name).decode("latin-1"): bytes(value).decode("latin-1") for name, value in event.headers
                }
                answer = Answer(event.status_code, headers)
                if event.status_code == 101:
                    return answer
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > MAX_BODY_BYTES:
                    raise ProtocolError(f"the answer to {target} has more than {MAX_BODY_BYTES} bytes")
            elif isinstance(event, h11.EndOfMessage):
                assert answer is not None  # h11 delivers a head first
                return Answer(answer.status, answer.headers, bytes(body))
            elif event is h11.PAUSED or isinstance(event, h11.ConnectionClosed):
                raise _HangUpError(f"the server hangs up on {target}")


class Dialer:
    """Reaches one control server. `tls` verifies certificates, and offers no protocol by ALPN."""

    def __init__(
        self, server: Server, version: int, *, underlay: Underlay, tls: ssl.SSLContext, fraction: Callable[[], float]
    ) -> None:
        self.server = server
        self.way = server  # how it is reached
        self._plan: tuple[Candidate, ...] = ()
        self._version = version
        self._underlay = underlay
        self._tls = tls
        self._fraction = fraction
        self._spare: _Http1 | None = None

    def set_plan(self, plan: ControlDialPlan) -> None:
        """Connect like this from now on; an empty plan means by DNS."""
        self._plan = candidates(plan)

    async def control_key(self) -> MachinePublic:
        """Fetch control's Noise key; the connection is kept for `upgrade`."""
        self.close()
        http = self._spare = await self._connect()
        key: MachinePublic | None = None
        try:
            key = self._key_of(await http.request("GET", f"/key?v={self._version}", self._fields()))
        except ProtocolError as error:
            raise self._not_control(str(error)) from None
        finally:
            if key is None or not http.reuse():
                self.close()
        return key

    async def upgrade(self, initiation: bytes) -> tuple[Stream, bytes]:
        """Turn a connection into a byte stream for Noise; also returns what came with the answer."""
        spare, self._spare = self._spare, None
        if spare is not None:
            with contextlib.suppress(_HangUpError):  # it may have been closed meanwhile
                return await self._upgrade(spare, initiation)
        return await self._upgrade(await self._connect(), initiation)

    async def head(self, target: str) -> int:
        """A HEAD request to control outside Noise, for its sake; the status."""
        http = await self._connect()
        try:
            return (await http.request("HEAD", target, (*self._fields(), ("connection", "close")))).status
        finally:
            http.close()

    def close(self) -> None:
        """Drop the connection that was kept."""
        if self._spare is not None:
            self._spare.close()
            self._spare = None

    def _fields(self) -> Fields:
        return (("host", self.way.authority), ("user-agent", "tsns"))

    async def _connect(self) -> _Http1:
        """A connection to the server."""
        addresses: list[str] = []
        if not self.way.secure:
            addresses = [address[0] for _, address in await self._underlay.resolve(self.server.host, self.server.port)]
            if not all(map(is_private, addresses)):  # before anything is sent there
                self.way = Server("https", self.server.host, DEFAULT_PORTS["https"])
        try:
            stream = await self._open(addresses)
        except RetryableError as error:
            self._raise_if_hopeless(error)
            raise
        return _Http1(stream)

    async def _open(self, addresses: list[str]) -> Stream:
        way, underlay = self.way, self._underlay
        tls = self._tls if way.secure else None
        proxy = underlay.proxies.choose(way.host, way.port, scheme=way.scheme)
        if proxy is None:
            return await self._open_directly(tls)
        if way.secure:
            return await open_by_proxy(underlay, proxy, way.host, way.port, proxy_tls=self._tls, tls=tls)
        if not addresses:  # what the proxy makes of the name cannot be known to be private
            raise RetryableError(f"{way.host} has no address")
        stream = await open_by_proxy(underlay, proxy, addresses[0], way.port, proxy_tls=self._tls)
        return self._insist_on_private(stream)  # all of the way to the proxy is open to be read, too

    async def _open_directly(self, tls: ssl.SSLContext | None) -> Stream:
        way = self.way
        if self._plan:
            try:
                return self._checked(await race([self._planned(candidate, tls) for candidate in self._plan]))
            except RetryableError as error:
                log.info("none of control's own addresses works: %s", error)
        return self._checked(await self._underlay.open_tcp(way.host, way.port, tls=tls))

    def _planned(self, candidate: Candidate, tls: ssl.SSLContext | None) -> Way:
        connect = partial(
            self._underlay.open_tcp,
            candidate.address,
            self.way.port,
            tls=tls,
            server_hostname=self.way.host if tls else None,
            timeout_s=candidate.timeout_s,
        )
        return candidate.delay_s, connect

    def _checked(self, stream: Stream) -> Stream:
        """A connection over which the key may be fetched."""
        return stream if self.way.secure else self._insist_on_private(stream)

    def _insist_on_private(self, stream: Stream) -> Stream:
        peer = stream[1].get_extra_info("peername")
        if peer is None or not is_private(peer[0]):  # a name may lead elsewhere by now
            stream[1].transport.abort()
            raise RetryableError(f"{self.server} leads out of the private network")
        return stream

    def _raise_if_hopeless(self, error: RetryableError) -> None:
        """UserError where it looks as if it would never work."""
        cause = error.__cause__
        if isinstance(cause, ssl.SSLCertVerificationError):
            hint = "check the URL and this machine's clock; SSL_CERT_FILE may name further certificates to trust"
            raise UserError(one_line(str(error)), hint) from None
        if self.way.secure and not self.server.secure:
            raise UserError(
                f"{self.server} is not in a private network, where plain http would let anybody in between be the control "
                f"server, and by https there is no way either: {error}",
                f"use https://{self.server.host}, if the server offers it",
            ) from None
        if isinstance(cause, ssl.SSLError) and cause.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
            hint = f"check host and port; a server in a private network may want http://{self.server.host}:{self.server.port}"
            raise UserError(f"{self.server} does not speak TLS", hint) from None

    async def _upgrade(self, http: _Http1, initiation: bytes) -> tuple[Stream, bytes]:
        fields = (
            *self._fields(),
            ("connection", "upgrade"),
            ("upgrade", UPGRADE),
            ("x-tailscale-handshake", base64.b64encode(initiation).decode()),
            ("content-length", "0"),
        )
        try:
            answer = await http.request("POST", "/ts2021", fields)
            if answer.status == 101 and answer.headers.get("upgrade", "").lower() == UPGRADE:
                return http.stream, http.leftover
            self._raise_busy(answer)
            raise UserError(
                f"{self.server} does not let the control protocol through: {_described(answer)}",
                "a proxy in front of it has to pass POST /ts2021 on, with its Upgrade header",
            )
        except BaseException:
            http.close()
            raise

    def _key_of(self, answer: Answer) -> MachinePublic:
        self._raise_busy(answer)
        if answer.status != 200:
            raise self._not_control(f"it answers /key with {_described(answer)}")
        try:
            key = MachinePublic.parse_optional(decode(answer.body, ControlKeys).public_key)
        except (ProtocolError, ValueError):
            raise self._not_control("it answers /key with something other than a key") from None
        if key is None:
            raise self._not_control("it has no key for the current protocol")
        return key

    def _raise_busy(self, answer: Answer) -> None:
        """RetryableError where the server, or a proxy in front of it, says that it cannot answer now."""
        if answer.status == 429 or answer.status >= 500:
            wish = wish_of(answer.status, answer.headers.get("retry-after"), time.time(), self._fraction)
            raise RetryableError(f"{self.server} answers with {_described(answer)}", wish)

    def _not_control(self, reason: str) -> UserError:
        return UserError(
            f"{self.server} is not a Tailscale control server: {reason}", "see --login-server and TS_LOGIN_SERVER"
        )


def candidates(plan: ControlDialPlan) -> tuple[Candidate, ...]:
    """What of a dial plan can be followed: plain addresses. Those of a higher priority come first where they begin together."""
    found = []
    wanted = [one for one in plan.candidates or () if one.ip and not one.ace_host][:MAX_CANDIDATES]
    for one in sorted(wanted, key=lambda one: -(one.priority or 0)):
        try:
            address = str(ipaddress.ip_address(one.ip or ""))
        except ValueError:
            continue
        delay_s = min(max(one.dial_start_delay_sec or 0.0, 0.0), MAX_PLAN_DELAY_S)
        timeout_s = min(max(one.dial_timeout_sec or CONNECT_TIMEOUT_S, MIN_PLAN_TIMEOUT_S), CONNECT_TIMEOUT_S)
        found.append(Candidate(address, delay_s, timeout_s))
    return tuple(found)


def is_private(text: str) -> bool:
    """Whether an address is this machine's own or in a private network."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_private)


def _described(answer: Answer) -> str:
    location = answer.headers.get("location")
    if 300 <= answer.status < 400 and location:
        return f"HTTP {answer.status}, a redirection to {one_line(location)}"
    text = "" if "html" in answer.headers.get("content-type", "") else one_line(answer.body, 100)
    return f"HTTP {answer.status} ({text})" if text else f"HTTP {answer.status}"
