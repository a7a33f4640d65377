# The native engine: Rust, in tsns/wg/native. It may not be there (ring 0).

from collections.abc import Sequence
from typing import final

# For one thread at a time. The keys are of 32 bytes, the indexes of 4: else ValueError.
@final
class Transport:
    counter: int  # of the message that is sealed next

    def __new__(
        cls, send_key: bytes, receive_key: bytes, remote_index: bytes, local_index: bytes, join_udp: bool
    ) -> Transport: ...

    # Trains with their strides, packets, malformed frames; OverflowError where the counter is at its limit.
    def seal_train(self, frames: Sequence[bytes], mtu: int) -> tuple[list[tuple[bytes, int]], int, int]: ...

    # A buffer in which frames lie one behind the other, their sizes, then what `Opened` has from `packets` on.
    def open_train(
        self, trains: Sequence[tuple[bytes, int]]
    ) -> tuple[bytes, list[int], int, int, int, int, int, int, list[bytes]]: ...
