"""The control client against the lab's control server on loopback: a whole login, the netmap, and a server at its worst."""

from __future__ import annotations

import asyncio
import os
import ssl
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import pytest

from tests.netns.raw_control import run
from tsns.config import NodeConfig, Secret
from tsns.control.client import ControlClient
from tsns.control.netmap import NetMap, NetMapChange
from tsns.error import UserError
from tsns.keys import KEY_BYTES, DiscoPublic
from tsns.lab.dialect import Dialect, Nothing
from tsns.lab.faults import Compression, EarlyPayload, Faults, json
from tsns.lab.lab import Lab
from tsns.lab.registrar import Mode
from tsns.lab.session import Cut
from tsns.netns.underlay import Underlay
from tsns.proto.types import Hostinfo, MapResponse, NetInfo
from tsns.state import Identity
from tsns.steps import Steps

PATIENCE_S = 10.0


class Player:
    """One node's control client, and what it told its owner: `async with Player(lab) as player`."""

    def __init__(
        self, lab: Lab, *, auth_key: str | None = None, identity: Identity | None = None, **config: Any
    ) -> None:
        self.lab = lab
        self.told: list[str] = []
        self.urls: list[str] = []
        self.changes: list[NetMapChange] = []
        self.is_connected = False
        self.is_pending = False
        self.identity = identity or Identity.generate()
        self.disco = DiscoPublic(os.urandom(KEY_BYTES))
        self.client = ControlClient(
            self.identity,
            NodeConfig(name="ns1", login_server=lab.url, auth_key=Secret(auth_key) if auth_key else None, **config),
            underlay=Underlay(),
            tls=ssl.create_default_context(),
            hostinfo=Hostinfo(hostname="ns1", app="tsns"),
            disco=self.disco,
            events=Events(self),
        )
        self._news = asyncio.Event()

    async def __aenter__(self) -> Self:
        self.task = asyncio.create_task(self.client.run())
        self.task.add_done_callback(lambda _: self._news.set())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.task.cancel()
        await asyncio.gather(self.task, return_exceptions=True)

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait until the events so far make this true; what ended the client is raised."""
        async with asyncio.timeout(PATIENCE_S):
            while not done():
                if self.task.done():
                    await self.task
                self._news.clear()
                await self._news.wait()

    async def connected(self) -> NetMap:
        """Wait for the netmap."""
        await self.until(lambda: self.is_connected and self.client.netmap.self_node is not None)
        return self.client.netmap

    # --- events

    def progress(self, text: str) -> None:
        self.told.append(text)
        self._news.set()

    def login_url(self, url: str | None) -> None:
        if url:
            self.urls.append(url)
        self._news.set()

    def netmap(self, netmap: NetMap, change: NetMapChange) -> Steps[None]:
        self.changes.append(change)
        self._news.set()
        yield

    def connected_event(self, up: bool) -> None:
        self.is_connected = up
        self._news.set()

    def approval_pending(self, pending: bool) -> None:
        self.is_pending = pending
        self._news.set()

    def key_lost(self, lost: bool) -> None:
        pass

    async def save(self, identity: Identity) -> None:
        self.identity = identity
        self._news.set()


class Events:
    """A player's ears: its own `connected` is for the tests."""

    def __init__(self, player: Player) -> None:
        self.progress = player.progress
        self.login_url = player.login_url
        self.netmap = player.netmap
        self.connected = player.connected_event
        self.approval_pending = player.approval_pending
        self.key_lost = player.key_lost
        self.save = player.save


FAULTS = {
    "usual": Faults(),
    "early payload absent": Faults(early_payload=EarlyPayload.ABSENT),
    "early payload split": Faults(early_payload=EarlyPayload.SPLIT, glued=False),
    "bytewise": Faults(bytewise=True, early_payload=EarlyPayload.SPLIT),
    "empty records": Faults(empty_records=True),
    "zstd without size": Faults(compression=Compression.ZSTD_SIZELESS),
    "zstd in frames": Faults(compression=Compression.ZSTD_FRAMES),
    "plain": Faults(compression=Compression.PLAIN),
    "nulls": Faults(dialect=Dialect(nothing=Nothing.NULL)),
    "empty lists": Faults(dialect=Dialect(nothing=Nothing.EMPTY)),
    "peers changed first": Faults(dialect=Dialect(peers_changed_first=True, patches=False)),
    "legacy": Faults(dialect=Dialect(legacy_filter=True, legacy_derp=True, allowed_ips_null=True)),
    "star filter": Faults(dialect=Dialect(star_filter=True, partial_derp_map=True, online_change=True)),
    "from the future": Faults(dialect=Dialect(unknown_members=True, duplicate_ids=True)),
}


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("faults", FAULTS.values(), ids=FAULTS)
def test_login_netmap_and_changes_in_every_form(faults: Faults, mode: Mode) -> None:
    async def scenario(lab: Lab) -> None:
        lab.control.faults = faults
        web, gone = lab.control.add_fake_peers(2)
        async with Player(lab, auth_key=lab.auth_key()) as player:
            netmap = await player.connected()
            assert netmap.self_node is not None
            assert netmap.self_node.name == "ns1.lab.test."
            assert netmap.peers[web.id].home_derp == 1
            assert netmap.peers[web.id].allowed_ips == [f"{web.addresses[0]}/32", f"{web.addresses[1]}/128"]
            assert len(netmap.rules) == 1
            assert list(netmap.derp_map.regions or {}) == [1]
            lab.tailnet.change(web, home_derp=2, online=True)
            lab.control.remove(gone)
            await player.until(lambda: netmap.peers[web.id].home_derp == 2 and gone.id not in netmap.peers)
            assert netmap.peers[web.id].online
            lab.tailnet.configure(rules=[])
            await player.until(lambda: netmap.rules == ())
            assert list(netmap.derp_map.regions or {}) == [1]

    run(scenario, mode=mode)


