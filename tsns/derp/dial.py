"""Connecting to a DERP region: its nodes in order, TLS as the DERP map wants it, the HTTP upgrade (ring 1).

Source: derp/derphttp/derphttp_client.go of Tailscale's module. No ALPN is offered: the upgrade is HTTP/1.1.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Final, TypeVar

import h11

from tsns.derp.certificate import PIN_PREFIX, fault_of_name, fault_of_pin
from tsns.error import ProtocolError, RetryableError
from tsns.netns.connecting import open_by_proxy, race
from tsns.netns.underlay import Stream, Underlay
from tsns.proto.addresses import pack
from tsns.proto.types import DEFAULT_DERP_PORT, DERPNode, DERPRegion

log = logging.getLogger(__name__)

T = TypeVar("T")

TCP_S: Final = 1.5  # for a TCP connection to one node
NODE_S: Final = 4.0  # for TCP, TLS and HTTP with one node while there are others to try
TOTAL_S: Final = 10.0
CLOSE_S: Final = 0.5  # how long a polite end of TLS may take
FAMILY_DELAY_S: Final = 0.2  # the head start of a node's first address over its next
READ_BYTES: Final = 64 << 10
MAX_RESPONSE_BYTES: Final = 64 << 10  # of a latency check's answer
MAX_NODES: Final = 8  # tried in a region
MAX_ADDRESSES: Final = 6  # tried for a node
KEEPALIVE_IDLE_S: Final = 30  # the kernel asks for a sign of life when nothing came for so long
KEEPALIVE_INTERVAL_S: Final = 5
UNACKNOWLEDGED_S: Final = 10  # and ends the connection when the relay's host has not answered for so long
NOTSENT_LOWAT_BYTES: Final = 16 << 10  # so that what waits, waits with us, where it can be dropped
WRITE_BUFFER_BYTES: Final = 16 << 10  # likewise, for asyncio's buffer below TLS


@dataclass(frozen=True, slots=True)
class Dialled:
    """A connection on which the relay has agreed to speak DERP; `rest` is what it said already."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    rest: bytes
    node: str


async def dial(region: DERPRegion, *, underlay: Underlay, tls: ssl.SSLContext) -> Dialled:
    """Connect to the first node of a region that works; RetryableError, with the reasons, when none does."""

    async def attempt(node: DERPNode, stream: Stream) -> Dialled:
        rest = await _upgrade(stream, node, None if node is nodes[0] else nodes[0].name)
        return Dialled(*stream, rest, node.name or node.host_name or "?")

    nodes = relays(region)
    return await _first_node(nodes, underlay, tls, attempt)


async def measure(region: DERPRegion, *, underlay: Underlay, tls: ssl.SSLContext) -> float:
    """The duration, in seconds, of a small HTTPS request to a region over a standing connection; RetryableError if none works."""

    async def attempt(node: DERPNode, stream: Stream) -> float:
        try:
            return await _latency_check(stream, node)
        finally:
            await hang_up(stream[1])

    return await _first_node(relays(region), underlay, tls, attempt)


def relays(region: DERPRegion) -> list[DERPNode]:
    """The nodes of a region that can be dialled, in their order."""
    return [node for node in region.nodes or () if node.host_name and not node.stun_only][:MAX_NODES]


async def hang_up(writer: asyncio.StreamWriter) -> None:
    """End a connection, politely if the other side plays along."""
    try:
        async with asyncio.timeout(CLOSE_S):
            writer.close()
            await writer.wait_closed()
    except (OSError, TimeoutError):  # OSError: also all of ssl's
        pass
    finally:
        writer.transport.abort()


