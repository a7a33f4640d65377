"""Reports on the DERP regions, told with a network that answers, is silent or is far away."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsns.paths import stun
from tsns.paths.netcheck import (
    FULL_INTERVAL_S,
    HTTPS_AFTER_S,
    MIN_WAIT_S,
    REPORT_S,
    STUN_S,
    Done,
    MeasureHttps,
    Netcheck,
    Output,
    Report,
    SendStun,
    eligible,
)
from tsns.proto.addresses import Endpoint
from tsns.proto.types import DERPMap, DERPNode, DERPRegion

ONE, TWO, THREE, FOUR = (("192.0.2.1", 3478), ("192.0.2.2", 3478), ("192.0.2.3", 3478), ("192.0.2.4", 3478))
ONE_V6 = ("2001:db8::1", 3478)
US = ("203.0.113.9", 4444)


def random_bytes() -> Callable[[int], bytes]:
    count = 0

    def take(size: int) -> bytes:
        nonlocal count
        count += 1
        return count.to_bytes(size, "big")

    return take


class Network:
    """Runs one report: answers each STUN server after its latency, each region's HTTPS after its own."""

    def __init__(
        self,
        stun_s: Mapping[Endpoint, float],
        https_s: Mapping[int, float | None] | None = None,
        seen_as: Mapping[Endpoint, Endpoint] | None = None,
        dead: Sequence[Endpoint] = (),
    ) -> None:
        self.stun_s = stun_s
        self.https_s = https_s or {}
        self.seen_as = seen_as or {}
        self.dead = dead
        self.sent: list[tuple[float, Endpoint]] = []
        self.measured: list[tuple[float, int]] = []

    def run(
        self, netcheck: Netcheck, regions: Mapping[int, Sequence[Endpoint]], home: int | None = None, now: float = 0.0
    ) -> Report:
        started_at = now
        coming: list[tuple[float, int, Callable[[float], list[Output]]]] = []
        todo = netcheck.start(regions, home, now)
        while True:
            while todo:
                output = todo.pop(0)
                match output:
                    case SendStun(region, address, data):
                        assert address in regions[region]
                        self.sent.append((now - started_at, address))
                        todo += self.answer(netcheck, address, data, coming, now)
                    case MeasureHttps(region):
                        self.measured.append((now - started_at, region))
                        self.measure(netcheck, region, coming, now)
                    case Done(report):
                        assert not netcheck.running
                        assert netcheck.deadline() is None
                        self.took = now - started_at
                        return report
            coming.sort(key=lambda one: one[:2])
            deadline = netcheck.deadline()
            assert deadline is not None
            if coming and coming[0][0] <= deadline:
                now, _, event = coming.pop(0)
                todo = event(now)
            else:
                assert deadline > now, "the machine asks for a time that has passed"
                now = deadline
                todo = netcheck.tick(now)

    def answer(
        self,
        netcheck: Netcheck,
        address: Endpoint,
        data: bytes,
        coming: list[tuple[float, int, Callable[[float], list[Output]]]],
        now: float,
    ) -> list[Output]:
        if address in self.dead:
            return netcheck.unreachable(address, now)
        txid = stun.parse_request(data)
        assert txid is not None
        if address in self.stun_s:
            answer = stun.response(txid, self.seen_as.get(address, US))
            at = now + self.stun_s[address]
            coming.append((at, len(coming), lambda then: netcheck.receive(answer, then)))
        return []

    def measure(
        self,
        netcheck: Netcheck,
        region: int,
        coming: list[tuple[float, int, Callable[[float], list[Output]]]],
        now: float,
    ) -> None:
        latency = self.https_s.get(region)
        if region in self.https_s:
            coming.append((now + (latency or 0.1), len(coming), lambda then: netcheck.https(region, latency, then)))


def test_one_region_takes_one_round_trip() -> None:
    network = Network({ONE: 0.02})
    report = network.run(Netcheck(random_bytes()), {1: [ONE]})
    assert network.took == pytest.approx(0.02)
    assert report.v4 == {1: pytest.approx(0.02)}
    assert (report.working_udp, report.global_v4, report.mapping_varies_by_dest_ip) == (True, US, None)
    assert network.sent == [(0.0, ONE)]


def test_the_nodes_of_a_region_take_turns() -> None:
    network = Network({THREE: 0.02})
    report = network.run(Netcheck(random_bytes()), {1: [ONE, TWO, THREE]})
    assert network.sent == [(0.0, ONE), (pytest.approx(0.1), TWO), (pytest.approx(0.2), THREE)]
    assert report.v4 == {1: pytest.approx(0.02)}


