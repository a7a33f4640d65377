"""Whose address that is: asked of a netmap."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tsns.control.netmap import NetMap
from tsns.error import UserError
from tsns.node.whois_api import Whois
from tsns.proto.types import MapResponse, decode

KEYS = [f"nodekey:{number:064x}" for number in range(1, 9)]


def node(number: int, name: str, **more: Any) -> dict[str, Any]:
    return {
        "ID": number,
        "StableID": f"n{number}",
        "Name": f"{name}.tail.example.",
        "Key": KEYS[number],
        "Addresses": [f"100.64.0.{number}/32", f"fd7a:115c:a1e0::{number}/128"],
        "MachineAuthorized": True,
        "User": 7,
        **more,
    }


def netmap(*peers: dict[str, Any], rules: list[dict[str, Any]] | None = None) -> NetMap:
    found = NetMap()
    message = {
        "Node": node(1, "us"),
        "Peers": list(peers),
        "PacketFilter": rules or [],
        "UserProfiles": [{"ID": 7, "LoginName": "ann@example.com", "DisplayName": "Ann"}],
    }
    found.apply(decode(json.dumps(message).encode(), MapResponse), 1_700_000_000.0)
    return found


def grant(source: str, to: str, capabilities: dict[str, Any]) -> dict[str, Any]:
    return {"SrcIPs": [source], "CapGrant": [{"Dsts": [to], "CapMap": capabilities}]}


WEB = node(2, "web", AllowedIPs=["100.64.0.2/32", "fd7a:115c:a1e0::2/128", "10.0.0.0/8"])


@pytest.mark.parametrize(
    "who",
    [
        "100.64.0.2",
        "100.64.0.2:4711",
        "::ffff:100.64.0.2",
        "fd7a:115c:a1e0::2",
        "[fd7a:115c:a1e0::2]:80",
        "web",
        "web.tail.example.",
        KEYS[2],
    ],
)
def test_a_peer_is_found_by_any_name_of_its(who: str) -> None:
    answer = Whois().answer({"who": who}, netmap(WEB))
    assert answer == {
        "schema": 1,
        "name": "web",
        "dns_name": "web.tail.example",
        "addresses": ["100.64.0.2", "fd7a:115c:a1e0::2"],
        "id": "n2",
        "is_self": False,
        "routes": ["10.0.0.0/8"],
        "tags": [],
        "user": {"id": 7, "login_name": "ann@example.com", "display_name": "Ann"},
        "capabilities": {},
    }


def test_ourselves() -> None:
    answer = Whois().answer({"who": "100.64.0.1"}, netmap(WEB))
    assert (answer["name"], answer["is_self"]) == ("us", True)


def test_a_tagged_node_is_nobodys() -> None:
    answer = Whois().answer({"who": "web"}, netmap({**WEB, "Tags": ["tag:web"]}))
    assert (answer["tags"], answer["user"]) == (["tag:web"], None)


@pytest.mark.parametrize("who", ["10.1.2.3", "100.64.0.9", "nobody", "nodekey:00", "", "[::"])
def test_nobody(who: str) -> None:
    with pytest.raises(UserError, match="nobody"):
        Whois().answer({"who": who}, netmap(WEB))
    with pytest.raises(UserError, match="nobody"):
        Whois().answer({"who": who}, None)


def test_capabilities_towards_us_are_merged() -> None:
    rules = [
        grant("*", "100.64.0.1/32", {"a": [1, {"x": "y"}]}),
        grant("100.64.0.2", "100.64.0.0/10", {"a": [2], "b": None, "c": []}),
        grant("100.64.0.2", "100.64.0.3/32", {"elsewhere": [1]}),
        grant("fd7a:115c:a1e0::2", "*", {"no prefix": [1]}),
    ]
    answer = Whois().answer({"who": "fd7a:115c:a1e0::2"}, netmap(WEB, rules=rules))
    assert answer["capabilities"] == {"a": [1, {"x": "y"}, 2], "b": [], "c": []}


def test_a_peer_whom_nobody_has_signed_has_no_capabilities() -> None:
    unsigned = netmap({**WEB, "UnsignedPeerAPIOnly": True}, rules=[grant("*", "0.0.0.0/0", {"a": [1]})])
    assert Whois().answer({"who": "web"}, unsigned)["capabilities"] == {}


def test_new_rules_are_read() -> None:
    whois, found = Whois(), netmap(WEB)
    assert whois.answer({"who": "web"}, found)["capabilities"] == {}
    rules = [grant("*", "0.0.0.0/0", {"a": [1]})]
    found.apply(decode(json.dumps({"PacketFilter": rules}).encode(), MapResponse), 1_700_000_001.0)
    assert whois.answer({"who": "web"}, found)["capabilities"] == {"a": [1]}
