"""The engine of the seam without native code: trains by columns, everything else message by message (ring 0)."""

from __future__ import annotations

from typing import Final

from tsns.proto.packets import trimmed
from tsns.wg.grouping import Grouping
from tsns.wg.joining import segment_of
from tsns.wg.messages import MIN_TRANSPORT_BYTES
from tsns.wg.scalar_transport import ScalarTransport, Tally, padded
from tsns.wg.segments import Cut
from tsns.wg.train_shapes import MIN_MESSAGES, MIN_SEGMENT_BYTES, OpenShape, open_shape, seal_shape

MAX_ALONE: Final = 8  # messages or packets that are taken one by one before a run is looked for again


class PythonTransport(ScalarTransport):
    """The two keys, the counter and the window of one session. The indices are as they stand in messages (4 bytes)."""

    __slots__ = ()

    def _seal_segments(self, frame: bytes, cut: Cut, mtu: int, grouping: Grouping, first: int = 0) -> None:
        full = cut.payload // cut.size
        if full >= MIN_MESSAGES and cut.size >= MIN_SEGMENT_BYTES:
            plain = padded(cut.header + cut.size, mtu)
            shape = seal_shape(cut[:5], plain)
            counter = self.take_counters(full)
            messages = shape.seal(frame, cut, full, self._head, counter, self._sealer.encrypt_into)
            grouping.add(messages, plain + MIN_TRANSPORT_BYTES)
            first = full
        super()._seal_segments(frame, cut, mtu, grouping, first)

    def _open_messages(self, data: memoryview, stride: int, tally: Tally) -> None:
        while len(data) >= MIN_MESSAGES * stride and stride >= MIN_SEGMENT_BYTES:
            shape = open_shape(stride)
            count = min(len(data) // stride, shape.messages.count)
            taken = self._open_run(shape, data[: count * stride], tally)
            if not taken:
                taken = MAX_ALONE
                super()._open_messages(data[: taken * stride], stride, tally)
            data = data[taken * stride :]
        super()._open_messages(data, stride, tally)

    def _open_run(self, shape: OpenShape, data: memoryview, tally: Tally) -> int:
        """Open full messages with consecutive counters; how many went well before something has to be looked at by itself."""
        count, first = shape.load(data, self._local_head)
        if count < MIN_MESSAGES or not self._window.may_accept_run(first, count):
            return 0
        count = shape.messages.open(self._opener.decrypt_into, count)
        if not count:
            return 0
        self._window.accept_run(first, count)  # only now: a forged counter must not move the window
        tally.authentic_bytes += count * shape.messages.stride
        self._deliver_run(shape, count, tally)
        return count

    def _deliver_run(self, shape: OpenShape, count: int, tally: Tally) -> None:
        plains, at = shape.messages.plains, 0
        while at < count:
            rows = None
            if count - at >= MIN_MESSAGES:
                packet = trimmed(plains[at])
                first = None if packet is None else segment_of(packet, join_udp=self._join_udp)
                if first is not None and first.has_intact_ip():
                    rows = shape.equal(first, at, count)
            if rows is not None:
                tally.packets += rows.count
                tally.joiner.add_equal(rows)
                at += rows.count
                continue
            for plain in plains[at : min(at + MAX_ALONE, count)]:
                tally.deliver(bytes(plain))
                at += 1