def test_two_servers_tell_whether_the_mapping_varies() -> None:
    regions = {1: [ONE], 2: [TWO]}
    same = Network({ONE: 0.02, TWO: 0.03}).run(Netcheck(random_bytes()), regions)
    assert same.mapping_varies_by_dest_ip is False
    varying = Network({ONE: 0.02, TWO: 0.03}, seen_as={TWO: ("203.0.113.9", 5555)})
    assert varying.run(Netcheck(random_bytes()), regions).mapping_varies_by_dest_ip is True


def test_two_answers_of_one_server_tell_nothing() -> None:
    network = Network({ONE: 0.25})
    report = network.run(Netcheck(random_bytes()), {1: [ONE]})
    assert len(network.sent) == 3
    assert report.mapping_varies_by_dest_ip is None


def test_far_regions_are_not_waited_for_once_three_have_answered() -> None:
    network = Network({ONE: 0.02, TWO: 0.03, THREE: 0.05, FOUR: 1.0})
    report = network.run(Netcheck(random_bytes()), {1: [ONE], 2: [TWO], 3: [THREE], 4: [FOUR]})
    assert set(report.v4) == {1, 2, 3}
    assert network.took == pytest.approx(0.05 + 2 * 0.05)


def test_a_dead_region_of_two_is_waited_for_until_the_end_of_stun() -> None:
    network = Network({ONE: 0.02})
    report = network.run(Netcheck(random_bytes()), {1: [ONE], 2: [TWO]})
    assert report.v4 == {1: pytest.approx(0.02)}
    assert network.took == pytest.approx(STUN_S)
    assert network.measured == []


def test_ipv6_is_asked_too_and_not_waited_for_long() -> None:
    silent = Network({ONE: 0.02})
    report = silent.run(Netcheck(random_bytes()), {1: [ONE, ONE_V6]})
    assert silent.took == pytest.approx(0.02 + MIN_WAIT_S)
    assert report.v6 == {}
    works = Network({ONE: 0.02, ONE_V6: 0.01}, seen_as={ONE_V6: ("2001:db8::99", 7)})
    report = works.run(Netcheck(random_bytes()), {1: [ONE, ONE_V6]})
    assert report.v6 == {1: pytest.approx(0.01)}
    assert report.global_v6 == ("2001:db8::99", 7)
    assert report.latencies() == {1: pytest.approx(0.01)}


def test_an_address_without_a_route_is_not_waited_for() -> None:
    network = Network({ONE: 0.3}, dead=[ONE_V6, TWO])
    report = network.run(Netcheck(random_bytes()), {1: [ONE, ONE_V6], 2: [TWO]})
    assert network.took == pytest.approx(0.3)
    assert report.latencies() == {1: pytest.approx(0.3)}


def test_https_is_tried_soon_where_udp_is_silent() -> None:
    network = Network({}, https_s={1: 0.2, 2: 0.1})
    report = network.run(Netcheck(random_bytes()), {1: [ONE], 2: [TWO]})
    assert network.measured == [(HTTPS_AFTER_S, 1), (HTTPS_AFTER_S, 2)]
    assert report.latencies() == {1: pytest.approx(0.2), 2: pytest.approx(0.1)}
    assert not report.working_udp
    assert network.took < 2


def test_https_is_tried_at_once_where_nothing_can_be_sent() -> None:
    network = Network({}, https_s={1: 0.2}, dead=[ONE])
    assert network.run(Netcheck(random_bytes()), {1: [ONE]}).https == {1: pytest.approx(0.2)}
    assert network.measured == [(0.0, 1)]
    assert network.took == pytest.approx(0.2)


def test_a_region_without_stun_is_measured_by_https() -> None:
    network = Network({ONE: 0.02}, https_s={2: 0.1})
    report = network.run(Netcheck(random_bytes()), {1: [ONE], 2: []})
    assert report.latencies() == {1: pytest.approx(0.02), 2: pytest.approx(0.1)}
    assert network.measured == [(0.0, 2)]


def test_a_report_ends_where_nothing_answers() -> None:
    network = Network({}, https_s={1: None})
    report = network.run(Netcheck(random_bytes()), {1: [ONE], 2: [TWO]})
    assert network.took == pytest.approx(REPORT_S)
    assert report.latencies() == {}


def test_without_regions_there_is_nothing_to_wait_for() -> None:
    assert Network({}).run(Netcheck(random_bytes()), {}).latencies() == {}


