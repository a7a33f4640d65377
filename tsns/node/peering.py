"""What of the netmap becomes WireGuard peers (ring 1).

Source: the rules of net/routemanager in Tailscale's module (see `offers`): a peer's own addresses always, other prefixes only when the person
asked for them, and nothing for a peer that cannot or must not be talked to.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from typing import Final

import msgspec

from tsns.control.netmap import NetMap, NetMapChange
from tsns.control.nodes import prefixes
from tsns.keys import DiscoPublic, NodePublic
from tsns.node.offers import Subnets, in_tailnet, offer_of, reachable
from tsns.paths.peer_paths import Reach
from tsns.proto.addresses import Prefix, pack
from tsns.proto.types import Node
from tsns.steps import Steps, finish
from tsns.wg.device import Device
from tsns.wg.masquerade import Masquerade
from tsns.wg.router import Router

EXPIRY_CHECK_MAX_S: Final = 60.0
EXPIRY_CHECK_MIN_S: Final = 1.0

log = logging.getLogger(__name__)


class Peering:
    """Keeps device and router as the netmap has them; the sessions of peers that did not change are left alone. `clock` is the router's."""

    def __init__(self, device: Device, router: Router, clock: Callable[[], float]) -> None:
        self._device = device
        self._router = router
        self._clock = clock
        self._suspended = False
        self._own_id: int | None = None  # by which control knows us
        self._expired: set[NodePublic] = set()
        self._subnets = Subnets()
        self._accepts_subnets = False
        self._exit = 0  # the id of the exit node

    def apply(self, netmap: NetMap, change: NetMapChange, wall_now: float) -> list[NodePublic]:
        """Follow one difference; returns the peers whose processes are others now, with whom there should be new keys."""
        return finish(self.applying(netmap, change, wall_now))

    def applying(self, netmap: NetMap, change: NetMapChange, wall_now: float) -> Steps[list[NodePublic]]:
        """The same in steps of one peer each. `suspend` and `resume` may come between."""
        begun_anew = self._parted(netmap.self_node)
        concerned: set[int] = set()  # by what others offer
        for old, new in change.peers():
            if self._suspended:
                return []
            if new is None:
                assert old is not None  # one of them is there
                concerned.update(self._subnets.set(old.id, (), usable=False))
                self._remove(old)
            elif old is None:
                concerned.update(self._set(netmap, new, wall_now))
            else:
                if old.key != new.key:
                    self._remove(old)
                elif old.disco_key != new.disco_key and (key := node_key(new)):
                    begun_anew.append(key)
                if _concerns_packets(old, new):
                    concerned.update(self._set(netmap, new, wall_now))
            yield
        if change.self_changed:
            for node in list(netmap.peers.values()):
                if _masqueraded(node):
                    concerned.add(node.id)
                    yield
        self._set_again(netmap, concerned, wall_now)
        return begun_anew

    def use(self, netmap: NetMap, *, subnets: bool, exit_node: int, wall_now: float) -> None:
        """Go by subnets of peers or not, and by this exit node (0: none); what does not concern a peer leaves it alone."""
        concerned = {self._exit, exit_node} if exit_node != self._exit else set()
        if subnets != self._accepts_subnets:
            concerned.update(self._subnets.offering())
        self._accepts_subnets, self._exit = subnets, exit_node
        if not self._suspended:
            self._set_again(netmap, concerned, wall_now)

    def routes(self, netmap: NetMap) -> list[Prefix]:
        """What besides the tailnet's own ranges leads into the tunnel, whether somebody carries it at the moment or not."""
        found = [prefix for prefix in self._subnets if not in_tailnet(prefix)] if self._accepts_subnets else []
        exit_node = netmap.peers.get(self._exit)
        return found + list(offer_of(exit_node).everything if exit_node else ())

    def subnets_of(self, node: Node) -> tuple[Prefix, ...]:
        """The subnets that are reached by this peer."""
        return self._subnets.of(node.id) if self._accepts_subnets else ()

    def _set_again(self, netmap: NetMap, numbers: Iterable[int], wall_now: float) -> None:
        for number in sorted(numbers):
            if (node := netmap.peers.get(number)) is not None:
                self._set(netmap, node, wall_now)

    def _parted(self, itself: Node | None) -> list[NodePublic]:
        """All peers, where control has deleted us and let us in again: they have parted with us meanwhile, and with our sessions."""
        if itself is None or itself.id == self._own_id:
            return []
        was_somebody, self._own_id = self._own_id is not None, itself.id
        return list(self._device.peers()) if was_somebody else []

    def suspend(self, netmap: NetMap) -> None:
        """Part with all peers, until `resume`."""
        self._suspended = True
        for node in netmap.peers.values():
            self._remove(node)

    def resume(self, netmap: NetMap, wall_now: float) -> None:
        """All peers as the netmap has them by now."""
        self._suspended = False
        self._subnets = Subnets()  # whatever was told meanwhile
        concerned: set[int] = set()
        for node in netmap.peers.values():
            concerned.update(self._set(netmap, node, wall_now))
        self._set_again(netmap, concerned, wall_now)

    def rechecking(self, netmap: NetMap, wall_now: float) -> Steps[float]:
        """Part with the peers whose keys have run out since, one a step; returns the seconds until the next may run out.

        Not for ever, since the netmap changes meanwhile.
        """
        due = wall_now + EXPIRY_CHECK_MAX_S
        for node in list(netmap.peers.values()):
            if node.key_expiry and not node.expired and (at := netmap.expiry(node)) is not None:
                if at > wall_now:
                    due = min(due, at)
                elif not self._suspended and (key := node_key(node)) and key not in self._expired:
                    self._expire(netmap, node, wall_now)
            yield
        return max(due - wall_now, EXPIRY_CHECK_MIN_S)

    def _expire(self, netmap: NetMap, node: Node, wall_now: float) -> None:
        if netmap.expired(node, wall_now) and netmap.peers.get(node.id) is node:
            log.info("the key of %s has expired", node.name)
            self._set_again(netmap, self._set(netmap, node, wall_now), wall_now)

    def _set(self, netmap: NetMap, node: Node, wall_now: float) -> Collection[int]:
        """Have a peer as the netmap says; returns the ids of others who get or lose a subnet by that."""
        key = node_key(node)
        if key is None:
            return ()
        offer = offer_of(node)
        expired = netmap.expired(node, wall_now)
        usable = not expired and reachable(node)
        concerned = self._subnets.set(node.id, offer.subnets, usable=usable)
        everything = offer.everything if node.id == self._exit else ()
        allowed = (*offer.own, *self.subnets_of(node), *everything) if usable else ()
        if not allowed:
            self._remove(node)
        else:
            self._router.set_jailed(key, bool(node.is_jailed))
            self._device.set_peer(key, allowed)
            self._device.set_masquerade(key, masquerade_of(netmap.self_node, node))
            self._router.paths.set_peer(key, reach(node), self._clock())
        (self._expired.add if expired else self._expired.discard)(key)
        return concerned

    def _remove(self, node: Node) -> None:
        key = node_key(node)
        if key is not None:
            self._router.paths.remove_peer(key)
            self._device.remove_peer(key)
            self._router.set_jailed(key, False)
            self._expired.discard(key)


