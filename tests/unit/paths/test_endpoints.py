"""Where we ourselves may be reached: kinds, order, and how long what was seen counts."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsns.paths.endpoints import MAX_LOCAL, MAX_PER_HOST, REMEMBERED_S, EndpointType, OwnEndpoints
from tsns.proto.addresses import Endpoint

PORTS = {4: 41641, 16: 41642}
OUTSIDE, OUTSIDE6 = ("203.0.113.1", 5000), ("2001:db8::1", 41642)
LOCAL, STUN, MAPPED, STUN_LOCAL_PORT = (
    EndpointType.LOCAL,
    EndpointType.STUN,
    EndpointType.PORT_MAPPED,
    EndpointType.STUN_LOCAL_PORT,
)


def local(*addresses: str, ports: dict[int, int] | None = None) -> list[Endpoint]:
    """What becomes of the host's addresses."""
    own = OwnEndpoints()
    own.set_local(addresses, PORTS if ports is None else ports)
    found = own.all(0.0)
    assert {kind for _, kind in found} <= {LOCAL}
    return [endpoint for endpoint, _ in found]


def test_each_address_has_the_port_of_its_family() -> None:
    assert local("192.168.1.5", "2001:db8::5") == [("192.168.1.5", 41641), ("2001:db8::5", 41642)]
    assert local("192.168.1.5", "2001:db8::5", ports={4: 1}) == [("192.168.1.5", 1)]
    assert local("192.168.1.5", ports={}) == []


def test_loopback_counts_only_where_there_is_nothing_else() -> None:
    assert local("127.0.0.1", "::1") == [("127.0.0.1", 41641), ("::1", 41642)]
    assert local("127.0.0.1", "::1", "10.0.0.1") == [("10.0.0.1", 41641)]
    assert local("127.0.0.1", "fe80::1") == [("127.0.0.1", 41641)]


def test_what_is_good_on_one_wire_only_is_not_told() -> None:
    assert local("fe80::1", "169.254.7.7", "10.0.0.1") == [("10.0.0.1", 41641)]


def test_a_tailnets_own_addresses_are_no_way_to_us() -> None:
    assert local("100.64.0.7", "fd7a:115c:a1e0::7", "10.0.0.1") == [("10.0.0.1", 41641)]
    assert local("100.64.0.7", "127.0.0.1") == [("127.0.0.1", 41641)]


def test_a_host_with_a_thousand_addresses_tells_of_some() -> None:
    many = [f"10.0.{number >> 8}.{number & 255}" for number in range(1000)]
    assert local(*many) == [(address, 41641) for address in many[:MAX_LOCAL]]


def test_the_best_come_first() -> None:
    own = OwnEndpoints()
    own.set_local(["192.168.1.5"], PORTS)
    own.note_seen([OUTSIDE, OUTSIDE6], varies=False, now=0.0)
    own.set_mapped(("203.0.113.1", 9000))
    assert own.all(0.0) == [
        (("203.0.113.1", 9000), MAPPED),
        (OUTSIDE, STUN),
        (OUTSIDE6, STUN),
        (("192.168.1.5", 41641), LOCAL),
    ]
    own.set_mapped(None)
    assert own.all(0.0)[0] == (OUTSIDE, STUN)


def test_each_is_named_once_by_its_best_kind() -> None:
    own = OwnEndpoints()
    own.set_local(["203.0.113.1"], {4: 5000})
    assert own.all(0.0) == [(OUTSIDE, LOCAL)]
    own.note_seen([OUTSIDE], varies=False, now=0.0)
    assert own.all(0.0) == [(OUTSIDE, STUN)]
    own.set_mapped(OUTSIDE)
    assert own.all(0.0) == [(OUTSIDE, MAPPED)]


def test_what_was_seen_last_comes_first() -> None:
    own = OwnEndpoints()
    for number, port in enumerate((5000, 5001, 5000)):
        own.note_seen([("203.0.113.1", port)], varies=False, now=float(number))
    assert [endpoint[1] for endpoint, _ in own.all(2.0)] == [5000, 5001]


def test_what_was_seen_is_remembered_and_then_forgotten() -> None:
    own = OwnEndpoints()
    own.note_seen([OUTSIDE], varies=False, now=0.0)
    own.note_seen([], varies=None, now=100.0)  # a report without an answer
    assert own.all(REMEMBERED_S) == [(OUTSIDE, STUN)]
    assert own.all(REMEMBERED_S + 0.1) == []


def test_on_another_network_nobody_sees_us_there_any_more() -> None:
    own = OwnEndpoints()
    own.set_local(["10.0.0.1"], PORTS)
    own.note_seen([OUTSIDE], varies=False, now=0.0)
    own.forget_seen()
    assert own.all(0.0) == [(("10.0.0.1", 41641), LOCAL)]


@pytest.mark.parametrize(
    ("fixed_port", "varies", "told"),
    [(41641, True, True), (41641, False, False), (41641, None, False), (0, True, False)],
)
def test_who_fixed_a_port_may_have_opened_it_by_hand(fixed_port: int, varies: bool | None, told: bool) -> None:
    own = OwnEndpoints(fixed_port=fixed_port)
    own.note_seen([OUTSIDE, OUTSIDE6], varies=varies, now=0.0)
    expected = [((OUTSIDE[0], fixed_port), STUN_LOCAL_PORT)] if told else []
    assert own.all(0.0) == [(OUTSIDE, STUN), (OUTSIDE6, STUN), *expected]


def test_a_nat_that_gives_every_server_another_port_does_not_fill_the_list() -> None:
    own = OwnEndpoints()
    for port in range(1000, 2000):
        own.note_seen([("203.0.113.1", port)], varies=True, now=0.0)
    own.note_seen([("203.0.113.2", 7)], varies=True, now=0.0)
    ports = [endpoint[1] for endpoint, _ in own.all(0.0)]
    assert ports == [7, *range(1999, 1999 - MAX_PER_HOST, -1)]
    assert len(own._seen) == 1 + MAX_PER_HOST


def test_whose_addresses_are_the_hosts_own() -> None:
    own = OwnEndpoints()
    own.set_local(["203.0.113.1", "2001:db8::5"], PORTS)
    assert own.is_own_address("203.0.113.1")
    assert own.is_own_address("2001:db8::5")
    assert own.is_own_address("127.0.0.1")
    assert not own.is_own_address("203.0.113.2")


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["203.0.113.1", "203.0.113.2", "2001:db8::1"]), st.integers(1, 30), st.floats(0, 100)
        ),
        max_size=60,
    )
)
def test_however_it_is_seen_the_list_is_short_and_has_nothing_twice(steps: list[tuple[str, int, float]]) -> None:
    own, now = OwnEndpoints(fixed_port=3), 0.0
    for host, port, pause_s in steps:
        now += pause_s
        own.note_seen([(host, port)], varies=True, now=now)
        found = [endpoint for endpoint, _ in own.all(now)]
        assert found[0] == (host, port)
        assert len(found) == len(set(found)) <= 3 * MAX_PER_HOST
