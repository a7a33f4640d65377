"""The index: nodes of a binary tree that cover exactly what they should, and the entries found by them."""

from __future__ import annotations

import collections

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.filter.index import DENSE, NodeIndex, nodes, set_of

WIDTH = 6
numbers = st.integers(0, (1 << WIDTH) - 1)
ranges = st.tuples(numbers, numbers).map(lambda pair: (min(pair), max(pair)))


def covered(node: int, width: int) -> range:
    """The numbers below a node."""
    depth = width + 1 - node.bit_length()
    low = (node << depth) - (1 << width)
    return range(low, low + (1 << depth))


@pytest.mark.parametrize(
    ("first", "last", "count"), [(0, 65535, 1), (22, 22, 1), (1024, 2047, 1), (1, 65534, 30), (80, 443, 8)]
)
def test_few_nodes_make_a_range_of_ports(first: int, last: int, count: int) -> None:
    assert len(list(nodes(first, last, 16))) == count


def test_the_worst_range_of_addresses() -> None:
    assert len(list(nodes(1, (1 << 128) - 2, 128))) == 254


@given(ranges)
def test_nodes_cover_a_range_once_and_nothing_else(wanted: tuple[int, int]) -> None:
    found = [number for node in nodes(*wanted, WIDTH) for number in covered(node, WIDTH)]
    assert sorted(found) == list(range(wanted[0], wanted[1] + 1))


def filled(parts: list[tuple[int, int]], repeated: int = 1) -> NodeIndex:
    """An index whose entry N covers the Nth range, `repeated` times over."""
    index = NodeIndex(WIDTH)
    for entry, (first, last) in enumerate(parts * repeated):
        for node in nodes(first, last, WIDTH):
            index.group(node).append(entry)
    collections.deque(index.seal(len(parts) * repeated))
    return index


@given(st.lists(ranges, max_size=6), st.sampled_from([1, DENSE]))
def test_an_index_finds_the_entries_that_cover_a_number(parts: list[tuple[int, int]], repeated: int) -> None:
    index = filled(parts, repeated)
    for number in range(1 << WIDTH):
        expected = [entry for entry, (first, last) in enumerate(parts * repeated) if first <= number <= last]
        assert index.covering(number) == set_of(expected)


@given(st.lists(ranges, max_size=4), ranges)
def test_overlap(parts: list[tuple[int, int]], probe: tuple[int, int]) -> None:
    shared = any(first <= probe[1] and probe[0] <= last for first, last in parts)
    assert filled(parts).overlaps(*probe) == shared


def test_a_node_that_was_only_asked_for_is_none() -> None:
    index = NodeIndex(WIDTH)
    index.group(1)
    collections.deque(index.seal(1))
    assert index.covering(3) == 0
    assert not index.overlaps(0, 63)


@given(st.sets(st.integers(0, 300)))
def test_sets(entries: set[int]) -> None:
    assert set_of(sorted(entries)) == sum(1 << entry for entry in entries)