async def _first_node(
    nodes: list[DERPNode], underlay: Underlay, tls: ssl.SSLContext, attempt: Callable[[DERPNode, Stream], Awaitable[T]]
) -> T:
    """What `attempt` makes of the first node that answers."""
    failures: list[str] = []
    try:
        async with asyncio.timeout(TOTAL_S):
            for node in nodes:
                try:
                    async with asyncio.timeout(None if node is nodes[-1] else NODE_S):
                        return await _with_node(node, underlay, tls, attempt)
                except TimeoutError:
                    failures.append(f"{node.host_name} did not answer within {NODE_S:.0f} s")
                except (RetryableError, ProtocolError) as error:
                    failures.append(str(error))
                except (ValueError, h11.LocalProtocolError) as error:  # the map's name is none that could be asked for
                    failures.append(f"{node.host_name!r} is no host name: {error}")
    except TimeoutError:
        failures.append(f"no answer within {TOTAL_S:.0f} s")
    raise RetryableError("; ".join(failures) or "the region has no relay")


async def _with_node(
    node: DERPNode, underlay: Underlay, tls: ssl.SSLContext, attempt: Callable[[DERPNode, Stream], Awaitable[T]]
) -> T:
    stream = await _open_tcp(node, underlay, tls)
    try:
        await _start_tls(stream[1], node, tls)
        return await attempt(node, stream)
    except ssl.SSLCertVerificationError as error:
        stream[1].transport.abort()
        raise RetryableError(f"{node.host_name} has no valid certificate: {error.verify_message}") from error
    except (OSError, EOFError) as error:
        stream[1].transport.abort()
        reason = getattr(error, "strerror", None) or str(error) or "it hung up"
        raise RetryableError(f"{node.host_name}: {reason}") from error
    except BaseException:
        stream[1].transport.abort()
        raise


# --- TCP -----------------------------------------------------------------------------------------------------------


async def _open_tcp(node: DERPNode, underlay: Underlay, tls: ssl.SSLContext) -> Stream:
    assert node.host_name  # `relays` looked
    port = node.derp_port or DEFAULT_DERP_PORT
    proxy = underlay.proxies.choose(node.host_name, port)
    if proxy is not None:  # which knows addresses that we may not
        stream = await open_by_proxy(underlay, proxy, node.host_name, port, proxy_tls=tls, timeout_s=NODE_S)
    else:
        stream = await open_directly(node, port, underlay)
    sock: socket.socket = stream[1].get_extra_info("socket")
    for option, value in (
        (socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S),
        (socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S),
        (socket.TCP_USER_TIMEOUT, UNACKNOWLEDGED_S * 1000),
        (socket.TCP_NOTSENT_LOWAT, NOTSENT_LOWAT_BYTES),
    ):
        sock.setsockopt(socket.IPPROTO_TCP, option, value)
    stream[1].transport.set_write_buffer_limits(high=WRITE_BUFFER_BYTES)
    return stream


async def open_directly(node: DERPNode, port: int, underlay: Underlay) -> Stream:
    """A connection to the address of a node that answers first; each has a head start over the next."""
    fixed = node.ipv4 or node.ipv6
    hosts = await addresses(node, port, underlay) if fixed else [str(node.host_name)]
    if not hosts:
        raise RetryableError(f"{node.host_name} has no address")
    if len(hosts) == 1:
        return await underlay.open_tcp(hosts[0], port, timeout_s=TCP_S)
    return await race(
        [(FAMILY_DELAY_S * i, partial(underlay.open_tcp, host, port, timeout_s=TCP_S)) for i, host in enumerate(hosts)]
    )


async def addresses(node: DERPNode, port: int, underlay: Underlay) -> list[str]:
    """A node's addresses, IPv4 first: the fixed one of each family, else those by DNS, none where the map disables the family."""
    fixed = {socket.AF_INET: node.ipv4, socket.AF_INET6: node.ipv6}
    by_name: list[tuple[int, str]] = []
    if node.host_name and not all(fixed.values()):
        by_name = [(family, address[0]) for family, address in await underlay.resolve(node.host_name, port)]
    found: list[str] = []
    for family, text in fixed.items():
        if text:
            found += [text] if is_address(text, family) else []
        else:
            found += [address for of, address in by_name if of == family]
    return list(dict.fromkeys(found))[:MAX_ADDRESSES]


