"""What each node may see of the lab's tailnet, and how one picture becomes the next (pure).

Source: tailcfg.MapResponse; its delta forms. A `View` is all that a node may know at one moment. Whoever streams keeps the view that it sent
last and asks `difference` for the message that leads to the present one, so that changes which come in a burst merge by themselves.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from msgspec import Raw

from tsns.lab.tailnet import NEVER, LabNode, Tailnet, rfc3339
from tsns.proto.types import (
    NULL,
    Debug,
    DERPMap,
    DNSConfig,
    FilterRule,
    MapResponse,
    Node,
    PeerChange,
    UserProfile,
    encode,
)

# Members of a Node that a PeerChange can set, by field name; `home_derp` is called `derp_region` there.
PATCHABLE: Final = ("cap", "endpoints", "key", "disco_key", "online", "last_seen", "key_expiry", "home_derp")
# What a node told us of itself: no news to the node.
OWN_REPORT: Final = ("cap", "endpoints", "home_derp", "disco_key", "last_seen", "online")  # and hostinfo
STALE_FACTOR: Final = 4  # so many wire forms for each node may be kept until those of deleted nodes go
PRIVATE_HOSTINFO: Final = frozenset({"NetInfo", "BackendLogID", "RequestTags"})  # not passed on to peers


@dataclass(frozen=True, slots=True)
class View:
    """A tailnet as one of its nodes may know it."""

    self_node: Node
    peers: dict[int, Node]
    rules: Sequence[FilterRule]
    derp_map: DERPMap
    dns: DNSConfig
    users: tuple[UserProfile, ...]
    domain: str


class Views:
    """Makes views. The wire form of each node is made once for each of its revisions: ten thousand peers are no burden."""

    def __init__(self, tailnet: Tailnet) -> None:
        self._tailnet = tailnet
        self._wire: dict[tuple[int, int], tuple[int, bool, Node]] = {}  # (node, cap): (revision, expired, wire form)

    def of(self, viewer: LabNode, *, cap: int | None, now: float) -> View:
        """What this node may see; with `cap`, every peer is said to have this capability version, as Headscale does."""
        tailnet = self._tailnet
        if len(self._wire) > STALE_FACTOR * len(tailnet.nodes):
            self._wire = {known: wire for known, wire in self._wire.items() if known[0] in tailnet.nodes}
        peers = {
            node.id: self._peer(node, node.cap if cap is None else cap, now)
            for node in tailnet.nodes.values()
            if node is not viewer and node.authorized and viewer.authorized
        }
        return View(
            self_node=self._node(viewer, viewer.cap, now, is_self=True),
            peers=peers,
            rules=tailnet.rules if viewer.rules is None else viewer.rules,
            derp_map=tailnet.derp_map,
            dns=tailnet.dns_config(),
            users=tuple(
                UserProfile(id=user.id, login_name=user.login_name, display_name=user.display_name)
                for user in tailnet.users.values()
            ),
            domain=tailnet.domain,
        )

    def _peer(self, node: LabNode, cap: int, now: float) -> Node:
        revision, expired = self._tailnet.node_revisions[node.id], node.expired(now)
        known = self._wire.get((node.id, cap))
        if known is not None and known[:2] == (revision, expired):
            return known[2]
        wire = self._node(node, cap, now, is_self=False)
        self._wire[node.id, cap] = (revision, expired, wire)
        return wire

    def _node(self, node: LabNode, cap: int, now: float, *, is_self: bool) -> Node:
        addresses = [f"{address}/{128 if ':' in address else 32}" for address in node.addresses]
        hostinfo = {name: value for name, value in node.hostinfo.items() if name not in PRIVATE_HOSTINFO}
        wire = Node(
            id=node.id,
            stable_id=f"n{node.id}",
            name=self._tailnet.fqdn(node),
            user=node.user.id,
            key=str(node.key),
            key_expiry=NEVER if node.expires_at is None else rfc3339(node.expires_at),
            machine=str(node.machine),
            disco_key=str(node.disco) if node.disco else None,
            addresses=addresses,
            allowed_ips=addresses + list(node.routes),
            endpoints=list(node.endpoints) or None,
            home_derp=node.home_derp or None,
            hostinfo=Raw(msgspec.json.encode(hostinfo)) if hostinfo else NULL,
            created=rfc3339(node.created_at),
            cap=cap or None,
            tags=list(node.tags) or None,
            primary_routes=list(node.routes) or None,
            last_seen=rfc3339(node.last_seen_at) if node.last_seen_at is not None and not node.online else None,
            online=True if is_self else node.online,
            machine_authorized=node.authorized or None,
            cap_map=_cap_map(node.cap_map) if is_self else None,
            expired=node.expired(now) or None,
        )
        return msgspec.structs.replace(wire, **node.wire) if node.wire else wire


def _cap_map(capabilities: Any) -> dict[str, Raw]:
    return {name: Raw(msgspec.json.encode(values)) for name, values in capabilities.items()}


def first_message(view: View, *, now: float) -> MapResponse:
    """The whole view."""
    return MapResponse(
        node=view.self_node,
        peers=list(view.peers.values()),
        derp_map=view.derp_map,
        dns_config=view.dns,
        domain=view.domain,
        packet_filters={"base": list(view.rules)},
        user_profiles=list(view.users),
        control_time=rfc3339(now),
        debug=Debug(disable_log_tail=True),
    )


def difference(old: View, new: View, *, patches: bool = True, now: float) -> MapResponse | None:
    """The message after which one who knows `old` knows `new`; None where there is nothing to tell.

    Without `patches`, peers that changed are told anew as a whole.
    """
    changed: list[Node] = []
    patched: list[PeerChange] = []
    for number, peer in new.peers.items():
        before = old.peers.get(number)
        if before is peer or (before is not None and _same(before, peer)):
            continue
        patch = peer_change(before, peer) if before is not None and patches else None
        if patch is None:
            changed.append(peer)
        else:
            patched.append(patch)
    fields: dict[str, Any] = {
        "node": None
        if _same(_without_own_report(old.self_node), _without_own_report(new.self_node))
        else new.self_node,
        "peers_removed": [number for number in old.peers if number not in new.peers] or None,
        "peers_changed": changed or None,
        "peers_changed_patch": patched or None,
        "packet_filters": None if new.rules is old.rules or new.rules == old.rules else {"base": list(new.rules)},
        "derp_map": None if new.derp_map == old.derp_map else new.derp_map,
        "dns_config": None if new.dns == old.dns else new.dns,
        "domain": None if new.domain == old.domain else new.domain,
        "user_profiles": [user for user in new.users if user not in old.users] or None,
    }
    if not any(value is not None for value in fields.values()):
        return None
    return MapResponse(**fields, control_time=rfc3339(now))


def peer_change(old: Node, new: Node) -> PeerChange | None:
    """The patch that leads from one form of a peer to the other; None where a patch cannot say it."""
    values: dict[str, Any] = {}
    for name in PATCHABLE:
        value = getattr(new, name)
        if value == getattr(old, name):
            continue
        if value is None and name == "endpoints":
            value = []
        elif value is None and name != "last_seen":  # a patch cannot unset; who is online needs no `last_seen`
            return None
        values["derp_region" if name == "home_derp" else name] = value
    if not _same(msgspec.structs.replace(new, **{name: getattr(old, name) for name in PATCHABLE}), old):
        return None
    return PeerChange(node_id=new.id, **values)


def _same(one: Node, other: Node) -> bool:
    return encode(one) == encode(other)  # `Raw` members compare by their bytes only


def _without_own_report(node: Node) -> Node:
    return msgspec.structs.replace(node, **dict.fromkeys(OWN_REPORT), hostinfo=NULL)
