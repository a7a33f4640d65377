"""Other servers are asked, over loopback: by UDP, TCP and HTTP, with sockets that are used again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from tsns.dns.exchanges import Exchanges
from tsns.dns.forwarder import Begin, Step
from tsns.dns.upstreams import Transport, Upstream, Way
from tsns.lab.certificate import make
from tsns.netns import linux
from tsns.proto.addresses import pack

QUERY, REPLY = b"the question", b"the answer"
CERTIFICATE = make(["dns.test"])
PATIENCE_S = 10.0
HTTP_OK = b"HTTP/1.1 200 OK\r\nContent-Type: application/dns-message\r\nContent-Length: 10\r\n\r\n" + REPLY

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


class Scene:
    """Exchanges, and what became of them; the only socket of each kind is used for all."""

    def __init__(self) -> None:
        tls = ssl.create_default_context(cadata=CERTIFICATE.certificate.decode())
        self.exchanges = Exchanges(self, tls, self._received, self._failed)
        self.received: list[tuple[int, bytes]] = []
        self.failed: list[tuple[int, str]] = []
        self.lent = 0
        self.ways: list[Way] = []
        self._sockets: dict[int, socket.socket] = {}

    async def take(self, way: Way, kind: int, family: int) -> socket.socket:
        self.ways.append(way)
        if family != socket.AF_INET:
            raise OSError("no socket in the namespace")
        self.lent += 1
        if kind not in self._sockets:
            self._sockets[kind] = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        return self._sockets[kind]

    def give_back(self, way: Way, sock: socket.socket) -> None:
        self.lent -= 1
        linux.disconnect(sock.fileno())

    def _received(self, number: int, data: bytes) -> None:
        self.received.append((number, data))
        self.exchanges.end(number)

    def _failed(self, number: int, reason: str) -> None:
        self.failed.append((number, reason))

    async def ask(self, transport: Transport, port: int, number: int = 1, address: str = "127.0.0.1") -> None:
        server = Upstream("it", (pack(address),), port, (transport,), "dns.test", "/dns-query")
        before = len(self.received) + len(self.failed)
        self.exchanges.begin(Begin(number, Step(server, transport, pack(address), Way.TUNNEL), QUERY))
        async with asyncio.timeout(PATIENCE_S):
            while len(self.received) + len(self.failed) == before or self.exchanges._tasks:  # noqa: ASYNC110
                await asyncio.sleep(0.001)

    async def close(self) -> None:
        await self.exchanges.close()
        assert self.lent == 0
        for sock in self._sockets.values():
            sock.close()


@contextlib.asynccontextmanager
async def scene() -> AsyncIterator[Scene]:
    here = Scene()
    try:
        yield here
    finally:
        await here.close()


@contextlib.asynccontextmanager
async def streams(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server on a port of loopback."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            result = handler(reader, writer)
            if asyncio.iscoroutine(result):
                await result
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield server.sockets[0].getsockname()[1]
        await asyncio.sleep(0.01)


class Datagrams(asyncio.DatagramProtocol):
    """Answers each question, and before that somebody else does."""

    def __init__(self, stranger: socket.socket) -> None:
        self.stranger = stranger
        self.asked: list[tuple[bytes, tuple[str, int]]] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        self.asked.append((data, addr))
        self.stranger.sendto(b"forged", addr)
        self.transport.sendto(REPLY, addr)


def test_udp_from_another_port_each_time_and_heard_from_the_server_alone() -> None:
    async def play() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as stranger:
            transport, protocol = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: Datagrams(stranger), ("127.0.0.1", 0)
            )
            async with scene() as here:
                for number in range(8):
                    await here.ask(Transport.UDP, transport.get_extra_info("sockname")[1], number)
                assert here.received == [(number, REPLY) for number in range(8)]
                assert here.failed == []
                assert [data for data, _ in protocol.asked] == [QUERY] * 8
                assert len({port for _, (_, port) in protocol.asked}) > 4
                assert set(here.ways) == {Way.TUNNEL}
            transport.close()

    asyncio.run(play())


def test_nobody_listens() -> None:
    async def play() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        async with scene() as here:
            await here.ask(Transport.UDP, port, 1)
            await here.ask(Transport.TCP, port, 2)
            await here.ask(Transport.HTTP, port, 3)
            await here.ask(Transport.UDP, port, 4, address="::1")
            assert here.failed == [
                (1, "Connection refused"),
                (2, "Connection refused"),
                (3, "Connection refused"),
                (4, "no socket in the namespace"),
            ]

    asyncio.run(play())


def test_tcp_again_and_again() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        assert await reader.readexactly(length) == QUERY
        writer.write(struct.pack(">H", len(REPLY)) + REPLY)

    async def play() -> None:
        async with streams(answer) as port, scene() as here:
            for number in range(5):
                await here.ask(Transport.TCP, port, number)
            assert here.received == [(number, REPLY) for number in range(5)]

    asyncio.run(play())


@pytest.mark.parametrize("said", [b"", b"\0", b"\0\x0ahalf"])
def test_a_connection_that_ends_too_early(said: bytes) -> None:
    async def play() -> None:
        async with streams(lambda _, writer: writer.write(said)) as port, scene() as here:
            await here.ask(Transport.TCP, port)
            assert [reason for _, reason in here.failed] in (["it hung up"], ["Connection reset by peer"])

    asyncio.run(play())


@pytest.mark.parametrize("secure", [False, True])
def test_http(secure: bool) -> None:
    heads: list[bytes] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append(await reader.readuntil(b"\r\n\r\n"))
        assert await reader.readexactly(len(QUERY)) == QUERY
        writer.write(HTTP_OK)

    async def play() -> None:
        async with streams(answer, CERTIFICATE.server_context() if secure else None) as port, scene() as here:
            for number in (1, 2):
                await here.ask(Transport.HTTPS if secure else Transport.HTTP, port, number)
            assert here.failed == []
            assert here.received == [(1, REPLY), (2, REPLY)]
            head = heads[0].decode().lower()
            assert head.startswith("post /dns-query http/1.1\r\n")
            assert f"\r\nhost: dns.test:{port}\r\n" in head
            assert "\r\ncontent-type: application/dns-message\r\n" in head

    asyncio.run(play())


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n", "HTTP status 403"),
        (HTTP_OK.replace(b"dns-message", b"json"), "no DNS message"),
        (HTTP_OK[:-1], "peer closed connection without sending complete message body"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/dns-message\r\n\r\n" + bytes(70_000), "an endless answer"),
        (b"SSH-2.0-nonsense\r\n\r\n", "illegal"),
        (b"", "it hung up"),
    ],
)
def test_what_is_no_answer_by_http(said: bytes, reason: str) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(QUERY)
        writer.write(said)

    async def play() -> None:
        async with streams(answer) as port, scene() as here:
            await here.ask(Transport.HTTP, port)
            [(_, told)] = here.failed
            assert reason in told

    asyncio.run(play())


def test_a_server_with_another_name() -> None:
    other = make(["other.test"])

    async def play() -> None:
        async with streams(lambda *_: None, other.server_context()) as port, scene() as here:
            await here.ask(Transport.HTTPS, port)
            [(_, told)] = here.failed
            assert "certificate" in told

    asyncio.run(play())


def test_what_is_ended_leaves_nothing() -> None:
    async def play() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as silent:
            silent.bind(("127.0.0.1", 0))
            await ended(silent.getsockname()[1])

    async def ended(udp_port: int) -> None:
        async with streams(lambda reader, _: reader.read()) as port, scene() as here:
            for number, (transport, at) in enumerate(((Transport.UDP, udp_port), (Transport.TCP, port))):
                server = Upstream("it", (pack("127.0.0.1"),), at)
                here.exchanges.begin(Begin(number, Step(server, transport, server.addresses[0], Way.TUNNEL), QUERY))
            async with asyncio.timeout(PATIENCE_S):
                while here.lent < 2:  # noqa: ASYNC110 (nobody tells)
                    await asyncio.sleep(0.001)
            for number in (0, 1, 2):
                here.exchanges.end(number)
            async with asyncio.timeout(PATIENCE_S):
                while here.lent:  # noqa: ASYNC110 (nobody tells)
                    await asyncio.sleep(0.001)
            assert (here.received, here.failed) == ([], [])

    asyncio.run(play())
