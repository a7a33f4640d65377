"""The mapping of our port, told with a home router that answers, is silent, restarts, or lies."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.paths.home_router import PCP, PMP, HomeRouter
from tsns.paths import natpmp, pcp
from tsns.paths.gateway_question import Drop, Service
from tsns.paths.portmap import (
    LIFETIME_S,
    MIN_LIFETIME_S,
    PORT,
    QUIET_S,
    TIMEOUT_S,
    TRIES,
    TRUST_S,
    UPNP_S,
    Mapped,
    Output,
    PortMap,
    ReleaseUpnp,
    SendTo,
    TryUpnp,
    UpnpOutcome,
)
from tsns.proto.addresses import Endpoint

GATEWAY, OWN, OUR_PORT = "192.168.1.1", "192.168.1.20", 41673
FIRST = ("203.0.113.7", 40000)  # what the router gives first
PATIENCE_S = TRIES * TIMEOUT_S  # for one service that says nothing
ROUND_TRIP_S = 0.002
NOTHING = frozenset[int]()

Upnp = Callable[[TryUpnp], UpnpOutcome | None]


def no_upnp(asked: TryUpnp) -> UpnpOutcome:
    return UpnpOutcome(asked, found=False)


@dataclass
class Home:
    """The machine behind a home router. Time is driven; the router's answers take ROUND_TRIP_S."""

    router: HomeRouter
    upnp: Upnp = no_upnp
    now: float = 1000.0
    asked: list[tuple[float, str]] = field(default_factory=list)
    told: list[tuple[float, Endpoint | None]] = field(default_factory=list)
    upnp_released: list[ReleaseUpnp] = field(default_factory=list)
    coming: list[tuple[float, Callable[[], list[Output]]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.portmap = PortMap(random.Random(1).randbytes)

    def enter(self, gateway: str | None = GATEWAY, own: str | None = OWN, port: int = OUR_PORT) -> None:
        self.act(self.portmap.set_network(gateway, own, port, self.now))

    def act(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case SendTo(address, data):
                    assert address == (GATEWAY, PORT)
                    self.asked.append((self.now, name_of(data)))
                    answer = self.router.answer(data, OWN, self.now)
                    if answer is not None:
                        self.later(partial(self.hear, answer))
                case TryUpnp():
                    self.asked.append((self.now, "UPnP"))
                    outcome = self.upnp(output)
                    if outcome is not None:
                        self.later(partial(self.hear_of_upnp, outcome))
                case ReleaseUpnp():
                    self.upnp_released.append(output)
                case Mapped(external):
                    self.told.append((self.now, external))

    def hear(self, answer: bytes) -> list[Output]:
        return self.portmap.receive(answer, (GATEWAY, PORT), self.now)

    def hear_of_upnp(self, outcome: UpnpOutcome) -> list[Output]:
        return self.portmap.upnp(outcome, self.now)

    def later(self, event: Callable[[], list[Output]]) -> None:
        self.coming.append((self.now + ROUND_TRIP_S, event))

    def run(self, seconds: float) -> None:
        """Let time pass; the machine is woken when it wants to be, and never in vain for ever."""
        end = self.now + seconds
        while True:
            deadline = self.portmap.deadline()
            next_at = min([at for at, _ in self.coming] + ([deadline] if deadline is not None else []), default=end + 1)
            if next_at > end:
                self.now = end
                return
            assert next_at > self.now or self.coming, "the machine asks for a time that has passed"
            self.now = max(next_at, self.now)
            due = [event for at, event in self.coming if at <= self.now]
            self.coming = [one for one in self.coming if one[0] > self.now]
            for event in due:
                self.act(event())
            self.act(self.portmap.tick(self.now))

    def names(self, since: float = 0.0) -> list[str]:
        return [name for at, name in self.asked if at >= since]

    def mapped_by(self) -> tuple[Endpoint | None, Service | None]:
        return self.portmap.external, self.portmap.service

    def knowledge(self) -> tuple[bool | None, ...]:
        return tuple(self.portmap.speaks(service) for service in Service)


def name_of(data: bytes) -> str:
    """A request as a word."""
    version, opcode, size = data[0], data[1], len(data)
    if version == PMP:
        if size == 2:
            return "pmp address"
        return "pmp map" if data[8:12] != bytes(4) else "pmp delete"
    assert (version, size) in {(PCP, 24), (PCP, 60)}
    if opcode == 0:
        return "pcp announce"
    return "pcp map" if data[4:8] != bytes(4) else "pcp delete"


# --- getting one ---------------------------------------------------------------------------------------------------


def test_nat_pmp_takes_one_round_trip() -> None:
    home = Home(HomeRouter())
    home.enter()
    home.run(1)
    assert home.names() == ["pmp address", "pmp map"]
    assert home.told == [(1000.0 + ROUND_TRIP_S, FIRST)]
    assert home.mapped_by() == (FIRST, Service.PMP)
    assert home.knowledge() == (True, None, None)
    assert home.router.mappings[OWN, OUR_PORT][0] == FIRST[1]


def test_pcp_where_nat_pmp_gets_no_answer() -> None:
    home = Home(HomeRouter(speaks={PCP}))
    router = home.router
    answer = router.answer
    router.answer = lambda data, source, now: answer(data, source, now) if data[0] == PCP else None  # type: ignore[method-assign]
    home.enter()
    home.run(1)
    assert home.names() == ["pmp address", "pmp map"] * TRIES + ["pcp map"]
    assert home.told == [(1000.0 + PATIENCE_S + ROUND_TRIP_S, FIRST)]
    assert home.mapped_by() == (FIRST, Service.PCP)
    assert home.knowledge() == (False, True, None)


def test_a_router_that_says_it_speaks_pcp_only_is_believed_at_once() -> None:
    home = Home(HomeRouter(speaks={PCP}))
    home.enter()
    home.run(1)
    assert home.names() == ["pmp address", "pmp map", "pcp map"]
    assert [external for _, external in home.told] == [FIRST]
    assert home.told[0][0] == pytest.approx(1000.0 + 2 * ROUND_TRIP_S)
    assert home.portmap.dropped == {Drop.NO_MATCH: 1}  # the same answer to the second datagram


def test_upnp_where_neither_gets_an_answer() -> None:
    external = ("198.51.100.4", OUR_PORT)
    home = Home(HomeRouter(speaks=NOTHING), lambda asked: UpnpOutcome(asked, found=True, external=external))
    home.enter()
    home.run(2)
    assert home.names() == ["pmp address", "pmp map"] * TRIES + ["pcp map"] * TRIES + ["UPnP"]
    assert home.told == [(1000.0 + 2 * PATIENCE_S + ROUND_TRIP_S, external)]
    assert home.mapped_by() == (external, Service.UPNP)
    assert home.knowledge() == (False, False, True)


def test_a_closed_port_is_no_reason_to_wait() -> None:
    home = Home(HomeRouter(speaks=NOTHING))
    home.enter()
    home.act(home.portmap.unreachable(home.now))
    home.run(1)
    assert home.names() == ["pmp address", "pmp map", "UPnP"]
    assert home.knowledge() == (False, False, False)


@pytest.mark.parametrize("lost", [0, 1])
def test_a_lost_datagram_is_sent_again(lost: int) -> None:
    home = Home(HomeRouter())
    answer = home.router.answer
    count = iter(range(100))
    home.router.answer = lambda data, source, now: None if next(count) == lost else answer(data, source, now)  # type: ignore[method-assign]
    home.enter()
    home.run(1)
    assert home.names()[2:] == [["pmp address"], ["pmp map"]][lost]  # what is answered is not asked again
    assert home.told == [(1000.0 + TIMEOUT_S + ROUND_TRIP_S, FIRST)]


@pytest.mark.parametrize(
    ("gateway", "own", "port"),
    [
        (None, OWN, OUR_PORT),
        (GATEWAY, None, OUR_PORT),
        ("203.0.113.1", OWN, OUR_PORT),
        ("100.64.0.1", OWN, OUR_PORT),
        ("169.254.1.1", OWN, OUR_PORT),
        ("172.32.0.1", OWN, OUR_PORT),
        ("fe80::1", OWN, OUR_PORT),
        ("fd00::1", OWN, OUR_PORT),
        ("gateway", OWN, OUR_PORT),
        (GATEWAY, "fd00::20", OUR_PORT),
        (GATEWAY, OWN, 0),
        (GATEWAY, OWN, 65536),
    ],
)
def test_only_a_home_router_is_asked(gateway: str | None, own: str | None, port: int) -> None:
    home = Home(HomeRouter())
    home.enter(gateway, own, port)
    home.run(QUIET_S * 2)
    assert (home.asked, home.told, home.portmap.deadline()) == ([], [], None)


@pytest.mark.parametrize("gateway", ["10.0.0.1", "172.16.0.1", "172.31.255.254", "192.168.0.1"])
def test_every_home_router_is_asked(gateway: str) -> None:
    out = PortMap(random.Random(1).randbytes).set_network(gateway, OWN, OUR_PORT, 0.0)
    assert {output.address for output in out if isinstance(output, SendTo)} == {(gateway, PORT)}


# --- not getting one -----------------------------------------------------------------------------------------------


def test_where_nothing_answers_it_is_quiet_for_long() -> None:
    home = Home(HomeRouter(speaks=NOTHING))
    home.enter()
    home.run(QUIET_S - 1)
    assert len(home.asked) == 3 * TRIES + 1
    assert home.knowledge() == (False, False, False)
    home.run(24 * 3600)
    assert len(home.asked) <= (3 * TRIES + 1) * (1 + 24 * 3600 / QUIET_S)
    assert home.told == []


def test_upnp_that_never_ends_is_over_in_time() -> None:
    home = Home(HomeRouter(speaks=NOTHING), lambda _: None)
    home.enter()
    home.run(2 * PATIENCE_S + UPNP_S)
    assert home.portmap.speaks(Service.UPNP) is False
    assert home.portmap.deadline() == pytest.approx(1000.0 + 2 * PATIENCE_S + UPNP_S + QUIET_S)


def test_an_outcome_of_upnp_that_comes_too_late_does_not_count() -> None:
    late: list[TryUpnp] = []
    home = Home(HomeRouter(speaks=NOTHING), late.append)
    home.enter()
    home.run(20)
    home.act(home.portmap.upnp(UpnpOutcome(late[0], found=True, external=("198.51.100.4", 5)), home.now))
    assert (home.told, home.portmap.external) == ([], None)


@pytest.mark.parametrize("version", [PMP, PCP])
def test_a_refusal_is_taken_at_its_word(version: int) -> None:
    home = Home(HomeRouter(speaks={version}, result=2))
    home.enter()
    home.run(10)
    assert home.told == []
    assert home.names()[-1] == "UPnP"
    assert home.names().count("pcp map") == (1 if version == PCP else TRIES - 1)
    assert home.knowledge() == (False, False, False)


USELESS = ["0.0.0.0", "0.1.2.3", "127.0.0.1", "169.254.3.4", "224.0.0.1", "255.255.255.255", "100.64.3.4"]


@pytest.mark.parametrize("external", USELESS)
@pytest.mark.parametrize("version", [PMP, PCP])
def test_an_external_address_of_no_use_is_none(external: str, version: int) -> None:
    home = Home(HomeRouter(speaks={version}, external=external))
    home.enter()
    home.run(10)
    assert home.told == []
    assert home.portmap.external is None
    assert home.router.mappings == {}, "what is of no use is given back"
    assert home.knowledge() == (False, False, False)


@pytest.mark.parametrize("external", [*USELESS, "2001:db8::1", "router", ""])
def test_nor_is_it_by_upnp(external: str) -> None:
    home = Home(HomeRouter(speaks=NOTHING), lambda asked: UpnpOutcome(asked, found=True, external=(external, 7)))
    home.enter()
    home.run(10)
    assert home.told == []
    assert home.upnp_released == [ReleaseUpnp(GATEWAY, 7)]
    assert home.portmap.speaks(Service.UPNP) is True


def test_a_private_external_address_may_be_of_use_behind_a_second_router() -> None:
    home = Home(HomeRouter(external="10.8.0.3"))
    home.enter()
    home.run(1)
    assert home.told[-1][1] == ("10.8.0.3", 40000)


@pytest.mark.parametrize("lifetime_s", [0, 1, MIN_LIFETIME_S - 1])
def test_a_mapping_that_is_over_at_once_is_none(lifetime_s: int) -> None:
    home = Home(HomeRouter(speaks={PMP}, max_lifetime_s=lifetime_s))
    home.enter()
    home.run(3600)
    assert home.told == []
    assert len(home.asked) < 20 * 3600 / QUIET_S


def test_half_an_answer_is_given_back() -> None:
    home = Home(HomeRouter(speaks={PMP}))
    answer = home.router.answer
    home.router.answer = lambda data, source, now: None if len(data) == 2 else answer(data, source, now)  # type: ignore[method-assign]
    home.enter()
    home.run(10)
    assert home.told == []
    assert home.router.mappings == {}


# --- keeping it ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [PMP, PCP])
def test_it_is_renewed_at_half_its_life_and_looked_after_in_between(version: int) -> None:
    home = Home(HomeRouter(speaks={version}))
    home.enter()
    home.run(LIFETIME_S * 10)
    assert home.told == [(home.told[0][0], FIRST)], "nothing changed"
    check, renewal = ("pmp address", "pmp map") if version == PMP else ("pcp announce", "pcp map")
    renewals = [at for at, name in home.asked if name == renewal]
    assert 20 <= len(renewals) <= 22
    for before, after in zip(renewals[-10:], renewals[-9:], strict=False):
        assert after - before == pytest.approx(LIFETIME_S / 2, abs=1)
    checks = [at for at, name in home.asked if name == check]
    assert max(after - before for before, after in itertools.pairwise(checks)) < TRUST_S * 2 + 1
    assert home.router.mappings[OWN, OUR_PORT][1] > home.now


def test_a_shorter_life_than_asked_for_is_the_one_that_counts() -> None:
    home = Home(HomeRouter(max_lifetime_s=120))
    home.enter()
    home.run(600)
    renewals = [at for at, name in home.asked if name == "pmp map"]
    assert len(renewals) == 10
    assert home.router.mappings[OWN, OUR_PORT][1] > home.now


def test_a_longer_one_is_not_believed() -> None:
    home = Home(HomeRouter())
    home.enter()
    answer = bytes.fromhex("0080 0000 00000001 cb007107"), bytes.fromhex("0081 0000 00000001 a2c9 9c40 ffffffff")
    for data in answer:
        home.portmap.receive(data, (GATEWAY, PORT), home.now)
    assert home.portmap.external == FIRST
    mapping = home.portmap._mapping
    assert mapping is not None
    assert mapping.expires_at == home.now + LIFETIME_S


def test_a_mapping_of_upnp_is_renewed_as_well() -> None:
    wishes: list[int] = []

    def upnp(asked: TryUpnp) -> UpnpOutcome:
        wishes.append(asked.wanted_port)
        return UpnpOutcome(asked, found=True, external=("198.51.100.4", 5000))

    home = Home(HomeRouter(speaks=NOTHING), upnp)
    home.enter()
    home.run(LIFETIME_S + 10)
    assert wishes == [0, 5000, 5000]
    assert len(home.told) == 1


@pytest.mark.parametrize("version", [PMP, PCP])
def test_a_router_that_has_restarted_is_asked_anew(version: int) -> None:
    home = Home(HomeRouter(speaks={version}))
    home.enter()
    home.run(100)
    home.router.restart(home.now)
    home.router.mappings["192.168.1.21", 1] = (FIRST[1] + 1, home.now + 7200, b"")  # somebody else was quicker
    home.run(TRUST_S)
    assert home.told == [(home.told[0][0], FIRST)], "it gave us back what we had"
    assert home.router.mappings[OWN, OUR_PORT][0] == FIRST[1]


def test_a_router_that_gives_another_port_after_a_restart() -> None:
    home = Home(HomeRouter())
    home.enter()
    home.run(100)
    home.router.restart(home.now)
    home.router.mappings[OWN, OUR_PORT] = (50000, home.now + 7200, b"")
    home.run(TRUST_S)
    assert [external for _, external in home.told] == [FIRST, ("203.0.113.7", 50000)]


@pytest.mark.parametrize("version", [PMP, PCP])
def test_a_router_that_has_restarted_and_gives_nothing_any_more(version: int) -> None:
    home = Home(HomeRouter(speaks={version}))
    home.enter()
    home.run(100)
    home.router.restart(home.now)
    home.router.result = 2
    answer = home.router.answer

    def refuses_mappings(data: bytes, source: str, now: float) -> bytes | None:
        home.router.result = 0 if name_of(data) in {"pmp address", "pcp announce"} else 2
        return answer(data, source, now)

    home.router.answer = refuses_mappings  # type: ignore[method-assign]
    home.run(TRUST_S)
    assert [external for _, external in home.told] == [FIRST, None]
    assert home.portmap.external is None


def test_a_new_external_address_is_noticed() -> None:
    home = Home(HomeRouter(speaks={PMP}))
    home.enter()
    home.run(100)
    home.router.external = "203.0.113.99"
    home.run(TRUST_S)
    assert [external for _, external in home.told] == [FIRST, ("203.0.113.99", FIRST[1])]


def test_an_external_address_that_went_away_takes_the_mapping_with_it() -> None:
    home = Home(HomeRouter(speaks={PMP}))
    home.enter()
    home.run(100)
    home.router.external = "0.0.0.0"  # the line is down
    home.run(TRUST_S + 10)
    assert [external for _, external in home.told] == [FIRST, None]
    home.router.external = "203.0.113.7"
    home.run(QUIET_S)
    assert home.told[-1][1] is not None


@pytest.mark.parametrize("version", [PMP, PCP])
def test_a_router_that_falls_silent_keeps_its_word_until_it_has_run_out(version: int) -> None:
    home = Home(HomeRouter(speaks={version}))
    home.enter()
    home.run(100)
    home.router.silent = True
    silent_since = home.now
    home.run(LIFETIME_S - 101)
    assert home.portmap.external == FIRST
    home.run(10)
    assert [external for _, external in home.told] == [FIRST, None]
    assert home.told[-1][0] == pytest.approx(1000 + LIFETIME_S, abs=1)
    attempts = [at for at, name in home.asked if name.endswith(" map") and at > silent_since and at < home.told[-1][0]]
    assert 2 * TRIES <= len(attempts) <= 16 * TRIES, "oftener towards the end, and no storm"
    home.router.silent = False
    home.run(QUIET_S + 10)
    assert home.portmap.external is not None


def test_what_was_silent_only_for_a_while_is_not_told() -> None:
    home = Home(HomeRouter())
    home.enter()
    home.run(LIFETIME_S / 2 - 100)
    home.router.silent = True
    home.run(200)
    home.router.silent = False
    home.run(LIFETIME_S)
    assert [external for _, external in home.told] == [FIRST]


def test_a_machine_that_was_asleep_finds_its_mapping_gone() -> None:
    home = Home(HomeRouter())
    home.enter()
    home.run(100)
    home.now += 3 * LIFETIME_S
    home.router.mappings.clear()
    home.act(home.portmap.tick(home.now))
    home.run(10)
    assert [external for _, external in home.told] == [FIRST, None, FIRST]


# --- another network -----------------------------------------------------------------------------------------------


def test_nothing_happens_while_the_network_stays_what_it_is() -> None:
    home = Home(HomeRouter())
    home.enter()
    home.run(1)
    before = list(home.asked)
    home.enter()
    assert home.asked == before


@pytest.mark.parametrize("change", [{"gateway": "10.0.0.1"}, {"own": "192.168.1.21"}, {"gateway": None}])
def test_another_gateway_or_address_is_another_network(change: dict[str, str | None]) -> None:
    home = Home(HomeRouter())
    home.enter()
    home.run(1)
    out = home.portmap.set_network(change.get("gateway", GATEWAY), change.get("own", OWN), OUR_PORT, home.now)
    assert out[0] == Mapped(None)
    sent = [output for output in out if isinstance(output, SendTo)]
    assert [name_of(output.data) for output in sent] == (
        [] if change.get("gateway", GATEWAY) is None else ["pmp address", "pmp map"]
    ), "the old one is out of reach"
    assert home.knowledge() == (None, None, None)


def test_an_answer_of_the_old_network_does_not_count_in_the_new_one() -> None:
    home = Home(HomeRouter())
    home.enter()
    late = [home.router.answer(data, OWN, 0.0) for _, data in list(home.router.heard)]
    home.portmap.set_network("10.0.0.1", "10.0.0.2", OUR_PORT, home.now)
    for data in late:
        assert data is not None
        assert home.portmap.receive(data, (GATEWAY, PORT), home.now) == []
    assert home.portmap.dropped[Drop.NOT_FROM_GATEWAY] == 2


@pytest.mark.parametrize("version", [PMP, PCP])
def test_another_port_of_ours_gives_the_old_one_back(version: int) -> None:
    home = Home(HomeRouter(speaks={version}))
    home.enter()
    home.run(1)
    home.enter(port=5555)
    home.run(1)
    assert set(home.router.mappings) == {(OWN, 5555)}
    assert [external is not None for _, external in home.told] == [True, False, True]


def test_another_port_of_ours_with_upnp() -> None:
    home = Home(
        HomeRouter(speaks=NOTHING), lambda asked: UpnpOutcome(asked, found=True, external=("198.51.100.4", asked.port))
    )
    home.enter()
    home.run(2)
    home.enter(port=5555)
    home.run(10)
    assert home.upnp_released == [ReleaseUpnp(GATEWAY, OUR_PORT)]
    assert home.portmap.external == ("198.51.100.4", 5555)


def test_what_gave_something_lately_is_asked_first() -> None:
    home = Home(HomeRouter(speaks={PCP}))
    home.enter()
    home.run(100)
    since = home.now
    home.enter(port=5555)
    home.run(1)
    assert home.names(since) == ["pcp delete", "pcp map"]


def test_a_network_that_only_looks_alike_is_asked_again() -> None:
    home = Home(HomeRouter())
    home.enter()
    home.run(100)
    home.router = HomeRouter(external="198.51.100.9", started_at=home.now - 77)
    home.act(home.portmap.recheck(home.now))
    home.run(1)
    assert [external for _, external in home.told] == [FIRST, ("198.51.100.9", FIRST[1])]


def test_quiet_ends_where_the_network_may_be_another_one() -> None:
    home = Home(HomeRouter(speaks=NOTHING))
    home.enter()
    home.run(10)
    home.router = HomeRouter()
    home.act(home.portmap.recheck(home.now))
    home.run(1)
    assert home.portmap.external == FIRST


def test_a_network_that_changes_while_it_is_searched_is_searched_again() -> None:
    home = Home(HomeRouter(speaks=NOTHING))
    home.enter()
    for _ in range(16):
        home.run(0.05)
        home.act(home.portmap.recheck(home.now))
    in_vain = ["pmp address", "pmp map"] * TRIES + ["pcp map"] * TRIES + ["UPnP"]
    assert home.names() == in_vain[:-1], "one after the other"
    home.run(QUIET_S / 2)
    assert home.names() == in_vain * 2


# --- giving it back ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [PMP, PCP])
def test_at_the_end_it_is_given_back(version: int) -> None:
    home = Home(HomeRouter(speaks={version}))
    home.enter()
    home.run(1)
    assert home.router.mappings
    home.act(home.portmap.release(home.now))
    home.run(ROUND_TRIP_S)
    assert home.router.mappings == {}
    assert home.told[-1][1] is None
    assert home.portmap.deadline() is None


def test_the_farewell_is_said_twice_to_a_silent_router() -> None:
    home = Home(HomeRouter())
    home.enter()
    home.run(1)
    home.router.silent = True
    home.act(home.portmap.release(home.now))
    home.run(PATIENCE_S)
    assert home.names()[-TRIES:] == ["pmp delete"] * TRIES
    assert home.portmap.deadline() is None


def test_what_may_have_been_granted_is_given_back_as_well() -> None:
    home = Home(HomeRouter())
    home.enter()
    home.coming.clear()  # the answers are still on their way
    home.act(home.portmap.release(home.now))
    home.run(1)
    assert home.names()[-1] == "pmp delete"
    assert home.router.mappings == {}
    assert home.told == []


def test_at_the_end_of_one_by_upnp() -> None:
    home = Home(HomeRouter(speaks=NOTHING), lambda asked: UpnpOutcome(asked, found=True, external=("198.51.100.4", 7)))
    home.enter()
    home.run(2)
    home.act(home.portmap.release(home.now))
    assert home.upnp_released == [ReleaseUpnp(GATEWAY, 7)]
    assert home.portmap.deadline() is None


def test_the_end_of_nothing_is_nothing() -> None:
    home = Home(HomeRouter(speaks=NOTHING))
    assert home.portmap.release(home.now) == []
    home.enter()
    home.run(10)
    assert home.portmap.release(home.now) == []
    assert home.portmap.deadline() is None


def test_after_the_end_there_can_be_a_beginning() -> None:
    home = Home(HomeRouter())
    home.enter()
    home.run(1)
    home.act(home.portmap.release(home.now))
    home.enter()
    home.run(1)
    assert home.portmap.external == FIRST


# --- who is listened to --------------------------------------------------------------------------------------------

STRANGER = ("192.168.1.66", PORT)
ADDRESS = bytes.fromhex("0080 0000 00000001 cb007107")
GRANTED = bytes.fromhex("0081 0000 00000001 a2c9 9c40 00001c20")


@pytest.mark.parametrize(
    ("data", "source", "why"),
    [
        (ADDRESS, STRANGER, Drop.NOT_FROM_GATEWAY),
        (ADDRESS, (GATEWAY, 1900), Drop.NOT_FROM_GATEWAY),
        (GRANTED[:8] + b"\x00\x01" + GRANTED[10:], (GATEWAY, PORT), Drop.NO_MATCH),  # somebody else's port
        (b"", (GATEWAY, PORT), Drop.MALFORMED),
        (b"\x02\x81\x00\x02" + bytes(56), (GATEWAY, PORT), Drop.MALFORMED),  # in PCP, a refusal
    ],
)
def test_what_is_no_answer_to_our_question_does_nothing(data: bytes, source: Endpoint, why: Drop) -> None:
    portmap = PortMap(random.Random(1).randbytes)
    portmap.set_network(GATEWAY, OWN, OUR_PORT, 0.0)
    before = portmap.deadline()
    assert portmap.receive(data, source, 0.1) == []
    assert portmap.dropped == {why: 1}
    assert portmap.deadline() == before


def test_nobody_is_listened_to_who_was_not_asked() -> None:
    home = Home(HomeRouter())
    home.enter()
    home.run(1)
    for data in (ADDRESS, GRANTED[:10] + b"\x11\x11" + GRANTED[12:]):
        assert home.portmap.receive(data, (GATEWAY, PORT), home.now) == []
    assert home.portmap.dropped == {Drop.UNASKED: 2}
    assert home.portmap.external == FIRST


def test_an_answer_of_pcp_needs_our_nonce() -> None:
    home = Home(HomeRouter(speaks={PCP}))
    home.enter()
    home.run(ROUND_TRIP_S)  # NAT-PMP is refused
    assert home.names()[-1] == "pcp map"
    _, asked = home.router.heard[-1]
    answer = home.router.answer(asked, OWN, home.now)
    assert answer is not None
    forged = bytearray(answer)
    forged[30] ^= 1
    dropped = home.portmap.dropped[Drop.NO_MATCH]
    assert home.portmap.receive(bytes(forged), (GATEWAY, PORT), home.now) == []
    assert home.portmap.dropped[Drop.NO_MATCH] == dropped + 1
    refused_without = answer[:3] + b"\x02" + answer[4:24]
    assert home.portmap.receive(refused_without, (GATEWAY, PORT), home.now) == []
    assert home.portmap.receive(answer, (GATEWAY, PORT), home.now) == [Mapped(FIRST)]


def test_the_nonce_of_a_mapping_stays_and_that_of_another_one_is_another() -> None:
    home = Home(HomeRouter(speaks={PCP}))
    home.enter()
    home.run(LIFETIME_S)
    home.enter(port=5555)
    home.run(1)
    nonces = {(data[40:42], data[24:36]) for _, data in home.router.heard if name_of(data).startswith("pcp ma")}
    assert len(nonces) == 2
    assert len({nonce for _, nonce in nonces}) == 2


Step = tuple[str, object]

DATAGRAMS = st.one_of(
    st.binary(max_size=70),
    st.binary(max_size=70).map(lambda rest: b"\x00\x80\x00\x00" + rest),
    st.binary(max_size=70).map(lambda rest: b"\x00\x81\x00\x00" + rest),
    st.binary(max_size=12).map(lambda rest: b"\x00\x81\x00\x00\x00\x00\x00\x05\xa2\xc9" + rest),
    st.binary(max_size=70).map(lambda rest: b"\x02\x81\x00\x00" + rest),
    st.binary(max_size=70).map(lambda rest: b"\x02\x80\x00\x00" + rest),
)
STEPS = st.one_of(
    st.tuples(st.just("datagram"), DATAGRAMS),
    st.tuples(st.just("wait"), st.floats(0, 8000)),
    st.tuples(st.just("upnp"), st.tuples(st.text(max_size=12), st.integers(-1, 70000))),
    st.tuples(st.just("do"), st.sampled_from(["recheck", "unreachable", "release", "set", "port", "away"])),
)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(STEPS, max_size=30))
def test_whatever_the_gateway_says_the_pace_is_ours(steps: list[Step]) -> None:
    portmap = PortMap(random.Random(2).randbytes)
    now = 0.0
    asked: TryUpnp | None = None
    sent: list[float] = []

    def look(outputs: list[Output]) -> None:
        nonlocal asked
        for output in outputs:
            if isinstance(output, SendTo):
                assert output.address == (GATEWAY, PORT)
                sent.append(now)
            elif isinstance(output, TryUpnp):
                asked = output
                sent.append(now)
            elif isinstance(output, Mapped):
                assert output.external is None or 0 < output.external[1] <= 0xFFFF
                assert output.external is None or output.external[0] not in USELESS
        deadline = portmap.deadline()
        assert deadline is None or deadline > now

    look(portmap.set_network(GATEWAY, OWN, OUR_PORT, now))
    for what, argument in steps:
        prompted = len(sent)
        match what, argument:
            case "datagram", bytes() as data:
                look(portmap.receive(data, (GATEWAY, PORT), now))
            case "wait", float() as seconds:
                now += seconds
                look(portmap.tick(now))
            case "upnp", (str() as host, int() as port) if asked is not None:
                look(portmap.upnp(UpnpOutcome(asked, found=True, external=(host, port)), now))
            case "do", "recheck":
                look(portmap.recheck(now))
            case "do", "unreachable":
                look(portmap.unreachable(now))
            case "do", "release":
                look(portmap.release(now))
            case "do", "set" | "port" | "away" as change:
                gateway = None if change == "away" else GATEWAY
                look(portmap.set_network(gateway, OWN, OUR_PORT + (change == "port"), now))
        assert len(sent) - prompted <= 6, "one thing that happens is answered by few datagrams"


@settings(deadline=None, max_examples=100)
@given(st.lists(st.binary(min_size=0, max_size=64), max_size=20), st.sampled_from([PMP, PCP]))
def test_one_who_cannot_see_our_question_cannot_map_anything_by_pcp(bodies: list[bytes], version: int) -> None:
    portmap = PortMap(random.Random(3).randbytes)
    out = portmap.set_network(GATEWAY, OWN, OUR_PORT, 0.0)
    out += portmap.tick(TIMEOUT_S) + portmap.tick(2 * TIMEOUT_S)
    assert isinstance(out[-1], SendTo)
    assert out[-1].data[:2] == bytes((PCP, pcp.Opcode.MAP))
    for body in bodies:
        for head in (b"\x02\x81\x00\x00", b"\x00\x81\x00\x00", b"\x00\x80\x00\x00"):
            portmap.receive(head + body, (GATEWAY, PORT), 0.6)
    assert portmap.external is None
    assert natpmp.PORT == pcp.PORT == PORT
