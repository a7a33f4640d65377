"""The way to a peer that speaks WireGuard only: by the netmap at first, then wherever it is heard from."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from tsns.paths.candidates import MAX_TOLD
from tsns.paths.peer_path import ACTIVE_S, MAX_CHANGES, Change, Kind
from tsns.paths.plain_path import QUIET_S, TRY_S, PlainPath
from tsns.ways import UdpPath

A, B, C = ("192.0.2.1", 51820), ("192.0.2.2", 51820), ("192.0.2.3", 51820)


def sending(path: PlainPath, start: float, seconds: float, every_s: float = 0.5) -> list[tuple[float, tuple[str, int]]]:
    """Send for a while; when the path became which other one."""
    found = []
    for number in range(round(seconds / every_s)):
        now = start + number * every_s
        for wish in path.on_activity(now):
            assert isinstance(wish, Change)
            assert wish.endpoint is not None
            found.append((now - start, wish.endpoint))
    return found


def test_without_an_endpoint_there_is_no_path() -> None:
    path = PlainPath()
    assert (path.kind, path.path) == (Kind.NONE, None)
    assert path.on_activity(0.0) == []


def test_the_netmap_says_where_to_begin() -> None:
    path = PlainPath()
    [change] = path.tell([A, B], 0.0)
    assert isinstance(change, Change)
    assert str(change) == "direct by 192.0.2.1:51820: the netmap says so"
    assert path.path == UdpPath(A)
    assert path.tell([A, B], 0.0) == []


def test_while_nothing_comes_back_one_is_tried_after_the_other() -> None:
    path = PlainPath()
    path.tell([A, B, C], 0.0)
    assert sending(path, 0.0, 4 * TRY_S) == [(TRY_S, B), (2 * TRY_S, C), (3 * TRY_S, A)]


def test_who_answers_is_kept() -> None:
    path = PlainPath()
    path.tell([A, B], 0.0)
    sending(path, 0.0, TRY_S)
    assert path.heard(A, TRY_S) == []
    assert sending(path, TRY_S, QUIET_S) == []


def test_it_is_followed_to_where_it_is_heard_from() -> None:
    path = PlainPath()
    path.tell([A], 0.0)
    [change] = path.heard(B, 1.0)
    assert isinstance(change, Change)
    assert change.endpoint == B
    assert path.path == UdpPath(B)
    assert path.heard(B, 2.0) == []


def test_who_falls_silent_is_looked_for_where_the_netmap_says() -> None:
    path = PlainPath()
    path.tell([A], 0.0)
    path.heard(C, 1.0)
    [(after_s, endpoint)] = sending(path, 1.0, 2 * QUIET_S)
    assert endpoint == A
    assert QUIET_S < after_s <= QUIET_S + TRY_S + 1.0


def test_who_wakes_begins_where_the_peer_was_last() -> None:
    path = PlainPath()
    path.tell([A], 0.0)
    path.heard(C, 1.0)
    assert path.on_activity(5000.0) == []
    assert path.path == UdpPath(C)
    assert sending(path, 5000.0, 2 * TRY_S) == [(TRY_S, A)]


def test_the_only_place_there_is_is_not_left() -> None:
    path = PlainPath()
    path.tell([A], 0.0)
    assert sending(path, 0.0, 100.0) == []


def test_an_unheard_peer_is_where_the_netmap_says_now() -> None:
    path = PlainPath()
    path.tell([A], 0.0)
    sending(path, 0.0, 2.0)
    [change] = path.tell([B], 2.0)
    assert isinstance(change, Change)
    assert change.endpoint == B
    assert path.path == UdpPath(B)
    path.tell([C, A], TRY_S)
    assert sending(path, TRY_S, 2 * TRY_S) == [(TRY_S, A)]  # which has its time, too


def test_a_peer_that_was_just_heard_stays_where_it_was_heard() -> None:
    path = PlainPath()
    path.tell([A], 0.0)
    path.heard(A, 1.0)
    assert path.tell([B], 2.0) == []
    assert path.path == UdpPath(A)
    assert [endpoint for _, endpoint in sending(path, 2.0, QUIET_S + TRY_S + 1.0)] == [B]


def test_a_netmap_without_endpoints_takes_nothing_away() -> None:
    path = PlainPath()
    path.tell([A], 0.0)
    assert path.tell([], 1.0) == []
    assert path.path == UdpPath(A)
    assert sending(path, 1.0, 100.0) == []


def test_whether_packets_are_sent() -> None:
    path = PlainPath()
    assert not path.is_active(0.0)
    path.on_activity(0.0)
    assert path.is_active(ACTIVE_S)
    assert not path.is_active(ACTIVE_S + 0.1)


def test_what_is_remembered_is_bounded() -> None:
    path = PlainPath()
    path.tell([("192.0.2.1", port) for port in range(1, 1000)], 0.0)
    assert len({endpoint for _, endpoint in sending(path, 0.0, 1000.0)}) == MAX_TOLD
    assert len(path.changes) == MAX_CHANGES


places = st.sampled_from([A, B, C])
steps = st.one_of(
    st.tuples(st.just("tell"), st.lists(places, max_size=3)),
    st.tuples(st.just("hear"), places),
    st.tuples(st.just("send"), st.floats(0, 30)),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, max_size=30))
def test_in_whatever_order_things_happen(events: list[tuple[object, ...]]) -> None:
    path, now = PlainPath(), 0.0
    for event in events:
        match event:
            case "tell", list(endpoints):
                path.tell(endpoints, now)
            case "hear", (str(host), int(port)):
                path.heard((host, port), now)
                assert path.best == (host, port)
            case "send", float(pause_s):
                now += pause_s
                path.on_activity(now)
        assert (path.best is None) == (path.kind is Kind.NONE) == (path.path is None)
    path.tell([A, B], now)
    tried = {path.best, *(endpoint for _, endpoint in sending(path, now, QUIET_S + 3 * TRY_S))}
    assert {A, B} <= tried
