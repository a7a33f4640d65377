"""Addresses and routes of a node's namespace (ring 1).

The keeper calls this with what the engine asks for, after `check`: an engine that strangers have taken over may not lead more into the
tunnel than a tailnet has, and nothing else than what a person has accepted.

A packet's way is looked up in this order; the first table that knows its destination counts, also where it says `unreachable`:

    main             the tailnet's ranges and accepted subnets: by the TUN, and where that is gone `unreachable`
    EXIT_TABLE       everything, where an exit node is asked for: by the TUN, and without the exit node `unreachable`
    INTERNET_TABLE   everything, where the host's network may be used (`internet`)

With an exit node the host's neighbourhood, if it may be reached, stands between the first two (LAN_TABLE).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Final

from tsns.netns import device_table, netlink, route_table
from tsns.netns.child import in_network
from tsns.netns.device_table import Address
from tsns.netns.route_table import Route
from tsns.netns.tun import TUN_NAME
from tsns.proto.addresses import CGNAT, ULA, Prefix, may_be_routed

if TYPE_CHECKING:
    from pyroute2 import IPRoute

TUNNEL_METRIC: Final = 100
STANDING_METRIC: Final = 1 << 30  # behind every other route
MAX_ADDRESSES: Final = 16
MAX_ROUTES: Final = 4096
TAILNET: Final = (CGNAT, ULA)
EVERYTHING: Final = (Prefix.parse("0.0.0.0/0"), Prefix.parse("::/0"))
LAN_TABLE: Final = 5251
EXIT_TABLE: Final = 5252
INTERNET_TABLE: Final = 5253
RULES: Final = {LAN_TABLE: 32_770, EXIT_TABLE: 32_780, INTERNET_TABLE: 32_790}  # behind the main table's, 32766


def check(
    addresses: Sequence[str], routes: Sequence[str] = (), *, accepts_routes: bool = False, exit_node: bool = False
) -> tuple[list[Prefix], list[Prefix]]:
    """The engine's wish as prefixes: addresses and routes; ValueError where it has no right to it.

    Routes are a person's to accept: subnets, or with an exit node everything.
    """
    if len(addresses) > MAX_ADDRESSES:
        raise ValueError(f"{len(addresses)} addresses")
    if len(routes) > MAX_ROUTES:
        raise ValueError(f"{len(routes)} routes")
    own = [Prefix.parse(text, strict=True) for text in addresses]
    for prefix in own:
        if not prefix.is_address or not any(range_.covers_prefix(prefix) for range_ in TAILNET):
            raise ValueError(f"{prefix} is not a tailnet address")
    led = [Prefix.parse(text, strict=True) for text in routes]
    for prefix in led:
        if not (exit_node if prefix in EVERYTHING else accepts_routes):
            raise ValueError(f"nobody has accepted a route to {prefix}")
        if not may_be_routed(prefix):
            raise ValueError(f"{prefix} is nobody's to be led to")
    return own, led


def apply(
    namespace: int, addresses: Sequence[Prefix], routes: Sequence[Prefix] = (), *, exit_node: bool = False
) -> None:
    """Give the TUN exactly these addresses, and the tailnet's ranges and these routes. OSError with the reason.

    With `exit_node` nothing goes out but by the TUN. Routes that are as they should be are left alone.
    """
    in_network(namespace, lambda: _apply(addresses, routes, exit_node=exit_node))


def hold(namespace: int, *, exit_node: bool) -> None:
    """See to it that with an exit node nothing goes out but by the TUN, before there is one. OSError with the reason."""
    in_network(namespace, lambda: _hold(exit_node=exit_node))


def _apply(addresses: Sequence[Prefix], routes: Sequence[Prefix], *, exit_node: bool) -> list[int]:
    families = {len(prefix.network) for prefix in addresses}
    index = tun_index()
    give_addresses(index, addresses)
    with netlink.connection() as ip:
        for range_ in TAILNET:
            if len(range_.network) in families:
                ip.route("replace", dst=str(range_), oif=index, priority=TUNNEL_METRIC)
        if exit_node:
            use_table(ip, EXIT_TABLE)
    led = _led(routes, families, index)
    route_table.make_so({*led, *_standing(routes, exit_node=exit_node)}, route_table.present())
    return []


def _hold(*, exit_node: bool) -> list[int]:
    if exit_node:
        with netlink.connection() as ip:
            use_table(ip, EXIT_TABLE)
        route_table.change(_standing((), exit_node=True), ())
    else:
        route_table.change((), [route for route in route_table.present() if route.table == EXIT_TABLE])
    return []


def _led(routes: Iterable[Prefix], families: set[int], tun: int) -> Iterable[Route]:
    """Into the tunnel, as far as the node has an address of that family."""
    for prefix in routes:
        if len(prefix.network) in families:
            yield Route(prefix, TUNNEL_METRIC, tun, EXIT_TABLE if prefix in EVERYTHING else route_table.MAIN_TABLE)


def _standing(routes: Iterable[Prefix], *, exit_node: bool) -> Iterable[Route]:
    """What holds when the TUN is gone."""
    yield from (Route(prefix, STANDING_METRIC) for prefix in routes if prefix not in EVERYTHING)
    if exit_node:
        yield from (Route(prefix, STANDING_METRIC, 0, EXIT_TABLE) for prefix in EVERYTHING)


def tun_index() -> int:
    """The TUN's number; OSError where it is gone."""
    try:
        return device_table.find(TUN_NAME)
    except OSError as error:
        raise OSError(error.errno, f"there is no {TUN_NAME} any more") from None


def give_addresses(device: int, addresses: Iterable[Prefix]) -> None:
    """Have a device have exactly these. OSError with the reason."""
    wanted = {Address(device, prefix.network, prefix.bits) for prefix in addresses}
    present = {each for each in device_table.addresses() if each.device == device}
    device_table.change(wanted - present, present - wanted)


def use_table(ip: IPRoute, table: int) -> None:
    """Have this table looked up, in both families."""
    for family in netlink.FAMILIES:
        netlink.ensure(ip.rule, family=family, table=table, priority=RULES[table])
