"""Where WireGuard messages go to and where they came from (ring 0).

A path is where a peer is sent to now. A source is where a message came from: it bounds and cookies what strangers may
ask of us, and a cookie reply goes back there; nothing else does, for with relays in play the place a packet came from
proves nothing.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Final

from tsns.keys import NodePublic

IPV6_SITE_BYTES: Final = 8  # one customer has a /64: its addresses share one limit


@dataclass(frozen=True, slots=True)
class UdpPath:
    """Straight to this numeric address and port."""

    address: tuple[str, int]


@dataclass(frozen=True, slots=True)
class DerpPath:
    """Through the relay of this region."""

    region: int


Path = UdpPath | DerpPath


@dataclass(frozen=True, slots=True)
class UdpSource:
    """A datagram from this numeric address and port."""

    address: tuple[str, int]

    @property
    def identity(self) -> bytes:
        """What a cookie is bound to."""
        host, port = self.address
        return f"{host} {port}".encode()

    @property
    def host(self) -> bytes:
        """Whom a rate limit counts for."""
        host = self.address[0].partition("%")[0]
        try:
            if ":" in host:
                return socket.inet_pton(socket.AF_INET6, host)[:IPV6_SITE_BYTES]
            return socket.inet_pton(socket.AF_INET, host)
        except OSError:
            return host.encode()


@dataclass(frozen=True, slots=True)
class DerpSource:
    """A frame through the relay of this region, by its word from this node."""

    region: int
    peer: NodePublic

    @property
    def identity(self) -> bytes:
        """What a cookie is bound to."""
        return self.region.to_bytes(8, "big", signed=True) + self.peer.raw

    @property
    def host(self) -> bytes:
        """Whom a rate limit counts for."""
        return self.peer.raw


Source = UdpSource | DerpSource
