"""Connections by CONNECT, against a proxy on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator

import pytest

from tsns.config import Secret
from tsns.error import RetryableError
from tsns.lab.certificate import make
from tsns.netns.connecting import open_by_proxy, race
from tsns.netns.underlay import Stream, Underlay
from tsns.proxies import Proxy

PATIENCE_S = 5.0
GOOD = b"HTTP/1.1 200 Connection established\r\nVia: me\r\n\r\n"
CERTIFICATE = make(["127.0.0.1", "far.test"])


class ConnectProxy:
    """Says `answer` to the first request; on 200 it is then the far end itself, which echoes (over TLS where wanted)."""

    def __init__(self, answer: bytes, *, inner: ssl.SSLContext | None = None) -> None:
        self.answer = answer
        self.inner = inner
        self.heads: list[str] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(self.answer)
            if self.inner is not None:
                await writer.start_tls(self.inner)
            while data := await reader.read(100):
                writer.write(data)
        writer.transport.abort()


@contextlib.asynccontextmanager
async def serving(
    answer: bytes, *, outer: ssl.SSLContext | None = None, inner: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[ConnectProxy, Proxy]]:
    """A proxy, and how to reach it."""
    proxy = ConnectProxy(answer, inner=inner)
    server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=outer)
    async with server:
        port = server.sockets[0].getsockname()[1]
        yield proxy, Proxy("https" if outer else "http", "127.0.0.1", port, Secret("Basic eDp5"))
        await asyncio.sleep(0.01)


def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cadata=CERTIFICATE.certificate.decode())


async def echo(stream: Stream) -> bytes:
    reader, writer = stream
    writer.write(b"hello")
    got = await reader.readexactly(5)
    writer.transport.abort()
    return got


@pytest.mark.parametrize("outer", [False, True], ids=["http proxy", "https proxy"])
@pytest.mark.parametrize("inner", [False, True], ids=["plain inside", "TLS inside"])
def test_a_connection_through_a_proxy(outer: bool, inner: bool) -> None:
    async def play() -> None:
        server = CERTIFICATE.server_context()
        async with serving(GOOD, outer=server if outer else None, inner=server if inner else None) as (seen, proxy):
            stream = await open_by_proxy(
                Underlay(), proxy, "far.test", 443, proxy_tls=trusting(), tls=trusting() if inner else None
            )
            assert await echo(stream) == b"hello"
            [head] = seen.heads
            assert head.startswith("CONNECT far.test:443 HTTP/1.1\r\nHost: far.test:443\r\n")
            assert "\r\nProxy-Authorization: Basic eDp5\r\n" in head

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"HTTP/1.1 407 Who are you\r\n\r\n", "407 Who are you; its URL may hold a name"),
        (b"HTTP/1.1 403 \x1b[2JForbidden\r\nContent-Length: 3\r\n\r\nnix", "403"),
        (b"SSH-2.0-OpenSSH_9.9\r\n", "nothing that is HTTP"),
        (b"", "nothing that is HTTP"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 20_000, "nothing that is HTTP"),
        (GOOD + b'HTTP/1.1 200 OK\r\n\r\n{"publicKey":"mine"}', "more than the connection"),
    ],
)
def test_a_proxy_that_does_not_connect(answer: bytes, reason: str) -> None:
    """The last one slips its own words in front of the far end's TLS: they must not pass for the far end's."""

    async def play() -> None:
        async def answer_and_leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(answer)
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()

        server = await asyncio.start_server(answer_and_leave, "127.0.0.1", 0)
        async with server:
            proxy = Proxy("http", "127.0.0.1", server.sockets[0].getsockname()[1], Secret("Basic c2VjcmV0"))
            with pytest.raises(RetryableError) as caught:
                await open_by_proxy(Underlay(), proxy, "far.test", 443, proxy_tls=trusting(), tls=trusting())
            await asyncio.sleep(0.01)
        text = str(caught.value)
        assert reason in text
        assert "c2VjcmV0" not in text
        assert "\x1b" not in text

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))


def test_a_silent_proxy_is_given_up() -> None:
    async def play() -> None:
        async with serving(b"") as (_, proxy):
            with pytest.raises(RetryableError, match=r"by the proxy http://127.0.0.1:\d+ within 0 s"):
                await open_by_proxy(Underlay(), proxy, "far.test", 443, proxy_tls=trusting(), timeout_s=0.05)

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))


def test_a_race_is_won_by_the_first_and_lost_with_the_first_reason() -> None:
    async def play() -> None:
        async with serving(GOOD) as (_, proxy):

            async def connect() -> Stream:
                return await Underlay().open_tcp(proxy.host, proxy.port)

            async def fail() -> Stream:
                raise RetryableError("first")

            async def hang() -> Stream:
                await asyncio.Event().wait()
                raise AssertionError

            stream = await race([(0.0, fail), (0.0, hang), (0.01, connect), (0.5, fail)])
            stream[1].transport.abort()
            with pytest.raises(RetryableError, match="first"):
                await race([(0.0, fail), (0.01, fail)])

    asyncio.run(asyncio.wait_for(play(), PATIENCE_S))
