"""Which peer is the exit node: the one that a person means, or the best; and never another way out than that."""

from __future__ import annotations

import pytest

from tsns.control.netmap import NetMap
from tsns.keys import NodePublic
from tsns.node.exit_node import AUTO, choose
from tsns.proto.types import MapResponse, Node

NOW = 1_800_000_000.0
EXPIRED = "2020-01-01T00:00:00Z"


def node(number: int, *, offers: bool = True, **fields: object) -> Node:
    addresses = [f"100.64.0.{number}/32", f"fd7a:115c:a1e0::{number}/128"]
    values: dict[str, object] = {
        "id": number,
        "stable_id": f"nS{number}",
        "key": str(NodePublic(bytes([number]) * 32)),
        "name": f"n{number}.tail.example.",
        "addresses": addresses,
        "allowed_ips": [*addresses, *(["0.0.0.0/0", "::/0"] if offers else [])],
        "home_derp": number,
        "online": True,
        **fields,
    }
    return Node(**values)  # type: ignore[arg-type]


def tailnet(*peers: Node) -> NetMap:
    netmap = NetMap()
    netmap.apply(MapResponse(node=node(1, offers=False), peers=list(peers)), NOW)
    return netmap


@pytest.mark.parametrize(
    "wanted", ["n2", "N2", "n2.tail.example", "n2.tail.example.", "100.64.0.2", "fd7a:115c:a1e0:0::2", "nS2"]
)
def test_people_name_it_as_they_like(wanted: str) -> None:
    choice = choose(tailnet(node(2), node(3)), wanted, wall_now=NOW)
    assert (choice.node and choice.node.id, choice.complaint) == (2, "")


def test_without_a_wish_there_is_none() -> None:
    assert choose(tailnet(node(2)), "", wall_now=NOW).node is None


@pytest.mark.parametrize(
    ("peer", "wanted", "complaint", "mistake", "used"),
    [
        (node(2), "n4", "there is no peer 'n4'", True, False),
        (node(2, offers=False), "n2", "n2.tail.example offers no exit node", True, False),
        (node(2, key_expiry=EXPIRED), "n2", "the key of the exit node n2.tail.example has expired", False, False),
        (node(2, home_derp=0), "n2", "no address and no relay", False, False),
        (node(2, online=False), "n2", "the exit node n2.tail.example is offline", False, True),
        (node(2, online=None), "n2", "", False, True),
        (node(2, online=False), AUTO, "no exit node is online", False, False),
        (node(2, offers=False), AUTO, "no exit node is online", False, False),
        (node(2, key_expiry=EXPIRED), AUTO, "no exit node is online", False, False),
    ],
)
def test_what_is_wrong_is_said(peer: Node, wanted: str, complaint: str, mistake: bool, used: bool) -> None:
    choice = choose(tailnet(peer), wanted, wall_now=NOW)
    assert complaint in choice.complaint
    assert (choice.is_mistake, choice.node is not None) == (mistake, used)


def test_a_name_that_several_have_is_none() -> None:
    netmap = tailnet(node(2, name="out.tail.example."), node(3, name="out.other.example."))
    choice = choose(netmap, "out", wall_now=NOW)
    assert (choice.node, choice.is_mistake) == (None, True)
    assert choice.hint == "say which one: out.other.example or out.tail.example"
    full = choose(netmap, "out.other.example", wall_now=NOW).node
    assert full is not None
    assert full.id == 3


def test_the_best_is_the_nearest_and_stays_while_it_is_there() -> None:
    nearest = {2: 0.05, 3: 0.02, 4: 0.2}.get
    netmap = tailnet(node(2), node(3), node(4))

    def best(current: int = 0) -> int:
        choice = choose(netmap, AUTO, current=current, latency=nearest, wall_now=NOW)
        assert choice.node is not None
        return choice.node.id

    assert best() == 3
    assert best(current=4) == 4, "it is there"
    netmap.apply(MapResponse(online_change={3: False}), NOW)
    assert best(current=3) == 2


def test_without_latencies_the_lowest_id_is_the_best_and_plain_wireguard_the_last() -> None:
    netmap = tailnet(node(2, is_wireguard_only=True), node(3), node(4))
    choice = choose(netmap, AUTO, wall_now=NOW)
    assert choice.node is not None
    assert choice.node.id == 3