@pytest.mark.parametrize("mode", list(Mode))
def test_what_a_node_reports_reaches_its_peers(mode: Mode) -> None:
    async def scenario(lab: Lab) -> None:
        async with Player(lab, auth_key=lab.auth_key()) as a, Player(lab, auth_key=lab.auth_key()) as b:
            await a.connected()
            netmap = await b.connected()
            b_key = a.identity.node_key
            assert b_key is not None
            a.client.set_net_info(NetInfo(preferred_derp=1))
            a.client.set_endpoints([("192.0.2.7:41641", 1)])
            async with asyncio.timeout(PATIENCE_S):
                await a.client.home_accepted(1)
            node = lab.tailnet.by_key(b_key.public)
            assert node is not None
            await b.until(lambda: netmap.peers[node.id].endpoints == ["192.0.2.7:41641"])
            peer = netmap.peers[node.id]
            assert (peer.home_derp, peer.disco_key, peer.online) == (1, str(a.disco), True)

    run(scenario, mode=mode)


def test_login_by_a_person() -> None:
    async def scenario(lab: Lab) -> None:
        async with Player(lab) as player:
            await player.until(lambda: bool(player.urls))
            assert player.identity.node_key is None  # not before it is accepted
            lab.control.approve(player.urls[0])
            await player.connected()
            assert player.identity.node_key is not None

    run(scenario)


def test_a_login_survives_a_restart_of_the_server() -> None:
    async def scenario(lab: Lab) -> None:
        async with Player(lab) as player:
            await player.until(lambda: bool(player.urls))
            await lab.control.stop()
            await lab.control.start()
            await asyncio.sleep(0.3)
            lab.control.approve(player.urls[-1])
            await player.connected()

    run(scenario)


def test_a_bad_auth_key_needs_a_person() -> None:
    async def scenario(lab: Lab) -> None:
        async with Player(lab, auth_key=lab.auth_key(expired=True)) as player:
            with pytest.raises(UserError, match="authkey expired"):
                await player.connected()

    run(scenario)


def test_an_expired_node_gets_a_new_key_and_keeps_its_place() -> None:
    async def scenario(lab: Lab) -> None:
        async with Player(lab, auth_key=lab.auth_key()) as player:
            await player.connected()
            node, old = lab.tailnet.find("ns1"), player.identity.node_key
            lab.control.expire(node)
            await player.until(lambda: player.identity.node_key != old and player.is_connected)
            assert list(lab.tailnet.nodes.values()) == [node]
            assert player.identity.node_key is not None
            assert node.key == player.identity.node_key.public

    run(scenario, mode=Mode.SAAS)


def test_approval_of_the_device_is_waited_for() -> None:
    async def scenario(lab: Lab) -> None:
        async with Player(lab, auth_key=lab.auth_key(preauthorized=False)) as player:
            await player.until(lambda: player.is_pending)
            lab.control.authorize("ns1")
            await player.until(lambda: not player.is_pending)

    run(scenario)


def test_a_node_that_was_deleted_logs_in_again() -> None:
    async def scenario(lab: Lab) -> None:
        async with Player(lab, auth_key=lab.auth_key()) as player:
            await player.connected()
            lab.control.remove("ns1")
            await player.until(lambda: not player.is_connected)
            await player.connected()
            assert [node.name for node in lab.tailnet.nodes.values()] == ["ns1"]

    run(scenario)


@pytest.mark.parametrize("ephemeral", [False, True])
def test_logout(ephemeral: bool) -> None:
    async def scenario(lab: Lab) -> None:
        async with Player(lab, auth_key=lab.auth_key(ephemeral=ephemeral)) as player:
            await player.connected()
            await player.client.logout()
            assert [node.expired(lab.control.now()) for node in lab.tailnet.nodes.values()] == (
                [] if ephemeral else [True]
            )

    run(scenario)


