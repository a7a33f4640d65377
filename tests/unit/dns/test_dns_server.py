"""The MagicDNS server on loopback sockets: who is answered, and what an asker may not do."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import dns.message
import pytest

from tsns.dns import server as dns_server
from tsns.dns.message import MAX_QUERY_BYTES
from tsns.dns.resolver import Resolver
from tsns.dns.server import Answerer, DnsServer, Drop
from tsns.proto.types import Node

ME = Node(id=1, name="me.corp.ts.net.", addresses=["100.64.0.1/32"])
QUERY = dns.message.make_query("me.corp.ts.net", "A", id=7).to_wire()
PATIENCE_S = 10.0


class Place:
    """A running server and how to reach it."""

    def __init__(self, server: DnsServer, udp: socket.socket, tcp: socket.socket) -> None:
        self.server = server
        self.udp_address: tuple[str, int] = udp.getsockname()
        self.tcp_address: tuple[str, int] = tcp.getsockname()

    async def over_udp(self, query: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
            asker.setblocking(False)
            await loop.sock_connect(asker, self.udp_address)
            await loop.sock_sendall(asker, query)
            return await asyncio.wait_for(loop.sock_recv(asker, 65535), PATIENCE_S)

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(*self.tcp_address)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 (nothing tells the asker)
                await asyncio.sleep(0.001)


def answerer() -> Answerer:
    """Answers at once, from a resolver that knows our own name."""
    resolver = Resolver()
    resolver.update(self_node=ME, peers=[], config=None)

    def ask(query: bytes, over_tcp: bool, reply: Callable[[bytes], None]) -> bool:
        answer = resolver.answer(query, over_tcp=over_tcp)
        if isinstance(answer, bytes):
            reply(answer)
        return answer is not None

    return ask


@asynccontextmanager
async def place(ask: Answerer | None = None) -> AsyncIterator[Place]:
    server = DnsServer(ask or answerer())
    udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    udp.bind(("127.0.0.1", 0))
    tcp = socket.create_server(("127.0.0.1", 0))
    tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)  # connections inherit it: soon full
    found = Place(server, udp, tcp)
    await server.start([udp], [tcp])
    try:
        yield found
    finally:
        await server.close()
    assert udp.fileno() == -1
    assert tcp.fileno() == -1


async def told(reader: asyncio.StreamReader) -> bytes:
    async with asyncio.timeout(PATIENCE_S):
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        return await reader.readexactly(length)


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        return await asyncio.wait_for(reader.read(), PATIENCE_S) == b""
    except ConnectionResetError:
        return True


def framed(*queries: bytes) -> bytes:
    return b"".join(struct.pack(">H", len(query)) + query for query in queries)


def is_answer(data: bytes) -> bool:
    answer = dns.message.from_wire(data)
    return answer.id == 7 and str(answer.answer[0][0]) == "100.64.0.1"


def test_udp() -> None:
    async def scene() -> None:
        async with place() as here:
            assert is_answer(await here.over_udp(QUERY))
            assert not here.server.dropped

    asyncio.run(scene())


def test_more_queries_at_once_than_are_read_in_a_row() -> None:
    async def scene() -> None:
        async with place() as here:
            answers = await asyncio.gather(*(here.over_udp(QUERY) for _ in range(3 * dns_server.UDP_BUDGET)))
            assert all(map(is_answer, answers))

    asyncio.run(scene())


def test_udp_goes_on_after_what_is_no_query() -> None:
    async def scene() -> None:
        async with place() as here:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
                for rubbish in (b"", b"rubbish", b"\0\0\x80" + bytes(20), bytes(MAX_QUERY_BYTES + 1)):
                    asker.sendto(rubbish, here.udp_address)
                await here.until(lambda: here.server.dropped.total() == 4)
            assert here.server.dropped == {Drop.NO_QUERY: 3, Drop.TOO_LONG: 1}
            assert is_answer(await here.over_udp(QUERY))

    asyncio.run(scene())


def test_an_asker_that_is_gone_does_no_harm() -> None:
    async def scene() -> None:
        async with place() as here:
            for _ in range(3):
                with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
                    asker.sendto(QUERY, here.udp_address)
            assert is_answer(await here.over_udp(QUERY))

    asyncio.run(scene())


@pytest.mark.parametrize("size", [1, 5, 1000])
def test_tcp_however_the_bytes_arrive(size: int) -> None:
    async def scene() -> None:
        async with place() as here:
            reader, writer = await here.connect()
            stream = framed(QUERY, QUERY, QUERY)
            for at in range(0, len(stream), size):
                writer.write(stream[at : at + size])
                await asyncio.sleep(0)
            for _ in range(3):
                assert is_answer(await told(reader))
            writer.close()

    asyncio.run(scene())


def test_whoever_has_said_all_still_hears_the_answer() -> None:
    async def scene() -> None:
        async with place() as here:
            reader, writer = await here.connect()
            writer.write(framed(QUERY))
            writer.write_eof()
            assert is_answer(await told(reader))
            assert await ended(reader)
            writer.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (struct.pack(">H", MAX_QUERY_BYTES + 1), Drop.TOO_LONG),
        (framed(b""), Drop.NO_QUERY),
        (framed(b"\0\0\x80" + bytes(20)), Drop.NO_QUERY),
    ],
    ids=["too long", "empty", "an answer"],
)
def test_tcp_ends_with_what_is_no_query(said: bytes, reason: Drop) -> None:
    async def scene() -> None:
        async with place() as here:
            reader, writer = await here.connect()
            writer.write(said)
            assert await ended(reader)
            assert here.server.dropped == {reason: 1}
            writer.close()

    asyncio.run(scene())


@pytest.mark.parametrize("said", [b"", b"\0", framed(QUERY)[:-1]], ids=["nothing", "half a length", "most of a query"])
def test_an_idle_connection_ends(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_server, "TCP_IDLE_S", 0.05)

    async def scene() -> None:
        async with place() as here:
            reader, writer = await here.connect()
            writer.write(said)
            assert await ended(reader)
            assert here.server.dropped == {Drop.IDLE: 1}
            writer.close()

    asyncio.run(scene())


def test_whoever_does_not_read_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_server, "TCP_IDLE_S", 0.2)

    async def scene() -> None:
        async with place() as here:
            loop = asyncio.get_running_loop()
            with socket.socket() as asker:
                asker.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
                asker.setblocking(False)
                await loop.sock_connect(asker, here.tcp_address)

                async def pester() -> None:
                    while True:
                        await loop.sock_sendall(asker, framed(*[QUERY] * 100))

                talk = loop.create_task(pester())
                await here.until(lambda: here.server.dropped[Drop.IDLE] == 1)
                talk.cancel()
                with pytest.raises((asyncio.CancelledError, ConnectionError)):
                    await talk
            assert not here.server._connections

    asyncio.run(scene())


def test_connections_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dns_server, "MAX_IN_FLIGHT", 2)

    async def scene() -> None:
        async with place() as here:
            kept = [await here.connect() for _ in range(2)]
            await here.until(lambda: len(here.server._connections) == 2)
            reader, surplus = await here.connect()
            assert await ended(reader)
            assert here.server.dropped == {Drop.TOO_MANY: 1}
            surplus.close()
            for reader, writer in kept:
                writer.write(framed(QUERY))
                assert is_answer(await told(reader))
                writer.close()
            await here.until(lambda: not here.server._connections)
            reader, writer = await here.connect()
            writer.write(framed(QUERY))
            assert is_answer(await told(reader))
            writer.close()

    asyncio.run(scene())


def test_close_ends_open_connections() -> None:
    async def scene() -> None:
        async with place() as here:
            reader, writer = await here.connect()
            writer.write(framed(QUERY))
            assert is_answer(await told(reader))
            await here.server.close()
            assert await ended(reader)
            writer.close()
            await here.server.close()

    asyncio.run(scene())


@pytest.mark.parametrize(
    ("source", "inside"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("100.64.0.7", True),
        ("100.100.100.100", True),
        ("fd7a:115c:a1e0::7", True),
        ("192.168.1.1", False),
        ("100.128.0.1", False),
        ("fd00::1", False),
        ("", False),
    ],
)
def test_only_the_inside_is_answered(source: str, inside: bool) -> None:
    server = DnsServer(answerer())
    answers: list[bytes] = []
    assert server._answer(QUERY, (source, 5353), False, answers.append) == inside
    assert len(answers) == inside
    assert server.dropped == ({} if inside else {Drop.FOREIGN: 1})


def test_what_is_answered_later_is_sent_later() -> None:
    waiting: list[Callable[[bytes], None]] = []

    def ask(query: bytes, over_tcp: bool, reply: Callable[[bytes], None]) -> bool:
        waiting.append(reply)
        return True

    async def scene() -> None:
        async with place(ask) as here:
            reader, writer = await here.connect()
            writer.write(framed(QUERY, QUERY))
            by_udp = asyncio.create_task(here.over_udp(QUERY))
            await here.until(lambda: len(waiting) == 2)  # over TCP, the second has to wait for the first
            for reply in waiting:
                reply(b"later")
            assert await by_udp == b"later"
            assert await told(reader) == b"later"
            await here.until(lambda: len(waiting) == 3)
            writer.close()
        waiting[2](b"nobody is there any more")

    asyncio.run(scene())


def test_an_address_that_is_given_up_is_free() -> None:
    async def scene() -> None:
        async with place() as here:
            assert here.server.addresses == ["127.0.0.1"]
            here.server.stop(["127.0.0.1"])
            assert here.server.addresses == []
            socket.create_server(here.tcp_address).close()
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.bind(here.udp_address)

    asyncio.run(scene())
