"""Allowed IPs: which peer an inner address belongs to (ring 0).

Source: WireGuard paper 2 (cryptokey routing). Nearly every prefix of a tailnet is one address, which one look into a
dictionary finds; the others are searched from the longest length in use to the shortest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Generic, TypeVar

from tsns.proto.addresses import Prefix

P = TypeVar("P")


class _Networks(Generic[P]):
    """The prefixes of one family that are not single addresses."""

    __slots__ = ("_by_bits", "_lengths", "_width")

    def __init__(self, width: int) -> None:
        self._width = width
        self._by_bits: dict[int, dict[int, P]] = {}
        self._lengths: list[tuple[int, dict[int, P]]] = []  # (bits to cut off, networks), the longest prefixes first

    def add(self, network: int, bits: int, peer: P) -> None:
        table = self._by_bits.get(bits)
        if table is None:
            table = self._by_bits[bits] = {}
            self._arrange()
        table[network >> (self._width - bits)] = peer

    def remove(self, network: int, bits: int, peer: P) -> None:
        table = self._by_bits.get(bits, {})
        key = network >> (self._width - bits)
        if table.get(key) is peer:
            del table[key]
            if not table:
                del self._by_bits[bits]
                self._arrange()

    def lookup(self, address: bytes) -> P | None:
        if self._lengths:
            value = int.from_bytes(address, "big")
            for cut, table in self._lengths:
                peer = table.get(value >> cut)
                if peer is not None:
                    return peer
        return None

    def covers(self, address: bytes) -> bool:
        value = int.from_bytes(address, "big")
        return any(value >> cut in table for cut, table in self._lengths if cut < self._width)

    def _arrange(self) -> None:
        self._lengths = [(self._width - bits, self._by_bits[bits]) for bits in sorted(self._by_bits, reverse=True)]


class AllowedIPs(Generic[P]):
    """Prefixes and whose they are. A prefix has one owner: the last one it was given to."""

    __slots__ = ("_addresses", "_v4", "_v6")

    def __init__(self) -> None:
        self._addresses: dict[bytes, P] = {}
        self._v4: _Networks[P] = _Networks(32)
        self._v6: _Networks[P] = _Networks(128)

    def add(self, prefixes: Iterable[Prefix], peer: P) -> None:
        """Give these prefixes to a peer, whoever had them."""
        for prefix in prefixes:
            if prefix.is_address:
                self._addresses[prefix.network] = peer
            else:
                self._family(prefix).add(int.from_bytes(prefix.network, "big"), prefix.bits, peer)

    def remove(self, prefixes: Iterable[Prefix], peer: P) -> None:
        """Take these prefixes from a peer, those excepted that were given to somebody else since."""
        for prefix in prefixes:
            if not prefix.is_address:
                self._family(prefix).remove(int.from_bytes(prefix.network, "big"), prefix.bits, peer)
            elif self._addresses.get(prefix.network) is peer:
                del self._addresses[prefix.network]

    def lookup(self, address: bytes) -> P | None:
        """The owner of the longest prefix that covers this packed address; None where there is none."""
        peer = self._addresses.get(address)
        if peer is not None:
            return peer
        if len(address) == 4:
            return self._v4.lookup(address)
        return self._v6.lookup(address) if len(address) == 16 else None

    def covers(self, address: bytes) -> bool:
        """Whether a prefix that is no default route covers this packed address."""
        return address in self._addresses or (len(address) in {4, 16} and self._of(address).covers(address))

    def _of(self, address: bytes) -> _Networks[P]:
        return self._v4 if len(address) == 4 else self._v6

    def _family(self, prefix: Prefix) -> _Networks[P]:
        return self._of(prefix.network)
