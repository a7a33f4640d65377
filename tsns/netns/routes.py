"""Addresses and routes of a node's TUN (ring 1).

The keeper calls this with what the engine asks for, after `check`: an engine that strangers have taken over may not lead more into the
tunnel than a tailnet has.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tsns.netns import netlink
from tsns.netns.child import in_network
from tsns.netns.tun import TUN_NAME
from tsns.proto.addresses import CGNAT, ULA, Prefix, unpack

TUNNEL_METRIC: Final = 100
MAX_ADDRESSES: Final = 16
TAILNET: Final = (CGNAT, ULA)
IFA_F_NODAD: Final = 2


def check(addresses: Sequence[str]) -> list[Prefix]:
    """The engine's wish as prefixes; ValueError where it has no right to it."""
    if len(addresses) > MAX_ADDRESSES:
        raise ValueError(f"{len(addresses)} addresses")
    prefixes = [Prefix.parse(text) for text in addresses]
    for prefix in prefixes:
        if not prefix.is_address or not any(range_.covers_prefix(prefix) for range_ in TAILNET):
            raise ValueError(f"{prefix} is not a tailnet address")
    return prefixes


def apply(namespace: int, addresses: Sequence[Prefix]) -> None:
    """Give the TUN exactly these addresses, and the tailnet's ranges as routes. OSError with the reason."""
    in_network(namespace, lambda: _apply(addresses))


def _apply(addresses: Sequence[Prefix]) -> list[int]:
    wanted = {(unpack(prefix.network), prefix.bits) for prefix in addresses}
    with netlink.connection() as ip:
        index = ip.link_lookup(ifname=TUN_NAME)[0]
        present = {(str(item.get_attr("IFA_ADDRESS")), int(item["prefixlen"])) for item in ip.get_addr(index=index)}
        for address, bits in present - wanted:
            ip.addr("del", index=index, address=address, prefixlen=bits)
        for address, bits in wanted - present:
            ip.addr("add", index=index, address=address, prefixlen=bits, flags=IFA_F_NODAD)
        for range_ in TAILNET:
            if any(len(prefix.network) == len(range_.network) for prefix in addresses):
                ip.route("replace", dst=str(range_), oif=index, priority=TUNNEL_METRIC)
    return []
