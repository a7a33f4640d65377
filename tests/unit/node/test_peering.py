"""What of the netmap becomes a WireGuard peer."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from tsns.control.netmap import NetMap
from tsns.filter.packet_filter import PacketFilter
from tsns.keys import DiscoPrivate, DiscoPublic, NodePrivate, NodePublic
from tsns.node.peering import Peering, find_peer, own_addresses
from tsns.proto.addresses import Prefix, pack
from tsns.proto.types import MapResponse, Node, PeerChange
from tsns.steps import finish
from tsns.ways import DerpPath
from tsns.wg.device import Device
from tsns.wg.masquerade import Masquerade
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

    def led_to(self, number: int) -> set[str]:
        """The prefixes that packets to a peer may have."""
        peer = self.device._peers.get(NodePublic.parse(key(number)))
        return {str(prefix) for prefix in peer.allowed} if peer is not None else set()

    def use(self, *, subnets: bool = False, exit_node: int = 0) -> None:
        self.peering.use(self.netmap, subnets=subnets, exit_node=exit_node, wall_now=NOW)

    def routes(self) -> set[str]:
        return {str(prefix) for prefix in self.peering.routes(self.netmap)}

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
        ({"allowed_ips": ["100.64.0.2/32", "100.64.9.9/32", "100.115.92.9/32"]}, {"100.64.0.2/32", "100.64.9.9/32"}),
        ({"home_derp": 0}, set()),
        ({"home_derp": 0, "disco_key": str(DiscoPublic(b"\x05" * 32))}, {"100.64.0.2/32", "fd7a:115c:a1e0::2/128"}),
        ({"home_derp": 0, "is_wireguard_only": True}, {"100.64.0.2/32", "fd7a:115c:a1e0::2/128"}),
    ],
    ids=[
        "addresses",
        "what control allows",
        "nothing",
        "no routes unasked",
        "other addresses of the tailnet",
        "unreachable",
        "by disco",
        "plain WireGuard",
    ],
)
def test_the_prefixes_of_a_peer(tailnet: Tailnet, fields: dict[str, object], allowed: set[str]) -> None:
    """Where nobody has accepted anything."""
    tailnet.tell(MapResponse(peers_changed=[node(2, **fields)]))
    assert tailnet.led_to(2) == allowed


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


# --- subnets and exit nodes ------------------------------------------------------------------------------------------


def router(number: int, *routes: str, **fields: object) -> Node:
    """A peer that carries packets to these networks."""
    itself = node(number)
    return node(number, allowed_ips=[*(itself.addresses or ()), *routes], **fields)


def test_subnets_count_while_they_are_accepted(tailnet: Tailnet) -> None:
    tailnet.tell(MapResponse(peers_changed=[router(2, "10.1.0.0/16", "2001:db8::/32", "0.0.0.0/0")]))
    assert tailnet.routes() == set()
    tailnet.use(subnets=True)
    assert tailnet.routes() == {"10.1.0.0/16", "2001:db8::/32"}
    assert tailnet.owner("10.1.2.3") == tailnet.owner("2001:db8::1") == NodePublic.parse(key(2))
    assert tailnet.owner("8.8.8.8") is None
    tailnet.use(subnets=False)
    assert (tailnet.routes(), tailnet.owner("10.1.2.3")) == (set(), None)
    assert tailnet.owner("100.64.0.2") is not None


def test_of_two_routers_the_lower_id_has_the_subnet_while_it_can_be_reached(tailnet: Tailnet) -> None:
    tailnet.use(subnets=True)
    tailnet.tell(MapResponse(peers_changed=[router(3, "10.1.0.0/16")]))
    assert tailnet.owner("10.1.2.3") == NodePublic.parse(key(3))
    tailnet.tell(MapResponse(peers_changed=[router(2, "10.1.0.0/16")]))
    assert tailnet.owner("10.1.2.3") == NodePublic.parse(key(2))
    tailnet.tell(MapResponse(peers_changed=[router(2, "10.1.0.0/16", key_expiry="2020-01-01T00:00:00Z")]))
    assert tailnet.owner("10.1.2.3") == NodePublic.parse(key(3))
    tailnet.tell(MapResponse(peers_changed=[router(2, "10.1.0.0/16")]))
    tailnet.tell(MapResponse(peers_removed=[2]))
    assert tailnet.owner("10.1.2.3") == NodePublic.parse(key(3))


def test_control_moves_a_subnet_from_one_router_to_the_other(tailnet: Tailnet) -> None:
    tailnet.use(subnets=True)
    for now, then in ((2, 3), (3, 2)):
        tailnet.tell(MapResponse(peers_changed=[router(now, "10.1.0.0/16"), node(then)]))
        assert tailnet.owner("10.1.2.3") == NodePublic.parse(key(now))
        assert tailnet.routes() == {"10.1.0.0/16"}


def test_a_subnet_that_nobody_can_carry_now_has_no_other_way(tailnet: Tailnet) -> None:
    tailnet.use(subnets=True)
    tailnet.tell(MapResponse(peers_changed=[router(2, "10.1.0.0/16", key_expiry="2020-01-01T00:00:00Z")]))
    assert (tailnet.routes(), tailnet.owner("10.1.2.3")) == ({"10.1.0.0/16"}, None)


@pytest.mark.parametrize(
    "route", ["127.0.0.0/8", "127.1.0.0/16", "169.254.0.0/16", "224.0.0.0/4", "::1/128", "fe80::/10", "ff00::/8",
              "100.100.100.100/32", "fd7a:115c:a1e0::53/128", "::ffff:10.0.0.0/104", "0.0.0.0/8"],
)  # fmt: skip
def test_nobody_carries_what_is_nobodys(tailnet: Tailnet, route: str) -> None:
    tailnet.use(subnets=True, exit_node=2)
    tailnet.tell(MapResponse(peers_changed=[router(2, route)]))
    assert tailnet.routes() == set()
    assert tailnet.led_to(2) == {"100.64.0.2/32", "fd7a:115c:a1e0::2/128"}


def test_4via6_needs_no_route_of_its_own(tailnet: Tailnet) -> None:
    """Its range is the tailnet's."""
    tailnet.use(subnets=True)
    tailnet.tell(MapResponse(peers_changed=[router(2, "fd7a:115c:a1e0:b1a:0:7:c0a8:100/120")]))
    assert tailnet.owner("fd7a:115c:a1e0:b1a:0:7:c0a8:102") == NodePublic.parse(key(2))
    assert tailnet.routes() == set()