@pytest.mark.parametrize("cut", [Cut.END, Cut.MID_FRAME])
def test_a_stream_that_breaks_off_is_taken_up_again(cut: Cut) -> None:
    async def scenario(lab: Lab) -> None:
        [peer] = lab.control.add_fake_peers(1)
        async with Player(lab, auth_key=lab.auth_key()) as player:
            netmap = await player.connected()
            lab.control.cut("ns1", cut)
            await player.until(lambda: not player.is_connected)
            lab.control.remove(peer)
            await player.connected()
            assert netmap.peers == {}
            assert player.changes[-1].removed

    run(scenario)


def test_a_restart_of_the_server_goes_by() -> None:
    async def scenario(lab: Lab) -> None:
        async with Player(lab, auth_key=lab.auth_key()) as player:
            await player.connected()
            await lab.control.stop()
            await player.until(lambda: not player.is_connected)
            await lab.control.start()
            await player.connected()
            assert len(lab.tailnet.nodes) == 1

    run(scenario)


def test_another_key_over_plain_http_is_another_server() -> None:
    async def scenario(lab: Lab) -> None:
        async with Player(lab, auth_key=lab.auth_key()) as player:
            await player.connected()
            lab.control.replace_key()
            await lab.control.drop_connections()
            with pytest.raises(UserError, match="another key"):
                await player.until(lambda: False)

    run(scenario)


@pytest.mark.parametrize("path", ["/key", "/ts2021", "/machine/register", "/machine/map"])
def test_a_server_in_trouble_is_asked_again(path: str) -> None:
    async def scenario(lab: Lab) -> None:
        async with Player(lab, auth_key=lab.auth_key()) as player:
            await player.connected()
            identity = player.identity
        lab.control.faults.fail(path, 500, times=2)
        async with Player(lab, auth_key=lab.auth_key(), identity=identity) as player:
            await player.connected()
            assert not lab.control.faults.failures[path]

    run(scenario)


def test_a_server_that_is_busy_says_when_to_come_again() -> None:
    async def scenario(lab: Lab) -> None:
        lab.control.faults.fail("/machine/register", 429, retry_after="1")
        async with Player(lab, auth_key=lab.auth_key()) as player:
            loop = asyncio.get_running_loop()
            started = loop.time()
            await player.connected()
            assert loop.time() - started >= 0.9

    run(scenario)


def test_pings_are_answered() -> None:
    async def scenario(lab: Lab) -> None:
        async with Player(lab, auth_key=lab.auth_key()) as player:
            await player.connected()
            answer = await lab.control.ping("ns1")
            assert (answer.method, answer.over_noise) == ("HEAD", False)
            answer = await lab.control.ping("ns1", "c2n")
            assert answer.over_noise
            assert answer.body.startswith(b"HTTP/1.1 200 ")
            assert answer.body.endswith(b"hello")
            unknown = await lab.control.ping("ns1", "c2n", payload=b"GET /debug/nothing HTTP/1.1\r\nHost: x\r\n\r\n")
            assert unknown.body.startswith(b"HTTP/1.1 400 ")

    run(scenario)


def test_nonsense_in_the_stream_does_no_harm() -> None:
    async def scenario(lab: Lab) -> None:
        [peer] = lab.control.add_fake_peers(1)
        async with Player(lab, auth_key=lab.auth_key()) as player:
            netmap = await player.connected()
            nonsense: list[dict[str, Any]] = [
                {"PeersRemoved": [1 << 60], "PeersChangedPatch": [{"NodeID": 1 << 60, "Online": True}]},
                {"PeersChanged": [{"ID": 7, "Key": "nonsense"}]},
                {"Peers": [], "PeersChanged": None, "DERPMap": {"Regions": None}, "PacketFilters": {}},
                {"KeepAlive": True, "ControlTime": "yesterday"},
            ]
            for message in nonsense:
                lab.control.send("ns1", json(message))
            lab.control.send("ns1", MapResponse(peers_removed=[peer.id]))
            await player.until(lambda: not netmap.peers)
            assert len(netmap.rules) == 1
            assert list(netmap.derp_map.regions or {}) == [1]
            lab.control.send("ns1", b"{")
            await player.until(lambda: not player.is_connected)
            await player.connected()

    run(scenario)


def test_ten_thousand_peers() -> None:
    async def scenario(lab: Lab) -> None:
        peers = lab.control.add_fake_peers(10_000)
        async with Player(lab, auth_key=lab.auth_key()) as player:
            netmap = await player.connected()
            assert len(netmap.peers) == 10_000
            lab.tailnet.change(peers[9_999], home_derp=7)
            await player.until(lambda: netmap.peers[peers[9_999].id].home_derp == 7)

    run(scenario)
