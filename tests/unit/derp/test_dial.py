"""Which addresses of a relay are tried, and how."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Sequence

import pytest

from tests.unit.derp.fake_relay import FakeRelay
from tsns.derp import dial
from tsns.derp.dial import addresses, measure, relays
from tsns.error import RetryableError
from tsns.netns.underlay import CONNECT_TIMEOUT_S, Stream, Underlay
from tsns.proto.types import DERPNode, DERPRegion
from tsns.proxies import Proxies, Proxy

V4, V6 = "192.0.2.1", "2001:db8::1"


class Names(Underlay):
    """Knows one name, and connects to 127.0.0.1 whatever is asked, unless it is `dead` (never answers) or `refusing`."""

    def __init__(self, found: Sequence[str] = (), dead: str = "", refusing: str = "") -> None:
        self.found = found
        self.dead = dead
        self.refusing = refusing
        self.dialled: list[str] = []

    async def resolve(self, host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
        assert host == "derp.test"
        return [(socket.AF_INET6 if ":" in text else socket.AF_INET, (text, port)) for text in self.found]

    async def open_tcp(
        self,
        host: str,
        port: int,
        *,
        tls: ssl.SSLContext | None = None,
        server_hostname: str | None = None,
        timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> Stream:
        self.dialled.append(host)
        if host == self.dead:
            await asyncio.sleep(timeout_s)
        if host in {self.dead, self.refusing}:
            raise RetryableError(f"no connection to {host}")
        return await super().open_tcp("127.0.0.1", port, timeout_s=timeout_s)


@pytest.mark.parametrize(
    ("ipv4", "ipv6", "found", "expected"),
    [
        (V4, V6, ["9.9.9.9"], [V4, V6]),
        (V4, None, ["9.9.9.9", "2001:db8::9"], [V4, "2001:db8::9"]),
        (None, V6, ["9.9.9.9", "2001:db8::9"], ["9.9.9.9", V6]),
        ("none", None, ["9.9.9.9", "2001:db8::9"], ["2001:db8::9"]),
        (V4, "none", ["9.9.9.9", "2001:db8::9"], [V4]),
        (V6, V4, [], []),
        (None, None, ["2001:db8::9", "9.9.9.9", "9.9.9.9"], ["9.9.9.9", "2001:db8::9"]),
        (None, None, [], []),
        (None, "none", [f"9.9.9.{n}" for n in range(20)], [f"9.9.9.{n}" for n in range(dial.MAX_ADDRESSES)]),
    ],
)
def test_addresses(ipv4: str | None, ipv6: str | None, found: list[str], expected: list[str]) -> None:
    node = DERPNode(host_name="derp.test", ipv4=ipv4, ipv6=ipv6)
    assert asyncio.run(addresses(node, 443, Names(found))) == expected


def test_which_nodes_can_be_dialled() -> None:
    well = DERPNode(host_name="derp.test")
    assert relays(DERPRegion(nodes=[DERPNode(), DERPNode(host_name="x", stun_only=True), well])) == [well]
    assert relays(DERPRegion()) == []


@pytest.mark.parametrize("broken", ["dead", "refusing"])
def test_an_address_that_does_not_answer_gives_way_to_the_next(broken: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dial, "TCP_S", 60.0)

    async def test() -> None:
        async with FakeRelay() as relay:
            node = relay.node()
            node.ipv4, node.ipv6 = V4, V6
            underlay = Names(**{broken: V4})
            async with asyncio.timeout(5):
                latency = await measure(DERPRegion(nodes=[node]), underlay=underlay, tls=ssl.create_default_context())
            assert latency > 0
            assert underlay.dialled == [V4, V6]
            assert relay.paths == ["/derp/latency-check"]

    asyncio.run(test())


def test_failures_are_told_together() -> None:
    async def test() -> None:
        nodes = [DERPNode(host_name="derp.test", ipv4=V4, ipv6="none"), DERPNode(host_name="derp.test", ipv4="none")]
        with pytest.raises(RetryableError, match=f"no connection to {V4}; derp.test has no address"):
            await measure(DERPRegion(nodes=nodes), underlay=Names(refusing=V4), tls=ssl.create_default_context())
        with pytest.raises(RetryableError, match="the region has no relay"):
            await measure(DERPRegion(), underlay=Names(), tls=ssl.create_default_context())

    asyncio.run(test())


@pytest.mark.parametrize("answer", [b"SSH-2.0-nonsense\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000, b""])
def test_a_server_that_speaks_no_http_is_an_error(answer: bytes) -> None:
    async def test() -> None:
        async with FakeRelay() as relay:
            relay.nonsense = answer
            with pytest.raises(RetryableError):
                await measure(DERPRegion(nodes=[relay.node()]), underlay=Underlay(), tls=ssl.create_default_context())

    asyncio.run(test())


def test_a_relay_behind_a_proxy_is_asked_for_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a look-up of the relay's name, which a network with a proxy may not be able to do."""
    asked: list[bytes] = []

    async def test() -> None:
        async with FakeRelay() as relay:
            node = relay.node()

            async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                asked.append(await reader.readuntil(b"\r\n\r\n"))
                inner, outer = await asyncio.open_connection("127.0.0.1", node.derp_port)
                writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
                await asyncio.gather(pipe(reader, outer), pipe(inner, writer))

            async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                with contextlib.suppress(OSError):
                    while data := await reader.read(65536):
                        writer.write(data)
                writer.close()

            monkeypatch.setattr("tsns.proxies._is_here", lambda name: False)
            async with await asyncio.start_server(serve, "127.0.0.1", 0) as proxy:
                port = proxy.sockets[0].getsockname()[1]
                names = Names()  # knows none, and would fail on this one
                names.proxies = Proxies(https=Proxy.parse(f"http://127.0.0.1:{port}"))
                done = await dial.dial(DERPRegion(nodes=[node]), underlay=names, tls=ssl.create_default_context())
                await dial.hang_up(done.writer)
                await asyncio.sleep(0.05)
            assert asked[0].startswith(f"CONNECT {node.host_name}:{node.derp_port} HTTP/1.1\r\n".encode())

    asyncio.run(test())
