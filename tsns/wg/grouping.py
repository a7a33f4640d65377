"""Messages one behind the other, as trains that a single UDP_SEGMENT send carries (ring 0)."""

from __future__ import annotations

from tsns.ways import Train
from tsns.wg.transport import MAX_TRAIN_BYTES, MAX_TRAIN_MESSAGES


class Grouping:
    """Takes messages in their order, each into the present train if it fits there."""

    __slots__ = ("_bytes", "_count", "_ended", "_parts", "_stride", "_trains", "packets")

    def __init__(self) -> None:
        self.packets = 0
        self._trains: list[Train] = []
        self._parts: list[bytes] = []
        self._count = self._bytes = 0
        self._stride = 0
        self._ended = False  # by a shorter message

    def add(self, messages: bytes, size: int) -> None:
        """One message of `size` bytes or several in one piece."""
        left = len(messages) // size
        self.packets += left
        while left:
            room = self._room(size)
            if not room:
                self._close()
                self._stride = size
                room = self._room(size)
            count = min(room, left)
            self._parts.append(messages[: count * size])
            messages = messages[count * size :]
            left -= count
            self._count += count
            self._bytes += count * size
            self._ended = size < self._stride

    def finish(self) -> list[Train]:
        """All trains."""
        self._close()
        return self._trains

    def _room(self, size: int) -> int:
        """How many messages of this size may follow in the present train: of a shorter one, one."""
        if size > self._stride or self._ended:
            return 0
        room = min(MAX_TRAIN_MESSAGES - self._count, (MAX_TRAIN_BYTES - self._bytes) // size)
        return room if size == self._stride else min(room, 1)

    def _close(self) -> None:
        if self._parts:
            data = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
            self._trains.append(Train(data, self._stride))
            self._parts = []
        self._count = self._bytes = 0
        self._ended = False
