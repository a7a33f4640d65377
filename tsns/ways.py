"""Where WireGuard and disco messages go to and where they came from (ring 0).

A path is where a peer is sent to now. A source is where a message came from: it bounds and cookies what strangers may
ask of us, and a cookie reply goes back there; nothing else does, for with relays in play the place a packet came from
proves nothing.
"""

from __future__ import annotations

import functools
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final, NamedTuple

from tsns.keys import NodePublic
from tsns.proto.addresses import Endpoint

IPV6_SITE_BYTES: Final = 8  # one customer has a /64: its addresses share one limit


@dataclass(frozen=True, slots=True)
class UdpPath:
    """Straight to this numeric address and port."""

    address: Endpoint


@dataclass(frozen=True, slots=True)
class DerpPath:
    """Through the relay of this region."""

    region: int


@dataclass(frozen=True, slots=True)
class BothPaths:
    """Each message both ways, while it is in doubt whether the direct one leads anywhere. The receiver drops what it has already."""

    direct: UdpPath
    relay: DerpPath


Path = UdpPath | DerpPath | BothPaths


@functools.lru_cache(maxsize=1024)
def derp_path(region: int) -> DerpPath:
    """The path through a region: thousands of peers share the same few."""
    return DerpPath(region)


@dataclass(frozen=True, slots=True)
class UdpSource:
    """A datagram from this numeric address and port."""

    address: Endpoint

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


@functools.lru_cache(maxsize=128)
def udp_source(address: Endpoint) -> UdpSource:
    """The source at an address: most datagrams come from the same few."""
    return UdpSource(address)


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


class Train(NamedTuple):
    """Messages of one size, one behind the other, the last one maybe shorter."""

    data: bytes
    stride: int  # the size of each but the last

    @classmethod
    def of(cls, message: bytes) -> Train:
        """A train of one message."""
        return cls(message, len(message))

    def messages(self) -> list[bytes]:
        """Each by itself."""
        data, stride = self
        return [data] if len(data) <= stride else [data[at : at + stride] for at in range(0, len(data), stride)]


def messages(trains: Iterable[Train]) -> list[bytes]:
    """What is in these trains, each message by itself."""
    return [message for train in trains for message in train.messages()]


@dataclass(frozen=True, slots=True)
class SendUdp:
    """Send these messages to this numeric address and port, a datagram each."""

    address: Endpoint
    trains: list[Train]

    @property
    def datagrams(self) -> list[bytes]:
        """The messages, each by itself."""
        return messages(self.trains)


@dataclass(frozen=True, slots=True)
class SendDerp:
    """Give these to the relay of this region for the peer, a frame each."""

    region: int
    peer: NodePublic
    trains: list[Train]

    @property
    def datagrams(self) -> list[bytes]:
        """The messages, each by itself."""
        return messages(self.trains)
