"""IP addresses and prefixes as packed bytes, the form in which packets carry them (ring 0).

A packed address has 4 or 16 bytes, and its length is its family. `ipaddress` is kinder but ten times slower, which a netmap of
10,000 nodes would notice.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

Endpoint = tuple[str, int]  # a numeric address and a UDP port

CGNAT_TEXT: Final = "100.64.0.0/10"
ULA_TEXT: Final = "fd7a:115c:a1e0::/48"
SERVICE_V4_TEXT: Final = "100.100.100.100"
SERVICE_V6_TEXT: Final = "fd7a:115c:a1e0::53"
# What no peer may have led to it: loopback, link-local, multicast and reserved addresses, and IPv4 in the clothes of IPv6.
NOBODYS_TEXT: Final = (
    "0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/127", "::ffff:0:0/96", "fe80::/10", "ff00::/8",
)  # fmt: skip
V4_IN_V6: Final = bytes(10) + b"\xff\xff"
ENDPOINT_BYTES: Final = 18


def pack(text: str) -> bytes:
    """An address as 4 or 16 bytes; ValueError where it is none."""
    try:
        return socket.inet_pton(socket.AF_INET6 if ":" in text else socket.AF_INET, text)
    except (OSError, ValueError) as error:  # ValueError: a NUL byte within
        raise ValueError(f"{text!r} is not an IP address") from error


def unpack(packed: bytes) -> str:
    """A packed address as text."""
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def unmapped(packed: bytes) -> bytes:
    """A packed address, as IPv4 where it is IPv4 in the clothes of IPv6 (::ffff:a.b.c.d)."""
    return packed[12:] if len(packed) == 16 and packed.startswith(V4_IN_V6) else packed


def pack_endpoint(endpoint: Endpoint) -> bytes:
    """16 bytes of address, IPv4 mapped into IPv6, and 2 of port; ValueError where the address is none."""
    packed = pack(endpoint[0].partition("%")[0])
    return (V4_IN_V6 + packed if len(packed) == 4 else packed) + endpoint[1].to_bytes(2, "big")


def unpack_endpoint(packed: bytes) -> Endpoint:
    """Read these 18 bytes."""
    return unpack(unmapped(packed[:16])), int.from_bytes(packed[16:18], "big")


def parse_endpoint(text: str) -> Endpoint:
    """Read `address:port` or `[address]:port`; ValueError where it is neither."""
    host, _, port = text.rpartition(":")
    if host.startswith("[") and host.endswith("]") and ":" in host:
        host = host[1:-1]
    elif ":" in host:
        raise ValueError(f"{text!r} is not an endpoint")
    if not (port.isascii() and port.isdigit() and len(port) <= 5 and int(port) <= 0xFFFF):
        raise ValueError(f"{text!r} is not an endpoint")
    return unpack(unmapped(pack(host))), int(port)


def endpoint_text(endpoint: Endpoint) -> str:
    """`address:port`, an IPv6 address in brackets."""
    host, port = endpoint
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(frozen=True, slots=True)
class Prefix:
    """A network: its packed address, host bits cleared, and its length in bits."""

    network: bytes
    bits: int

    @classmethod
    def parse(cls, text: str, *, strict: bool = False) -> Prefix:
        """Read `address` or `address/bits`; ValueError where it is neither, or with `strict` where host bits are set."""
        address, slash, length = text.partition("/")
        packed = pack(address)
        width = 8 * len(packed)
        if slash and not (length.isascii() and length.isdigit() and len(length) <= 3 and int(length) <= width):
            raise ValueError(f"{text!r} is not a prefix")
        bits = int(length) if slash else width
        network = masked(packed, bits)
        if strict and network != packed:
            raise ValueError(f"{text!r} has host bits set")
        return cls(network, bits)

    def covers(self, address: bytes) -> bool:
        """Whether this packed address lies within."""
        return len(address) == len(self.network) and masked(address, self.bits) == self.network

    def covers_prefix(self, other: Prefix) -> bool:
        """Whether all of the other network lies within."""
        return other.bits >= self.bits and self.covers(other.network)

    @property
    def is_address(self) -> bool:
        """Whether this is one address only."""
        return self.bits == 8 * len(self.network)

    def __str__(self) -> str:
        return f"{unpack(self.network)}/{self.bits}"


def masked(packed: bytes, bits: int) -> bytes:
    """The address with all but its first `bits` bits cleared."""
    width = 8 * len(packed)
    if bits == width:
        return packed
    value = int.from_bytes(packed, "big") >> (width - bits) << (width - bits)
    return value.to_bytes(len(packed), "big")


CGNAT: Final = Prefix.parse(CGNAT_TEXT)
ULA: Final = Prefix.parse(ULA_TEXT)
SERVICE_V4: Final = pack(SERVICE_V4_TEXT)
SERVICE_V6: Final = pack(SERVICE_V6_TEXT)
_NOBODYS: Final = tuple(Prefix.parse(text) for text in NOBODYS_TEXT)


def may_be_routed(prefix: Prefix) -> bool:
    """Whether packets to this network may be led to a peer that offers it."""
    ours = prefix.is_address and prefix.network in {SERVICE_V4, SERVICE_V6}
    return not ours and not any(reserved.covers_prefix(prefix) for reserved in _NOBODYS)


def without(network: Prefix, holes: Iterable[Prefix]) -> list[Prefix]:
    """A network less others, in as few prefixes as it takes."""
    inside = [hole for hole in holes if network.covers_prefix(hole)]
    if not inside:
        return [network]
    if network in inside:
        return []
    bits = network.bits + 1
    upper = bytearray(network.network)
    upper[(bits - 1) // 8] |= 0x80 >> (bits - 1) % 8
    return [part for half in (network.network, bytes(upper)) for part in without(Prefix(half, bits), inside)]
