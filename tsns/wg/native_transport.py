"""The native engine as a session's transport (ring 0).

The work is done by `tsns.wg._native`, a Rust crate in tsns/wg/native; importing this module raises ImportError where that was not built.
"""

from __future__ import annotations

from collections.abc import Sequence

from tsns.ways import Train
from tsns.wg._native import Transport
from tsns.wg.transport import Opened, Sealed


class NativeTransport:
    """Seals and opens for one session, without the GIL; see `tsns.wg.transport`. For one thread at a time.

    Sealing raises OverflowError where the counter would go past its limit: no nonce is used twice.
    """

    __slots__ = ("_core",)

    def __init__(
        self, send_key: bytes, receive_key: bytes, remote_index: bytes, local_index: bytes, join_udp: bool
    ) -> None:
        self._core = Transport(send_key, receive_key, remote_index, local_index, join_udp)

    @property
    def counter(self) -> int:
        """Of the message that is sealed next."""
        return self._core.counter

    @counter.setter
    def counter(self, counter: int) -> None:
        self._core.counter = counter

    def seal_train(self, frames: Sequence[bytes], mtu: int) -> Sealed:
        """Cut, number, complete and seal frames."""
        trains, packets, malformed = self._core.seal_train(frames, mtu)
        return Sealed([Train(data, stride) for data, stride in trains], packets, malformed)

    def open_train(self, trains: Sequence[Train]) -> Opened:
        """Open messages in their order and join what can be joined."""
        buffer, sizes, packets, keepalives, authentic_bytes, replayed, forged, malformed, strays = (
            self._core.open_train(trains)
        )
        frames: list[bytes | memoryview] = []
        view, at = memoryview(buffer), 0
        for size in sizes:
            frames.append(view[at : at + size])
            at += size
        return Opened(frames, packets, keepalives, authentic_bytes, replayed, forged, malformed, strays)
