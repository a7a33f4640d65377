"""Sets of IP addresses that answer quickly, however many entries they were made of (ring 0)."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Final

from tsns.proto.addresses import Prefix, pack

Span = tuple[bytes, bytes]  # first and last packed address, of one family

_V4: Final = (bytes(4), b"\xff" * 4)
_V6: Final = (bytes(16), b"\xff" * 16)
_MAX_TEXT: Final = 100  # the longest range of two IPv6 addresses has 93 characters


def parse_spans(text: str) -> tuple[Span, ...]:
    """Read `*`, an address, a prefix without host bits, or `a-b`; ValueError for anything else."""
    if text == "*":
        return _V4, _V6
    if len(text) > _MAX_TEXT:
        raise ValueError("too long for addresses")
    if "/" in text:
        return (span(Prefix.parse(text, strict=True)),)
    low, dash, high = text.partition("-")
    first = pack(low)
    last = pack(high) if dash else first
    if len(first) != len(last) or first > last:
        raise ValueError(f"{text!r} is not a range of addresses")
    return ((first, last),)


def span(prefix: Prefix) -> Span:
    """First and last address of a network."""
    first = prefix.network
    width = 8 * len(first)
    last = int.from_bytes(first, "big") | ((1 << (width - prefix.bits)) - 1)
    return first, last.to_bytes(len(first), "big")


class AddressSet:
    """An immutable set of packed addresses: single ones by hash, the rest as sorted, disjoint spans of each family.

    `address in addresses` costs one look-up, and where there are spans a binary search.
    """

    __slots__ = ("_single", "_spans")

    def __init__(self, spans: Iterable[Span]) -> None:
        single: set[bytes] = set()
        wide: dict[int, list[Span]] = {4: [], 16: []}
        for first, last in spans:
            if first == last:
                single.add(first)
            else:
                wide[len(first)].append((first, last))
        self._single = frozenset(single)
        # By length of the address: first addresses and last addresses, in step.
        self._spans = {size: _merged(found) for size, found in wide.items() if found}

    def __contains__(self, address: bytes) -> bool:
        if address in self._single:
            return True
        spans = self._spans.get(len(address))
        if spans is None:
            return False
        firsts, lasts = spans
        index = bisect_right(firsts, address) - 1
        return index >= 0 and address <= lasts[index]

    def __bool__(self) -> bool:
        return bool(self._single or self._spans)


def _merged(spans: list[Span]) -> tuple[list[bytes], list[bytes]]:
    firsts: list[bytes] = []
    lasts: list[bytes] = []
    for first, last in sorted(spans):
        if lasts and first <= lasts[-1]:
            lasts[-1] = max(lasts[-1], last)
        else:
            firsts.append(first)
            lasts.append(last)
    return firsts, lasts
