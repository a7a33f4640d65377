"""A small internet under a driven clock: sites behind NATs and firewalls, the weather between them, relays and STUN servers.

A gate does what Linux does with nftables and connection tracking, where what nobody asked for is dropped:

    Gate       nothing is changed and nothing is filtered
    Firewall   lets in what answers
    Easy       masquerade: lets in what answers, and keeps the port where it is free
    Cone       what many a router at home does: lets in what answers, and each inner endpoint has a port, whomever it speaks with
    Hard       masquerade random,fully-random: lets in what answers, and each flow has a port of its own

All that is left to chance comes from one seed.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final, Protocol

from tsns.keys import NodePublic
from tsns.paths import stun
from tsns.proto.addresses import Endpoint

FORGETS_S: Final = 30.0  # a flow in which nothing passes
LAN_S: Final = 0.0005
RELAY_S: Final = 0.03  # from a node through a relay to another node
RESTLESS: Final = 1000  # calls at one moment after which somebody will never come to rest
STUN_SERVERS: Final = (("203.0.113.1", 3478), ("203.0.113.2", 3478), ("2001:db8:ffff::1", 3478))

Flow = tuple[Endpoint, Endpoint]  # the inner and the remote side


def is_v6(endpoint: Endpoint) -> bool:
    return ":" in endpoint[0]


class Gate:
    """What stands between a site and the world for one family of addresses."""

    translates = False

    def __init__(self) -> None:
        self.lets_out = self.lets_in = True

    def block(self, *, out: bool = True, into: bool = True) -> None:
        """UDP passes no more."""
        self.lets_out, self.lets_in = not out, not into

    def unblock(self) -> None:
        self.lets_out = self.lets_in = True

    def outward(self, source: Endpoint, remote: Endpoint, now: float) -> Endpoint | None:
        """As whom a datagram leaves."""
        return source if self.lets_out else None

    def inward(self, target: Endpoint, remote: Endpoint, now: float) -> Endpoint | None:
        """Whom it is for that comes for `target`."""
        return target if self.lets_in else None


class Firewall(Gate):
    def __init__(self) -> None:
        super().__init__()
        self._passed: dict[Flow, float] = {}  # and when

    def outward(self, source: Endpoint, remote: Endpoint, now: float) -> Endpoint | None:
        if self.lets_out:
            self._passed[source, remote] = now
        return super().outward(source, remote, now)

    def inward(self, target: Endpoint, remote: Endpoint, now: float) -> Endpoint | None:
        if not self.lets_in or now - self._passed.get((target, remote), -FORGETS_S) >= FORGETS_S:
            return None
        self._passed[target, remote] = now
        return target


class Easy(Gate):
    translates = True

    def __init__(self, host: str) -> None:
        super().__init__()
        self.host = host
        self._flows: dict[Flow, tuple[int, float]] = {}  # the port outside, and when something passed
        self._shift = 0

    def rebind(self, host: str | None = None) -> None:
        """Forget all flows; the next ones get other ports than they had."""
        self._flows.clear()
        self._shift += 1000
        self.host = host or self.host

    def outward(self, source: Endpoint, remote: Endpoint, now: float) -> Endpoint | None:
        if not self.lets_out:
            return None
        port, at = self._flows.get((source, remote), (0, -FORGETS_S))
        if now - at >= FORGETS_S:
            port = self._port(source, remote, now)
        self._flows[source, remote] = port, now
        return self.host, port

    def inward(self, target: Endpoint, remote: Endpoint, now: float) -> Endpoint | None:
        if not self.lets_in or target[0] != self.host:
            return None
        for (source, to), (port, at) in self._flows.items():
            if (to, port) == (remote, target[1]) and now - at < FORGETS_S:
                self._flows[source, to] = port, now
                return source
        return None

    def _port(self, source: Endpoint, remote: Endpoint, now: float) -> int:
        taken = {port for (_, to), (port, at) in self._flows.items() if to == remote and now - at < FORGETS_S}
        port = source[1] + self._shift
        while port in taken:
            port += 1
        return port


class Hard(Easy):
    def __init__(self, host: str) -> None:
        super().__init__(host)
        self._random = random.Random(host)

    def _port(self, source: Endpoint, remote: Endpoint, now: float) -> int:
        return self._random.randrange(1024, 65536)


class Cone(Hard):
    def _port(self, source: Endpoint, remote: Endpoint, now: float) -> int:
        live = [port for (of, _), (port, at) in self._flows.items() if of == source and now - at < FORGETS_S]
        return live[0] if live else super()._port(source, remote, now)


@dataclass
class Weather:
    """What becomes of datagrams between sites. As with netem, those that overtake others are not delayed."""

    delay_s: float = 0.01
    loss: float = 0.0
    overtaking: float = 0.0
    duplicates: float = 0.0

    def fate(self, chance: random.Random) -> list[float]:
        """The delay of each copy that arrives."""
        copies = 2 if chance.random() < self.duplicates else 1
        return [
            0.001 if chance.random() < self.overtaking else self.delay_s
            for _ in range(copies)
            if chance.random() >= self.loss
        ]


class Station(Protocol):
    """What is connected to the internet: it has a machine, and knows when it wants to be called."""

    def receive_udp(self, datagram: bytes, source: Endpoint) -> None: ...

    def receive_derp(self, region: int, sender: NodePublic, frame: bytes) -> None: ...

    def deadline(self) -> float | None: ...

    def tick(self) -> None: ...


class Machine:
    """A host at a site, with one address of each family that it has."""

    def __init__(self, site: Site, v4: str | None, v6: str | None) -> None:
        self.site = site
        self.v4, self.v6 = v4, v6
        self.station: Station | None = None
        self.port = 41641

    @property
    def addresses(self) -> list[str]:
        return [address for address in (self.v4, self.v6) if address is not None]

    def send(self, destination: Endpoint, datagram: bytes) -> None:
        own = self.v6 if is_v6(destination) else self.v4
        if own is not None:
            self.site.send((own, self.port), destination, datagram)


class Site:
    """A network of machines that reach each other, and the world through a gate for each family."""

    def __init__(self, internet: Internet, v4: Gate | None, v6: Gate | None = None) -> None:
        self.internet = internet
        self.v4, self.v6 = v4, v6
        self.machines: list[Machine] = []
        self.number = len(internet.sites) + 1
        self._given = 0
        internet.sites.append(self)

    def machine(self) -> Machine:
        machine = Machine(self, None, None)
        self.machines.append(machine)
        self.renumber(machine)
        return machine

    def renumber(self, machine: Machine) -> None:
        """Another network card, another lease: the machine has other addresses than before."""
        self._given += 1
        if self.v4 is not None:
            network = f"192.168.{self.number}" if self.v4.translates else f"198.51.{self.number}"
            machine.v4 = f"{network}.{self._given}"
        if self.v6 is not None:
            machine.v6 = f"2001:db8:{self.number:x}::{self._given:x}"

    def gate(self, endpoint: Endpoint) -> Gate | None:
        return self.v6 if is_v6(endpoint) else self.v4

    def at(self, host: str) -> Machine | None:
        return next((machine for machine in self.machines if host in machine.addresses), None)

    def send(self, source: Endpoint, destination: Endpoint, datagram: bytes) -> None:
        if self.at(destination[0]) is not None:
            self.internet.after(LAN_S, lambda: self.deliver(destination, source, datagram))
            return
        gate = self.gate(destination)
        outer = None if gate is None else gate.outward(source, destination, self.internet.now)
        if outer is not None:
            self.internet.carry(outer, destination, datagram)

    def receive(self, source: Endpoint, destination: Endpoint, datagram: bytes) -> None:
        """From the world, for an address that leads here."""
        gate = self.gate(destination)
        assert gate is not None
        target = gate.inward(destination, source, self.internet.now)
        if target is not None:
            self.deliver(target, source, datagram)

    def deliver(self, target: Endpoint, source: Endpoint, datagram: bytes) -> None:
        machine = self.at(target[0])
        if machine is not None and machine.port == target[1] and machine.station is not None:
            machine.station.receive_udp(datagram, source)

    def has(self, host: str) -> bool:
        """Whether the world finds this address here."""
        if isinstance(self.v4, Easy) and host == self.v4.host:
            return True
        machine = self.at(host)
        gate = self.gate((host, 0))
        return machine is not None and gate is not None and not gate.translates


class Internet:
    """Everything, and the time."""

    def __init__(self, seed: int = 0) -> None:
        self.now = 1000.1  # no round number: deadlines are sums of such
        self.chance = random.Random(seed)
        self.weather = Weather()
        self.regions_down: set[int] = set()
        self.sites: list[Site] = []
        self.stations: list[Station] = []
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, delay_s: float, event: Callable[[], None]) -> None:
        self._count += 1
        heapq.heappush(self._events, (self.now + delay_s, self._count, event))

    def carry(self, source: Endpoint, destination: Endpoint, datagram: bytes) -> None:
        """Bring a datagram from one public address to another."""
        for delay_s in self.weather.fate(self.chance):
            self.after(delay_s, lambda: self._arrive(source, destination, datagram))

    def _arrive(self, source: Endpoint, destination: Endpoint, datagram: bytes) -> None:
        if destination in STUN_SERVERS:
            txid = stun.parse_request(datagram)
            if txid is not None:
                self.carry(destination, source, stun.response(txid, source))
            return
        for site in self.sites:
            if site.has(destination[0]):
                site.receive(source, destination, datagram)
                return

    def relay(self, region: int, sender: NodePublic, target: Station, frames: Iterable[bytes]) -> None:
        """Bring frames by the relay of a region."""
        for frame in frames:
            self.after(RELAY_S, lambda frame=frame: self._relayed(region, sender, target, frame))  # type: ignore[misc]

    def _relayed(self, region: int, sender: NodePublic, target: Station, frame: bytes) -> None:
        if region not in self.regions_down and target in self.stations:
            target.receive_derp(region, sender, frame)

    # --- time ------------------------------------------------------------------------------------------------------

    def run(self, until: float) -> None:
        """Let time pass, no faster than anybody's deadline."""
        calls = 0
        while True:
            deadlines = [(at, station) for station in self.stations if (at := station.deadline()) is not None]
            soonest = min([until, *[at for at, _, _ in self._events[:1]], *[at for at, _ in deadlines]])
            calls = calls + 1 if soonest <= self.now else 0
            assert calls < RESTLESS, "somebody does not come to rest"
            self.now = max(self.now, soonest)
            if self._events and self._events[0][0] <= self.now:
                heapq.heappop(self._events)[2]()
            elif due := [station for at, station in deadlines if at <= self.now]:
                for station in due:
                    station.tick()
            else:
                return

    def run_for(self, seconds: float) -> None:
        self.run(self.now + seconds)