def test_everything_goes_to_the_exit_node_alone(tailnet: Tailnet) -> None:
    offers = [router(number, "0.0.0.0/0", "::/0") for number in (2, 3)]
    tailnet.tell(MapResponse(peers_changed=offers))
    for chosen in (2, 3):
        tailnet.use(exit_node=chosen)
        assert tailnet.owner("8.8.8.8") == tailnet.owner("2001:db8::1") == NodePublic.parse(key(chosen))
        assert tailnet.routes() == {"0.0.0.0/0", "::/0"}
    tailnet.use()
    assert tailnet.owner("8.8.8.8") is None


def test_what_goes_on_with_a_peer_is_left_alone(tailnet: Tailnet, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[NodePublic] = []
    set_peer = tailnet.device.set_peer

    def watched(key: NodePublic, allowed: Sequence[Prefix]) -> None:
        told.append(key)
        set_peer(key, allowed)

    monkeypatch.setattr(tailnet.device, "set_peer", watched)
    tailnet.tell(MapResponse(peers_changed=[router(2, "10.1.0.0/16")]))
    tailnet.use(subnets=True)
    tailnet.use(subnets=False)
    assert set(told) == {NodePublic.parse(key(2))}


def test_a_node_that_is_resumed_knows_what_was_offered_meanwhile(tailnet: Tailnet) -> None:
    tailnet.use(subnets=True)
    tailnet.tell(MapResponse(peers_changed=[router(2, "10.1.0.0/16")]))
    tailnet.peering.suspend(tailnet.netmap)
    tailnet.tell(MapResponse(peers_removed=[2], peers_changed=[router(3, "10.3.0.0/16")]))
    assert tailnet.routes() == {"10.1.0.0/16"}, "as before"
    tailnet.peering.resume(tailnet.netmap, NOW)
    assert tailnet.routes() == {"10.3.0.0/16"}


def test_a_peer_may_know_us_by_other_addresses(tailnet: Tailnet) -> None:
    def worn() -> Masquerade | None:
        return tailnet.device._peers[NodePublic.parse(key(2))].masquerade

    assert worn() is None
    tailnet.tell(MapResponse(peers_changed=[node(2, self_node_v4_masq_addr_for_this_peer="100.99.0.9")]))
    assert worn() == Masquerade([(pack("100.64.0.1"), pack("100.99.0.9"))])
    tailnet.tell(MapResponse(node=node(1, addresses=["100.64.0.77/32"])))
    assert worn() == Masquerade([(pack("100.64.0.77"), pack("100.99.0.9"))])
    tailnet.tell(MapResponse(peers_changed=[node(2, self_node_v6_masq_addr_for_this_peer="fd7a:115c:a1e0::9")]))
    assert worn() is None, "we have no address of that family"
