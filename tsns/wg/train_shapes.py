"""Trains in place: buffers for messages of one size, with ready views of all their parts (ring 0).

Encryption and decryption happen in the buffer, message by message, and the columns of `columns` see the packets in it as rows of a matrix.
Buffers are made once for each shape and shared by all sessions, which take turns; each use writes whatever it relies on.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

from cryptography.exceptions import InvalidTag

from tsns.proto.packets import Protocol
from tsns.proto.virtio import HEADER_BYTES
from tsns.wg.arrays import np
from tsns.wg.columns import Checksums, Headers, Layout
from tsns.wg.joining import Segment
from tsns.wg.messages import MIN_TRANSPORT_BYTES, TAG_BYTES, TRANSPORT_HEADER_BYTES
from tsns.wg.segments import CWR, FIN, PSH, Cut, headers
from tsns.wg.transport import MAX_SEGMENTS

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_SHAPES: Final = 8  # buffers of at most 128 KiB that are kept, for each direction
MAX_LAYOUTS: Final = 16  # of packets in received messages of one size
NONCE_BYTES: Final = 12
MIN_MESSAGES: Final = 4  # with fewer, or smaller ones, columns cost more than they save
MIN_SEGMENT_BYTES: Final = 512  # bounds the buffers, too

_Crypt = Callable[[memoryview, memoryview, None, memoryview], int]  # nonce, input, nothing, output
_NOTHING: Final[list[None]] = [None] * MAX_SEGMENTS


class Messages:
    """Room for `count` messages of one size, and views of each one's parts."""

    def __init__(self, count: int, plain: int) -> None:
        """`plain`: bytes of a plaintext, padding included."""
        self.stride = stride = plain + MIN_TRANSPORT_BYTES
        self.count = count
        self.view = memoryview(bytearray(count * stride))
        rows: NDArray[np.uint8] = np.frombuffer(self.view, np.uint8).reshape(count, stride)
        self.heads = rows[:, :8].view(np.uint64)[:, 0]
        self.counters = rows[:, 8:TRANSPORT_HEADER_BYTES].view("<u8")[:, 0]
        self.packets = rows[:, TRANSPORT_HEADER_BYTES:]
        nonces = memoryview(bytearray(count * NONCE_BYTES))
        self._nonces = [nonces[at : at + NONCE_BYTES] for at in range(0, count * NONCE_BYTES, NONCE_BYTES)]
        table = np.frombuffer(nonces, np.uint8).reshape(count, NONCE_BYTES)
        self._nonce_counters = table[:, -8:].view("<u8")[:, 0]
        self._numbers = np.arange(count, dtype=np.uint64)
        starts = range(TRANSPORT_HEADER_BYTES, count * stride, stride)
        self.plains = [self.view[at : at + plain] for at in starts]
        self._sealed = [self.view[at : at + plain + TAG_BYTES] for at in starts]

    def seal(self, encrypt: _Crypt, head: bytes, first: int, count: int) -> None:
        """Write heads (8 bytes each) and consecutive counters, and encrypt so many messages."""
        self.heads[:count] = np.frombuffer(head, np.uint64)
        self.counters[:count] = self._nonce_counters[:count] = self._numbers[:count] + np.uint64(first)
        deque(map(encrypt, self._nonces[:count], self.plains, _NOTHING, self._sealed), 0)

    def open(self, decrypt: _Crypt, count: int) -> int:
        """Decrypt so many messages; how many were done before one that is not authentic."""
        self._nonce_counters[:count] = self.counters[:count]
        done: list[int] = []
        try:
            done.extend(map(decrypt, self._nonces[:count], self._sealed, _NOTHING, self.plains))
        except InvalidTag:
            pass
        return len(done)


