"""What a device remembers about a peer, used or not (ring 0).

Ten thousand peers are known and a dozen are spoken with: a peer costs its key and its prefixes until the first packet
to or from it. What guards against replayed initiations outlives the tunnel, which goes when it was idle for long.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tsns.keys import NodePublic
from tsns.proto.addresses import Prefix
from tsns.wg.handshake import NO_PRESHARED_KEY

if TYPE_CHECKING:
    from tsns.wg.masquerade import Masquerade
    from tsns.wg.tunnel import Tunnel


@dataclass(frozen=True, slots=True)
class PeerStatistics:
    """Bytes of WireGuard messages that were authentic, and when (Unix time) the last handshake was completed."""

    rx_bytes: int
    tx_bytes: int
    last_handshake: float | None


class Peer:
    """One peer."""

    __slots__ = (
        "allowed",
        "greatest_timestamp",
        "is_usable",
        "key",
        "last_handshake",
        "last_stamp",
        "masquerade",
        "preshared",
        "rx_bytes",
        "tunnel",
        "tx_bytes",
    )

    def __init__(self, key: NodePublic) -> None:
        self.key = key
        self.allowed: tuple[Prefix, ...] = ()
        self.masquerade: Masquerade | None = None  # where it knows us by other addresses
        self.preshared = NO_PRESHARED_KEY
        self.tunnel: Tunnel | None = None
        self.is_usable = True  # False once its key proved to be of low order
        self.greatest_timestamp = b""  # of the initiations that we accepted, 12 bytes
        self.last_stamp = 0  # of our own initiations, see tai64n
        self.rx_bytes = 0
        self.tx_bytes = 0
        self.last_handshake: float | None = None

    def statistics(self) -> PeerStatistics:
        return PeerStatistics(self.rx_bytes, self.tx_bytes, self.last_handshake)
