"""Nodes as the netmap keeps them: what can be said in several ways is said in one (ring 0).

Source: tailcfg.Node and control/controlclient (map.go) of Tailscale's module. Two nodes are equal exactly when they mean the same; what is
seldom read and large is left out; nothing holds on to the message that a node came with.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from tsns.error import ProtocolError
from tsns.keys import NodePublic
from tsns.proto.addresses import Prefix
from tsns.proto.types import NULL, Node

LEGACY_DERP: Final = "127.3.3.40:"


def normalised_self(node: Node) -> Node:
    """Our own node as the netmap keeps it; ProtocolError where it has no key."""
    if not is_node_key(node.key):
        raise ProtocolError("our own node has no good key")
    node.hostinfo = node.hostinfo.copy()
    if node.capabilities:
        node.cap_map = {**dict.fromkeys(node.capabilities, NULL), **(node.cap_map or {})}
    node.capabilities = None
    return normalised(node)


def normalised(node: Node) -> Node:
    """Give what can be said in several ways its one form: lists of addresses always, other empty things never."""
    home = node.home_derp
    if not home and node.derp and node.derp.startswith(LEGACY_DERP):
        port = node.derp[len(LEGACY_DERP) :]
        home = int(port) if port.isascii() and port.isdigit() and len(port) <= 5 else 0
    node.home_derp = home if home and home > 0 else None
    node.derp = None
    node.addresses = node.addresses or []
    if node.allowed_ips is None or node.unsigned_peer_api_only or node.allowed_ips == node.addresses:
        node.allowed_ips = node.addresses  # nearly always the same: one list will do
    node.endpoints = node.endpoints or None
    node.tags = node.tags or None
    node.primary_routes = node.primary_routes or None
    node.exit_node_dns_resolvers = node.exit_node_dns_resolvers or None
    node.key_expiry = _time_or_none(node.key_expiry)
    node.last_seen = _time_or_none(node.last_seen)
    node.expired = node.expired or None
    node.is_jailed = node.is_jailed or None
    node.is_wireguard_only = node.is_wireguard_only or None
    node.unsigned_peer_api_only = node.unsigned_peer_api_only or None
    node.machine_authorized = bool(node.machine_authorized)
    # A Raw holds on to the whole message that it came with.
    node.cap_map = {name: value.copy() for name, value in node.cap_map.items()} if node.cap_map else None
    return node


def prefixes(texts: Iterable[str] | None) -> tuple[Prefix, ...]:
    """A node's addresses or routes in packed form; what is none is left out."""
    found = []
    for text in texts or ():
        try:
            found.append(Prefix.parse(text))
        except ValueError:
            continue
    return tuple(found)


def is_node_key(text: str | None) -> bool:
    """Whether this is the text of a node key that is not all zeros."""
    try:
        return NodePublic.parse_optional(text) is not None
    except ValueError:
        return False


def _time_or_none(text: str | None) -> str | None:
    return None if not text or text.startswith("0001-") else text
