"""Rules and routes of an attachment, in a namespace that has others of its own (ring 1).

A packet's way is looked up in this order; the first table that knows its destination counts, also where it says `unreachable`. Nothing of
the namespace's own is touched, and what stands holds when the TUN is gone.

    5230  TAILNET_TABLE   the tailnet's ranges: by the TUN
    5240  main            answers from the namespace's own addresses; with an exit node only
    5250  main            without its default routes: the namespace's own networks
    5270  LED_TABLE       accepted subnets, and with an exit node everything: by the TUN

    exclusive             no 5240 and no 5250, and LED_TABLE says that all else is `unreachable`

All of this is in the namespace of whoever calls.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from tsns.netns import device_table, netlink, route_table, rule_table
from tsns.netns.netlink_messages import FAMILIES as FAMILY_BY_BYTES
from tsns.netns.route_table import LOCAL_TABLE, MAIN_TABLE, Route
from tsns.netns.routes import EVERYTHING, STANDING_METRIC, TAILNET, TUNNEL_METRIC
from tsns.netns.rule_table import Rule
from tsns.proto.addresses import Prefix

TAILNET_TABLE: Final = 5251
LED_TABLE: Final = 5252
TAILNET_RULE: Final = 5230
ANSWERS_RULE: Final = 5240
NETWORKS_RULE: Final = 5250
LED_RULE: Final = 5270
MAX_OWN_ADDRESSES: Final = 64  # that have a rule of their own
DOCKER_RESOLVER: Final = Prefix.parse("127.0.0.11/32")

_OUR_TABLES: Final = (TAILNET_TABLE, LED_TABLE)
_IPV6: Final = "/proc/sys/net/ipv6"


def families() -> tuple[int, ...]:
    """Those that this kernel has."""
    return netlink.FAMILIES if os.path.isdir(_IPV6) else (socket.AF_INET,)


# --- rules --------------------------------------------------------------------------------------------------------------


def rules(own: Sequence[Prefix], *, exclusive: bool) -> set[Rule]:
    """Those of an attachment whose answers from these addresses go their own way."""
    wanted: set[Rule] = set()
    for family in families():
        wanted |= {Rule(family, TAILNET_RULE, TAILNET_TABLE), Rule(family, LED_RULE, LED_TABLE)}
        if not exclusive:
            wanted.add(Rule(family, NETWORKS_RULE, MAIN_TABLE, no_default=True))
    if not exclusive:
        wanted |= {
            Rule(FAMILY_BY_BYTES[len(prefix.network)], ANSWERS_RULE, MAIN_TABLE, prefix)
            for prefix in own[:MAX_OWN_ADDRESSES]
        }
    return wanted


def present_rules() -> set[Rule]:
    """Those of ours that are there."""
    return rule_table.present(families())


def have_rules(wanted: set[Rule]) -> None:
    """These, and no others of ours."""
    rule_table.make_so(wanted, present_rules())


def own_addresses(but: Iterable[int]) -> list[Prefix]:
    """What others reach this namespace at, but for the addresses of these devices."""
    devices = set(but)
    found = {
        Prefix(each.packed, 8 * len(each.packed))
        for each in device_table.addresses()
        if each.device not in devices and each.scope < device_table.SCOPE_LINK
    }
    return sorted(found, key=lambda prefix: (len(prefix.network), prefix.network))


# --- routes -------------------------------------------------------------------------------------------------------------


def stand(*, exclusive: bool, without_resolver: bool) -> None:
    """What holds whatever comes. `without_resolver`: nobody reaches Docker's."""
    add = {*_standing((), everything=exclusive)}
    resolver = Route(DOCKER_RESOLVER, STANDING_METRIC, 0, LOCAL_TABLE)
    route_table.change({*add, resolver} if without_resolver else add, () if without_resolver else (resolver,))


def lead(tun: int, addresses: Iterable[Prefix], led: Iterable[Prefix], *, everything: bool) -> None:
    """Lead these networks by the TUN, as far as it has an address of their family; with `everything` nothing has another way.

    Routes that are as they should be are left alone.
    """
    networks = list(led)
    widths = {len(prefix.network) for prefix in addresses}
    wanted = {
        *(Route(prefix, TUNNEL_METRIC, tun, TAILNET_TABLE) for prefix in TAILNET if len(prefix.network) in widths),
        *(Route(prefix, TUNNEL_METRIC, tun, LED_TABLE) for prefix in networks if len(prefix.network) in widths),
        *_standing(networks, everything=everything),
    }
    route_table.make_so(wanted, {route for route in route_table.present() if route.table in _OUR_TABLES})


def remove_all() -> None:
    """Take all rules and routes of ours away."""
    have_rules(set())
    route_table.change((), [route for route in route_table.present() if route.table in {*_OUR_TABLES, LOCAL_TABLE}])


def _standing(led: Iterable[Prefix], *, everything: bool) -> Iterator[Route]:
    known = {size for size, family in FAMILY_BY_BYTES.items() if family in families()}
    for prefix in TAILNET:
        if len(prefix.network) in known:
            yield Route(prefix, STANDING_METRIC, 0, TAILNET_TABLE)
    for prefix in {*(prefix for prefix in led if prefix not in EVERYTHING), *(EVERYTHING if everything else ())}:
        if len(prefix.network) in known:
            yield Route(prefix, STANDING_METRIC, 0, LED_TABLE)
