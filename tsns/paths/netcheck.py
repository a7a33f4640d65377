"""How far the DERP regions are, and what the network does to UDP (ring 0).

Source: net/netcheck/netcheck.go of Tailscale's module. One `Netcheck` makes one report after another:

    idle --start--> STUN --every region heard and waited for, or STUN_S--> done
                     |
                     +--nothing heard within HTTPS_AFTER_S, or no STUN to ask--> STUN and HTTPS --> done

A full report asks every region, an incremental one the few that matter. `paths.preference` makes the choice of home out of reports.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tsns.paths import stun
from tsns.proto.addresses import Endpoint
from tsns.proto.types import DERPMap, DERPRegion

REPORT_S: Final = 5.0
STUN_S: Final = 3.0
HTTPS_AFTER_S: Final = 0.8  # without any answer by then, HTTPS is tried beside STUN
FULL_INTERVAL_S: Final = 300.0
REMEMBERED_S: Final = 600.0  # a region that fell silent is still asked for so long
FULL_TRIES: Final = 3
FULL_SPACING_S: Final = 0.1
DEFAULT_LATENCY_S: Final = 0.2
RETRY_FACTOR: Final = 1.2  # an incremental try waits for the last latency times this
RETRY_STEP_S: Final = 0.05
HOME_TRIES: Final = 4
FASTEST_REGIONS: Final = 3
ENOUGH_REGIONS: Final = 3  # so many answers, and the others are far away
MIN_WAIT_S: Final = 0.05  # for the others, after the last answer
MAX_ADDRESSES: Final = 8  # asked in a region


@dataclass(frozen=True, slots=True)
class SendStun:
    """Send this datagram from the node's UDP socket."""

    region: int
    address: Endpoint
    data: bytes


@dataclass(frozen=True, slots=True)
class MeasureHttps:
    """Measure this region by HTTPS, and tell `https`."""

    region: int


@dataclass(frozen=True, slots=True)
class Report:
    """What one check found; latencies in seconds, by region."""

    at: float
    full: bool
    v4: Mapping[int, float] = field(default_factory=dict)
    v6: Mapping[int, float] = field(default_factory=dict)
    https: Mapping[int, float] = field(default_factory=dict)
    global_v4: Endpoint | None = None
    global_v6: Endpoint | None = None
    mapping_varies_by_dest_ip: bool | None = None  # None: fewer than two servers answered

    @property
    def working_udp(self) -> bool:
        return bool(self.v4 or self.v6)

    def latencies(self) -> dict[int, float]:
        """The best latency of each region that answered, over whatever it was."""
        best: dict[int, float] = {}
        for found in (self.v4, self.v6, self.https):
            for region, latency in found.items():
                best[region] = min(latency, best.get(region, latency))
        return best


@dataclass(frozen=True, slots=True)
class Done:
    """The report is made."""

    report: Report


Output = SendStun | MeasureHttps | Done


@dataclass(frozen=True, slots=True)
class _Try:
    at: float
    region: int
    v6: bool
    address: Endpoint


@dataclass(frozen=True, slots=True)
class _Asked:
    at: float
    region: int
    address: Endpoint


def eligible(derp_map: DERPMap) -> dict[int, DERPRegion]:
    """The regions that may be measured, and thus become home."""
    regions = (derp_map.regions or {}).items()
    return {
        number: region
        for number, region in regions
        if region is not None and region.nodes and number > 0 and not region.no_measure_no_home and not region.avoid
    }


