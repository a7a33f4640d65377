"""All of DERP's client against relays on loopback."""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable, Coroutine
from typing import Self

import pytest

from tests.unit.derp import certificates
from tests.unit.derp.fake_relay import CERTIFICATE, HOST, FakeRelay, derp_map
from tsns.derp import session
from tsns.derp.client import DerpClients, RegionStatus
from tsns.derp.framing import FrameType, frame, restarting
from tsns.derp.queue import Drop
from tsns.derp.relay import Limits, State
from tsns.keys import NodePrivate, NodePublic
from tsns.netns.underlay import Underlay
from tsns.proto.types import DERPMap, DERPNode, DERPRegion

KEY = NodePrivate(b"\x55" * 32)
PEER = NodePublic(b"\x77" * 32)
OTHER = NodePublic(b"\x88" * 32)
WAIT_S = 4.0  # on a busy machine


def run(test: Callable[[], Coroutine[None, None, None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(8):
            await test()
            assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("derp-")]

    asyncio.run(bounded())


async def until(condition: Callable[[], object]) -> None:
    """Wait until the condition holds."""
    end = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < end, "this did not happen"
        await asyncio.sleep(0.002)


class Node:
    """DerpClients and what they told."""

    def __init__(self, limits: Limits | None = None, tls: ssl.SSLContext | None = None) -> None:
        self.received: list[tuple[int, list[tuple[NodePublic, bytes]]]] = []
        self.drained = 0
        self.changes = 0
        self.derp = DerpClients(
            KEY,
            underlay=Underlay(),
            tls=tls or ssl.create_default_context(),
            receive=lambda region, packets: self.received.append((region, packets)),
            drained=self._note_drained,
            changed=self._note_changed,
            limits=limits,
        )

    def _note_drained(self) -> None:
        self.drained += 1

    def _note_changed(self) -> None:
        self.changes += 1

    def status(self, region: int = 1) -> RegionStatus:
        return next(one for one in self.derp.status() if one.region == region)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.derp.close()


async def connected(node: Node, relay: FakeRelay) -> None:
    node.derp.set_map(derp_map(r1=relay.node()))
    node.derp.set_home(1)
    await node.derp.wait_home()


@pytest.mark.parametrize("glued", [True, False])
def test_home_is_connected_and_told_so(glued: bool) -> None:
    async def test() -> None:
        async with FakeRelay() as relay, Node() as node:
            relay.glued = glued
            await connected(node, relay)
            await until(lambda: relay.preferred == [True])
            assert relay.client == KEY.public
            assert relay.client_info == b'{"version":2,"CanAckPings":true}'
            assert (relay.paths, f"Host: {HOST}:{relay.port}" in relay.head) == (["/derp"], True)
            status = node.status()
            assert (status.state, status.home, status.node, status.code) == (State.CONNECTED, True, "1a", "r1")
            assert node.derp.last_frame_at(1) is not None

    run(test)


def test_packets_go_both_ways_in_whole_trains() -> None:
    async def test() -> None:
        async with FakeRelay() as relay, Node() as node:
            await connected(node, relay)
            node.derp.send(1, PEER, [b"one", b"two"])
            node.derp.send(1, OTHER, [b"three"])
            await until(lambda: len(relay.packets) == 3)
            assert relay.packets == [(PEER, b"one"), (PEER, b"two"), (OTHER, b"three")]
            relay.send(*(frame(FrameType.RECV_PACKET, PEER.raw, data) for data in (b"a", b"b", b"c")))
            await until(lambda: node.received)
            assert node.received == [(1, [(PEER, b"a"), (PEER, b"b"), (PEER, b"c")])]

    run(test)


def test_packets_wait_for_the_connection_that_they_cause() -> None:
    async def test() -> None:
        async with FakeRelay() as relay, Node() as node:
            node.derp.set_map(derp_map(r1=relay.node()))
            node.derp.send(1, PEER, [b"early"])
            assert not node.derp.congested
            await until(lambda: relay.packets == [(PEER, b"early")])
            assert relay.preferred == []

    run(test)


def test_nothing_goes_where_there_is_no_region() -> None:
    async def test() -> None:
        async with Node() as node:
            node.derp.set_map(DERPMap())
            node.derp.set_home(1)
            node.derp.set_map(DERPMap(regions={1: None, 2: DERPRegion(nodes=None), 3: DERPRegion(nodes=[DERPNode()])}))
            node.derp.send(1, PEER, [b"1", b"2"])
            assert [node.derp.route(PEER, home) for home in (0, 1, 2, 3)] == [None] * 4
            assert node.derp.drops == {Drop.NO_REGION: 2}
            assert node.derp.status() == []

    run(test)


def test_routes() -> None:
    async def test() -> None:
        async with FakeRelay() as near, FakeRelay() as far, Node() as node:
            node.derp.set_map(derp_map(r1=near.node(), r2=far.node()))
            assert node.derp.route(PEER, 2) == 2
            node.derp.set_home(1)
            await node.derp.wait_home()
            assert node.derp.route(PEER, 2) == 2  # to be dialled
            assert node.derp.route(PEER, 0) is None
            near.send(frame(FrameType.RECV_PACKET, PEER.raw, b"hello"))
            await until(lambda: node.received)
            assert (node.derp.route(PEER, 2), node.derp.route(PEER, 0), node.derp.route(OTHER, 2)) == (1, 1, 2)
            near.send(frame(FrameType.PEER_GONE, PEER.raw))
            await until(lambda: node.derp.route(PEER, 2) == 2)
            assert node.derp.route(PEER, 0) is None

    run(test)


def test_a_relay_that_comes_back_is_not_taken_for_one_where_the_peer_is() -> None:
    """Both ends lose their connections to the peer's home, and go on by another relay; ours comes back first."""

    async def test() -> None:
        async with FakeRelay() as home, FakeRelay() as other, Node() as node:
            node.derp.set_map(derp_map(r1=home.node(), r2=other.node()))
            node.derp.set_home(1)
            await node.derp.wait_home()
            node.derp.send(2, PEER, [b"connect"])
            await until(lambda: other.packets)
            other.send(frame(FrameType.RECV_PACKET, PEER.raw, b"we are here"))
            await until(lambda: node.received)
            assert node.derp.route(PEER, 1) == 2
            assert node.derp.route(OTHER, 1) == 1  # of whom nothing better is known
            home.send(frame(FrameType.RECV_PACKET, PEER.raw, b"and back"))
            await until(lambda: node.derp.route(PEER, 1) == 1)
            home.send(frame(FrameType.PEER_GONE, PEER.raw))
            await until(lambda: node.derp.route(PEER, 1) == 2)

    run(test)


def test_a_lost_connection_comes_back_and_forgets_who_was_heard() -> None:
    async def test() -> None:
        async with FakeRelay() as relay, Node() as node:
            await connected(node, relay)
            relay.send(frame(FrameType.RECV_PACKET, PEER.raw, b"hello"))
            await until(lambda: node.derp.route(PEER, 0) == 1)
            changes = node.changes
            relay.hang_up()
            await until(lambda: relay.logins == 2)
            await node.derp.wait_home()
            assert node.derp.route(PEER, 0) is None
            assert node.changes > changes
            assert relay.preferred[0] is True

    run(test)


def test_a_relay_that_refuses_us_is_not_asked_all_the_time() -> None:
    async def test() -> None:
        async with FakeRelay() as relay, Node() as node:
            relay.refuses_login = True
            node.derp.set_map(derp_map(r1=relay.node()))
            node.derp.set_home(1)
            await asyncio.sleep(0.5)
            assert 2 <= len(relay.paths) <= 8
            assert "hung up" in node.status().error

    run(test)


def test_a_stuck_relay_holds_up_nobody_else() -> None:
    limits = Limits(queue_bytes=100_000, high_bytes=50_000, low_bytes=10_000, stuck_s=0.15, dead_s=0.6)

    async def test() -> None:
        async with FakeRelay() as stuck, FakeRelay() as well, Node(limits) as node:
            node.derp.set_map(derp_map(r1=stuck.node(), r2=well.node()))
            node.derp.set_home(1)
            node.derp.send(2, OTHER, [b"hello"])
            await node.derp.wait_home()
            await until(lambda: well.packets)
            stuck.may_read.clear()
            train = [bytes(1300)] * 8
            for _ in range(2000):
                if node.derp.congested:
                    break
                node.derp.send(1, PEER, train)
                await asyncio.sleep(0)
            assert node.derp.congested  # at first it may just be slow
            node.derp.send(2, OTHER, [b"meanwhile"])
            await until(lambda: (OTHER, b"meanwhile") in well.packets)
            await until(lambda: node.drained == 1)
            assert not node.derp.congested
            assert node.status(1).stuck
            assert node.derp.route(PEER, 1) == 1
            for _ in range(20):
                node.derp.send(1, PEER, train)
            assert node.derp.drops[Drop.STUCK] > 0
            assert node.status(1).queued_bytes <= 100_000
            await until(lambda: stuck.connections == 1 and "taken nothing" in node.status(1).error)
            stuck.may_read.set()
            await until(lambda: stuck.logins == 2)
            await until(lambda: node.status(1).state is State.CONNECTED)
            assert well.logins == 1

    run(test)


def test_back_pressure_ends_when_the_relay_reads_again_and_nothing_is_lost() -> None:
    async def test() -> None:
        async with FakeRelay() as relay, Node() as node:
            await connected(node, relay)
            relay.may_read.clear()
            sent = 0
            while not node.derp.congested:
                node.derp.send(1, PEER, [bytes(1300)] * 8)
                sent += 8
                assert sent < 10_000
                await asyncio.sleep(0)
            assert node.drained == 0
            relay.may_read.set()
            await until(lambda: len(relay.packets) == sent)
            await until(lambda: node.drained == 1)
            assert (node.derp.congested, node.derp.drops.total()) == (False, 0)

    run(test)


def test_back_pressure_ends_with_the_connection() -> None:
    async def test() -> None:
        async with FakeRelay() as relay, Node() as node:
            await connected(node, relay)
            relay.may_read.clear()
            while not node.derp.congested:
                node.derp.send(1, PEER, [bytes(1300)] * 8)
                await asyncio.sleep(0)
            await node.derp.close()
            assert (node.drained, node.derp.congested) == (1, False)
            assert node.derp.drops[Drop.LEFT] > 0

    run(test)


def test_a_region_that_is_not_home_is_left_when_idle() -> None:
    async def test() -> None:
        async with FakeRelay() as home, FakeRelay() as other, Node(Limits(idle_s=0.25)) as node:
            node.derp.set_map(derp_map(r1=home.node(), r2=other.node()))
            node.derp.set_home(1)
            node.derp.send(2, PEER, [b"hello"])
            await until(lambda: other.packets)
            await until(lambda: other.connections == 0 and node.status(2).state is State.IDLE)
            assert node.status(2).error == ""
            assert node.status(1).state is State.CONNECTED
            node.derp.send(2, PEER, [b"again"])
            await until(lambda: len(other.packets) == 2)

    run(test)


def test_home_moves() -> None:
    async def test() -> None:
        async with FakeRelay() as first, FakeRelay() as second, Node(Limits(idle_s=0.25)) as node:
            node.derp.set_map(derp_map(r1=first.node(), r2=second.node()))
            node.derp.set_home(1)
            await node.derp.wait_home()
            node.derp.set_home(2)
            await node.derp.wait_home()
            await until(lambda: (first.preferred, second.preferred) == ([True, False], [True]))
            await until(lambda: first.connections == 0)
            node.derp.set_home(1)
            await node.derp.wait_home()
            assert first.logins == 2

    run(test)


def test_a_region_that_moved_is_connected_anew_and_one_that_is_gone_is_left() -> None:
    async def test() -> None:
        async with FakeRelay() as old, FakeRelay() as new, Node() as node:
            await connected(node, old)
            renamed = derp_map(r1=old.node())
            assert renamed.regions
            assert renamed.regions[1]
            renamed.regions[1].region_name = "Elsewhere"
            node.derp.set_map(renamed)
            await asyncio.sleep(0.02)
            assert old.connections == 1
            node.derp.set_map(derp_map(r1=new.node()))
            await until(lambda: new.preferred == [True])
            assert (old.connections, old.logins) == (0, 1)
            node.derp.set_map(derp_map(r2=old.node()))
            await until(lambda: new.connections == 0)
            assert node.derp.status() == []
            node.derp.set_map(derp_map(r1=new.node()))
            await node.derp.wait_home()
            assert new.logins == 2

    run(test)


def test_the_next_node_of_a_region_is_tried() -> None:
    async def test() -> None:
        async with FakeRelay() as broken, FakeRelay() as well, Node() as node:
            broken.status = 503
            closed = broken.node("closed")
            closed.derp_port = 1
            stun_only = DERPNode(name="stun", host_name=HOST, stun_only=True)
            nodes = [stun_only, closed, broken.node("broken"), well.node("well")]
            node.derp.set_map(derp_map(r1=nodes))
            node.derp.set_home(1)
            await node.derp.wait_home()
            assert node.status().node == "well"
            assert "Ideal-Node: closed" in well.head

    run(test)


def test_why_a_region_does_not_work_is_said() -> None:
    async def test() -> None:
        async with FakeRelay() as relay, Node() as node:
            relay.status = 503
            odd = relay.node("odd")
            odd.host_name = "a" * 70 + ".example"
            node.derp.set_map(derp_map(r1=relay.node(), r2=DERPNode(host_name=HOST, ipv4="none", ipv6="none"), r3=odd))
            for region in (1, 2, 3):
                node.derp.send(region, PEER, [b"hello"])
            await until(lambda: "answers 503" in node.status(1).error)
            await until(lambda: "has no address" in node.status(2).error)
            await until(lambda: "is no host name" in node.status(3).error)

    run(test)


def test_health_and_restart() -> None:
    async def test() -> None:
        async with FakeRelay() as relay, Node() as node:
            await connected(node, relay)
            relay.send(frame(FrameType.HEALTH, b"duplicate client"))
            await until(lambda: node.status().health == "duplicate client")
            relay.send(frame(FrameType.PING, b"8 bytes!"))
            await until(lambda: (FrameType.PONG, b"8 bytes!") in relay.frames)
            relay.send(restarting(0.15, 10))
            await asyncio.sleep(0.02)
            relay.hang_up()
            lost_at = time.monotonic()
            await until(lambda: relay.logins == 2)
            assert time.monotonic() - lost_at >= 0.14
            assert node.status().health == ""

    run(test)


def test_after_a_change_of_network_connections_have_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "PONG_S", 0.1)

    async def test() -> None:
        async with FakeRelay() as relay, Node() as node:
            await connected(node, relay)
            node.derp.network_changed(["127.0.0.1"])
            await until(lambda: relay.logins == 2)  # this relay does not answer pings
            assert any(kind == FrameType.PING for kind, _ in relay.frames)

    run(test)


def test_a_connection_from_an_address_that_is_gone_is_given_up_at_once() -> None:
    async def test() -> None:
        async with FakeRelay() as relay, Node() as node:
            await connected(node, relay)
            node.derp.network_changed(["192.0.2.1"])
            await until(lambda: relay.logins == 2)
            assert not any(kind == FrameType.PING for kind, _ in relay.frames)

    run(test)


def test_a_silent_relay_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "SILENCE_S", 0.1)

    async def test() -> None:
        async with FakeRelay() as relay, Node() as node:
            await connected(node, relay)
            await until(lambda: relay.logins == 3)

    run(test)


