"""Where a peer may be: whose word it is, for how long it counts, and which of two is better."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsns.paths.candidates import (
    LEARNT_S,
    MAX_LEARNT,
    MAX_TOLD,
    Candidates,
    is_better,
    is_link_local,
    is_loopback,
    may_be_pinged,
)
from tsns.proto.addresses import Endpoint, pack

A, B, C = ("192.0.2.1", 1), ("192.0.2.2", 2), ("192.0.2.3", 3)


def somewhere(number: int) -> Endpoint:
    return f"198.51.{number >> 8 & 255}.{number & 255}", 1 + (number >> 16)


def endpoints(candidates: Candidates) -> set[Endpoint]:
    return {candidate.endpoint for candidate in candidates.by_turn()}


# --- who speaks of them --------------------------------------------------------------------------------------------


def test_the_netmap_and_the_peer_each_have_a_list_of_their_own() -> None:
    candidates = Candidates()
    assert candidates.tell([A, B], 0.0)
    assert candidates.call([B, C], 0.0)
    assert not candidates.tell([B], 0.0)
    candidates.prune(0.0)
    assert endpoints(candidates) == {B, C}
    candidates.call([], 0.0)
    candidates.prune(0.0)
    assert endpoints(candidates) == {B}


def test_whether_there_is_something_new() -> None:
    candidates = Candidates()
    assert candidates.tell([A], 0.0)
    assert not candidates.tell([A], 0.0)
    assert not candidates.call([A], 0.0)
    assert candidates.call([A, B], 0.0)
    assert not candidates.tell([], 0.0)


def test_what_only_a_ping_told_of_is_forgotten() -> None:
    candidates = Candidates()
    assert candidates.hear(A, 10.0) is not None
    candidates.prune(10.0 + LEARNT_S)
    assert endpoints(candidates) == {A}
    candidates.prune(10.1 + LEARNT_S)
    assert endpoints(candidates) == set()


def test_each_ping_renews_it() -> None:
    candidates = Candidates()
    candidates.hear(A, 10.0)
    candidates.hear(A, 50.0)
    candidates.prune(10.1 + LEARNT_S)
    assert endpoints(candidates) == {A}


def test_what_somebody_else_speaks_of_is_not_forgotten() -> None:
    candidates = Candidates()
    candidates.hear(A, 0.0)
    candidates.tell([A], 0.0)
    candidates.prune(1e6)
    assert endpoints(candidates) == {A}
    assert not candidates.tell([], 1e6)
    candidates.prune(1e6)
    assert endpoints(candidates) == set()


def test_the_best_path_is_kept_though_nobody_speaks_of_it() -> None:
    candidates = Candidates()
    candidates.hear(A, 0.0)
    for forget in (
        lambda: candidates.prune(1e6, keep=A),
        lambda: candidates.hear(B, 1e6, keep=A),
        lambda: candidates.tell([C], 1e6, keep=A),
        lambda: candidates.call([C], 1e6, keep=A),
    ):
        forget()
        assert A in endpoints(candidates)


def test_those_whose_turn_is_longest_due_come_first() -> None:
    candidates = Candidates()
    candidates.tell([A, B, C], 0.0)
    for endpoint, at in ((A, 2.0), (C, 1.0)):
        candidate = candidates.get(endpoint)
        assert candidate is not None
        candidate.pinged_at = at
    assert [candidate.endpoint for candidate in candidates.by_turn()] == [B, C, A]
    candidates.forget_answers()
    assert [candidate.endpoint for candidate in candidates.by_turn()] == [A, B, C]


# --- bounds --------------------------------------------------------------------------------------------------------


def test_of_the_netmap_only_so_many_count() -> None:
    candidates = Candidates()
    candidates.tell([somewhere(number) for number in range(1000)], 0.0)
    assert endpoints(candidates) == {somewhere(number) for number in range(MAX_TOLD)}


def test_pings_from_everywhere_fill_nothing() -> None:
    candidates = Candidates()
    candidates.tell([A], 0.0)
    heard = [candidates.hear(somewhere(number), 0.0) for number in range(1000)]
    assert sum(candidate is not None for candidate in heard) == MAX_LEARNT
    assert len(candidates) == 1 + MAX_LEARNT
    assert candidates.hear(A, 0.0) is not None  # who is known is heard
    assert candidates.hear(somewhere(5000), LEARNT_S + 0.1) is not None  # there is room again


def test_nor_do_pings_from_where_the_peer_just_said_it_was() -> None:
    candidates = Candidates()
    candidates.tell([B], 0.0)
    candidates.hear(A, 0.0)
    for number in range(0, 1000, 10):
        called = [somewhere(number + more) for more in range(10)]
        candidates.call(called, 1.0 + number / 1000, keep=A)
        for endpoint in called:
            assert candidates.hear(endpoint, 1.0 + number / 1000, keep=A) is not None
        assert len(candidates) <= 1 + 10 + MAX_LEARNT
    assert {A, B, *called} <= endpoints(candidates)


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["tell", "call", "hear"]), st.lists(st.integers(0, 1000), max_size=40), st.floats(0, 20)
        ),
        max_size=60,
    )
)
def test_whatever_a_peer_says_there_are_never_more_than_so_many(steps: list[tuple[str, list[int], float]]) -> None:
    candidates, now = Candidates(), 0.0
    for what, numbers, pause_s in steps:
        now += pause_s
        named = [somewhere(number) for number in numbers]
        if what == "hear":
            for endpoint in named:
                candidates.hear(endpoint, now, keep=A)
        elif what == "tell":
            candidates.tell(named, now, keep=A)
        else:
            candidates.call(named, now, keep=A)
        assert len(candidates) <= MAX_TOLD + 40 + MAX_LEARNT


# --- which may be pinged -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host",
    ["1.2.3.4", "10.0.0.1", "192.168.1.1", "100.64.0.1", "169.254.1.1", "223.255.255.255", "2001:db8::1", "fd00::1"],
)
def test_who_may_be_pinged(host: str) -> None:
    assert may_be_pinged((host, 41641), loopback=False)
    assert may_be_pinged((host, 1), loopback=True)


@pytest.mark.parametrize(
    "endpoint",
    [
        ("1.2.3.4", 0),
        ("0.0.0.0", 1),
        ("0.1.2.3", 1),
        ("224.0.0.1", 1),
        ("239.255.255.250", 1900),
        ("240.0.0.1", 1),
        ("255.255.255.255", 1),
        ("::", 1),
        ("ff02::1", 1),
        ("ff0e::1", 1),
        ("fe80::1", 1),
        ("fe80::1%eth0", 1),
        ("febf::1", 1),
        ("", 1),
        ("name", 1),
    ],
)
def test_who_may_not(endpoint: Endpoint) -> None:
    assert not may_be_pinged(endpoint, loopback=False)
    assert not may_be_pinged(endpoint, loopback=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.255.0.1", "::1"])
def test_nobody_makes_us_ping_our_own_programs_but_where_peers_are_among_them(host: str) -> None:
    assert not may_be_pinged((host, 80), loopback=False)
    assert may_be_pinged((host, 80), loopback=True)


def test_kinds_of_addresses() -> None:
    assert is_loopback(pack("127.1.2.3"))
    assert is_loopback(pack("::1"))
    assert not is_loopback(pack("::2"))
    assert is_link_local(pack("169.254.0.1"))
    assert is_link_local(pack("fe80::1"))
    assert not is_link_local(pack("169.253.0.1"))


# --- which is better -----------------------------------------------------------------------------------------------

V4, V6, PRIVATE, ULA = ("192.0.2.1", 1), ("2001:db8::1", 1), ("192.168.0.1", 1), ("fd00::1", 1)
LOCAL, LOOP = ("169.254.0.1", 1), ("127.0.0.1", 1)


# After the cases of TestBetterAddr in wgengine/magicsock/magicsock_test.go of Tailscale's module, and a few more.
@pytest.mark.parametrize(
    ("one", "one_ms", "other", "other_ms", "better"),
    [
        (V4, 10, V4, 20, False),  # the same one
        (V4, 100, B, 100, False),
        (V4, 11, B, 10, False),
        (V4, 10, B, 11, True),
        (V4, 99.9, B, 100, False),  # less than a point
        (V4, 99, B, 100, False),  # one point: the next ping may turn it round
        (V4, 98, B, 100, True),
        (V6, 100, V4, 100, True),  # 10 points
        (V6, 100, V4, 91, True),
        (V6, 100, V4, 90, False),  # 10 to 10
        (V4, 89, V6, 100, True),
        (PRIVATE, 100, V4, 100, True),  # 20 points
        (PRIVATE, 100, V4, 81, True),
        (V4, 79, PRIVATE, 100, True),
        (ULA, 100, PRIVATE, 100, True),  # 30 to 20
        (PRIVATE, 100, V6, 100, True),
        (LOCAL, 100, PRIVATE, 100, True),
        (LOOP, 100, LOCAL, 100, True),
        (V4, 0, B, 0, False),
        (V4, 0, B, 1, True),
        (LOOP, 100, V4, 49, False),  # 50 to 51
    ],
)
def test_points(one: Endpoint, one_ms: float, other: Endpoint, other_ms: float, better: bool) -> None:
    assert is_better(one, one_ms / 1000, other, other_ms / 1000) == better


some = st.sampled_from([V4, B, V6, PRIVATE, ULA, LOCAL, LOOP])
latencies = st.floats(0, 10)


@settings(deadline=None)
@given(some, latencies, some, latencies)
def test_two_are_never_each_better_than_the_other(one: Endpoint, one_s: float, other: Endpoint, other_s: float) -> None:
    assert not (is_better(one, one_s, other, other_s) and is_better(other, other_s, one, one_s))