class Netcheck:
    """Makes reports. Whoever runs it does what the outputs say and calls `tick` no later than `deadline`."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._last: dict[int, tuple[float, float]] = {}  # of each region: when it was heard last, and its latency then
        self._full_at: float | None = None
        self._ever_asked: set[int] = set()
        self._running = False

    @property
    def running(self) -> bool:
        """Whether a report is being made."""
        return self._running

    def forget(self) -> None:
        """The network is another one: the next report is a full one."""
        self._full_at = None
        self._last.clear()

    def start(self, regions: Mapping[int, Sequence[Endpoint]], home: int | None, now: float) -> list[Output]:
        """Begin a report on these regions, with the addresses at which their STUN servers are to be asked (none: by HTTPS)."""
        self._last = {region: last for region, last in self._last.items() if now - last[0] <= REMEMBERED_S}
        known = [region for region in self._last if region in regions]
        outdated = self._full_at is None or now - self._full_at >= FULL_INTERVAL_S
        full = outdated or not known or not regions.keys() <= self._ever_asked
        self._ever_asked |= regions.keys()
        fastest = sorted(known, key=lambda region: self._last[region][1])[:FASTEST_REGIONS]
        if not full:
            wanted = {*fastest, *([home] if home in regions else [])}
            regions = {region: addresses for region, addresses in regions.items() if region in wanted}
        self._running = True
        self._full = full
        self._started_at = now
        self._regions = regions
        self._asked: dict[bytes, _Asked] = {}
        self._v4: dict[int, float] = {}
        self._v6: dict[int, float] = {}
        self._https: dict[int, float] = {}
        self._https_open: set[int] = set()
        self._https_begun: set[int] = set()
        self._mapped: dict[Endpoint, Endpoint] = {}  # by IPv4 server: how it sees us
        self._global_v6: Endpoint | None = None
        self._wait_until: float | None = None  # for the regions that have not answered yet
        self._tries = sorted(self._plan(home, fastest, now), key=lambda one: one.at)
        out: list[Output] = []
        self._measure_https([region for region in regions if not regions[region]], out)
        return out + self.tick(now)

    def receive(self, data: bytes, now: float) -> list[Output]:
        """Take a datagram that looks like an answer of STUN; what is none of ours does nothing."""
        answer = stun.parse_response(data)
        asked = self._asked.pop(answer.txid, None) if self._running and answer is not None else None
        if asked is None or answer is None:
            return []
        latency = now - asked.at
        if ":" in asked.address[0]:
            self._v6.setdefault(asked.region, latency)
            self._global_v6 = self._global_v6 or answer.address
        else:
            self._v4.setdefault(asked.region, latency)
            self._mapped.setdefault(asked.address, answer.address)
        self._note_enough(latency, now)
        return self.tick(now)

    def unreachable(self, address: Endpoint, now: float) -> list[Output]:
        """No datagram can be sent to this address now."""
        if not self._running:
            return []
        self._tries = [one for one in self._tries if one.address != address]
        self._asked = {txid: asked for txid, asked in self._asked.items() if asked.address != address}
        return self.tick(now)

    def https(self, region: int, latency: float | None, now: float) -> list[Output]:
        """Take the outcome of a MeasureHttps; None: it did not work."""
        if not self._running or region not in self._https_open:
            return []
        self._https_open.discard(region)
        if latency is not None:
            self._https[region] = latency
            self._note_enough(latency, now)
        return self.tick(now)

    def tick(self, now: float) -> list[Output]:
        """Let time pass."""
        out: list[Output] = []
        if not self._running:
            return out
        while self._tries and self._tries[0].at <= now:
            one = self._tries.pop(0)
            if self._would_help(one):
                txid = self._random(stun.TXID_BYTES)
                self._asked[txid] = _Asked(now, one.region, one.address)
                out.append(SendStun(one.region, one.address, stun.request(txid)))
        if self._udp_is_silent() and (now >= self._started_at + HTTPS_AFTER_S or not (self._tries or self._asked)):
            self._measure_https(list(self._regions), out)
        if self._is_over(now):
            out.append(Done(self._finish(now)))
        return out

    def deadline(self) -> float | None:
        """When `tick` is due at the latest; None while no report is being made."""
        if not self._running:
            return None
        due = [self._started_at + (REPORT_S if self._https_open else STUN_S)]
        due += [one.at for one in self._tries[:1]]
        if self._udp_is_silent() and len(self._https_begun) < len(self._regions):
            due.append(self._started_at + HTTPS_AFTER_S)
        if self._wait_until is not None:
            due.append(self._wait_until)
        return min(due)

    # --- what to ask -----------------------------------------------------------------------------------------------

    def _plan(self, home: int | None, fastest: Sequence[int], now: float) -> list[_Try]:
        plan = []
        for region, addresses in self._regions.items():
            if self._full:
                times = [FULL_SPACING_S * i for i in range(FULL_TRIES)]
            else:
                tries = HOME_TRIES if region == home else 2 if region in fastest[:2] else 1
                spacing = RETRY_FACTOR * self._last.get(region, (now, DEFAULT_LATENCY_S))[1]
                times = [spacing * i + RETRY_STEP_S * i * (i >= 2) for i in range(tries)]
            for v6 in (False, True):
                of_family = [address for address in addresses if (":" in address[0]) is v6][:MAX_ADDRESSES]
                if of_family:
                    plan += [_Try(now + t, region, v6, of_family[i % len(of_family)]) for i, t in enumerate(times)]
        return plan

    def _would_help(self, one: _Try) -> bool:
        """Whether an answer would tell anything new."""
        if one.region not in self._v4 and one.region not in self._v6:
            return True
        if one.v6:
            return not self._v6
        return len(self._mapped) < 2 and one.address not in self._mapped

    def _udp_is_silent(self) -> bool:
        return not (self._v4 or self._v6)

    def _measure_https(self, regions: Sequence[int], out: list[Output]) -> None:
        for region in regions:
            if region not in self._https_begun:
                self._https_begun.add(region)
                self._https_open.add(region)
                out.append(MeasureHttps(region))

    # --- when it is enough -----------------------------------------------------------------------------------------

    def _note_enough(self, latency: float, now: float) -> None:
        """With answers from enough regions, wait for the others about as long as the slowest took so far."""
        answered = self._v4.keys() | self._v6.keys() | self._https.keys()
        if self._wait_until is None and len(answered) >= min(ENOUGH_REGIONS, len(self._regions)):
            slowest = max(*self._v4.values(), *self._v6.values(), *self._https.values(), latency)
            self._wait_until = now + max(slowest * (2 if self._full else 1), MIN_WAIT_S)

    def _is_over(self, now: float) -> bool:
        if now >= self._started_at + (REPORT_S if self._https_open else STUN_S):
            return True
        if self._wait_until is not None and now >= self._wait_until:
            return True
        helpful = [one for one in self._tries if self._would_help(one)]
        return not helpful and not self._https_open and not self._unanswered()

    def _unanswered(self) -> bool:
        """Whether a region was asked over a family and has said nothing at all there."""
        return any(
            asked.region not in (self._v6 if ":" in asked.address[0] else self._v4) for asked in self._asked.values()
        )

    def _finish(self, now: float) -> Report:
        self._running = False
        views = list(self._mapped.values())
        report = Report(
            at=now,
            full=self._full,
            v4=self._v4,
            v6=self._v6,
            https=self._https,
            global_v4=views[0] if views else None,
            global_v6=self._global_v6,
            mapping_varies_by_dest_ip=any(view != views[0] for view in views) if len(views) > 1 else None,
        )
        latencies = report.latencies()
        self._last.update({region: (now, latency) for region, latency in latencies.items()})
        if self._full:
            self._full_at = self._started_at
        elif not latencies:
            self._full_at = None
        self._tries, self._asked = [], {}
        return report
