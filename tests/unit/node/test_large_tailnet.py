"""A change of one peer among ten thousand is one peer's work: nothing is built anew."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tsns.control.netmap import NetMap
from tsns.dns.hosts import HostTable
from tsns.dns.names import key_of
from tsns.dns.resolver import Resolver
from tsns.filter.packet_filter import PacketFilter
from tsns.keys import DiscoPrivate, NodePrivate, NodePublic
from tsns.node.peering import Peering
from tsns.proto.addresses import pack
from tsns.proto.types import MapResponse, Node, PeerChange
from tsns.ways import DerpPath
from tsns.wg.device import Device
from tsns.wg.router import Router

PEERS = 10_000
NOW = 1_800_000_000.0
DISCO = DiscoPrivate(b"\x02" * 32)
CHANGED = 5000


def key(number: int) -> NodePublic:
    return NodePublic(number.to_bytes(32, "big"))


def address(number: int) -> str:
    return f"100.96.{number >> 8}.{number & 255}"


def node(number: int, **fields: Any) -> Node:
    values = {"name": f"n{number}.tail.test.", "key": str(key(number)), "addresses": [f"{address(number)}/32"]}
    return Node(id=number, home_derp=1, **{**values, **fields})


class Counting:
    """Counts calls of methods, and lets them through."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.calls: Counter[str] = Counter()
        for kind, names in ((Device, ("set_peer", "remove_peer")), (HostTable, ("add", "remove"))):
            for name in names:
                monkeypatch.setattr(kind, name, self._counted(f"{kind.__name__}.{name}", getattr(kind, name)))

    def _counted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **options: Any) -> Any:
            self.calls[name] += 1
            return method(*args, **options)

        return called


class LargeTailnet:
    """All that follows the netmap."""

    def __init__(self) -> None:
        self.netmap = NetMap()
        self.device = Device(NodePrivate(bytes(32)), bytes, wall_clock=lambda: NOW)
        self.router = Router(self.device, PacketFilter(), DISCO)
        self.peering = Peering(self.device, self.router, lambda: 0.0)
        self.resolver = Resolver()
        self.tell(MapResponse(node=node(1), peers=[node(number) for number in range(2, PEERS + 2)]))

    def tell(self, response: MapResponse) -> None:
        change = self.netmap.apply(response, NOW)
        self.peering.apply(self.netmap, change, NOW)
        for old, new in change.peers():
            self.resolver.update_peer(old, new)


@pytest.fixture(scope="module")
def tailnet() -> LargeTailnet:
    return LargeTailnet()


def test_a_patch(tailnet: LargeTailnet, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)

    tailnet.tell(MapResponse(peers_changed_patch=[PeerChange(node_id=CHANGED, derp_region=7, online=True)]))

    assert tailnet.router.path(key(CHANGED)) == DerpPath(7)
    assert counting.calls == {"Device.set_peer": 1}, "the name and the addresses are as they were"


def test_whether_a_peer_is_online_concerns_nobody(tailnet: LargeTailnet, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)

    tailnet.tell(MapResponse(online_change={CHANGED: False}))
    tailnet.tell(MapResponse(peers_changed_patch=[PeerChange(node_id=CHANGED, online=True)]))

    assert tailnet.netmap.peers[CHANGED].online
    assert counting.calls == {}


def test_a_peer_that_comes_and_goes(tailnet: LargeTailnet, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    late = PEERS + 2

    tailnet.tell(MapResponse(peers_changed=[node(late)]))
    assert tailnet.device.peer_for(pack(address(late))) == key(late)
    assert tailnet.resolver._nodes.named(key_of(f"n{late}.tail.test")) is not None
    tailnet.tell(MapResponse(peers_removed=[late]))
    assert tailnet.device.peer_for(pack(address(late))) is None

    once = {"Device.set_peer": 1, "Device.remove_peer": 1, "HostTable.add": 1, "HostTable.remove": 1}
    assert counting.calls == once


def test_a_new_stream_with_the_same_peers(tailnet: LargeTailnet, monkeypatch: pytest.MonkeyPatch) -> None:
    peers = [node(number, online=tailnet.netmap.peers[number].online) for number in range(2, PEERS + 2)]
    peers[CHANGED - 2].home_derp = tailnet.netmap.peers[CHANGED].home_derp
    counting = Counting(monkeypatch)

    tailnet.netmap.begin_stream()
    tailnet.tell(MapResponse(node=node(1), peers=peers))

    assert counting.calls == {}


def test_a_whole_netmap_is_told_to_the_device_one_peer_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against packets that wait for 10,000 peers: between two steps they have their turn."""
    counting = Counting(monkeypatch)
    fresh = LargeTailnet()
    assert counting.calls["Device.set_peer"] == PEERS

    fresh.netmap.begin_stream()
    others = [node(number, endpoints=["192.0.2.1:1"]) for number in range(2, PEERS + 2)]
    folding, steps = fresh.netmap.applying(MapResponse(node=node(1), peers=others), NOW), 0
    while True:
        try:
            next(folding)
        except StopIteration as end:
            change = end.value
            break
        steps += 1
        assert fresh.netmap.peers[CHANGED].endpoints is None, "all is as it was until the last step"
    assert steps >= PEERS
    assert fresh.netmap.peers[CHANGED].endpoints is not None

    counting.calls.clear()
    most = 0
    for _ in fresh.peering.applying(fresh.netmap, change, NOW):
        most = max(most, sum(counting.calls.values()))
        counting.calls.clear()
    assert most == 1
