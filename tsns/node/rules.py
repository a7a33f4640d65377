"""The packet filter as the netmap has it (ring 1)."""

from __future__ import annotations

from typing import Final

from tsns.config import NodeConfig
from tsns.control.netmap import NetMap, NetMapChange
from tsns.control.nodes import prefixes
from tsns.filter.packet_filter import PacketFilter
from tsns.proto.addresses import CGNAT, NOBODYS_TEXT, Prefix, without
from tsns.proto.types import Node
from tsns.steps import Steps

EVERY_RULE: Final = NetMapChange(first=False, rules=True)  # as if all of them were new
# What an exit node opens to its users: the internet, and neither its neighbours nor what is nobody's.
_NOT_THE_INTERNET: Final = (*map(Prefix.parse, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", *NOBODYS_TEXT)), CGNAT)
INTERNET: Final = (*without(Prefix.parse("0.0.0.0/0"), _NOT_THE_INTERNET), Prefix.parse("2000::/3"))


def applying_rules(
    packet_filter: PacketFilter, netmap: NetMap, change: NetMapChange, config: NodeConfig
) -> Steps[str | None]:
    """Compile the filter anew, in steps, where the rules, our addresses or those whom the rules mean have changed; None where they have not.

    What is returned is a sentence on what cannot be understood of them, empty where all can.
    """
    itself = netmap.self_node
    if itself is None or not (change.rules or change.self_changed or _means_others(packet_filter, change)):
        return None
    yield from packet_filter.updating(
        netmap.rules,
        local_networks(itself, config),
        shields_up=config.shields_up,
        capability_holders=lambda wanted: (
            prefix for node in netmap.holders(wanted) for prefix in prefixes(node.addresses)
        ),
        unsigned=[
            prefix
            for node in netmap.peers.values()
            if node.unsigned_peer_api_only
            for prefix in prefixes(node.addresses)
        ],
    )
    if packet_filter.rules.rejected:
        return "control's packet filter cannot be understood: nothing is let in"
    if packet_filter.rules.skipped:
        return f"{packet_filter.rules.skipped} entries of control's packet filter cannot be understood"
    return ""


def local_networks(itself: Node, config: NodeConfig) -> list[Prefix]:
    """Where peers may send to by way of us, as far as the rules allow it: our own addresses, and what we offer to carry."""
    offered = map(Prefix.parse, config.advertise_routes)
    return [*prefixes(itself.addresses), *offered, *(INTERNET if config.advertise_exit_node else ())]


def _means_others(packet_filter: PacketFilter, change: NetMapChange) -> bool:
    """Whether somebody has changed whom rules mean by more than an address."""
    named = packet_filter.rules.capabilities
    return any(
        node.unsigned_peer_api_only or (named and named & (node.cap_map or {}).keys())
        for pair in change.peers()
        for node in pair
        if node is not None
    )
