"""Seals and opens one message after the other (ring 0).

Right for everything, and fast enough for small packets: `python_transport` adds the ways by which whole trains go faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tsns.proto.packets import trimmed
from tsns.proto.virtio import HEADER_BYTES, Kind
from tsns.ways import Train
from tsns.wg.grouping import Grouping
from tsns.wg.joining import Joiner
from tsns.wg.messages import MIN_TRANSPORT_BYTES, TRANSPORT_HEAD, TRANSPORT_HEADER_BYTES
from tsns.wg.replay import REJECT_AFTER_MESSAGES, ReplayWindow
from tsns.wg.segments import MAX_PACKET_BYTES, Cut, cut_of, segment, single
from tsns.wg.transport import Opened, Sealed

PADDING_MULTIPLE: Final = 16  # bytes

_NONCE_HEAD: Final = bytes(4)  # of twelve bytes; the counter is the rest
_PADDING: Final = tuple(bytes(n) for n in range(PADDING_MULTIPLE))


def padded(size: int, mtu: int) -> int:
    """What a packet's size becomes: a multiple of 16, but not more than the MTU because of it. All in bytes."""
    if size >= mtu:
        return size
    return min(size + -size % PADDING_MULTIPLE, mtu)


class Tally:
    """What became of messages so far, while trains are being opened."""

    __slots__ = ("authentic_bytes", "forged", "joiner", "keepalives", "malformed", "packets", "replayed", "strays")

    def __init__(self, *, join_udp: bool) -> None:
        self.joiner = Joiner(join_udp=join_udp)
        self.packets = self.keepalives = self.authentic_bytes = self.replayed = self.forged = self.malformed = 0
        self.strays: list[bytes] = []

    def deliver(self, plain: bytes) -> None:
        """What an authentic message holds: nothing, or a packet with padding behind it."""
        if not plain:
            self.keepalives += 1
            return
        packet = trimmed(plain)
        if packet is None:
            self.malformed += 1
            return
        self.packets += 1
        self.joiner.add(packet)

    def opened(self) -> Opened:
        """All of it."""
        return Opened(
            self.joiner.finish(),
            self.packets,
            self.keepalives,
            self.authentic_bytes,
            self.replayed,
            self.forged,
            self.malformed,
            self.strays,
        )


class ScalarTransport:
    """The two keys, the counter and the window of one session. The indices are as they stand in messages (4 bytes)."""

    __slots__ = ("_head", "_join_udp", "_local_head", "_opener", "_sealer", "_window", "counter")

    def __init__(
        self, send_key: bytes, receive_key: bytes, remote_index: bytes, local_index: bytes, *, join_udp: bool
    ) -> None:
        self.counter = 0
        self._sealer = ChaCha20Poly1305(send_key)
        self._opener = ChaCha20Poly1305(receive_key)
        self._head = TRANSPORT_HEAD + remote_index
        self._local_head = TRANSPORT_HEAD + local_index
        self._window = ReplayWindow()
        self._join_udp = join_udp

    def seal_train(self, frames: Sequence[bytes], mtu: int) -> Sealed:
        """As the seam says."""
        mtu = min(mtu, MAX_PACKET_BYTES)
        grouping = Grouping()
        malformed = sum(not self._seal_frame(frame, mtu, grouping) for frame in frames)
        return Sealed(grouping.finish(), grouping.packets, malformed)

    def open_train(self, trains: Sequence[Train]) -> Opened:
        """As the seam says."""
        tally = Tally(join_udp=self._join_udp)
        for train in trains:
            self._open_train(train, tally)
        return tally.opened()

    def take_counters(self, count: int) -> int:
        """The first of so many; OverflowError where there are not so many left."""
        first = self.counter
        if first + count > REJECT_AFTER_MESSAGES:
            raise OverflowError("the session's counter is at its limit")
        self.counter = first + count
        return first

    def _seal_frame(self, frame: bytes, mtu: int, grouping: Grouping) -> bool:
        """Seal its packets; False where nothing can be made of it."""
        if len(frame) < HEADER_BYTES:
            return False
        if frame[1] == Kind.NONE:
            packet = single(frame)
            if packet is None:
                return False
            self._seal(packet, mtu, grouping)
            return True
        cut = cut_of(frame)
        if cut is None:
            return False
        self._seal_segments(frame, cut, mtu, grouping)
        return True

    def _seal_segments(self, frame: bytes, cut: Cut, mtu: int, grouping: Grouping, first: int = 0) -> None:
        """The segments of a super-packet, from number `first` on."""
        for index in range(first, cut.segments):
            self._seal(segment(frame, cut, index), mtu, grouping)

    def _seal(self, packet: bytes | bytearray, mtu: int, grouping: Grouping) -> None:
        size = len(packet)
        encoded = self.take_counters(1).to_bytes(8, "little")
        sealed = self._sealer.encrypt(_NONCE_HEAD + encoded, packet + _PADDING[padded(size, mtu) - size], None)
        message = b"".join((self._head, encoded, sealed))
        grouping.add(message, len(message))

    def _open_train(self, train: Train, tally: Tally) -> None:
        data, stride = train
        if not 0 < stride < len(data):
            self._open_message(data, tally)
            return
        self._open_messages(memoryview(data), stride, tally)

    def _open_messages(self, data: memoryview, stride: int, tally: Tally) -> None:
        for at in range(0, len(data), stride):
            self._open_message(data[at : at + stride], tally)

    def _open_message(self, message: bytes | memoryview, tally: Tally) -> None:
        if len(message) < MIN_TRANSPORT_BYTES or message[:8] != self._local_head:
            tally.strays.append(bytes(message))
            return
        encoded = bytes(message[8:TRANSPORT_HEADER_BYTES])
        counter = int.from_bytes(encoded, "little")
        if not self._window.may_accept(counter):
            tally.replayed += 1
            return
        try:
            plain = self._opener.decrypt(_NONCE_HEAD + encoded, message[TRANSPORT_HEADER_BYTES:], None)
        except InvalidTag:
            tally.forged += 1
            return
        self._window.accept(counter)  # only now: a forged counter must not move the window
        tally.authentic_bytes += len(message)
        tally.deliver(plain)
