"""Which peer is the exit node (ring 0).

    wanted        a name, a FQDN, an address or a stable id: that peer, whether it is there or not
    auto:any      one that is there, and as long as it is: the one whose home relay is nearest

Where nobody can be the exit node nothing goes out: never another way than the one that was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from math import inf
from typing import Final

from tsns.control.netmap import NetMap
from tsns.control.nodes import prefixes
from tsns.node.offers import offers_exit, reachable
from tsns.proto.addresses import pack
from tsns.proto.text import one_line
from tsns.proto.types import Node

AUTO: Final = "auto:any"
_LIST_HINT: Final = "`tsns exit-node list` shows those that there are; `--exit-node=` does without one"

Latency = Callable[[int], float | None]  # of a DERP region, seconds


@dataclass(frozen=True, slots=True)
class Choice:
    """The exit node, and what is wrong with it or with there being none."""

    node: Node | None = None  # whose default routes are used
    complaint: str = ""
    hint: str = ""
    is_mistake: bool = False  # it is not for want of luck: nobody has this name, or is an exit node by it


def choose(
    netmap: NetMap, wanted: str, *, current: int = 0, latency: Latency = lambda _: None, wall_now: float
) -> Choice:
    """The exit node by what a person has asked for. `current` is the id of the present one, which `auto:any` keeps while it is there."""
    if not wanted:
        return Choice()
    if wanted == AUTO:
        return _best(netmap, current, latency, wall_now)
    present = netmap.peers.get(current)
    named = matching([present], wanted) if present is not None else []
    named = named or matching(netmap.peers.values(), wanted)
    if not named:
        return Choice(complaint=f"there is no peer {wanted!r} to be the exit node", hint=_LIST_HINT, is_mistake=True)
    if len(named) > 1:
        names = " or ".join(sorted(full_name(node) for node in named))
        return Choice(complaint=f"several peers are called {wanted!r}", hint=f"say which one: {names}", is_mistake=True)
    [node] = named
    name = full_name(node)
    if not offers_exit(node):
        return Choice(
            complaint=f"{name} offers no exit node: nothing beyond the tailnet can be reached",
            hint=f"an administrator may have to approve it; {_LIST_HINT}",
            is_mistake=True,
        )
    if netmap.expired(node, wall_now):
        return Choice(
            complaint=f"the key of the exit node {name} has expired: nothing beyond the tailnet can be reached"
        )
    if not reachable(node):
        return Choice(complaint=f"the exit node {name} has no address and no relay: it cannot be reached")
    if node.online is False:
        return Choice(node, f"the exit node {name} is offline: nothing beyond the tailnet can be reached")
    return Choice(node)


def _best(netmap: NetMap, current: int, latency: Latency, wall_now: float) -> Choice:
    candidates = [node for node in offering(netmap) if node.online is not False and not netmap.expired(node, wall_now)]
    if not candidates:
        return Choice(complaint="no exit node is online: nothing beyond the tailnet can be reached")

    def rank(node: Node) -> tuple[bool, bool, float, int]:
        seconds = latency(node.home_derp or 0)
        return node.id != current, bool(node.is_wireguard_only), inf if seconds is None else seconds, node.id

    return Choice(min(candidates, key=rank))


def offering(netmap: NetMap) -> Collection[Node]:
    """The peers that offer to be exit nodes and can be reached."""
    return [node for node in netmap.peers.values() if offers_exit(node) and reachable(node)]


def matching(nodes: Iterable[Node], wanted: str) -> list[Node]:
    """Whom a person means by an address, a stable id, a FQDN or a host name; a FQDN counts before host names."""
    name = wanted.rstrip(".").lower()
    try:
        packed = pack(name)
    except ValueError:
        packed = b""
    short: list[Node] = []
    for node in nodes:
        full = (node.name or "").rstrip(".").lower()
        if wanted == node.stable_id or full == name:
            return [node]
        if packed and any(prefix.network == packed for prefix in prefixes(node.addresses)):
            return [node]
        if full.partition(".")[0] == name:
            short.append(node)
    return short


def full_name(node: Node) -> str:
    """A node's FQDN, fit to be shown."""
    return one_line((node.name or "").rstrip(".")) or f"node {node.id}"