def is_address(text: str, family: int) -> bool:
    """Whether this is an address of the family."""
    try:
        return len(pack(text)) == (4 if family == socket.AF_INET else 16)
    except ValueError:
        return False


# --- TLS -----------------------------------------------------------------------------------------------------------


async def _start_tls(writer: asyncio.StreamWriter, node: DERPNode, tls: ssl.SSLContext) -> None:
    """Begin TLS; ssl.SSLError, OSError or RetryableError where the certificate will not do."""
    assert node.host_name
    cert_name = node.cert_name or ""
    pinned = cert_name.startswith(PIN_PREFIX)
    if pinned or node.insecure_for_tests:
        tls = _context()
    elif cert_name:
        tls = _context(like=tls)
    await writer.start_tls(tls, server_hostname=node.host_name, ssl_handshake_timeout=TOTAL_S)
    if not cert_name or (node.insecure_for_tests and not pinned):
        return
    der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True) or b""
    today = datetime.now(UTC)
    fault = fault_of_pin(der, cert_name, node.host_name, today) if pinned else fault_of_name(der, cert_name)
    if fault:
        raise RetryableError(f"{node.host_name}: {fault}")


def _context(like: ssl.SSLContext | None = None) -> ssl.SSLContext:
    """A context that leaves the name to us; chains are verified by the roots of `like`, or not at all."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    if like is None:
        context.verify_mode = ssl.CERT_NONE
    else:
        roots = b"".join(like.get_ca_certs(binary_form=True))
        if roots:
            context.load_verify_locations(cadata=roots)
    return context


# --- HTTP ----------------------------------------------------------------------------------------------------------


async def _upgrade(stream: Stream, node: DERPNode, ideal: str | None) -> bytes:
    """Ask for DERP; returns what came behind the answer, which is DERP already."""
    http = h11.Connection(h11.CLIENT)
    headers = [("Host", _host(node)), ("Upgrade", "DERP"), ("Connection", "Upgrade")]
    if ideal:
        headers.append(("Ideal-Node", ideal))  # for the relay's statistics
    event = await ask(http, stream, "/derp", headers)
    if not isinstance(event, h11.InformationalResponse) or event.status_code != 101:
        status = getattr(event, "status_code", "nothing")
        raise ProtocolError(f"{node.host_name} answers {status} when asked for DERP")
    return bytes(http.trailing_data[0])


async def _latency_check(stream: Stream, node: DERPNode) -> float:
    http = h11.Connection(h11.CLIENT)
    asked_at = time.monotonic()
    event = await ask(http, stream, "/derp/latency-check", [("Host", _host(node)), ("Connection", "close")])
    if not isinstance(event, h11.Response) or event.status_code > 299:
        raise ProtocolError(f"{node.host_name} does not answer latency checks")
    return time.monotonic() - asked_at


async def ask(http: h11.Connection, stream: Stream, target: str, headers: list[tuple[str, str]]) -> object:
    """Send a GET and wait for the head of the answer."""
    reader, writer = stream
    request = h11.Request(method="GET", target=target, headers=headers)
    writer.write((http.send(request) or b"") + (http.send(h11.EndOfMessage()) or b""))
    received = 0
    try:
        while (event := http.next_event()) is h11.NEED_DATA:
            data = await reader.read(READ_BYTES)
            received += len(data)
            if received > MAX_RESPONSE_BYTES:
                raise ProtocolError("an endless answer")
            http.receive_data(data)
    except h11.RemoteProtocolError as error:
        raise ProtocolError(f"this is not HTTP: {error}") from error
    return event


def _host(node: DERPNode) -> str:
    """The Host header: the name, in brackets if it is an IPv6 address, and the port if it is not HTTPS's."""
    name = node.host_name or ""
    if is_address(name, socket.AF_INET6):
        name = f"[{name}]"
    port = node.derp_port or DEFAULT_DERP_PORT
    return name if port == DEFAULT_DERP_PORT else f"{name}:{port}"
