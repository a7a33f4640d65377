"""What gets as far as the arithmetic of a handshake: load, limits for each source, cookies, and both ways apart."""

from __future__ import annotations

import pytest

from tests.unit.wg.shuttle import entropy
from tsns.bucket import Bucket
from tsns.keys import NodePublic
from tsns.ways import DerpSource, Source, UdpSource
from tsns.wg.admission import (
    COOKIES_BURST,
    COOKIES_PER_S,
    LIMIT_BURST,
    LIMIT_CLEARING_S,
    LIMIT_MAX_SOURCES,
    LIMIT_PER_S,
    LIMIT_TIDY_SOURCES,
    LOAD_MESSAGES,
    LOADED_MESSAGES,
    Admission,
    LoadGauge,
    SourceLimiter,
)
from tsns.wg.cookie import CookieJar
from tsns.wg.drops import Drop

PUBLIC = b"\x42" * 32
BODY = b"\x01\0\0\0abcd" + b"body" * 27
HERE, THERE = b"192.0.2.1", b"192.0.2.2"


def somewhere(number: int) -> UdpSource:
    return UdpSource((f"198.51.{number >> 8 & 255}.{number & 255}", 1 + (number >> 16)))


def verdicts(
    admission: Admission, source: Source, count: int, jar: CookieJar | None = None
) -> list[Drop | bytes | None]:
    """What becomes of so many messages, all at once; a cookie is used as soon as it has come."""
    jar = jar or CookieJar(PUBLIC)
    found = []
    for _ in range(count):
        verdict = admission.admits(jar.stamp(BODY, 0.0), source, 0.0)
        if isinstance(verdict, bytes):
            jar.receive(verdict, 0.0)
        found.append(verdict)
    return found


@pytest.fixture
def admission() -> Admission:
    return Admission(PUBLIC, entropy(1))


@pytest.fixture
def loaded(admission: Admission) -> Admission:
    """One that is under load by UDP."""
    assert verdicts(admission, UdpSource(("192.0.2.99", 1)), LOAD_MESSAGES - 1) == [None] * (LOAD_MESSAGES - 1)
    return admission


# --- the parts -----------------------------------------------------------------------------------------------------


def test_load_is_a_matter_of_number_within_a_second_and_lasts_one() -> None:
    gauge = LoadGauge()
    assert not any(gauge.count(now=n / 1000) for n in range(LOAD_MESSAGES - 1))
    assert gauge.count(now=0.5)
    assert gauge.count(now=1.4)
    assert not gauge.count(now=1.6)


def test_a_slow_stream_is_no_load() -> None:
    gauge = LoadGauge()
    assert not any(gauge.count(now=n / 100) for n in range(1000))


def test_a_source_has_five_and_then_twenty_a_second() -> None:
    limiter = SourceLimiter()
    assert [limiter.allow(HERE, now=0.0) for _ in range(7)] == [True] * 5 + [False] * 2
    assert limiter.allow(THERE, now=0.0)
    assert [limiter.allow(HERE, now=0.051) for _ in range(2)] == [True, False]
    assert sum(limiter.allow(HERE, now=10 + n / 1000) for n in range(1000)) in {24, 25}


@pytest.mark.parametrize("when_full", [False, True])
def test_the_limiter_watches_a_bounded_number_of_sources(when_full: bool) -> None:
    limiter = SourceLimiter(when_full=when_full)
    assert all(limiter.allow(n.to_bytes(4, "big"), now=0.0) for n in range(LIMIT_MAX_SOURCES))
    assert limiter.allow(b"one too many", now=0.0) is when_full
    assert len(limiter._buckets) == LIMIT_MAX_SOURCES
    assert limiter.allow(b"one too many", now=1.0)
    assert len(limiter._buckets) == 1


