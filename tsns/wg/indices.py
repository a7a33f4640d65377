"""Which handshake or session a message is for (ring 0).

Source: WireGuard paper 5.4: each side names what it has begun by an index of its own choice, and the other side repeats
it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from tsns.wg.messages import INDEX_BYTES

if TYPE_CHECKING:
    from tsns.wg.handshake import Pending
    from tsns.wg.session import Session
    from tsns.wg.tunnel import Tunnel


class IndexTable:
    """The indices by which peers name our handshakes and sessions: 4 random bytes, unique within a device."""

    __slots__ = ("_random", "pending", "sessions")

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self.pending: dict[bytes, tuple[Tunnel, Pending]] = {}
        self.sessions: dict[bytes, Session] = {}

    def allocate(self) -> bytes:
        """An index that is not in use: a random one, or the next one that is free.

        A tunnel holds a handful of them at most, so that there is always one.
        """
        number = int.from_bytes(self._random(INDEX_BYTES), "big")
        while (index := number.to_bytes(INDEX_BYTES, "big")) in self.sessions or index in self.pending:
            number = (number + 1) & 0xFFFFFFFF
        return index
