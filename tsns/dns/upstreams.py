"""Other DNS servers: how control and the host name them, and which way each is asked (ring 0).

    100.64.0.9, fd7a::9, [fd7a::9]     UDP and TCP, port 53; with `:port` behind an IPv4 or bracketed address, that port
    http://100.64.0.9:PORT/dns-query   DNS over HTTP (RFC 8484) on a peer: WireGuard is its encryption, so only at tailnet addresses
    https://HOST/PATH                  the same over TLS; HOST's addresses come with the entry, or from the table of providers below

Source: dnstype.Resolver and net/dns/publicdns of Tailscale's module; the providers publish these addresses.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from tsns.dns.names import key_of
from tsns.proto.addresses import CGNAT, SERVICE_V4, SERVICE_V6, ULA, Prefix, pack, parse_endpoint, unmapped, unpack
from tsns.proto.types import Resolver

DNS_PORT: Final = 53
HTTP_PORT: Final = 80
HTTPS_PORT: Final = 443
MAX_ADDRESSES: Final = 4  # of one server: each may be tried
MAX_PATH_CHARS: Final = 512

_NEXTDNS: Final = "dns.nextdns.io"
_PROVIDERS: Final = {
    "cloudflare-dns.com": "1.1.1.1 1.0.0.1 2606:4700:4700::1111 2606:4700:4700::1001",
    "security.cloudflare-dns.com": "1.1.1.2 1.0.0.2 2606:4700:4700::1112 2606:4700:4700::1002",
    "family.cloudflare-dns.com": "1.1.1.3 1.0.0.3 2606:4700:4700::1113 2606:4700:4700::1003",
    "dns.google": "8.8.8.8 8.8.4.4 2001:4860:4860::8888 2001:4860:4860::8844",
    "dns.quad9.net": "9.9.9.9 149.112.112.112 2620:fe::fe 2620:fe::9",
    "dns10.quad9.net": "9.9.9.10 149.112.112.10 2620:fe::10 2620:fe::fe:10",
    "dns11.quad9.net": "9.9.9.11 149.112.112.11 2620:fe::11 2620:fe::fe:11",
    "dns.mullvad.net": "194.242.2.2 2a07:e340::2",
    "adblock.dns.mullvad.net": "194.242.2.3 2a07:e340::3",
    "base.dns.mullvad.net": "194.242.2.4 2a07:e340::4",
    "extended.dns.mullvad.net": "194.242.2.5 2a07:e340::5",
    "family.dns.mullvad.net": "194.242.2.6 2a07:e340::6",
    "all.dns.mullvad.net": "194.242.2.9 2a07:e340::9",
    "wikimedia-dns.org": "185.71.138.138 2001:67c:930::1",
    "dns.controld.com": "76.76.2.22 76.76.10.22",
    "freedns.controld.com": "76.76.2.0 76.76.10.0 2606:1a40:: 2606:1a40:1::",
    _NEXTDNS: "45.90.28.0 45.90.30.0",
}
# NextDNS knows its customer by the address, and answers at these by HTTPS only.
_NEXTDNS_V6: Final = (Prefix.parse("2a07:a8c0::/33"), Prefix.parse("2a07:a8c1::/33"))
_NO_SERVERS: Final = tuple(
    Prefix.parse(text) for text in ("0.0.0.0/8", "127.0.0.0/8", "224.0.0.0/3", "::/127", "ff00::/8", "fe80::/10")
)


class Way(enum.StrEnum):
    """From where a server is asked."""

    TUNNEL = "tunnel"  # from within the namespace
    UNDERLAY = "underlay"  # from the host's network


class Transport(enum.StrEnum):
    """How a server is asked."""

    UDP = "udp"
    TCP = "tcp"
    HTTP = "http"
    HTTPS = "https"


@dataclass(frozen=True, slots=True)
class Upstream:
    """One server. `host` and `path` belong to the HTTP ones; `of_host`: it is the host's own, whatever its address."""

    text: str
    addresses: tuple[bytes, ...]
    port: int
    transports: tuple[Transport, ...] = (Transport.UDP, Transport.TCP)
    host: str = ""
    path: str = ""
    of_host: bool = False


