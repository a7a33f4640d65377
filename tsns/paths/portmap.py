"""One mapping of our UDP port at the home router, kept alive: by NAT-PMP or PCP, by UPnP where neither answers (ring 0).

Source: RFC 6886 and RFC 6887; net/portmapper/portmapper.go of Tailscale's module for the order and the times.

    no gateway --set_network--> searching: NAT-PMP, PCP, UPnP --all in vain--> quiet --QUIET_S--> searching
                                 |                    ^
                                 | granted            | lifetime over, or no longer of use
                                 v                    |
                                held: checked each TRUST_S, renewed at half-life
                                 |
                                 +--gateway or our own address is another one--> searching
                                 +--the gateway has lost its table--> asked for anew at once, given up if that is in vain

The gateway is not to be trusted any further than a router must be: what it says counts only as the answer to what was asked, the pace is
ours, and an external address of no use is none.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tsns.paths import natpmp, pcp
from tsns.paths.epoch import Epoch
from tsns.paths.gateway_question import NOWHERE, Drop, Purpose, Question, Service, Wanted
from tsns.paths.home_network import Network, is_of_use
from tsns.proto.addresses import Endpoint, pack, unpack

PORT: Final = natpmp.PORT
LIFETIME_S: Final = 7200  # asked for; a longer one is not believed
MIN_LIFETIME_S: Final = 60  # a shorter one is no mapping: to keep it would be a storm
TIMEOUT_S: Final = 0.25  # for an answer to one datagram
TRIES: Final = 2
TRUST_S: Final = 600.0  # how long what a gateway last said holds without asking it again
QUIET_S: Final = 600.0  # before a network where nothing answered is asked again
MIN_RETRY_S: Final = 30.0  # between two attempts at a renewal
UPNP_S: Final = 5.0  # for one attempt by UPnP, from discovery to mapping


@dataclass(frozen=True, slots=True)
class SendTo:
    """Send this datagram, from a socket whose address towards the gateway is our own one."""

    address: Endpoint
    data: bytes


@dataclass(frozen=True, slots=True)
class TryUpnp:
    """Ask the gateway for a mapping by UPnP, with a wish for the external port (0: any), and tell `upnp` within UPNP_S."""

    gateway: str
    own: str
    port: int
    wanted_port: int
    lifetime_s: int = LIFETIME_S


@dataclass(frozen=True, slots=True)
class ReleaseUpnp:
    """End the mapping that UPnP gave."""

    gateway: str
    external_port: int


@dataclass(frozen=True, slots=True)
class Mapped:
    """From now on our UDP port can be reached here; None: nowhere."""

    external: Endpoint | None


Output = SendTo | TryUpnp | ReleaseUpnp | Mapped


@dataclass(frozen=True, slots=True)
class UpnpOutcome:
    """What became of an attempt: whether the gateway speaks UPnP at all, and the mapping."""

    asked: TryUpnp
    found: bool
    external: Endpoint | None = None


@dataclass(slots=True)
class _Exchange:
    """A question that is being asked."""

    question: Question
    due: float
    tries_left: int = TRIES - 1
    lost: bool = False  # the gateway has forgotten what it had granted

    def send(self) -> list[Output]:
        return _datagrams(self.question)


@dataclass(slots=True)
class _Gateway:
    """What is known of the present one."""

    nonce: bytes  # of the mapping
    speaks: dict[Service, bool] = field(default_factory=dict)
    trusted: tuple[Service, float] | None = None  # who gave something last, and when
    clocks: dict[Service, Epoch] = field(default_factory=dict)
    wanted_port: int = 0  # the external one that we had


@dataclass(slots=True)
class _Mapping:
    service: Service
    external: Endpoint
    expires_at: float
    renew_at: float
    check_at: float


class PortMap:
    """The mapping. Whoever runs it does what the outputs say and calls `tick` no later than `deadline`."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self.dropped: Counter[Drop] = Counter()
        self._random = random
        self._network: Network | None = None
        self._gateway = _Gateway(bytes(pcp.NONCE_BYTES))
        self._mapping: _Mapping | None = None
        self._exchange: _Exchange | None = None
        self._upnp: TryUpnp | None = None
        self._upnp_until = 0.0
        self._queue: list[Service] = []  # still to be tried
        self._again = False  # when all is in vain, begin at once
        self._quiet_until: float | None = None

    @property
    def external(self) -> Endpoint | None:
        """Where our port can be reached."""
        return self._mapping.external if self._mapping else None

    @property
    def service(self) -> Service | None:
        """Who gave that."""
        return self._mapping.service if self._mapping else None

    def speaks(self, service: Service) -> bool | None:
        """Whether the gateway gives mappings by this service (UPnP: has it at all); None where that is not known."""
        return self._gateway.speaks.get(service)

    def deadline(self) -> float | None:
        """When `tick` is to be called next; None: not before something else happens."""
        due: list[float] = []
        if self._mapping is not None:
            due.append(self._mapping.expires_at)
        if self._exchange is not None:
            due.append(self._exchange.due)
        elif self._upnp is not None:
            due.append(self._upnp_until)
        elif self._mapping is not None:
            due += [self._mapping.renew_at, self._mapping.check_at]
        elif self._quiet_until is not None:
            due.append(self._quiet_until)
        return min(due, default=None)

    # --- what happens ----------------------------------------------------------------------------------------------

    def set_network(self, gateway: str | None, own: str | None, port: int, now: float) -> list[Output]:
        """Our UDP port is this one, and the way out leads over this gateway from this address of ours (None: there is none)."""
        network = Network.of(gateway, own, port)
        before = self._network
        if network == before:
            return []
        out: list[Output] = [Mapped(None)] if self._mapping else []
        if before and network and (before.gateway, before.own) == (network.gateway, network.own):
            out += self._farewell(before)
            self._gateway.nonce = self._random(pcp.NONCE_BYTES)
        else:
            self._gateway = _Gateway(self._random(pcp.NONCE_BYTES))  # the other one is out of reach
        self._stop()
        self._network = network
        return out + (self._search(now) if network else [])

    def recheck(self, now: float) -> list[Output]:
        """The network may be another one that only looks alike: ask again what is known."""
        mapping = self._mapping
        if mapping is not None and mapping.service is Service.UPNP:
            mapping.renew_at = min(mapping.renew_at, now)
        elif mapping is not None:
            mapping.check_at = min(mapping.check_at, now)
        elif self._quiet_until is not None:
            self._quiet_until = now
        elif self._network is not None:
            self._again = True  # part of what is being asked may have gone to the other one
        return self.tick(now)

    def receive(self, data: bytes, source: Endpoint, now: float) -> list[Output]:
        """Take a datagram; what is no answer to what was asked does nothing."""
        exchange = self._exchange
        if exchange is None:
            return self._drop(Drop.UNASKED)
        question = exchange.question
        if source != (question.network.gateway, PORT):
            return self._drop(Drop.NOT_FROM_GATEWAY)
        reply = question.take(data)
        if isinstance(reply, Drop):
            return self._drop(reply)
        if not reply:
            return self._in_vain(now) + self.tick(now)
        exchange.lost |= not self._gateway.clocks.setdefault(question.service, Epoch()).note(question.epoch_s, now)
        return ([] if question.unanswered else self._answered(exchange, now)) + self.tick(now)

    def unreachable(self, now: float) -> list[Output]:
        """The gateway has nothing at this port, or there is no way to it."""
        if self._exchange is None:
            return []
        if self._mapping is None:
            self._queue = [service for service in self._queue if service is Service.UPNP]
            self._gateway.speaks[Service.PMP] = self._gateway.speaks[Service.PCP] = False
        return self._in_vain(now) + self.tick(now)

    def upnp(self, outcome: UpnpOutcome, now: float) -> list[Output]:
        """Take the outcome of a TryUpnp."""
        if outcome.asked != self._upnp:
            return []
        self._upnp = None
        self._gateway.speaks[Service.UPNP] = outcome.found
        if outcome.external is None:
            return self._in_vain(now) + self.tick(now)
        return self._hold(Service.UPNP, outcome.external, LIFETIME_S, now) + self.tick(now)

    def release(self, now: float) -> list[Output]:
        """End the mapping and rest; over when there is no deadline any more."""
        network, mapping = self._network, self._mapping
        service = mapping.service if mapping else None
        if service is None and self._exchange is not None and self._exchange.question.purpose is Purpose.MAP:
            service = self._exchange.question.service  # it may have been granted
        out: list[Output] = [Mapped(None)] if mapping else []
        if network is not None and service is Service.UPNP:
            out += self._farewell(network)
        self._stop()
        self._network = None
        if network is not None and service in {Service.PMP, Service.PCP}:
            assert service is not None
            self._exchange = _Exchange(self._question(service, Purpose.RELEASE, network), now + TIMEOUT_S)
            out += self._exchange.send()
        return out

    def tick(self, now: float) -> list[Output]:
        """Let time pass."""
        out: list[Output] = []
        while (more := self._due(now)) is not None:
            out += more
        return out

    def _due(self, now: float) -> list[Output] | None:
        """What is to be done now; None: nothing."""
        mapping, exchange = self._mapping, self._exchange
        if exchange is not None and now >= exchange.due:
            if not exchange.tries_left:
                return self._in_vain(now)
            exchange.tries_left -= 1
            exchange.due = now + TIMEOUT_S
            return exchange.send()
        if self._upnp is not None and now >= self._upnp_until:
            return self.upnp(UpnpOutcome(self._upnp, found=False), now)
        if mapping is not None and now >= mapping.expires_at:
            self._stop()
            return [Mapped(None), *self._search(now)]
        if exchange is not None or self._upnp is not None:
            return None
        if mapping is not None and now >= mapping.renew_at:
            return self._ask(mapping.service, now)
        if mapping is not None and now >= mapping.check_at:
            return self._start(mapping.service, Purpose.CHECK, now)
        if self._quiet_until is not None and now >= self._quiet_until:
            return self._search(now)
        return None

    # --- asking ----------------------------------------------------------------------------------------------------

    def _search(self, now: float) -> list[Output]:
        """Try all services, one that gave something lately first."""
        self._again = False
        self._quiet_until = None
        trusted, since = self._gateway.trusted or (None, now)
        if now - since > TRUST_S:
            trusted = None
        self._queue = sorted(Service, key=lambda service: service is not trusted)
        return self._next(now)

    def _next(self, now: float) -> list[Output]:
        if self._queue:
            return self._ask(self._queue.pop(0), now)
        self._quiet_until = now if self._again else now + QUIET_S
        return []

    def _ask(self, service: Service, now: float) -> list[Output]:
        """Ask for a mapping, or for a longer life of the present one."""
        if service is not Service.UPNP:
            return self._start(service, Purpose.MAP, now)
        assert self._network is not None  # else there is nothing to ask for
        self._upnp = TryUpnp(self._network.gateway, self._network.own, self._network.port, self._gateway.wanted_port)
        self._upnp_until = now + UPNP_S
        return [self._upnp]

    def _start(self, service: Service, purpose: Purpose, now: float) -> list[Output]:
        assert self._network is not None
        self._exchange = _Exchange(self._question(service, purpose, self._network), now + TIMEOUT_S)
        return self._exchange.send()

    def _question(self, service: Service, purpose: Purpose, network: Network) -> Question:
        wanted = Wanted(0, self._gateway.nonce)
        if purpose is Purpose.MAP:
            wanted = Wanted(
                LIFETIME_S,
                self._gateway.nonce,
                self._gateway.wanted_port,
                self.external[0] if self.external else NOWHERE,
            )
        return Question(service, purpose, network, wanted)

    def _farewell(self, network: Network) -> list[Output]:
        """What ends the mapping without waiting for an answer."""
        mapping = self._mapping
        if mapping is None:
            return []
        if mapping.service is Service.UPNP:
            return [ReleaseUpnp(network.gateway, mapping.external[1])]
        return _datagrams(self._question(mapping.service, Purpose.RELEASE, network))

    def _in_vain(self, now: float) -> list[Output]:
        """What was asked last is refused or not answered."""
        question = self._exchange.question if self._exchange else None
        self._exchange = None
        mapping = self._mapping
        if question is not None and question.purpose is Purpose.RELEASE:
            return []
        if mapping is None:
            out: list[Output] = []
            if question is not None:
                self._gateway.speaks[question.service] = False
                if question.lifetime_s:  # half of it was granted: we do not know our address there
                    out = _datagrams(self._question(question.service, Purpose.RELEASE, question.network))
            return out + self._next(now)
        if question is not None and question.purpose is Purpose.CHECK:
            mapping.check_at = now + TRUST_S  # what it gave lasts until its lifetime is over
        else:
            mapping.renew_at = now + max((mapping.expires_at - now) / 2, MIN_RETRY_S)
        return []

    # --- answers ---------------------------------------------------------------------------------------------------

    def _answered(self, exchange: _Exchange, now: float) -> list[Output]:
        """All that was asked is answered."""
        self._exchange = None
        question, mapping = exchange.question, self._mapping
        self._gateway.trusted = (question.service, now)
        if question.purpose is Purpose.MAP:
            external = (unpack(question.address), question.external_port)
            return self._hold(question.service, external, question.lifetime_s, now)
        if question.purpose is Purpose.CHECK and mapping is not None:
            mapping.check_at = now + TRUST_S
            moved = question.service is Service.PMP and question.address != pack(mapping.external[0])
            if exchange.lost or moved:
                mapping.renew_at = now
                mapping.expires_at = now + TRIES * TIMEOUT_S
        return []

    def _hold(self, service: Service, external: Endpoint, lifetime_s: int, now: float) -> list[Output]:
        """Take what was granted, if it is of use."""
        before = self.external
        check_at = math.inf if service is Service.UPNP else now + TRUST_S  # UPnP has no clock to look at
        held_s = min(lifetime_s, LIFETIME_S)
        self._mapping = _Mapping(service, external, now + held_s, now + held_s / 2, check_at)
        if is_of_use(external) and lifetime_s >= MIN_LIFETIME_S:
            self._queue = []
            self._gateway.speaks[service] = True
            self._gateway.trusted = (service, now)
            self._gateway.wanted_port = external[1]
            return [Mapped(external)] if external != before else []
        assert self._network is not None
        out: list[Output] = [Mapped(None)] if before else []
        out += self._farewell(self._network)
        self._mapping = None
        if service is not Service.UPNP:
            self._gateway.speaks[service] = False
        if before:
            self._queue = [other for other in Service if other is not service]
        return out + self._next(now)

    def _stop(self) -> None:
        """Neither hold nor want anything."""
        self._mapping = self._exchange = self._upnp = self._quiet_until = None
        self._queue = []
        self._again = False

    def _drop(self, why: Drop) -> list[Output]:
        self.dropped[why] += 1
        return []


def _datagrams(question: Question) -> list[Output]:
    return [SendTo((question.network.gateway, PORT), data) for data in question.unanswered.values()]
