"""`netcheck`: what the network between a node and the world is like (ring 2)."""

from __future__ import annotations

from typing import Final

from tsns.cli import output, tables
from tsns.cli.options import Json, NodeName, Quiet, Verbose, the_node, waiting, where_is
from tsns.node import client

PATIENCE_S: Final = 25.0
_WORDS: Final = {True: "yes", False: "no", None: "unknown"}


def netcheck(name: NodeName = None, *, as_json: Json = False, quiet: Quiet = False, verbose: Verbose = 0) -> int:
    """Measure the network: UDP, addresses as the world sees them, NAT, port mapping, and the way to each relay.

    Exit status 1 when no relay can be reached at all.
    """
    where = where_is(name)
    name = the_node(name, where, "netcheck")
    with waiting("the answers of the relays", quiet, verbose):
        found = client.query(name, where, "/tsns/v1/netcheck", timeout_s=PATIENCE_S)
    if as_json:
        output.answer(found)
    else:
        output.lines(report_lines(found))
    return 0 if any(region.get("latency") is not None for region in found.get("regions") or []) else 1


def report_lines(found: tables.Object) -> list[str]:
    """The report for people, in the order of `tailscale netcheck`."""
    mapping = found.get("port_mapping") or []
    regions = found.get("regions") or []
    nearest = next((region for region in regions if region.get("id") == found.get("home")), None)
    v6 = found.get("ipv6")
    no_v6 = "no, but the system has it" if found.get("os_has_ipv6") else "no"
    lines = [
        f"UDP: {_WORDS[bool(found.get('udp'))]}",
        f"IPv4: {'yes, ' + tables.cell(found['ipv4']) if found.get('ipv4') else 'no'}",
        f"IPv6: {'yes, ' + tables.cell(v6) if v6 else no_v6}",
        f"Mapping varies by destination: {_WORDS[found.get('mapping_varies_by_dest_ip')]}",
        f"Port mapping: {', '.join(map(tables.cell, mapping)) or 'none found'}",
        f"Captive portal: {_WORDS[found.get('captive_portal')]}",
        f"Home relay: {tables.cell((nearest or {}).get('name') or (nearest or {}).get('code'))}",
    ]
    rows = [["relay", "latency", "name"]] + [
        [tables.cell(region.get("code") or region.get("id")), _latency(region), tables.cell(region.get("name"))]
        for region in regions
    ]
    return [*lines, "", *tables.columns(rows)]


def _latency(region: tables.Object) -> str:
    latency = region.get("latency")
    if latency is None:
        return "no answer"
    by_https = region.get("latency_v4") is None and region.get("latency_v6") is None
    return tables.milliseconds(float(latency)) + (" by HTTPS" if by_https else "")
