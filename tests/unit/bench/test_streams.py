"""What scripts/bench reads out of iperf3's words, and what it makes of it."""

from __future__ import annotations

import pytest

from tests.bench.ends import in_rotation
from tests.bench.iperf import read_tcp, read_udp
from tests.bench.speed import jain


def test_tcp_is_what_arrived() -> None:
    sent, received = {"retransmits": 7, "bytes": 5_000_000}, {"bits_per_second": 2.5e9, "bytes": 4_000_000}
    found = read_tcp({"end": {"sum_sent": sent, "sum_received": received}})

    assert (found.gbit_s, found.received_bytes, found.retransmits) == (2.5, 4_000_000, 7)


def test_what_was_sent_after_the_last_that_came_is_lost_too() -> None:
    client = {"end": {"sum_sent": {"packets": 1000, "seconds": 2.0}}}
    server = {"end": {"sum_received": {"packets": 800, "lost_packets": 100, "bytes": 70_000, "seconds": 2.1}}}
    found = read_udp(client, server, 100)

    assert (found.sent, found.received, found.received_bytes) == (1000, 700, 70_000)
    assert found.lost_share == pytest.approx(0.3)


def test_each_begins_once() -> None:
    names = ["a", "b", "c"]
    assert [in_rotation(names, number)[0] for number in range(4)] == ["a", "b", "c", "a"]
    assert in_rotation(names, 1) == ["b", "c", "a"]


def test_jains_index() -> None:
    assert jain([1.0, 1.0, 1.0, 1.0]) == 1.0
    assert jain([1.0, 0.0, 0.0, 0.0]) == 0.25
    assert jain([0.0, 0.0]) == 1.0