def node_key(node: Node) -> NodePublic | None:
    """The node's WireGuard key; None where it has none that can be read."""
    try:
        return NodePublic.parse_optional(node.key)
    except ValueError:
        return None


def _masqueraded(node: Node) -> bool:
    return bool(node.self_node_v4_masq_addr_for_this_peer or node.self_node_v6_masq_addr_for_this_peer)


def masquerade_of(itself: Node | None, node: Node) -> Masquerade | None:
    """By which addresses a peer knows us; None where these are our own."""
    if itself is None or not _masqueraded(node):
        return None
    worn = prefixes(
        filter(None, (node.self_node_v4_masq_addr_for_this_peer, node.self_node_v6_masq_addr_for_this_peer))
    )
    own: dict[int, bytes] = {}  # by length: of several addresses of one family the first is the node's
    for prefix in prefixes(itself.addresses):
        own.setdefault(len(prefix.network), prefix.network)
    return Masquerade((own[len(mask.network)], mask.network) for mask in worn if len(mask.network) in own)


def name_of(netmap: NetMap | None, key: NodePublic) -> str:
    """A peer as a person knows it: its short name, or of a peer that is gone its key."""
    text = str(key)
    names = (node.name or "" for node in netmap.peers.values() if node.key == text) if netmap else iter(())
    return next(names, "").partition(".")[0] or key.short


def own_addresses(node: Node) -> list[str]:
    """A node's addresses without their lengths, IPv4 first."""
    found = [text.partition("/")[0] for text in node.addresses or ()]
    return sorted(found, key=lambda text: ":" in text)


def find_peer(netmap: NetMap, wanted: str) -> tuple[Node, str] | None:
    """The node (perhaps ourselves) of this address, host name or FQDN, and the address to reach it by."""
    plain = wanted.rstrip(".").lower()
    nodes = [*netmap.peers.values(), *([netmap.self_node] if netmap.self_node else [])]
    try:
        packed = pack(plain)
    except ValueError:
        packed = b""
    for node in nodes:
        addresses = own_addresses(node)
        name = (node.name or "").rstrip(".").lower()
        if packed and any(prefix.network == packed for prefix in prefixes(node.addresses)):
            return node, plain
        if addresses and plain in (name, name.partition(".")[0]):
            return node, addresses[0]
    return None


def _concerns_packets(old: Node, new: Node) -> bool:
    """Whether more has changed than who is there, which is what changes most."""
    told = {"online": old.online, "last_seen": old.last_seen}
    return msgspec.structs.replace(new, **told) != old


def disco_key(node: Node) -> DiscoPublic | None:
    """The node's key for path discovery; None where it has none that can be read."""
    try:
        return DiscoPublic.parse_optional(node.disco_key)
    except ValueError:
        return None


def reach(node: Node) -> Reach:
    """Where a peer may be, as the netmap says."""
    return Reach(disco_key(node), node.endpoints or (), node.home_derp or None, plain=bool(node.is_wireguard_only))
