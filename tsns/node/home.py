"""Which DERP region is our home, kept up to date: runs `paths.netcheck` on the host's network (ring 1).

Reports are made at the start, on each new DERP map and on request; after that every REST_S or so, oftener while the node is `active`
(which also keeps the NAT's mapping of our UDP socket alive).
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from typing import Final

import msgspec

from tsns.derp.captive import is_captive
from tsns.derp.dial import addresses, is_address, measure
from tsns.error import RetryableError
from tsns.netns.underlay import Underlay, udp_socket
from tsns.paths.netcheck import REPORT_S, Done, MeasureHttps, Netcheck, Output, Report, SendStun, eligible
from tsns.paths.preference import Preference
from tsns.proto.addresses import Endpoint
from tsns.proto.types import DEFAULT_STUN_PORT, DERPMap, DERPNode, DERPRegion, NetInfo

log = logging.getLogger(__name__)

ACTIVE_S: Final = (20.0, 26.0)  # between reports while there is traffic: below the 30 s of a NAT's UDP mapping
REST_S: Final = (100.0, 120.0)  # otherwise: a better or returned region is home within two minutes
REQUEST_SPACING_S: Final = 2.0  # between reports, however often they are asked for
RESOLVE_S: Final = 1.5  # a name that takes longer is left out of this report
RESOLVED_FOR_S: Final = 300.0  # how long a name's addresses are used without asking again
MAX_HTTPS: Final = 8  # measured at a time
LATENCY_DIGITS: Final = 3  # control is told milliseconds


class HomeFinder:
    """Finds the home region.

    `send_udp(address, data)` sends from the node's UDP socket (an OSError says that there is no way to that address), and the answers
    come in by `stun_reply`. `on_home(region, net_info)` is called when the home, or something else that control should know, has changed;
    a mere change of latency is not told, for each update is broadcast to every peer. `on_report(report)` is called before that, with each.
    `heard_at(region)` says when a standing DERP connection last brought something, `may_change()` whether peers could be told of another
    home now.
    """

    def __init__(
        self,
        *,
        underlay: Underlay,
        tls: ssl.SSLContext,
        send_udp: Callable[[Endpoint, bytes], None],
        on_home: Callable[[int | None, NetInfo], None],
        on_report: Callable[[Report], None] = lambda _report: None,
        heard_at: Callable[[int], float | None] = lambda _region: None,
        may_change: Callable[[], bool] = lambda: True,
    ) -> None:
        self.report: Report | None = None  # the last one
        self.captive: bool | None = None  # whether a portal stands before the world; None: nothing says so
        self.net_info = NetInfo()
        self._underlay = underlay
        self._tls = tls
        self._send_udp = send_udp
        self._on_home = on_home
        self._on_report = on_report
        self._heard_at = heard_at
        self._may_change = may_change
        self._netcheck = Netcheck(os.urandom)
        self._preference = Preference(int.from_bytes(os.urandom(4), "big"))
        self._map = DERPMap()
        self._active = False
        self._told: tuple[int | None, bytes] | None = None
        self._requested = asyncio.Event()
        self._wanted: list[asyncio.Future[Report]] = []  # by people, who want to see the whole
        self._finished = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._measuring: set[asyncio.Task[None]] = set()
        self._may_measure = asyncio.Semaphore(MAX_HTTPS)
        self._resolved: dict[tuple[str, str | None, str | None, int], tuple[float, list[str]]] = {}
        self._has_v6: bool | None = None

    @property
    def home(self) -> int | None:
        """The home region."""
        return self._preference.home

    @property
    def active(self) -> bool:
        """Whether there is traffic; the owner sets it."""
        return self._active

    @active.setter
    def active(self, active: bool) -> None:
        if active and not self._active:
            self._requested.set()  # the NAT has forgotten us
        self._active = active

    def set_map(self, derp_map: DERPMap) -> None:
        """Go by this DERP map. Where only one region can be home, or none, that is told at once."""
        self._map = derp_map
        self._resolved.clear()
        regions = eligible(derp_map)
        self._preference.set_regions(regions)
        if self.home is not None or not regions:
            self._tell()
        self._requested.set()

    def assume(self, region: int | None) -> None:
        """Begin with this home, where peers know us to be, if it is one that can be."""
        if region in eligible(self._map):
            self._preference.home = region
            self._tell()

    def request(self) -> None:
        """Make a report soon."""
        self._requested.set()

    async def fresh_report(self) -> Report:
        """A full report, made for the caller."""
        wanted: asyncio.Future[Report] = asyncio.get_running_loop().create_future()
        self._wanted.append(wanted)
        self._netcheck.forget()
        self._requested.set()
        return await wanted

    def regions(self) -> dict[int, DERPRegion]:
        """The regions that reports are about."""
        return eligible(self._map)

    def set_port_mapping(self, *, upnp: bool | None, pmp: bool | None, pcp: bool | None, have: bool) -> None:
        """What the home router offers is part of what control is told; None: not known."""
        self.net_info = msgspec.structs.replace(self.net_info, upnp=upnp, pmp=pmp, pcp=pcp, have_port_map=have)
        self._tell()

    def network_changed(self) -> None:
        """The host's network is another one: make a full report soon."""
        self._netcheck.forget()
        self._resolved.clear()
        self._requested.set()

    def stun_reply(self, data: bytes, address: Endpoint) -> None:  # noqa: ARG002 - the transaction says whose answer it is
        """Take a datagram that looks like STUN's."""
        self._act(self._netcheck.receive(data, time.monotonic()))

    async def run(self) -> None:
        """Make reports until cancelled."""
        try:
            while True:
                await self._requested.wait()
                while True:
                    self._requested.clear()
                    if eligible(self._map):
                        await self._make_report()
                        await asyncio.sleep(REQUEST_SPACING_S)
                    low_s, high_s = ACTIVE_S if self._active else REST_S
                    pause_s = random.uniform(low_s, high_s) - REQUEST_SPACING_S  # noqa: S311 - no secret
                    try:
                        async with asyncio.timeout(pause_s):
                            await self._requested.wait()
                    except TimeoutError:
                        pass
        finally:
            self._stop()
            await asyncio.gather(*self._measuring, return_exceptions=True)

    # --- one report ------------------------------------------------------------------------------------------------

    async def _make_report(self) -> None:
        regions = await self._stun_addresses(eligible(self._map))
        self._finished.clear()
        self._act(self._netcheck.start(regions, self.home, time.monotonic()))
        try:
            async with asyncio.timeout(2 * REPORT_S):  # only an error of our own takes so long
                await self._finished.wait()
        except TimeoutError:
            log.warning("the check of the DERP regions did not end")
        self._stop()
        if self.report is not None:
            if self.report.full:
                await self._look_for_portal(self.report)
            self._hand_out(self.report)

    async def _look_for_portal(self, report: Report) -> None:
        """Where no region answers by UDP, see whether something else answers in their place."""
        nodes = [node for region in self.regions().values() for node in region.nodes or ()]
        self.captive = None if report.working_udp else await is_captive(nodes, self._underlay)
        if self.captive:
            log.warning("a captive portal answers in place of the relays")

    def _hand_out(self, report: Report) -> None:
        if report.full:
            for wanted in self._wanted:
                if not wanted.done():
                    wanted.set_result(report)
            self._wanted.clear()

    def _stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for task in self._measuring:
            task.cancel()

    def _act(self, outputs: list[Output]) -> None:
        now = time.monotonic()
        while outputs:
            output = outputs.pop(0)
            match output:
                case SendStun():
                    try:
                        self._send_udp(output.address, output.data)
                    except OSError:
                        outputs += self._netcheck.unreachable(output.address, now)
                case MeasureHttps():
                    task = asyncio.create_task(self._measure(output.region), name=f"derp-{output.region}-latency")
                    self._measuring.add(task)
                    task.add_done_callback(self._measuring.discard)
                case Done():
                    self._note(output.report)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._netcheck.deadline()
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_later(max(deadline - now, 0.001), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._act(self._netcheck.tick(time.monotonic()))

    async def _measure(self, number: int) -> None:
        region = (self._map.regions or {}).get(number)
        latency: float | None = None
        if region is not None:
            try:
                async with self._may_measure:
                    latency = await measure(region, underlay=self._underlay, tls=self._tls)
            except (RetryableError, OSError) as error:
                log.debug("DERP region %d: no latency by HTTPS: %s", number, error)
        self._act(self._netcheck.https(number, latency, time.monotonic()))

    def _note(self, report: Report) -> None:
        before = self.home
        parameters = self._map.home_params
        scores = (parameters.region_score if parameters else None) or {}
        self._preference.note(report, eligible(self._map), scores, self._heard_at, may_change=self._may_change())
        self.report = report
        self._on_report(report)
        if self.home != before:
            log.info("home DERP region: %s, before: %s", self.home, before)
        old = self.net_info
        varies = report.mapping_varies_by_dest_ip
        self.net_info = msgspec.structs.replace(
            old,
            mapping_varies_by_dest_ip=old.mapping_varies_by_dest_ip if varies is None else varies,
            working_ipv6=bool(report.v6) or (old.working_ipv6 is True and not report.full),
            os_has_ipv6=self._has_v6,
            working_udp=report.working_udp,
            preferred_derp=self.home,
            derp_latency=_rounded(report),
        )
        self._tell()
        self._finished.set()

    def _tell(self) -> None:
        """Tell the owner, if there is news: the latencies are none."""
        self.net_info = msgspec.structs.replace(self.net_info, preferred_derp=self.home)
        news = (self.home, msgspec.json.encode(msgspec.structs.replace(self.net_info, derp_latency=None)))
        if news != self._told:
            self._told = news
            self._on_home(self.home, self.net_info)

    # --- addresses -------------------------------------------------------------------------------------------------

    async def _stun_addresses(self, regions: dict[int, DERPRegion]) -> dict[int, list[Endpoint]]:
        """Where to ask each region: an address of each family for each of its nodes that speaks STUN, in their order."""
        if self._has_v6 is None:
            self._has_v6 = self._can_reach("::1")
        nodes = {
            number: [node for node in region.nodes or () if _speaks_stun(node)] for number, region in regions.items()
        }
        everyone = [node for of_region in nodes.values() for node in of_region]
        found = dict(zip(map(id, everyone), await asyncio.gather(*map(self._addresses, everyone)), strict=True))
        v6_works: bool | None = None
        asked: dict[int, list[Endpoint]] = {number: [] for number in regions}
        for number, of_region in nodes.items():
            for node in of_region:
                for host in _one_of_each_family(found[id(node)]):
                    if ":" in host:
                        v6_works = self._can_reach(host) if v6_works is None else v6_works
                        if not v6_works:
                            continue
                    asked[number].append((host, node.stun_port or DEFAULT_STUN_PORT))
        return asked

    async def _addresses(self, node: DERPNode) -> list[str]:
        if node.stun_test_ip:
            return [node.stun_test_ip] if _family(node.stun_test_ip) else []
        port = node.stun_port or DEFAULT_STUN_PORT
        key = (node.host_name or "", node.ipv4, node.ipv6, port)
        kept = self._resolved.get(key)
        now = time.monotonic()
        if kept is not None and now - kept[0] < RESOLVED_FOR_S:
            return kept[1]
        try:
            async with asyncio.timeout(RESOLVE_S):
                found = await addresses(node, port, self._underlay)
        except (TimeoutError, ValueError):
            found = []
        if found:
            self._resolved[key] = (now, found)
        return found or (kept[1] if kept else [])

    def _can_reach(self, host: str) -> bool:
        """Whether this machine has a route to an address; nothing is sent."""
        try:
            with udp_socket(socket.AF_INET6 if ":" in host else socket.AF_INET, 0) as sock:
                sock.connect((host, 9))
        except OSError:
            return False
        return True


def _speaks_stun(node: DERPNode) -> bool:
    return bool(node.host_name) and 0 <= (node.stun_port or 0) <= 0xFFFF


def _one_of_each_family(hosts: Iterable[str]) -> list[str]:
    first: dict[int, str] = {}
    for host in hosts:
        first.setdefault(_family(host), host)
    return list(first.values())


def _family(host: str) -> int:
    """An address's family; 0 for what is none."""
    return next((family for family in (socket.AF_INET, socket.AF_INET6) if is_address(host, family)), 0)


def _rounded(report: Report) -> dict[str, float]:
    """The latencies as control wants them."""
    found = {"v4": {**report.https, **report.v4}, "v6": dict(report.v6)}
    return {
        f"{number}-{family}": round(s, LATENCY_DIGITS)
        for family, of in found.items()
        for number, s in sorted(of.items())
    }
