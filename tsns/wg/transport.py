"""The seam between a session and what seals and opens for it: trains of messages, a call for each (ring 0).

Source: WireGuard paper 5.4.6. A session's transport holds its two keys, the counter of what it sealed and the window of what it opened.
It knows neither peers nor paths nor time. What a TUN reads goes in as frames, and messages come out as trains that one UDP_SEGMENT send carries;
trains as UDP_GRO or a relay delivers them go in, and frames come out, runs of segments joined to super-packets again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple, Protocol

from tsns.proto.virtio import Frame
from tsns.ways import Train

MAX_TRAIN_MESSAGES: Final = 64  # UDP_MAX_SEGMENTS of Linux before 6.9
MAX_TRAIN_BYTES: Final = 65_507  # of UDP in IPv4
MAX_SEGMENTS: Final = 128  # of one frame: UDP_MAX_SEGMENTS since Linux 6.9, more than a TUN of ours is given
MAX_JOINED: Final = 64  # packets in one super-packet
MAX_JOINED_BYTES: Final = 0xFFFF


class Sealed(NamedTuple):
    """What became of frames."""

    trains: list[Train]
    packets: int  # messages in them
    malformed: int  # frames that nothing could be made of


class Opened(NamedTuple):
    """What became of trains."""

    frames: list[Frame]  # for the TUN, in the order in which they began
    packets: int  # in the frames
    keepalives: int
    authentic_bytes: int  # of messages that this session's peer has sealed, headers included
    replayed: int
    forged: int
    malformed: int  # authentic, but no IP packet inside
    strays: list[bytes]  # messages of others, which came in one train with ours


class Transport(Protocol):
    """Seals and opens for one session. `join_udp`: whether the TUN takes super-packets of datagrams (Linux 6.2)."""

    counter: int  # of the message that is sealed next

    def seal_train(self, frames: Sequence[bytes], mtu: int) -> Sealed:
        """Cut, number, complete and seal frames, each packet padded to 16 bytes within the TUN's MTU.

        The messages come in their order. A run of one size is a train, with one shorter message behind it if that follows. An empty frame
        (PLAIN) is a keepalive. OverflowError where the counter would pass its limit, a frame being at most MAX_SEGMENTS packets: no
        nonce is used twice.
        """

    def open_train(self, trains: Sequence[Train]) -> Opened:
        """Open messages in their order and join what can be joined, over the borders of trains too.

        Only TCP and UDP packets of one flow that follow one another with right checksums and equal headers are joined, so that the kernel
        cuts them into the very packets that were sent, but for the identification of IPv4 packets with DF, which means nothing (RFC 6864).
        A replayed or forged message costs only itself; padding is cut off. A train without a stride is one message.
        """


# By the key to seal with, the key to open with, the peer's index and our own.
MakeTransport = Callable[[bytes, bytes, bytes, bytes], Transport]
