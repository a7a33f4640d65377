"""POST /tsns/v1/whois {"who": TEXT}: whose address that is, and what they may do here (ring 1).

For programs that ask who a connection comes from, and for people. TEXT is an address, with a port or without, a name, or a node key.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from msgspec import Raw

from tsns.control.netmap import NetMap
from tsns.error import UserError
from tsns.filter.grants import Grants
from tsns.node.localapi import Answer
from tsns.node.peering import find_peer, own_addresses
from tsns.node.status import SCHEMA, named
from tsns.proto.addresses import pack, parse_endpoint, unmapped, unpack
from tsns.proto.types import FilterRule, Node


class Whois:
    """Answers; what the rules grant is read when somebody asks, and once."""

    def __init__(self) -> None:
        self._rules: Sequence[FilterRule] = ()
        self._grants = Grants()

    def answer(self, asked: Answer, netmap: NetMap | None) -> Answer:
        """UserError where nobody on the tailnet is meant."""
        who = str(asked.get("who", ""))
        node = _find(netmap, who) if netmap else None
        if netmap is None or node is None:
            raise UserError(f"nobody on the tailnet is {who}", "see `tsns status` for names and addresses")
        if netmap.rules is not self._rules:
            self._rules, self._grants = netmap.rules, Grants(netmap.rules)
        own = set(node.addresses or ())
        return {
            "schema": SCHEMA,
            **named(node),
            "id": node.stable_id or "",
            "is_self": node is netmap.self_node,
            "routes": [text for text in node.allowed_ips or () if text not in own],
            "tags": node.tags or [],
            "user": None if node.tags else _user(netmap, node),
            "capabilities": self._capabilities(netmap.self_node, node),
        }

    def _capabilities(self, itself: Node | None, node: Node) -> dict[str, list[Any]]:
        """Towards us, from the node's first address to ours of its family; none for a peer whom nobody has signed."""
        if itself is None or node.unsigned_peer_api_only:
            return {}
        theirs, ours = ([pack(text) for text in own_addresses(each)] for each in (node, itself))
        pair = next(((source, to) for source in theirs[:1] for to in ours if len(source) == len(to)), None)
        if pair is None:
            return {}
        return {name: list(_values(found)) for name, found in self._grants.of(*pair).items()}


def _find(netmap: NetMap, who: str) -> Node | None:
    if who.startswith("nodekey:"):
        nodes = [*netmap.peers.values(), *([netmap.self_node] if netmap.self_node else [])]
        return next((node for node in nodes if node.key == who), None)
    found = find_peer(netmap, _without_port(who))
    return found[0] if found else None


def _without_port(who: str) -> str:
    """An address as the netmap has it: without a port, IPv4 as IPv4; anything else as it is."""
    try:
        return parse_endpoint(who)[0]
    except ValueError:
        pass
    try:
        return unpack(unmapped(pack(who)))
    except ValueError:
        return who


def _user(netmap: NetMap, node: Node) -> dict[str, Any]:
    profile = netmap.user_profiles.get(node.user or 0)
    return {
        "id": node.user or 0,
        "login_name": (profile.login_name or "") if profile else "",
        "display_name": (profile.display_name or "") if profile else "",
    }


def _values(lists: Iterable[Raw]) -> Iterable[Any]:
    """What is in these JSON lists; a text that is none says nothing."""
    for text in lists:
        try:
            found = json.loads(bytes(text))
        except (ValueError, RecursionError):
            continue
        if isinstance(found, list):
            yield from found
