"""Which of many numbered entries cover a value, found without looking at each of them (ring 0).

All numbers of `width` bits are the leaves of a binary tree. A prefix is a node of it, written as a 1 followed by the bits that are fixed, and
covers the leaves below; a range is a few such nodes. Each node that something is said about has its entries. So what covers a value
lies on the way from its leaf to the root, and of that way only the depths are looked at where there are nodes at all: of addresses and ports,
few.

Sets of entries are integers, entry 0 the lowest bit: to intersect three of 5,000 entries takes less than a microsecond. A node with few
entries keeps a list, which is smaller.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import Final

DENSE: Final = (
    256  # a node with more than one in so many of all entries keeps a set: at most 32 bytes for each that it has
)

Group = list[int]  # the entries of one node, in rising order


def nodes(first: int, last: int, width: int) -> Sequence[int]:
    """The fewest nodes that together cover the numbers from `first` to `last`, both included."""
    low, high = 1 << width | first, 1 << width | last
    if low == high:
        return (low,)
    size = high - low + 1
    if size > 0 and not (size & (size - 1) or low & (size - 1)):  # a prefix
        return (low >> (size.bit_length() - 1),)
    found = []
    while low <= high:
        if low & 1:
            found.append(low)
            low += 1
        if not high & 1:
            found.append(high)
            high -= 1
        low >>= 1
        high >>= 1
    return found


class NodeIndex:
    """The entries that cover each number of `width` bits. First it is filled, by way of `group`; after `seal` it is asked."""

    __slots__ = ("_depths", "_groups", "_sets", "_width")

    def __init__(self, width: int) -> None:
        self._width = width
        self._groups: dict[int, Group] = {}
        self._sets: dict[int, int] = {}  # of nodes with many entries
        self._depths: tuple[int, ...] = ()  # how far above the leaves there are nodes

    def group(self, node: int) -> Group:
        """The entries of this node, to append more to."""
        group = self._groups.get(node)
        if group is None:
            group = self._groups[node] = []
        return group

    def seal(self, entries: int) -> Generator[None, None, None]:
        """Get ready, in steps, to be asked about so many entries. Groups without any are left out."""
        few = max(entries // DENSE, 1)
        groups, self._groups = self._groups, {}
        lengths = set()
        for node, group in groups.items():
            if group:
                lengths.add(node.bit_length())
                if len(group) > few:
                    self._sets[node] = set_of(group)
                else:
                    self._groups[node] = group
            yield
        self._depths = tuple(sorted(self._width + 1 - length for length in lengths))

    def covering(self, value: int) -> int:
        """The set of all entries that cover this number."""
        found = 0
        leaf = 1 << self._width | value
        for depth in self._depths:
            node = leaf >> depth
            group = self._groups.get(node)
            if group is not None:
                for entry in group:
                    found |= 1 << entry
            elif node in self._sets:
                found |= self._sets[node]
        return found

    def overlaps(self, first: int, last: int) -> bool:
        """Whether any entry covers any number from `first` to `last`. Looks at every node, unless they are the same."""
        if self.covering(first):
            return True
        if first == last:
            return False
        for found in (self._groups, self._sets):
            for node in found:
                depth = self._width + 1 - node.bit_length()
                low = (node << depth) - (1 << self._width)
                if low <= last and first < low + (1 << depth):
                    return True
        return False

    def __bool__(self) -> bool:
        return bool(self._groups or self._sets)


def set_of(entries: Sequence[int]) -> int:
    """A set of entries that come in rising order."""
    if not entries:
        return 0
    found = bytearray((entries[-1] >> 3) + 1)
    for entry in entries:
        found[entry >> 3] |= 1 << (entry & 7)
    return int.from_bytes(found, "little")
