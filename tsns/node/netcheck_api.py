"""GET /tsns/v1/netcheck: what the network between this node and the world is like, measured for the caller (ring 1)."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from tsns.error import UserError
from tsns.node.home import HomeFinder
from tsns.node.localapi import Answer
from tsns.node.status import SCHEMA
from tsns.paths.netcheck import Report
from tsns.proto.addresses import endpoint_text

REPORT_PATIENCE_S: Final = 20.0


async def netcheck(home: HomeFinder) -> Answer:
    """Make a full report. UserError where there are no relays to measure, or nothing can be measured."""
    if not home.regions():
        raise UserError("the tailnet has named no relays yet", "see `tsns status`, and try again once it is running")
    try:
        async with asyncio.timeout(REPORT_PATIENCE_S):
            report = await home.fresh_report()
    except TimeoutError:
        raise UserError("the check of the network did not end", "see `tsns logs`, and try again") from None
    return _as_answer(report, home)


def _as_answer(report: Report, home: HomeFinder) -> dict[str, Any]:
    info = home.net_info
    return {
        "schema": SCHEMA,
        "udp": report.working_udp,
        "ipv4": endpoint_text(report.global_v4) if report.global_v4 else "",
        "ipv6": endpoint_text(report.global_v6) if report.global_v6 else "",
        "os_has_ipv6": info.os_has_ipv6,
        "mapping_varies_by_dest_ip": report.mapping_varies_by_dest_ip,
        "captive_portal": home.captive,
        "port_mapping": [
            name for name, there in (("UPnP", info.upnp), ("NAT-PMP", info.pmp), ("PCP", info.pcp)) if there
        ],
        "home": home.home,
        "regions": [
            {
                "id": number,
                "code": region.region_code or "",
                "name": region.region_name or "",
                "latency": report.latencies().get(number),
                "latency_v4": report.v4.get(number),
                "latency_v6": report.v6.get(number),
                "latency_https": report.https.get(number),
            }
            for number, region in sorted(
                home.regions().items(), key=lambda item: (report.latencies().get(item[0], float("inf")), item[0])
            )
        ],
    }