def test_an_error_of_our_own_ends_the_connection_and_not_the_client(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        async with FakeRelay() as relay, Node() as node:
            await connected(node, relay)
            node.received = None  # type: ignore[assignment]
            relay.send(frame(FrameType.RECV_PACKET, PEER.raw, b"hello"))
            await until(lambda: relay.logins == 2)
            await node.derp.wait_home()

    with caplog.at_level(logging.ERROR):
        run(test)
    assert "an error of our own" in caplog.text


def test_the_systems_roots_and_the_host_name_decide_by_default() -> None:
    async def test() -> None:
        roots = ssl.create_default_context(cadata=certificates.der(CERTIFICATE))
        async with FakeRelay() as relay, Node(tls=roots) as trusting, Node() as wary:
            for node in (trusting, wary):
                node.derp.set_map(derp_map(r1=relay.node(cert_name="")))
                node.derp.set_home(1)
            await trusting.derp.wait_home()
            await until(lambda: "no valid certificate" in wary.status().error)
            assert relay.logins == 1

    run(test)


def test_another_name_may_be_demanded() -> None:
    async def test() -> None:
        fronted = certificates.make("other.test")
        roots = ssl.create_default_context(cadata=certificates.der(fronted))
        async with FakeRelay(fronted) as relay, Node(tls=roots) as node:
            right, wrong, own = (relay.node(cert_name=name) for name in ("other.test", "third.test", ""))
            node.derp.set_map(derp_map(r1=right, r2=wrong, r3=own))
            for region in (1, 2, 3):
                node.derp.send(region, PEER, [b"hello"])
            await until(lambda: node.status(1).state is State.CONNECTED)
            await until(lambda: "not for third.test" in node.status(2).error)
            await until(lambda: "no valid certificate" in node.status(3).error)

        async with FakeRelay(fronted) as relay, Node() as node:  # the right name, but nobody vouches for it
            node.derp.set_map(derp_map(r1=relay.node(cert_name="other.test")))
            node.derp.set_home(1)
            await until(lambda: "no valid certificate" in node.status().error)

    run(test)


def test_a_pin_that_does_not_hold_is_fatal() -> None:
    async def test() -> None:
        expired = certificates.make(HOST, start=certificates.TODAY.replace(year=2020))
        async with FakeRelay() as relay, FakeRelay(expired) as old, Node() as node:
            wrong = relay.node(cert_name="sha256-raw:" + "00" * 32)
            elsewhere = relay.node()
            elsewhere.host_name = "elsewhere.test"
            out_of_date = old.node(cert_name=certificates.pin(expired))
            insecure = old.node(cert_name="")
            insecure.insecure_for_tests = True
            node.derp.set_map(derp_map(r1=wrong, r2=elsewhere, r3=out_of_date, r4=insecure))
            for region in (1, 2, 3, 4):
                node.derp.send(region, PEER, [b"hello"])
            await until(lambda: "not the one that the DERP map names" in node.status(1).error)
            await until(lambda: "not for elsewhere.test" in node.status(2).error)
            await until(lambda: "out of date" in node.status(3).error)
            await until(lambda: node.status(4).state is State.CONNECTED)
            assert (relay.logins, old.logins) == (0, 1)

    run(test)
