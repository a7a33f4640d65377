"""Who was heard over a connection, within bounds."""

from __future__ import annotations

from tsns.derp.heard import MAX_GONE, MAX_HEARD, RETURN_S, Heard
from tsns.keys import NodePublic


def peer(number: int) -> NodePublic:
    return NodePublic(number.to_bytes(32, "big"))


def test_the_last_time_counts_until_the_peer_leaves() -> None:
    heard = Heard()
    heard.note([(peer(1), b"a"), (peer(2), b"b")], now=1.0)
    heard.note([(peer(1), b"c")], now=2.0)
    assert [heard.at(peer(n)) for n in (1, 2, 3)] == [2.0, 1.0, None]
    heard.forget(peer(1))
    heard.forget(peer(3))
    assert [heard.at(peer(n)) for n in (1, 2)] == [None, 1.0]


def test_who_may_be_absent() -> None:
    heard = Heard(since=100.0)
    assert heard.may_be_absent(peer(1), 100.0 + RETURN_S - 0.1)  # the relay is back, the peer may not be as yet
    assert not heard.may_be_absent(peer(1), 100.0 + RETURN_S)
    heard.note([(peer(1), b"")], now=101.0)
    assert not heard.may_be_absent(peer(1), 101.0)
    heard.forget(peer(1))
    assert heard.may_be_absent(peer(1), 200.0)
    heard.note([(peer(1), b"")], now=201.0)
    assert not heard.may_be_absent(peer(1), 201.0)


def test_strangers_do_not_fill_the_memory_and_push_out_the_silent_first() -> None:
    heard = Heard()
    heard.note([(peer(1), b""), (peer(2), b"")], now=0.0)
    heard.note([(peer(1), b"")], now=1.0)
    heard.note(((peer(10 + n), b"") for n in range(MAX_HEARD - 1)), now=2.0)
    assert (heard.at(peer(1)), heard.at(peer(2))) == (1.0, None)
    heard.note([(peer(9), b"")], now=3.0)
    assert heard.at(peer(1)) is None
    for number in range(MAX_GONE + 1):
        heard.forget(peer(number))
    assert [heard.may_be_absent(peer(number), 4.0) for number in (0, 1)] == [False, True]