def test_later_reports_ask_only_the_fastest_and_home() -> None:
    netcheck = Netcheck(random_bytes())
    five = ("192.0.2.5", 3478)
    regions: dict[int, list[Endpoint]] = {1: [ONE], 2: [TWO], 3: [THREE], 4: [FOUR], 5: [five]}
    near = {ONE: 0.05, TWO: 0.02, THREE: 0.03, FOUR: 0.06, five: 0.04}
    first = Network(near)
    assert first.run(netcheck, regions).full
    later = Network(near)
    report = later.run(netcheck, regions, home=1, now=20.0)
    assert not report.full
    assert {address for _, address in later.sent} == {ONE, TWO, THREE, five}
    again = Network(near)
    assert again.run(netcheck, regions, home=1, now=FULL_INTERVAL_S).full


def test_home_is_asked_four_times_with_growing_pauses() -> None:
    netcheck = Netcheck(random_bytes())
    regions: dict[int, list[Endpoint]] = {1: [ONE], 2: [TWO]}
    Network({ONE: 0.1, TWO: 0.1}).run(netcheck, regions)
    network = Network({})
    network.run(netcheck, regions, home=1, now=20.0)
    assert [at for at, address in network.sent if address == ONE] == [
        pytest.approx(at) for at in (0, 0.12, 0.24 + 0.1, 0.36 + 0.15)
    ]


def test_a_region_that_fell_silent_is_asked_again_and_a_silent_network_asks_all() -> None:
    netcheck = Netcheck(random_bytes())
    regions: dict[int, list[Endpoint]] = {1: [ONE], 2: [TWO]}
    Network({ONE: 0.02, TWO: 0.03}).run(netcheck, regions)
    Network({TWO: 0.03}).run(netcheck, regions, home=1, now=20.0)
    back = Network({ONE: 0.02, TWO: 0.03})
    assert set(back.run(netcheck, regions, home=2, now=40.0).v4) == {1, 2}
    Network({}).run(netcheck, regions, home=2, now=60.0)
    assert Network({}).run(netcheck, regions, home=2, now=80.0).full


def test_a_new_region_needs_a_full_report() -> None:
    netcheck = Netcheck(random_bytes())
    Network({ONE: 0.02}).run(netcheck, {1: [ONE]})
    network = Network({ONE: 0.02, TWO: 0.03})
    report = network.run(netcheck, {1: [ONE], 2: [TWO]}, home=1, now=20.0)
    assert (report.full, set(report.v4)) == (True, {1, 2})
    assert not Network({ONE: 0.02}).run(netcheck, {1: [ONE]}, home=1, now=40.0).full


def test_another_network_needs_a_full_report() -> None:
    netcheck = Netcheck(random_bytes())
    Network({ONE: 0.02}).run(netcheck, {1: [ONE]})
    netcheck.forget()
    assert Network({ONE: 0.02}).run(netcheck, {1: [ONE]}, now=1.0).full


def test_only_answers_to_our_own_questions_count() -> None:
    netcheck = Netcheck(random_bytes())
    assert netcheck.receive(stun.response(bytes(12), US), 0.0) == []
    netcheck.start({1: [ONE]}, None, 0.0)
    assert netcheck.receive(stun.response(b"somebody's..", US), 0.01) == []
    assert netcheck.https(1, 0.1, 0.01) == []
    assert netcheck.running


def test_which_regions_may_be_home() -> None:
    nodes = [DERPNode(name="1", host_name="derp")]
    regions: dict[int, DERPRegion | None] = {
        1: DERPRegion(nodes=nodes),
        2: DERPRegion(nodes=nodes, avoid=True),
        3: DERPRegion(nodes=nodes, no_measure_no_home=True),
        4: DERPRegion(nodes=None),
        5: None,
        0: DERPRegion(nodes=nodes),
    }
    assert list(eligible(DERPMap(regions=regions))) == [1]
    assert eligible(DERPMap()) == {}


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(st.sampled_from(["receive", "tick", "https", "unreachable"]), st.floats(0, 2), st.binary(max_size=40))
    )
)
def test_nothing_that_happens_raises_and_every_report_ends(events: list[tuple[str, float, bytes]]) -> None:
    netcheck = Netcheck(random_bytes())
    netcheck.start({1: [ONE, ONE_V6], 2: [TWO], 3: []}, 1, 0.0)
    now = 0.0
    for what, later, data in events:
        now += later
        match what:
            case "receive":
                netcheck.receive(data, now)
            case "tick":
                netcheck.tick(now)
            case "https":
                netcheck.https(len(data) % 5, None, now)
            case _:
                netcheck.unreachable((ONE, TWO, ONE_V6)[len(data) % 3], now)
    netcheck.tick(now + REPORT_S)
    assert not netcheck.running
