"""What of the netmap becomes a WireGuard peer."""

from __future__ import annotations

import pytest

from tsns.control.netmap import NetMap
from tsns.filter.packet_filter import PacketFilter
from tsns.keys import DiscoPrivate, DiscoPublic, NodePrivate, NodePublic
from tsns.node.peering import Peering, allowed_prefixes, find_peer, own_addresses
from tsns.proto.addresses import pack
from tsns.proto.types import MapResponse, Node, PeerChange
from tsns.steps import finish
from tsns.ways import DerpPath
from tsns.wg.device import Device
from tsns.wg.router import Router

NOW = 1_800_000_000.0  # wall clock
US = NodePrivate(b"\x01" * 32)
DISCO = DiscoPrivate(b"\x02" * 32)


def key(number: int) -> str:
    return str(NodePublic(bytes([number]) * 32))


def node(number: int, **fields: object) -> Node:
    """A node whose number is in its address, name and key."""
    values: dict[str, object] = {
        "id": number,
        "key": key(number),
        "name": f"n{number}.tail.example.",
        "addresses": [f"fd7a:115c:a1e0::{number}/128", f"100.64.0.{number}/32"],
        "home_derp": 1,
        "machine": "mkey:" + "11" * 32,
        **fields,
    }
    return Node(**values)  # type: ignore[arg-type]


class Tailnet:
    """A netmap and the device that follows it."""

    def __init__(self) -> None:
        self.netmap = NetMap()
        self.device = Device(US, lambda count: b"\x07" * count, wall_clock=lambda: NOW)
        self.router = Router(self.device, PacketFilter(), DISCO)
        self.peering = Peering(self.device, self.router, lambda: 0.0)
        self.tell(MapResponse(node=node(1), peers=[node(2), node(3)]))

    def tell(self, response: MapResponse) -> list[NodePublic]:
        change = self.netmap.apply(response, NOW)
        return self.peering.apply(self.netmap, change, NOW)

    def recheck(self, wall_now: float) -> float:
        return finish(self.peering.rechecking(self.netmap, wall_now))

    def owner(self, address: str) -> NodePublic | None:
        return self.device.peer_for(pack(address))


@pytest.fixture
def tailnet() -> Tailnet:
    return Tailnet()


def test_a_peer_is_reached_at_its_addresses_by_its_home(tailnet: Tailnet) -> None:
    peer = NodePublic.parse(key(2))
    assert tailnet.owner("100.64.0.2") == tailnet.owner("fd7a:115c:a1e0::2") == peer
    assert tailnet.router.path(peer) == DerpPath(1)


def test_a_peer_that_is_removed_is_reached_no_more(tailnet: Tailnet) -> None:
    tailnet.tell(MapResponse(peers_removed=[2]))
    assert tailnet.owner("100.64.0.2") is None
    assert tailnet.router.path(NodePublic.parse(key(2))) is None
    assert tailnet.owner("100.64.0.3") is not None


def test_a_peer_with_another_key_is_another_peer(tailnet: Tailnet) -> None:
    tailnet.tell(MapResponse(peers_changed_patch=[PeerChange(node_id=2, key=key(9))]))
    assert tailnet.owner("100.64.0.2") == NodePublic.parse(key(9))
    assert NodePublic.parse(key(2)) not in tailnet.device.peers()


def test_a_peer_that_moves_home_is_reached_there(tailnet: Tailnet) -> None:
    tailnet.tell(MapResponse(peers_changed_patch=[PeerChange(node_id=2, derp_region=7)]))
    assert tailnet.router.path(NodePublic.parse(key(2))) == DerpPath(7)


def test_an_expired_peer_gets_nothing(tailnet: Tailnet) -> None:
    tailnet.tell(MapResponse(peers_changed=[node(2, key_expiry="2020-01-01T00:00:00Z")]))
    assert tailnet.owner("100.64.0.2") is None


def test_a_key_runs_out_without_a_word_from_control(tailnet: Tailnet) -> None:
    tailnet.tell(MapResponse(peers_changed=[node(2, key_expiry="2027-02-01T00:00:00Z")]))
    assert tailnet.owner("100.64.0.2") is not None
    assert tailnet.recheck(NOW) == 60.0, "for the netmap changes meanwhile"
    tailnet.recheck(NOW + 365 * 86_400)
    assert tailnet.owner("100.64.0.2") is None


