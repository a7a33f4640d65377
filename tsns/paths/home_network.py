"""Who may be asked for a mapping of our port, and which address of the outside is one (ring 0)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from tsns.proto.addresses import CGNAT, Endpoint, Prefix, pack, unpack

HOME: Final = tuple(map(Prefix.parse, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")))  # where home routers are
# Unspecified, loopback, link-local, multicast and beyond; and CGNAT, which is no address for anybody outside, but one of tailnets.
USELESS: Final = (*map(Prefix.parse, ("0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3")), CGNAT)


@dataclass(frozen=True, slots=True)
class Network:
    """The gateway, our address towards it, and our UDP port."""

    gateway: str
    own: str
    port: int

    @classmethod
    def of(cls, gateway: str | None, own: str | None, port: int) -> Self | None:
        """The network, if one may ask in it for a mapping: only a home router with a private address is asked."""
        if not gateway or not own or not 0 < port <= 0xFFFF:
            return None
        if not is_home_router(gateway) or len(_packed(own)) != 4:
            return None
        return cls(unpack(pack(gateway)), unpack(pack(own)), port)


def is_home_router(gateway: str) -> bool:
    """Whether this gateway is one that may be asked."""
    return any(range_.covers(_packed(gateway)) for range_ in HOME)


def is_of_use(external: Endpoint) -> bool:
    """Whether somebody else may be told this address."""
    host, port = _packed(external[0]), external[1]
    return len(host) == 4 and 0 < port <= 0xFFFF and not any(range_.covers(host) for range_ in USELESS)


def _packed(text: str) -> bytes:
    """An address as bytes; none where it is none."""
    try:
        return pack(text)
    except ValueError:
        return b""
