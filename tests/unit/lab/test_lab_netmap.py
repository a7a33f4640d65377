"""Views of the lab's tailnet and the messages between them, checked against the client's own understanding of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from tsns.control.netmap import NetMap
from tsns.keys import DiscoPublic, MachinePublic, NodePublic
from tsns.lab.dialect import Dialect, Nothing
from tsns.lab.netmap import View, Views, difference, first_message
from tsns.lab.tailnet import LabNode, Tailnet
from tsns.proto.types import (
    DERPMap,
    DERPRegion,
    FilterRule,
    MapResponse,
    PeerChange,
    decode,
    encode,
)

NOW = 1_700_000_000.0
DIALECTS = [
    Dialect(),
    Dialect(patches=False),
    Dialect(nothing=Nothing.NULL),
    Dialect(nothing=Nothing.EMPTY),
    Dialect(peers_changed_first=True),
    Dialect(allowed_ips_null=True, legacy_derp=True, duplicate_ids=True),
    Dialect(star_filter=True, partial_derp_map=True),
    Dialect(legacy_filter=True, online_change=True, unknown_members=True),
]


def key(number: int) -> NodePublic:
    return NodePublic(bytes([number] * 32))


class World:
    """Three nodes; the first one looks."""

    def __init__(self) -> None:
        numbers = itertools.count(100)
        self.tailnet = Tailnet(lambda size: next(numbers).to_bytes(size, "big"))
        self.views = Views(self.tailnet)
        self.viewer, self.web, self.db = (self.add(number, name) for number, name in enumerate(("me", "web", "db"), 1))
        self.tailnet.configure(derp_map=DERPMap(regions={1: DERPRegion(region_id=1)}))

    def add(self, number: int, name: str) -> LabNode:
        machine = MachinePublic(bytes([number] * 32))
        return self.tailnet.add_node(machine, key(number), hostname=name, now=NOW, home_derp=1, cap=131)

    def clear(self) -> None:
        for node in (self.web, self.db):
            self.tailnet.remove_node(node)

    def view(self) -> View:
        return self.views.of(self.viewer, cap=None, now=NOW)


@pytest.fixture
def world() -> World:
    return World()


CHANGES: dict[str, Callable[[World], Any]] = {
    "nothing": lambda _: None,
    "home": lambda w: w.tailnet.change(w.web, home_derp=2),
    "endpoints": lambda w: w.tailnet.change(w.web, endpoints=("192.0.2.1:1",)),
    "disco": lambda w: w.tailnet.change(w.web, disco=DiscoPublic(bytes([8] * 32))),
    "online": lambda w: w.tailnet.change(w.web, online=True),
    "offline": lambda w: w.tailnet.change(w.web, online=False, last_seen_at=NOW),
    "key": lambda w: w.tailnet.change(w.web, key=key(77)),
    "expiry": lambda w: w.tailnet.change(w.web, expires_at=NOW + 60),
    "expired": lambda w: w.tailnet.change(w.web, expires_at=NOW - 60),
    "new": lambda w: w.add(4, "new"),
    "gone": lambda w: w.tailnet.remove_node(w.web),
    "all gone": lambda w: w.clear(),
    "jailed": lambda w: w.tailnet.change(w.db, wire={"is_jailed": True}),
    "routes": lambda w: w.tailnet.change(w.db, routes=("10.0.0.0/8",)),
    "rules": lambda w: w.tailnet.configure(rules=[FilterRule(src_ips=["100.64.0.2"])]),
    "no rules": lambda w: w.tailnet.configure(rules=[]),
    "relays": lambda w: w.tailnet.configure(derp_map=DERPMap(regions={2: DERPRegion(region_id=2)})),
    "names off": lambda w: w.tailnet.configure(magic_dns=False),
    "own name": lambda w: w.tailnet.change(w.viewer, name="other"),
    "not approved": lambda w: w.tailnet.change(w.viewer, authorized=False),
    "user": lambda w: w.tailnet.add_user("second"),
}


def understood(netmap: NetMap) -> dict[str, object]:
    """What a client makes of it, as far as all dialects can say it."""
    peers = {}
    for number, peer in netmap.peers.items():
        wire = msgspec.to_builtins(peer)
        for transient in ("LastSeen", "FromTheFuture", "Capabilities", "DERP", "Tags", "Endpoints", "PrimaryRoutes"):
            wire.pop(transient, None)
        peers[number] = {**wire, "endpoints": peer.endpoints or [], "online": bool(peer.online)}
    regions = {number: region for number, region in (netmap.derp_map.regions or {}).items() if region is not None}
    return {
        "peers": peers,
        "rules": list(netmap.rules),
        "regions": regions,
        "dns": netmap.dns,
        "name": netmap.self_node.name if netmap.self_node else None,
        "users": sorted(netmap.user_profiles),
    }


@pytest.mark.parametrize("dialect", DIALECTS, ids=map(str, range(len(DIALECTS))))
@pytest.mark.parametrize("change", CHANGES)
def test_first_message_and_difference_say_the_same_as_a_new_first_message(
    world: World, change: str, dialect: Dialect
) -> None:
    def told(netmap: NetMap, message: MapResponse, *, first: bool) -> None:
        netmap.apply(decode(dialect.encode(message, first=first), MapResponse), NOW)

    old = world.view()
    netmap = NetMap()
    told(netmap, first_message(old, now=NOW), first=True)
    CHANGES[change](world)
    new = world.view()
    message = difference(old, new, patches=dialect.patches, now=NOW)
    assert (message is None) == (change == "nothing")
    if message is not None:
        told(netmap, message, first=False)
    fresh = NetMap()
    fresh.apply(decode(encode(first_message(new, now=NOW)), MapResponse), NOW)
    assert understood(netmap) == understood(fresh)


def test_what_a_patch_can_say_is_said_by_a_patch(world: World) -> None:
    old = world.view()
    world.tailnet.change(world.web, home_derp=2, endpoints=("192.0.2.1:1",), online=True)
    world.tailnet.change(world.db, tags=("tag:db",))
    message = difference(old, world.view(), now=NOW)
    assert message is not None
    assert message.peers_changed_patch == [
        PeerChange(node_id=world.web.id, derp_region=2, endpoints=["192.0.2.1:1"], online=True)
    ]
    assert [peer.id for peer in message.peers_changed or []] == [world.db.id]


def test_a_home_that_is_gone_is_beyond_a_patch(world: World) -> None:
    old = world.view()
    world.tailnet.change(world.web, home_derp=0)
    message = difference(old, world.view(), now=NOW)
    assert message is not None
    assert message.peers_changed_patch is None
    assert [peer.home_derp for peer in message.peers_changed or []] == [None]


def test_a_nodes_own_report_is_no_news_to_it(world: World) -> None:
    old = world.view()
    world.tailnet.change(world.viewer, home_derp=2, cap=140, hostinfo={"OS": "linux"}, online=True)
    assert difference(old, world.view(), now=NOW) is None


def test_a_key_that_runs_out_is_told_without_any_change(world: World) -> None:
    world.tailnet.change(world.web, expires_at=NOW + 60)
    old = world.view()
    message = difference(old, world.views.of(world.viewer, cap=None, now=NOW + 61), now=NOW + 61)
    assert message is not None
    assert [peer.expired for peer in message.peers_changed or []] == [True]


def test_nobody_sees_or_is_seen_by_a_device_that_waits_for_approval(world: World) -> None:
    world.tailnet.change(world.web, authorized=False)
    assert set(world.view().peers) == {world.db.id}
    assert world.views.of(world.web, cap=None, now=NOW).peers == {}


def test_headscale_gives_every_peer_the_viewers_capability_version(world: World) -> None:
    assert {peer.cap for peer in world.views.of(world.viewer, cap=145, now=NOW).peers.values()} == {145}
    assert {peer.cap for peer in world.view().peers.values()} == {131}


def test_what_did_not_change_is_not_made_again(world: World) -> None:
    old = world.view()
    world.tailnet.change(world.web, online=True)
    new = world.view()
    assert new.peers[world.db.id] is old.peers[world.db.id]
    assert new.peers[world.web.id] is not old.peers[world.web.id]


def test_peers_are_not_told_what_is_private(world: World) -> None:
    world.tailnet.change(world.web, hostinfo={"OS": "linux", "BackendLogID": "secret", "NetInfo": {}})
    assert bytes(world.view().peers[world.web.id].hostinfo) == b'{"OS":"linux"}'