def upstream(resolver: Resolver) -> Upstream:
    """A server as control names it; ValueError where it cannot be one, or is not served."""
    text = resolver.addr or ""
    scheme, mark, rest = text.partition("://")
    if not mark:
        return _plain(text)
    if scheme == "http":
        host, port, path = _split(rest, HTTP_PORT)
        address = pack(host.strip("[]"))
        if not is_tailnet(address):
            raise ValueError(f"{text!r}: DNS over plain HTTP is for the tailnet")
        return Upstream(text, (_checked(address),), port, (Transport.HTTP,), host, path)
    if scheme == "https":
        host, port, path = _split(rest, HTTPS_PORT)
        return Upstream(
            text, _addresses_of(host, resolver.bootstrap_resolution or ()), port, (Transport.HTTPS,), host, path
        )
    raise ValueError(f"{text!r}: not a kind of DNS server that is known here")


def host_upstream(text: str) -> Upstream:
    """One of the host's own name servers, by its address; ValueError where it is none."""
    return Upstream(text, (pack(text),), DNS_PORT, of_host=True)


def is_tailnet(address: bytes) -> bool:
    """Whether this packed address is one that only nodes of a tailnet have."""
    return CGNAT.covers(address) or ULA.covers(address)


def _plain(text: str) -> Upstream:
    try:
        address, port = pack(text.removeprefix("[").removesuffix("]")), DNS_PORT
    except ValueError:
        host, port = parse_endpoint(text)
        address = pack(host)
    if port == 0:
        raise ValueError(f"{text!r}: no port")
    if any(prefix.covers(address) for prefix in _NEXTDNS_V6):
        path = "/" + address[4:].lstrip(b"\0").hex()
        return Upstream(text, (address,), HTTPS_PORT, (Transport.HTTPS,), _NEXTDNS, path)
    return Upstream(text, (_checked(address),), port)


def _split(rest: str, default_port: int) -> tuple[str, int, str]:
    """Host, port and path of a URL without its scheme; ValueError where there is more in it, or less."""
    place, slash, path = rest.partition("/")
    path = slash + path or "/"
    if not path.isascii() or not path.isprintable() or " " in path or len(path) > MAX_PATH_CHARS:
        raise ValueError("not a path")
    try:
        pack(place.removeprefix("[").removesuffix("]"))
    except ValueError:
        host, colon, port = place.rpartition(":")
        if not colon:
            host, port = place, str(default_port)
        if not (port.isascii() and port.isdigit() and len(port) <= 5 and 0 < int(port) <= 0xFFFF):
            raise ValueError(f"{place!r} is no host and port") from None
        return host.lower(), int(port), path
    return place, default_port, path


def _addresses_of(host: str, told: Sequence[str]) -> tuple[bytes, ...]:
    """The addresses of a host of DNS over HTTPS: its own one, those that control told, or those of the table."""
    bare = host.removeprefix("[").removesuffix("]")
    try:
        return (_checked(pack(bare)),)
    except ValueError:
        key_of(bare)  # ValueError: no name either
    texts = list(told) or _PROVIDERS.get(bare, "").split()
    found = []
    for text in texts[:MAX_ADDRESSES]:
        try:
            found.append(_checked(pack(text)))
        except ValueError:
            continue
    if not found:
        raise ValueError(f"{host!r}: nobody says which address it has")
    return tuple(found)


def _checked(address: bytes) -> bytes:
    address = unmapped(address)
    if address in {SERVICE_V4, SERVICE_V6} or any(prefix.covers(address) for prefix in _NO_SERVERS):
        raise ValueError(f"{unpack(address)} is nobody else's address")
    return address
