"""What peers offer to carry, and to whom each prefix goes (ring 0).

Source: net/routemanager of Tailscale's module. AllowedIPs are all that control lets a peer carry; what of it is used is ours to decide:

    the peer's own addresses, single addresses of the tailnet    always
    subnets                                                      where routes are accepted
    everything (0.0.0.0/0, ::/0)                                 of the chosen exit node alone

Two peers may offer one subnet: it goes to the lower node id of those that can be reached. A subnet that nobody can carry at the moment is
still offered, so that packets to it have no other way meanwhile.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple

from tsns.control.nodes import prefixes
from tsns.proto.addresses import CGNAT, ULA, Prefix, may_be_routed
from tsns.proto.types import Node

CHROMEOS: Final = Prefix.parse("100.115.92.0/23")  # not the tailnet's, although in its range
EVERYTHING: Final = (Prefix.parse("0.0.0.0/0"), Prefix.parse("::/0"))


class Offer(NamedTuple):
    """The AllowedIPs of a peer, by what they are."""

    own: tuple[Prefix, ...]
    subnets: tuple[Prefix, ...] = ()
    everything: tuple[Prefix, ...] = ()  # one for each family in which the peer is an exit node


def in_tailnet(prefix: Prefix) -> bool:
    """Whether all of it lies in the ranges of which a tailnet's nodes have their addresses."""
    return (CGNAT.covers_prefix(prefix) and not CHROMEOS.covers_prefix(prefix)) or ULA.covers_prefix(prefix)


def offer_of(node: Node) -> Offer:
    """What a peer offers; what nobody may offer is left out."""
    if node.allowed_ips is None or node.allowed_ips is node.addresses:
        return Offer(prefixes(node.addresses))  # nearly all peers
    addresses = set(node.addresses or ())
    own: list[Prefix] = []
    subnets: list[Prefix] = []
    everything: list[Prefix] = []
    for text in node.allowed_ips:
        for prefix in prefixes((text,)):
            if text in addresses:
                own.append(prefix)
            elif not prefix.bits:
                everything.append(prefix)
            elif may_be_routed(prefix):
                (own if prefix.is_address and in_tailnet(prefix) else subnets).append(prefix)
    return Offer(tuple(own), tuple(subnets), tuple(everything))


def offers_exit(node: Node) -> bool:
    """Whether a peer offers to be an exit node."""
    if node.allowed_ips is None or node.allowed_ips is node.addresses:
        return False
    return any(text in node.allowed_ips for text in ("0.0.0.0/0", "::/0"))


def reachable(node: Node) -> bool:
    """A node with neither a relay nor a key to find paths by, and which is no plain WireGuard peer, cannot be reached at all."""
    return bool(node.home_derp or node.is_wireguard_only or node.disco_key)


class Subnets:
    """All subnets that are offered, and whose they are."""

    def __init__(self) -> None:
        self._offers: dict[Prefix, dict[int, bool]] = {}  # by node id: whether it can be reached
        self._of: dict[int, tuple[tuple[Prefix, ...], bool]] = {}

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._offers)

    def set(self, number: int, subnets: tuple[Prefix, ...], *, usable: bool) -> Collection[int]:
        """Say what a node offers by now, and whether it can be reached; returns the other nodes that have more or less by that."""
        before = self._of.pop(number, ((), False))
        if subnets:
            self._of[number] = (subnets, usable)
        if before == (subnets, usable):
            return ()
        concerned: set[int] = set()
        for prefix in {*before[0], *subnets}:
            owner = self.owner(prefix)
            offers = self._offers.setdefault(prefix, {})
            if prefix in subnets:
                offers[number] = usable
            else:
                offers.pop(number, None)
            if not offers:
                del self._offers[prefix]
            concerned |= {owner, self.owner(prefix)} if owner != self.owner(prefix) else set()
        return concerned - {0, number}

    def offering(self) -> Collection[int]:
        """All who offer any."""
        return self._of.keys()

    def owner(self, prefix: Prefix) -> int:
        """The node that packets to this subnet go to; 0 where there is none."""
        offers = self._offers.get(prefix, {})
        return min((number for number, usable in offers.items() if usable), default=0)

    def of(self, number: int) -> tuple[Prefix, ...]:
        """The subnets that go to this node."""
        return tuple(prefix for prefix in self._of.get(number, ((), False))[0] if self.owner(prefix) == number)
