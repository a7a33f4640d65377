"""A node's state as the person sees it, in the JSON of `tsns status` (ring 1). docs/json.md lists the fields."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from typing import Any, Final, Protocol

from tsns.control.netmap import NetMap
from tsns.derp.client import RegionStatus
from tsns.keys import NodePublic
from tsns.node.condition import Condition
from tsns.node.peering import node_key, own_addresses
from tsns.paths.peer_path import Kind
from tsns.paths.peer_paths import PathStatus
from tsns.proto.addresses import endpoint_text
from tsns.proto.types import Node, decode_hostinfo, parse_time
from tsns.steps import Steps
from tsns.ways import DerpPath, UdpPath
from tsns.wg.peer import PeerStatistics
from tsns.wg.socket import boot_time

SCHEMA: Final = 1


class Traffic(Protocol):
    """Where the numbers and the paths of a peer come from."""

    def statistics(self, peer: NodePublic) -> PeerStatistics:
        """What this peer has sent and received."""

    def path_status(self, peer: NodePublic) -> PathStatus:
        """How packets to it go."""


class Routes(Protocol):
    """Where packets go beyond the addresses of peers."""

    def of_peer(self, node: Node) -> dict[str, Any]:
        """What a peer offers, and what of it is used."""

    def status(self, netmap: NetMap | None) -> dict[str, Any] | None:
        """The exit node; None where none is asked for."""


def reporting(
    name: str,
    condition: Condition,
    netmap: NetMap | None,
    traffic: Traffic,
    relays: Iterable[RegionStatus],
    routes: Routes,
) -> Steps[dict[str, Any]]:
    """The whole answer of GET /tsns/v1/status, one peer a step."""
    health = list(condition.warnings.values())
    answer: dict[str, Any] = {
        "schema": SCHEMA,
        "name": name,
        "state": condition.state(time.monotonic()),
        "login_url": condition.login_url,
        "health": health,
        "self": None,
        "peers": [],
        "exit_node": routes.status(netmap),
        "tailnet": "",
        "home_region": _region_name(netmap, condition.home),
        "relays": [_relay(relay) for relay in relays],
    }
    if netmap is None or netmap.self_node is None:
        return answer
    health += netmap.health
    answer["self"] = _self(netmap.self_node)
    answer["tailnet"] = netmap.domain or ""
    wall_now = time.time()
    for node in _sorted(netmap.peers):
        answer["peers"].append({**_peer(netmap, node, traffic, wall_now), **routes.of_peer(node)})
        yield
    return answer


def _sorted(peers: Mapping[int, Node]) -> list[Node]:
    return sorted(peers.values(), key=lambda node: (node.name or "", node.id))


def short_name(node: Node) -> str:
    """The first label of a node's FQDN."""
    return (node.name or "").partition(".")[0]


def named(node: Node) -> dict[str, Any]:
    """What a node is called, and where it is."""
    return {"name": short_name(node), "dns_name": (node.name or "").rstrip("."), "addresses": own_addresses(node)}


def _self(node: Node) -> dict[str, Any]:
    expiry = parse_time(node.key_expiry)
    return {
        **named(node),
        "online": node.online is not False,
        "key_expiry": expiry.timestamp() if expiry else None,
        "tags": node.tags or [],
    }


def _peer(netmap: NetMap, node: Node, traffic: Traffic, wall_now: float) -> dict[str, Any]:
    key = node_key(node)
    numbers = traffic.statistics(key) if key else PeerStatistics(0, 0, None)
    found = traffic.path_status(key) if key else PathStatus(Kind.NONE)
    user = netmap.user_profiles.get(node.user or 0)
    return {
        **named(node),
        "user": (user.login_name or "") if user else "",
        "os": decode_hostinfo(node).os or "",
        "online": node.online,
        "expired": netmap.expired(node, wall_now),
        "path": path_of(netmap, found),
        "path_changes": _changes(found),
        "rx_bytes": numbers.rx_bytes,
        "tx_bytes": numbers.tx_bytes,
        "last_handshake": numbers.last_handshake,
        "tags": node.tags or [],
    }


def path_of(netmap: NetMap | None, found: PathStatus) -> dict[str, Any]:
    """How packets to a peer go. A direct path in doubt is none yet, or no more: the relay carries everything, too."""
    if found.endpoint is not None and (found.kind is Kind.DIRECT or not found.relay):
        return {**way(netmap, UdpPath(found.endpoint)), "latency": found.latency_s}
    return way(netmap, DerpPath(found.relay) if found.relay else None)


def way(netmap: NetMap | None, found: UdpPath | DerpPath | None) -> dict[str, Any]:
    """One way to a peer."""
    match found:
        case UdpPath(endpoint):
            return {"kind": "direct", "address": endpoint_text(endpoint), "region": ""}
        case DerpPath(region):
            return {"kind": "derp", "address": "", "region": _region_name(netmap, region)}
        case None:
            return {"kind": "none", "address": "", "region": ""}


def _changes(found: PathStatus) -> list[dict[str, Any]]:
    """The last changes of a path, with Unix times."""
    offset = time.time() - boot_time()
    return [
        {
            "at": change.at + offset,
            "kind": str(change.kind),
            "address": endpoint_text(change.endpoint) if change.endpoint else "",
            "reason": change.reason,
        }
        for change in found.changes
    ]


def _region_name(netmap: NetMap | None, region: int | None) -> str:
    if not region:
        return ""
    known = (netmap.derp_map.regions or {}).get(region) if netmap else None
    return (known.region_code if known else None) or str(region)


def _relay(relay: RegionStatus) -> dict[str, Any]:
    return {
        "region": relay.code or str(relay.region),
        "state": str(relay.state),
        "home": relay.home,
        "node": relay.node,
        "complaint": relay.health or relay.error,
    }
