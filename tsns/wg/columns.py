"""Many headers at once: the fields that differ between a super-packet's segments, as columns of a matrix (ring 0).

A row is a packet. Each method costs a few array operations, of about a microsecond, however many rows there are.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Final

from tsns.wg.arrays import np
from tsns.wg.segments import TCP_CHECKSUM_AT, U16, U32, UDP_CHECKSUM_AT

if TYPE_CHECKING:
    from numpy.typing import NDArray

_FOLD: Final = np.uint64(0xFFFF)
_MULTIPLE: Final = np.uint64(0xFFFF << 40)  # of 0xFFFF, greater than any sum of a packet's words


class Layout:
    """Where things are in packets of one shape; offsets and sizes in bytes."""

    def __init__(self, is_tcp: bool, is_v4: bool, start: int, header: int, size: int) -> None:
        self.is_tcp, self.is_v4, self.start, self.header, self.size = is_tcp, is_v4, start, header, size
        self.length = header + size
        self.checksum = start + (TCP_CHECKSUM_AT if is_tcp else UDP_CHECKSUM_AT)
        # Sums go over words of four bytes. What this takes beyond the packet has to be zero.
        self.summed = start + -(-(self.length - start) // 4) * 4


class Headers:
    """A matrix for the headers of `count` packets of one shape."""

    def __init__(self, matrix: NDArray[np.uint8], layout: Layout) -> None:
        """`matrix`: (packets, at least the headers' bytes)."""
        count = len(matrix)
        self.layout, self.matrix = layout, matrix[:, : layout.header]
        self._numbers = np.arange(count, dtype=np.uint32)
        self._steps = self._numbers * np.uint32(layout.size)
        if layout.is_v4:
            self._ids = matrix[:, 4:6].view(">u2")[:, 0]
            self._checksums = matrix[:, 10:12].view(">u2")[:, 0]
        if layout.is_tcp:
            self._sequences = matrix[:, layout.start + 4 : layout.start + 8].view(">u4")[:, 0]

    def count_on(self, first: bytes | bytearray | memoryview, count: int) -> None:
        """Write the headers of `count` packets that follow one another, in which only id, its checksum and sequence differ."""
        layout = self.layout
        self.matrix[:count] = np.frombuffer(first, np.uint8, layout.header)
        if layout.is_tcp:
            (sequence,) = U32.unpack_from(first, layout.start + 4)
            self._sequences[:count] = self._steps[:count] + np.uint32(sequence)
        if layout.is_v4:
            identification, checksum = U16.unpack_from(first, 4)[0], U16.unpack_from(first, 10)[0]
            numbers = self._numbers[:count]
            ids = numbers + np.uint32(identification)
            # What the id gains, the checksum loses. It is never 0xFFFF, which is the other zero.
            if identification + count > 0x10000 or checksum < count:
                ids &= np.uint32(0xFFFF)
                checksums = (np.uint32(checksum + identification + 0xFFFF) - ids) % np.uint32(0xFFFF)
            else:
                checksums = np.uint32(checksum) - numbers
            self._ids[:count] = ids
            self._checksums[:count] = checksums


class Checksums:
    """The checksums of TCP or UDP in a matrix of packets of one shape."""

    def __init__(self, matrix: NDArray[np.uint8], layout: Layout) -> None:
        """`matrix`: (packets, at least `layout.summed` bytes)."""
        self._is_tcp = layout.is_tcp
        self._words = matrix[:, layout.start : layout.summed].view(np.uint32)
        self._fields = matrix[:, layout.checksum : layout.checksum + 2].view(np.uint16)[:, 0]
        self._slack = matrix[:, layout.length : layout.summed] if layout.summed > layout.length else None

    def write(self, count: int) -> None:
        """Complete them, the sum of the pseudo-header being in their place."""
        sums = self._sums(0, count)
        if self._is_tcp:
            self._fields[:count] = (_MULTIPLE - sums) % _FOLD
        else:
            self._fields[:count] = _FOLD - sums % _FOLD  # never 0, which would say that there is none (RFC 768)

    def intact(self, start: int, end: int, pseudo: int) -> int:
        """How many of these packets, from the first one on, have right ones; `pseudo`: the sum of their pseudo-header."""
        sums = self._sums(start, end)
        sums += np.uint64(int.from_bytes((pseudo % 0xFFFF).to_bytes(2, "big"), sys.byteorder))
        sums %= _FOLD
        wrong = sums != 0
        wrong |= self._fields[start:end] == (0xFFFF if self._is_tcp else 0)  # the zero that the kernel does not write
        return int(np.argmax(wrong)) if wrong.any() else end - start

    def _sums(self, start: int, end: int) -> NDArray[np.uint64]:
        if self._slack is not None:
            self._slack[start:end] = 0
        sums: NDArray[np.uint64] = np.add.reduce(self._words[start:end], axis=1, dtype=np.uint64)
        return sums