class SealShape:
    """Segments of one shape, to be sealed."""

    def __init__(self, layout: Layout, plain: int) -> None:
        self._layout = layout
        self._messages = Messages(min(MAX_SEGMENTS, 0xFFFF // layout.size), plain)
        packets = self._messages.packets
        self._headers = Headers(packets, layout)
        self._checksums = Checksums(packets, layout)
        self._payloads = packets[:, layout.header : layout.length]
        self._padding = packets[:, layout.length : plain]
        self._flags = packets[:, layout.start + 13]

    def seal(self, frame: bytes, cut: Cut, count: int, head: bytes, counter: int, encrypt: _Crypt) -> bytes:
        """Messages with the first `count` segments of a frame, which are full ones. `head`: the first 8 bytes of each message."""
        layout, messages = self._layout, self._messages
        first = headers(frame, cut, 0, layout.size)
        self._headers.count_on(first, count)
        if layout.is_tcp:
            flags = frame[HEADER_BYTES + layout.start + 13]
            if flags & CWR:
                self._flags[1:count] &= np.uint8(0xFF - CWR)
            if count == cut.segments:
                messages.plains[count - 1][layout.start + 13] |= flags & (FIN | PSH)
        payload = np.frombuffer(frame, np.uint8, count * layout.size, HEADER_BYTES + layout.header)
        self._payloads[:count] = payload.reshape(count, layout.size)
        self._padding[:count] = 0  # there is ciphertext from before
        self._checksums.write(count)
        messages.seal(encrypt, head, counter, count)
        return bytes(messages.view[: count * messages.stride])


class OpenShape:
    """Messages of one size, to be opened."""

    def __init__(self, stride: int) -> None:
        self.messages = Messages(min(MAX_SEGMENTS, 0xFFFF // stride), stride - MIN_TRANSPORT_BYTES)
        self._layouts: dict[tuple[bool, bool, int, int, int], _Candidates] = {}

    def load(self, data: memoryview, head: bytes) -> tuple[int, int]:
        """Take messages in; how many, from the first one on, have this head (8 bytes) and consecutive counters, and the first of these."""
        messages = self.messages
        messages.view[: len(data)] = data
        count = len(data) // messages.stride
        # So few numbers are compared sooner as lists than as arrays.
        heads, counters = messages.heads[:count].tolist(), messages.counters[:count].tolist()
        first = counters[0]
        wanted = int.from_bytes(head, sys.byteorder)
        if counters != list(range(first, first + count)) or heads.count(wanted) != count:
            pairs = zip(heads, counters, strict=True)
            count = next(n for n, pair in enumerate(pairs) if pair != (wanted, first + n))
        return count, first

    def equal(self, first: Segment, start: int, end: int) -> EqualRows | None:
        """The packets in opened messages from `start` on, before `end`, that follow one another; `first` is the first one."""
        layout = (first.is_tcp, first.is_v4, first.start, first.header, len(first.packet) - first.header)
        candidates = self._layouts.get(layout)
        if candidates is None:
            if len(self._layouts) == MAX_LAYOUTS:
                self._layouts.clear()
            candidates = self._layouts[layout] = _Candidates(self.messages, Layout(*layout))
        return candidates.equal(first, start, end)


class EqualRows:
    """Intact packets in opened messages which follow one another."""

    def __init__(self, messages: Messages, layout: Layout, start: int, count: int, closing: int) -> None:
        self.count, self.size, self.closing = count, layout.size, closing
        self._messages, self._layout, self._start = messages, layout, start

    def packet(self, index: int) -> bytes:
        """One of them."""
        return bytes(self._messages.plains[self._start + index][: self._layout.length])

    def payload(self, start: int, end: int) -> bytes:
        """The payloads of these, one behind the other."""
        rows = self._messages.packets[self._start + start : self._start + end]
        return rows[:, self._layout.header : self._layout.length].tobytes()


class _Candidates:
    """Opened messages, looked at as if each held a packet of one shape."""

    def __init__(self, messages: Messages, layout: Layout) -> None:
        self._messages, self._layout = messages, layout
        self._headers = messages.packets[:, : layout.header]
        self._flags = messages.packets[:, layout.start + 13]
        self._fields = messages.packets[:, layout.checksum : layout.checksum + 2]
        self._checksums = Checksums(messages.packets, layout)
        expected = np.zeros((messages.count, layout.header), np.uint8)
        self._expected = Headers(expected, layout)
        self._expected_flags = expected[:, layout.start + 13] if layout.is_tcp else None
        self._expected_fields = expected[:, layout.checksum : layout.checksum + 2]

    def equal(self, first: Segment, start: int, end: int) -> EqualRows | None:
        """Compare with what the kernel would cut."""
        layout, count = self._layout, end - start
        closing = ended_at = 0
        self._expected.count_on(first.packet[: layout.header], count)
        self._expected_fields[:count] = self._fields[start:end]  # these are for `Checksums`
        if self._expected_flags is not None:
            ends = self._flags[start:end] & np.uint8(FIN | PSH)
            if ends.any():
                count = int(np.argmax(ends != 0)) + 1
                closing, ended_at = int(ends[count - 1]), count
                self._expected_flags[count - 1] |= closing
            if first.packet[layout.start + 13] & CWR:
                self._expected_flags[1:count] &= np.uint8(0xFF - CWR)
        differs = self._headers[start : start + count] != self._expected.matrix[:count]
        if differs.any():
            count = int(np.argmax(differs.any(axis=1)))
        if count >= MIN_MESSAGES:
            addresses = int.from_bytes(first.packet[12 if layout.is_v4 else 8 : layout.start], "big")
            pseudo = addresses + (Protocol.TCP if layout.is_tcp else Protocol.UDP) + layout.length - layout.start
            count = self._checksums.intact(start, start + count, pseudo)
        if count < MIN_MESSAGES:
            return None
        return EqualRows(self._messages, layout, start, count, closing if count == ended_at else 0)


@lru_cache(MAX_SHAPES)
def seal_shape(layout: tuple[bool, bool, int, int, int], plain: int) -> SealShape:
    """For segments of this shape in plaintexts of this size."""
    return SealShape(Layout(*layout), plain)


@lru_cache(MAX_SHAPES)
def open_shape(stride: int) -> OpenShape:
    """For messages of this size."""
    return OpenShape(stride)
