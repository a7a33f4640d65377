"""Who was heard over a connection, within bounds."""

from __future__ import annotations

from tsns.derp.heard import MAX_HEARD, Heard
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
    assert heard.at(peer(1)) is None
    heard.clear()
    assert heard.at(peer(2)) is None


def test_strangers_do_not_fill_the_memory_and_push_out_the_silent_first() -> None:
    heard = Heard()
    heard.note([(peer(1), b""), (peer(2), b"")], now=0.0)
    heard.note([(peer(1), b"")], now=1.0)
    heard.note(((peer(10 + n), b"") for n in range(MAX_HEARD - 1)), now=2.0)
    assert (heard.at(peer(1)), heard.at(peer(2))) == (1.0, None)
    heard.note([(peer(9), b"")], now=3.0)
    assert heard.at(peer(1)) is None
