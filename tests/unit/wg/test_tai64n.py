"""Time stamps that only ever grow."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tsns.wg import tai64n


def test_the_bytes_of_a_known_moment() -> None:
    # 1700000000 seconds and one step, as in the vectors of the handshake.
    assert tai64n.encode(tai64n.stamp(1_700_000_000.02)).hex() == "400000006553f10a01000000"


def test_a_stamp_tells_no_more_than_16_ms() -> None:
    assert tai64n.stamp(1_700_000_000.001) == tai64n.stamp(1_700_000_000.016)
    assert tai64n.stamp(1_700_000_000.001) != tai64n.stamp(1_700_000_000.018)


def test_a_time_before_1970_is_none() -> None:
    assert tai64n.stamp(-5.0) == tai64n.stamp(0.0) == 0


@given(st.floats(0, 2**33))
def test_the_following_stamp_is_greater_in_its_bytes_too(at: float) -> None:
    stamp = tai64n.stamp(at)
    following = tai64n.following(stamp)
    assert tai64n.encode(following) > tai64n.encode(stamp)
    assert following & 0xFFFFFFFF < tai64n.SECOND_NS
    assert following & 0xFFFFFF == 0