def test_a_full_table_is_not_searched_for_each_message(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    is_full = Bucket.is_full

    def counted(self: Bucket, now: float) -> bool:
        nonlocal looks
        looks += 1
        return is_full(self, now)

    monkeypatch.setattr(Bucket, "is_full", counted)
    limiter = SourceLimiter()
    for number in range(10 * LIMIT_MAX_SOURCES):
        limiter.allow(number.to_bytes(4, "big"), now=number * 1e-6)
    assert looks <= LIMIT_MAX_SOURCES * (1 + 10 * LIMIT_MAX_SOURCES * 1e-6 / LIMIT_CLEARING_S)


# --- the whole -----------------------------------------------------------------------------------------------------


def test_without_load_only_mac1_counts(admission: Admission) -> None:
    assert verdicts(admission, somewhere(1), 100) == [None] * 100
    assert verdicts(admission, somewhere(1), 1, CookieJar(b"\x43" * 32)) == [Drop.WRONG_MAC1]


def test_a_bad_mac1_does_not_make_load(admission: Admission) -> None:
    verdicts(admission, somewhere(1), 10 * LOAD_MESSAGES, CookieJar(b"\x43" * 32))
    assert verdicts(admission, somewhere(2), 1) == [None]


def test_under_load_a_cookie_opens_the_door(loaded: Admission) -> None:
    reply, *later = verdicts(loaded, somewhere(1), 8)
    assert isinstance(reply, bytes)
    assert later == [None] * int(LIMIT_BURST) + [Drop.RATE_LIMITED] * 2


def test_a_source_gets_few_cookies_and_others_theirs_all_the_same(loaded: Admission) -> None:
    deaf = [loaded.admits(CookieJar(PUBLIC).stamp(BODY, 0.0), somewhere(1), 0.0) for _ in range(1000)]
    assert sum(isinstance(verdict, bytes) for verdict in deaf) == LIMIT_BURST
    assert deaf[-1] == Drop.NO_COOKIE_LEFT
    assert isinstance(verdicts(loaded, somewhere(2), 1)[0], bytes)


def test_all_together_get_a_bounded_number_of_cookies(loaded: Admission) -> None:
    message = CookieJar(PUBLIC).stamp(BODY, 0.0)
    replies = 0
    for number in range(20_000):  # within a second, each from another forged address
        replies += isinstance(loaded.admits(message, somewhere(number), number / 20_000), bytes)
    assert replies <= COOKIES_BURST + COOKIES_PER_S


def test_all_cookies_together_open_the_door_a_bounded_number_of_times(loaded: Admission) -> None:
    admitted = refused = 0
    for number in range(60):
        found = verdicts(loaded, somewhere(number), 6)
        admitted += found.count(None)
        refused += found.count(Drop.OVERLOADED)
    assert admitted == LOADED_MESSAGES
    assert refused == 60 * LIMIT_BURST - LOADED_MESSAGES


def test_who_comes_by_relay_is_limited_from_the_start_and_makes_no_load(admission: Admission) -> None:
    source = DerpSource(1, NodePublic(b"\x07" * 32))
    found = verdicts(admission, source, 10 * LOAD_MESSAGES)
    assert found.count(None) == LIMIT_BURST
    assert set(found) == {None, Drop.RATE_LIMITED}
    assert verdicts(admission, DerpSource(1, NodePublic(b"\x08" * 32)), 1) == [None]


def test_a_datagram_with_a_forged_source_uses_up_nothing_of_its_owners(admission: Admission) -> None:
    """Less than load is not limited by source: anybody could spend what is another's."""
    assert verdicts(admission, somewhere(1), LOAD_MESSAGES - 1) == [None] * (LOAD_MESSAGES - 1)


def test_a_flood_by_udp_does_not_raise_the_price_by_relay(loaded: Admission) -> None:
    assert isinstance(verdicts(loaded, somewhere(1), 1)[0], bytes)
    assert verdicts(loaded, DerpSource(1, NodePublic(b"\x07" * 32)), 1) == [None]


def test_many_by_relay_together_are_load(admission: Admission) -> None:
    for number in range(LOAD_MESSAGES - 1):
        assert verdicts(admission, DerpSource(1, NodePublic(number.to_bytes(32, "big"))), 1) == [None]
    last = verdicts(admission, DerpSource(1, NodePublic(b"\x07" * 32)), 2)
    assert isinstance(last[0], bytes)
    assert last[1] is None


def test_the_limits_leave_most_of_a_core() -> None:
    """At 0.2 ms for a handshake and 0.02 ms for a cookie reply with its way out, both ways flooded."""
    handshakes = 2 * (LOAD_MESSAGES + LOADED_MESSAGES)
    assert 0.2e-3 * handshakes + 0.02e-3 * COOKIES_PER_S < 0.15
    assert LIMIT_PER_S * LIMIT_CLEARING_S == LIMIT_BURST


def test_who_was_silent_is_not_remembered() -> None:
    limiter = SourceLimiter()
    for number in range(10_000):
        assert limiter.allow(number.to_bytes(4, "big"), now=2.0 * LIMIT_CLEARING_S * number)
        assert len(limiter._buckets) <= LIMIT_TIDY_SOURCES + 1
