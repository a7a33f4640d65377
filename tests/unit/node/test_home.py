"""Finding the home region, with STUN servers and relays on loopback."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Self

import pytest

from tests.unit.derp.fake_relay import FakeRelay, derp_map
from tsns.netns.underlay import Underlay
from tsns.node import home
from tsns.node.home import HomeFinder
from tsns.paths import stun
from tsns.proto.addresses import Endpoint
from tsns.proto.types import DERPMap, DERPNode, NetInfo

WAIT_S = 4.0  # on a busy machine


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(8):
            await test()

    asyncio.run(bounded())


async def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "this did not happen"
        await asyncio.sleep(0.002)


class StunServer(asyncio.DatagramProtocol):
    """Answers after `delay_s`, as long as `answers`."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s
        self.answers = True
        self.asked = 0

    async def __aenter__(self) -> Self:
        loop = asyncio.get_running_loop()
        self.transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=("127.0.0.1", 0))
        self.port: int = self.transport.get_extra_info("sockname")[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.transport.close()
        await asyncio.sleep(0)

    def datagram_received(self, data: bytes, addr: Endpoint) -> None:
        txid = stun.parse_request(data)
        assert txid is not None
        self.asked += 1
        if self.answers:
            answer = stun.response(txid, addr)
            asyncio.get_running_loop().call_later(self.delay_s, self.send, answer, addr)

    def send(self, data: bytes, address: Endpoint) -> None:
        if not self.transport.is_closing():
            self.transport.sendto(data, address)

    def node(self, **more: str) -> DERPNode:
        return DERPNode(
            name="n", host_name=more.get("host", "derp.test"), ipv4="127.0.0.1", ipv6="none", stun_port=self.port
        )


class Finder:
    """A HomeFinder with a UDP socket, and what it told."""

    def __init__(self, *, may_change: Callable[[], bool] = lambda: True, blocked: bool = False) -> None:
        self.told: list[tuple[int | None, NetInfo]] = []
        self.blocked = blocked
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.socket.bind(("127.0.0.1", 0))
        self.socket.setblocking(False)
        self.home = HomeFinder(
            underlay=Underlay(),
            tls=ssl.create_default_context(),
            send_udp=self.send,
            on_home=lambda region, info: self.told.append((region, info)),
            may_change=may_change,
        )

    def send(self, address: Endpoint, data: bytes) -> None:
        if self.blocked:
            raise OSError(101, "Network is unreachable")
        self.socket.sendto(data, address)

    def receive(self) -> None:
        data, address = self.socket.recvfrom(2000)
        self.home.stun_reply(data, address)

    async def __aenter__(self) -> Self:
        asyncio.get_running_loop().add_reader(self.socket, self.receive)
        self.task = asyncio.create_task(self.home.run())
        return self

    async def __aexit__(self, *_: object) -> None:
        asyncio.get_running_loop().remove_reader(self.socket)
        self.socket.close()
        self.task.cancel()
        await asyncio.wait({self.task})
        assert self.task.cancelled()


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(home, "REQUEST_SPACING_S", 0.01)


def test_the_only_region_is_home_at_once_and_measured_later() -> None:
    async def test() -> None:
        async with StunServer(0.01) as server, Finder() as finder:
            finder.home.set_map(derp_map(r7=server.node()))
            assert [(region, info.preferred_derp, info.working_udp) for region, info in finder.told] == [(7, 7, None)]
            await until(lambda: len(finder.told) == 2)
            region, info = finder.told[1]
            assert (region, info.preferred_derp, info.working_udp, info.working_ipv6) == (7, 7, True, False)
            assert info.derp_latency is not None
            assert 0.01 <= info.derp_latency["7-v4"] < 0.2
            assert server.asked == 1
            assert finder.told[0][1].working_udp is None  # what was told is not changed afterwards

    run(test)


def test_the_nearest_region_is_home_and_a_mere_latency_is_no_news() -> None:
    async def test() -> None:
        async with StunServer(0.06) as far, StunServer(0.0) as near, Finder() as finder:
            finder.home.set_map(derp_map(r1=far.node(), r2=near.node()))
            assert finder.told == []
            await until(lambda: finder.told)
            assert finder.told[0][0] == 2
            assert finder.told[0][1].mapping_varies_by_dest_ip is False
            report = finder.home.report
            finder.home.request()
            await until(lambda: finder.home.report is not report)
            assert len(finder.told) == 1

    run(test)


def test_home_stays_while_nobody_can_be_told() -> None:
    async def test() -> None:
        may_change = False
        async with StunServer(0.0) as first, StunServer(0.0) as second, Finder(may_change=lambda: may_change) as finder:
            finder.home.set_map(derp_map(r1=first.node()))
            assert finder.home.home == 1
            first.delay_s = 0.1
            await until(lambda: finder.home.report)
            finder.home.set_map(derp_map(r1=first.node(), r2=second.node()))
            await until(lambda: second.asked and not finder.home._netcheck.running)
            assert finder.home.home == 1

    run(test)


def test_where_udp_cannot_be_sent_https_decides() -> None:
    async def test() -> None:
        async with FakeRelay() as relay, Finder(blocked=True) as finder:
            unreachable = relay.node("unreachable")
            unreachable.derp_port = 1
            finder.home.set_map(derp_map(r1=unreachable, r2=relay.node()))
            await until(lambda: finder.told)
            region, info = finder.told[0]
            assert (region, info.working_udp) == (2, False)
            assert info.derp_latency is not None
            assert list(info.derp_latency) == ["2-v4"]
            assert relay.paths == ["/derp/latency-check"]

    run(test)


def test_a_map_without_regions_has_no_home_and_one_that_comes_later_is_used() -> None:
    async def test() -> None:
        async with StunServer(0.0) as server, Finder() as finder:
            finder.home.set_map(DERPMap())
            await asyncio.sleep(0.02)
            assert finder.told == [(None, NetInfo())]
            finder.home.set_map(DERPMap(regions={1: None}))
            assert len(finder.told) == 1
            finder.home.set_map(derp_map(r1=server.node()))
            await until(lambda: server.asked)
            assert finder.home.home == 1

    run(test)


def test_becoming_active_asks_at_once() -> None:
    async def test() -> None:
        async with StunServer(0.0) as server, Finder() as finder:
            finder.home.set_map(derp_map(r1=server.node()))
            await until(lambda: server.asked and not finder.home._netcheck.running)
            await asyncio.sleep(0.05)
            before = server.asked  # on a busy machine a question is asked again before its answer has been read
            finder.home.active = True
            await until(lambda: server.asked > before)

    run(test)


def test_names_are_resolved_once_and_a_region_without_an_address_is_measured_otherwise() -> None:
    class Resolving(Underlay):
        def __init__(self) -> None:
            self.asked: list[str] = []

        async def resolve(self, host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
            self.asked.append(host)
            return [(socket.AF_INET, ("127.0.0.1", port))] if host == "known.test" else []

    async def test() -> None:
        async with StunServer(0.0) as server, Finder() as finder:
            underlay = finder.home._underlay = Resolving()
            known, unknown = server.node(host="known.test"), server.node(host="unknown.test")
            known.ipv4 = unknown.ipv4 = None
            unknown.derp_port = 1
            finder.home.set_map(derp_map(r1=known, r2=unknown))
            await until(lambda: finder.told)
            assert finder.told[0][0] == 1
            report = finder.home.report
            finder.home.request()
            await until(lambda: finder.home.report is not report)
            assert underlay.asked.count("known.test") == 1

    run(test)