def test_when_to_look_again(tailnet: Tailnet) -> None:
    """By our own clock; the soonest counts, and what has run out is seen to."""
    times = ["2027-01-15T09:00:00Z", "2027-01-15T08:00:20Z", "2027-01-15T07:00:00Z"]
    tailnet.tell(MapResponse(peers_changed=[node(10 + i, key_expiry=time) for i, time in enumerate(times)]))
    assert tailnet.recheck(NOW) == 20.0
    assert tailnet.recheck(NOW + 19.9) == 1.0, "and not at every moment"
    tailnet.netmap.observe_time("2027-01-15T07:58:20Z", NOW)
    assert tailnet.recheck(NOW + 80) == 40.0, "control's clock is behind ours by so much"


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ({}, {"100.64.0.2/32", "fd7a:115c:a1e0::2/128"}),
        ({"allowed_ips": ["100.64.0.2/32"]}, {"100.64.0.2/32"}),
        ({"allowed_ips": []}, set()),
        ({"allowed_ips": ["100.64.0.2/32", "10.0.0.0/8", "0.0.0.0/0", "::/0"]}, {"100.64.0.2/32"}),
        ({"home_derp": 0}, set()),
        ({"home_derp": 0, "disco_key": str(DiscoPublic(b"\x05" * 32))}, {"100.64.0.2/32", "fd7a:115c:a1e0::2/128"}),
        ({"home_derp": 0, "is_wireguard_only": True}, {"100.64.0.2/32", "fd7a:115c:a1e0::2/128"}),
    ],
    ids=[
        "addresses",
        "what control allows",
        "nothing",
        "no routes unasked",
        "unreachable",
        "by disco",
        "plain WireGuard",
    ],
)
def test_the_prefixes_of_a_peer(fields: dict[str, object], allowed: set[str]) -> None:
    assert {str(prefix) for prefix in allowed_prefixes(node(2, **fields))} == allowed


def test_addresses_come_with_ipv4_first() -> None:
    assert own_addresses(node(2)) == ["100.64.0.2", "fd7a:115c:a1e0::2"]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("n2", ("n2", "100.64.0.2")),
        ("N2.tail.example.", ("n2", "100.64.0.2")),
        ("fd7a:115c:a1e0::2", ("n2", "fd7a:115c:a1e0::2")),
        ("n1", ("n1", "100.64.0.1")),
        ("n4", None),
        ("100.64.0.9", None),
        ("", None),
    ],
)
def test_people_name_peers_as_they_like(tailnet: Tailnet, wanted: str, found: tuple[str, str] | None) -> None:
    peer = find_peer(tailnet.netmap, wanted)
    assert (peer and ((peer[0].name or "").partition(".")[0], peer[1])) == found


def test_another_node_to_control_is_another_one_to_its_peers(tailnet: Tailnet) -> None:
    """Guards against sending into sessions that the peers ended when we were deleted, until WireGuard notices after 15 s."""
    peers = {NodePublic.parse(key(2)), NodePublic.parse(key(3))}
    assert tailnet.tell(MapResponse(node=node(1, name="renamed.tail.example."))) == [], "it is the same node"
    assert set(tailnet.tell(MapResponse(node=node(4, key=key(1))))) == peers, "with whom there should be new keys"


def test_a_suspended_node_has_no_peers_until_it_is_resumed(tailnet: Tailnet) -> None:
    """What the netmap says meanwhile counts from then on."""
    tailnet.peering.suspend(tailnet.netmap)
    assert tailnet.owner("100.64.0.2") is None
    tailnet.tell(MapResponse(peers_changed=[node(4)], peers_removed=[3]))
    tailnet.recheck(NOW)
    assert tailnet.owner("100.64.0.4") is None
    tailnet.peering.resume(tailnet.netmap, NOW)
    owners = [tailnet.owner(f"100.64.0.{number}") for number in (2, 3, 4)]
    assert [owner is not None for owner in owners] == [True, False, True]
