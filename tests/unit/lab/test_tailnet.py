"""The lab's tailnet: names, addresses, who is found by what."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest

from tsns.keys import MachinePublic, NodePublic
from tsns.lab.tailnet import LabNode, Tailnet
from tsns.proto.addresses import CGNAT, ULA, pack

NOW = 1_700_000_000.0


def counting_random() -> Callable[[int], bytes]:
    numbers = itertools.count(1)
    return lambda size: next(numbers).to_bytes(size, "big")


@pytest.fixture
def tailnet() -> Tailnet:
    return Tailnet(counting_random())


def add(tailnet: Tailnet, number: int, hostname: str = "web") -> LabNode:
    return tailnet.add_node(
        MachinePublic(bytes([number] * 32)), NodePublic(bytes([number] * 32)), hostname=hostname, now=NOW
    )


def test_names_are_unique_and_fit_for_dns(tailnet: Tailnet) -> None:
    hostnames = ["web", "web", "Web.Local_1", "--", "x" * 80, "x" * 80, "web"]
    names = [add(tailnet, number, hostname).name for number, hostname in enumerate(hostnames, 1)]
    assert names == ["web", "web-1", "web-local-1", "node", "x" * 63, "x" * 61 + "-1", "web-2"]


def test_a_name_is_free_again_once_its_node_is_gone(tailnet: Tailnet) -> None:
    tailnet.remove_node(add(tailnet, 1))
    assert add(tailnet, 2).name == "web"


def test_addresses_come_in_order_and_are_not_given_away_again(tailnet: Tailnet) -> None:
    first = add(tailnet, 1)
    assert first.addresses == ("100.64.0.1", "fd7a:115c:a1e0::1")
    tailnet.remove_node(first)
    assert add(tailnet, 2).addresses == ("100.64.0.2", "fd7a:115c:a1e0::2")


@pytest.mark.parametrize(
    ("offset", "addresses"),
    [
        (0x53, ("100.64.0.84", "fd7a:115c:a1e0::54")),  # ::53 is the resolver's
        (0x24_64_64, ("100.100.100.101", "fd7a:115c:a1e0::24:6465")),
        (0x33_5C_00, ("100.115.94.0", "fd7a:115c:a1e0::33:5e00")),
    ],
    ids=["v6 service", "v4 service", "reserved block"],
)
def test_addresses_that_are_taken_are_passed_over(offset: int, addresses: tuple[str, ...]) -> None:
    assert add(Tailnet(counting_random(), address_offset=offset), 1).addresses == addresses


def test_every_address_lies_within_the_tailnets_ranges_until_they_are_used_up() -> None:
    tailnet = Tailnet(counting_random(), address_offset=(1 << 22) - 1)
    v4, v6 = add(tailnet, 1).addresses
    assert CGNAT.covers(pack(v4))
    assert ULA.covers(pack(v6))
    with pytest.raises(RuntimeError, match="no address left"):
        add(tailnet, 2)


def test_a_node_is_found_by_name_address_and_key(tailnet: Tailnet) -> None:
    node = add(tailnet, 7)
    for what in ("web", "100.64.0.1", "fd7a:115c:a1e0::1", node.key, node):
        assert tailnet.find(what) is node
    with pytest.raises(KeyError):
        tailnet.find("nobody")


def test_a_node_with_a_new_key_is_found_by_that_one_only(tailnet: Tailnet) -> None:
    node, old, new = add(tailnet, 1), NodePublic(bytes([1] * 32)), NodePublic(bytes([9] * 32))
    tailnet.change(node, key=new)
    assert tailnet.by_key(new) is node
    assert tailnet.by_key(old) is None


def test_only_real_changes_count(tailnet: Tailnet) -> None:
    told: list[int] = []
    node = add(tailnet, 1)
    tailnet.on_change = lambda: told.append(tailnet.revision)
    assert not tailnet.change(node, home_derp=0)
    assert tailnet.change(node, home_derp=3)
    assert told == [tailnet.node_revisions[node.id]]


def test_a_rename_keeps_names_unique(tailnet: Tailnet) -> None:
    add(tailnet, 1, "web")
    node = add(tailnet, 2, "db")
    tailnet.change(node, name="web")
    assert node.name == "web-1"
    assert add(tailnet, 3, "db").name == "db"


def test_fake_peers_are_told_of_once(tailnet: Tailnet) -> None:
    told: list[int] = []
    tailnet.on_change = lambda: told.append(len(tailnet.nodes))
    assert len(tailnet.add_fake_peers(50, now=NOW)) == 50
    assert told == [50]


def test_an_auth_key_shows_nothing_of_itself(tailnet: Tailnet) -> None:
    text = tailnet.add_auth_key()
    assert text not in repr(tailnet.auth_keys[text])


def test_what_does_not_exist_cannot_be_configured(tailnet: Tailnet) -> None:
    with pytest.raises(AttributeError):
        tailnet.configure(dreps={})
