"""What waits for a relay is bounded; the oldest goes first, and is counted."""

from __future__ import annotations

import collections

from tsns.derp.queue import Drop, PacketQueue
from tsns.keys import NodePublic

PEER = NodePublic(b"\x77" * 32)
OTHER = NodePublic(b"\x88" * 32)


def new_queue(max_bytes: int = 1000) -> tuple[PacketQueue, collections.Counter[Drop]]:
    drops: collections.Counter[Drop] = collections.Counter()
    return PacketQueue(drops, max_bytes, max_age_s=5.0), drops


def test_first_in_first_out() -> None:
    queue, drops = new_queue()
    queue.push(PEER, [b"1", b"2"], 0.0, Drop.QUEUE_FULL)
    queue.push(OTHER, [b"3"], 0.0, Drop.QUEUE_FULL)
    assert queue.bytes == 3 * 38
    assert queue.take(10_000, 0.0) == [(PEER, [b"1", b"2"]), (OTHER, [b"3"])]
    assert (queue.bytes, bool(queue), drops.total()) == (0, False, 0)


def test_a_burst_ends_amid_a_train() -> None:
    queue, _ = new_queue()
    queue.push(PEER, [b"1"], 0.0, Drop.QUEUE_FULL)
    queue.push(PEER, [b"2", b"3", b"4"], 0.0, Drop.QUEUE_FULL)
    assert queue.take(2, 0.0) == [(PEER, [b"1"]), (PEER, [b"2"])]
    assert queue.bytes == 2 * 38
    assert queue.take(1, 0.0) == [(PEER, [b"3"])]
    assert queue.take(2, 5.1) == []  # as old as the train that it was part of
    assert queue.bytes == 0


def test_the_oldest_train_makes_room() -> None:
    queue, drops = new_queue(max_bytes=100)
    queue.push(PEER, [b"1", b"2"], 0.0, Drop.STUCK)
    queue.push(PEER, [b"3"], 0.0, Drop.STUCK)
    assert queue.take(1000, 0.0) == [(PEER, [b"3"])]
    assert drops == {Drop.STUCK: 2}


def test_one_train_always_fits() -> None:
    queue, drops = new_queue(max_bytes=100)
    queue.push(PEER, [bytes(500)], 0.0, Drop.STUCK)
    assert (queue.bytes, drops.total()) == (537, 0)


def test_what_has_waited_too_long_is_not_sent() -> None:
    queue, drops = new_queue()
    queue.push(PEER, [b"old"], 0.0, Drop.STUCK)
    queue.push(PEER, [b"new"], 3.0, Drop.STUCK)
    assert queue.take(1000, 5.1) == [(PEER, [b"new"])]
    assert drops == {Drop.TOO_OLD: 1}


def test_clearing_counts() -> None:
    queue, drops = new_queue()
    queue.push(PEER, [b"1", b"2"], 0.0, Drop.STUCK)
    queue.clear(Drop.LEFT)
    assert (queue.bytes, drops) == (0, {Drop.LEFT: 2})
