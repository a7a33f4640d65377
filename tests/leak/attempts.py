"""A program that tries to get out: every way that one has on Linux without rights that Docker would not leave it.

It runs by itself, with the standard library alone: `python attempts.py JSON`, where the JSON is a `Targets`. It prints `ready`, waits for a line,
makes all its attempts at once, and prints a JSON object: for each attempt what came back from outside, or what stopped it.

Each attempt has a slug, `leak-...`, that is in everything that it sends: in payloads, in names that it asks for. So whoever sees one
of its packets knows whose it is. `ANSWER` is what the fake resolvers say, so that an answer from elsewhere is none of theirs.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import fcntl
import json
import os
import socket
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

ANSWER = "203.0.113.7"  # of every fake resolver
PATIENCE_S = 0.7  # for an answer
HELLO = b"hello from outside"
BAIT_PORT = 4500  # where the neighbour and the host listen, by TCP and UDP
NAMES_UNDER = "leak.example"
MDNS = ("224.0.0.251", "ff02::fb")
SIOCGIFFLAGS, IFF_NOARP = 0x8913, 0x80
ETH_P_IP = 0x0800
NSCD_GETAI = struct.pack("=iii", 2, 14, 0)  # version, request, length of the name that follows

PATHS = {
    "leak-nscd": "/run/nscd/socket",
    "leak-resolved": "/run/systemd/resolve/io.systemd.Resolve",
    "leak-avahi": "/run/avahi-daemon/socket",
}
OPEN_PATHS = {"leak-dbus": "/run/dbus/system_bus_socket", "leak-path": "/run/leak.socket"}
ABSTRACT = "leak-abstract.socket"


@dataclass(frozen=True)
class Targets:
    """Where there would be somebody."""

    neighbour4: str  # on the LAN, a nameserver too
    neighbour6: str
    neighbour_link_local: str
    host4: str  # the machine's own address
    host6: str
    server4: str  # control and relays
    broadcast4: str
    friend4: str  # of the tailnet: what goes there goes out sealed


Attempt = Callable[[str, Targets], str | None]
ATTEMPTS: dict[str, Attempt] = {}


def attempt(slug: str) -> Callable[[Attempt], Attempt]:
    """Enter an attempt into the table. It gives what came back from outside, None if nothing did, or raises OSError."""

    def enter(function: Attempt) -> Attempt:
        ATTEMPTS[slug] = function
        return function

    return enter


def ask_tcp(slug: str, address: str, port: int = BAIT_PORT, device: str = "") -> str | None:
    """Connect, say the slug, and wait for a word."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        if device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        sock.connect(socket.getaddrinfo(address, port, family, socket.SOCK_STREAM)[0][4])
        sock.sendall(slug.encode())
        return sock.recv(100).decode(errors="replace") or None


def ask_udp(slug: str, address: str, port: int = BAIT_PORT, device: str = "", index: int = 0) -> str | None:
    """Send the slug, and wait for an answer."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        if device:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, device.encode())
        if index and family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, struct.pack("=4s4si", b"", b"", index))
        sock.sendto(slug.encode(), (address, port, 0, index) if family == socket.AF_INET6 else (address, port))
        return sock.recv(100).decode(errors="replace") or None


def devices() -> list[tuple[int, str]]:
    """Every interface there is here but the loopback."""
    return [(index, name) for index, name in socket.if_nameindex() if name != "lo"]


def by_each_device(ask: Callable[[int, str], str | None]) -> str | None:
    """The same by each interface; what came back by any."""
    heard = None
    for index, name in devices():
        with contextlib.suppress(OSError):
            heard = ask(index, name) or heard
    return heard


# --- connections and packets of the usual kind -----------------------------------------------------------------------


@attempt("leak-tcp4")
def _(slug: str, to: Targets) -> str | None:
    return ask_tcp(slug, to.neighbour4)


@attempt("leak-tcp6")
def _(slug: str, to: Targets) -> str | None:
    return ask_tcp(slug, to.neighbour6)


@attempt("leak-tcp-host4")
def _(slug: str, to: Targets) -> str | None:
    return ask_tcp(slug, to.host4)


@attempt("leak-tcp-host6")
def _(slug: str, to: Targets) -> str | None:
    return ask_tcp(slug, to.host6)


@attempt("leak-tcp-loopback4")
def _(slug: str, to: Targets) -> str | None:
    return ask_tcp(slug, "127.0.0.1")


@attempt("leak-tcp-loopback6")
def _(slug: str, to: Targets) -> str | None:
    return ask_tcp(slug, "::1")


@attempt("leak-tcp-server")
def _(slug: str, to: Targets) -> str | None:
    return ask_tcp(slug, to.server4)


@attempt("leak-udp4")
def _(slug: str, to: Targets) -> str | None:
    return ask_udp(slug, to.neighbour4)


@attempt("leak-udp6")
def _(slug: str, to: Targets) -> str | None:
    return ask_udp(slug, to.neighbour6)


@attempt("leak-udp-host")
def _(slug: str, to: Targets) -> str | None:
    return ask_udp(slug, to.host4)


@attempt("leak-tailnet")
def _(slug: str, to: Targets) -> str | None:
    return ask_udp(slug, to.friend4)


@attempt("leak-ping4")
def _(slug: str, to: Targets) -> str | None:
    return _ping(socket.AF_INET, slug, to.server4)  # a nameserver's address is the namespace's own


@attempt("leak-ping6")
def _(slug: str, to: Targets) -> str | None:
    return _ping(socket.AF_INET6, slug, to.neighbour6)


def _ping(family: int, slug: str, address: str) -> str | None:
    kind, protocol = (8, socket.IPPROTO_ICMP) if family == socket.AF_INET else (128, socket.IPPROTO_ICMPV6)
    with socket.socket(family, socket.SOCK_DGRAM, protocol) as sock:
        sock.settimeout(PATIENCE_S)
        sock.sendto(struct.pack(">BBHHH", kind, 0, 0, 0, 1) + slug.encode(), (address, 0))
        return sock.recv(200).hex()


# --- by devices, by addresses that need no route ---------------------------------------------------------------------


@attempt("leak-device-eth0")
def _(slug: str, to: Targets) -> str | None:
    return ask_udp(slug, to.neighbour4, device="eth0")


@attempt("leak-device-tcp")
def _(slug: str, to: Targets) -> str | None:
    return by_each_device(lambda _, name: ask_tcp(slug, to.neighbour4, device=name))


@attempt("leak-device-udp")
def _(slug: str, to: Targets) -> str | None:
    return by_each_device(lambda _, name: ask_udp(slug, to.neighbour4, device=name))


@attempt("leak-link-local6")
def _(slug: str, to: Targets) -> str | None:
    return by_each_device(lambda index, _: ask_udp(slug, to.neighbour_link_local, index=index))


@attempt("leak-link-local4")
def _(slug: str, to: Targets) -> str | None:
    return by_each_device(lambda _, name: ask_udp(slug, "169.254.169.254", device=name))


@attempt("leak-broadcast-all")
def _(slug: str, to: Targets) -> str | None:
    return by_each_device(lambda _, name: ask_udp(slug, "255.255.255.255", device=name))


@attempt("leak-broadcast-lan")
def _(slug: str, to: Targets) -> str | None:
    return ask_udp(slug, to.broadcast4)


@attempt("leak-mdns4")
def _(slug: str, to: Targets) -> str | None:
    return by_each_device(lambda index, _: ask_udp(slug, MDNS[0], 5353, index=index))


@attempt("leak-mdns6")
def _(slug: str, to: Targets) -> str | None:
    return by_each_device(lambda index, _: ask_udp(slug, MDNS[1], 5353, index=index))


# --- raw ---------------------------------------------------------------------------------------------------------------


@attempt("leak-raw-icmp")
def _(slug: str, to: Targets) -> str | None:
    echo = struct.pack(">BBHHH", 8, 0, 0, 0x1EAC, 1) + slug.encode()
    echo = echo[:2] + struct.pack(">H", _checksum(echo)) + echo[4:]
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as sock:
        sock.settimeout(PATIENCE_S)
        sock.sendto(echo, (to.server4, 0))
        while True:  # raw sockets hear everything
            heard = sock.recv(500)
            if slug.encode() in heard and heard[20] == 0:
                return heard.hex()


@attempt("leak-raw-ip")
def _(slug: str, to: Targets) -> str | None:
    """A packet whose header is our own, from an address of the host's."""
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as sock:
        sock.sendto(_udp_packet(slug, to.host4, to.neighbour4), (to.neighbour4, 0))
        return None


@attempt("leak-packet-ip")
def _(slug: str, to: Targets) -> str | None:
    """Below IP, by each interface."""
    packet = _udp_packet(slug, to.host4, to.neighbour4)
    for _index, name in socket.if_nameindex():
        with (
            contextlib.suppress(OSError),
            socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_IP)) as sock,
        ):
            sock.sendto(packet, (name, ETH_P_IP, 0, 0, b"\xff" * 6))
    return None


@attempt("leak-packet-frame")
def _(slug: str, to: Targets) -> str | None:
    """A frame with an Ethernet header to everybody, by each interface that has one."""
    frame = b"\xff" * 6 + bytes(6) + struct.pack(">H", ETH_P_IP) + _udp_packet(slug, to.host4, to.broadcast4)
    for _index, name in socket.if_nameindex():
        with contextlib.suppress(OSError), socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0) as sock:
            if not _flags(sock, name) & IFF_NOARP:
                sock.sendto(frame, (name, ETH_P_IP))
    return None


def _flags(sock: socket.socket, device: str) -> int:
    answer = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sH14x", device.encode(), 0))
    flags: int = struct.unpack_from("16xH", answer)[0]
    return flags


def _udp_packet(slug: str, source: str, destination: str) -> bytes:
    payload = slug.encode()
    udp = struct.pack(">HHHH", 4999, BAIT_PORT, 8 + len(payload), 0) + payload
    ends = socket.inet_aton(source) + socket.inet_aton(destination)
    header = struct.pack(">BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0) + ends
    return header[:10] + struct.pack(">H", _checksum(header)) + header[12:] + udp


def _checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f">{len(data) // 2}H", data.ljust(len(data) // 2 * 2, b"\0")[: len(data) // 2 * 2]))
    total += data[-1] << 8 if len(data) % 2 else 0
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


# --- names -------------------------------------------------------------------------------------------------------------


@attempt("leak-getaddrinfo")
def _(slug: str, to: Targets) -> str | None:
    """By the C library: it asks nscd where there is one, and then whom nsswitch.conf and resolv.conf name."""
    return _only_answers([str(item[4][0]) for item in socket.getaddrinfo(f"{slug}.{NAMES_UNDER}", 80)])


@attempt("leak-gethostbyaddr")
def _(slug: str, to: Targets) -> str | None:
    """Backwards; the slug goes into a search of a second name, since an address has no room for it."""
    with contextlib.suppress(OSError):
        socket.gethostbyaddr("198.51.100.77")
    return _only_answers([socket.gethostbyname(f"{slug}.{NAMES_UNDER}")])


@attempt("leak-dns-udp")
def _(slug: str, to: Targets) -> str | None:
    """As Go's resolver does it: it reads resolv.conf and asks by itself."""
    return _first(_dns_udp(slug, server) for server in _nameservers())


@attempt("leak-dns-tcp")
def _(slug: str, to: Targets) -> str | None:
    return _first(_dns_tcp(slug, server) for server in _nameservers())


@attempt("leak-dns-stub-udp")
def _(slug: str, to: Targets) -> str | None:
    return _dns_udp(slug, "127.0.0.53")


@attempt("leak-dns-stub-tcp")
def _(slug: str, to: Targets) -> str | None:
    return _dns_tcp(slug, "127.0.0.53")


@attempt("leak-dns-host-udp")
def _(slug: str, to: Targets) -> str | None:
    """Of the host's nameserver, at the address that it had before there was a resolv.conf of ours."""
    return _dns_udp(slug, to.neighbour4)


@attempt("leak-dns-host-tcp")
def _(slug: str, to: Targets) -> str | None:
    return _dns_tcp(slug, to.neighbour4)


@attempt("leak-dns-host6")
def _(slug: str, to: Targets) -> str | None:
    return _dns_udp(slug, to.neighbour6)


def _nameservers() -> list[str]:
    with open("/etc/resolv.conf", encoding="utf-8") as file:
        return [line.split()[1] for line in file if line.startswith("nameserver ")]


def _question(slug: str) -> bytes:
    labels = b"".join(bytes((len(label),)) + label.encode() for label in f"{slug}.{NAMES_UNDER}".split("."))
    return struct.pack(">HHHHHH", 0x1EAC, 0x0100, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, 1, 1)


def _dns_udp(slug: str, server: str) -> str | None:
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect((server, 53))
        sock.send(_question(slug))
        return _only_answers([_address_in(sock.recv(512))])


def _dns_tcp(slug: str, server: str) -> str | None:
    with socket.create_connection((server, 53), PATIENCE_S) as sock:
        sock.settimeout(PATIENCE_S)
        question = _question(slug)
        sock.sendall(struct.pack(">H", len(question)) + question)
        return _only_answers([_address_in(sock.recv(512)[2:])])


def _address_in(answer: bytes) -> str:
    """The last four bytes, which is where a short answer has its address."""
    return socket.inet_ntoa(answer[-4:]) if len(answer) > 4 else ""


def _only_answers(found: list[str]) -> str | None:
    return ANSWER if ANSWER in found else None


def _first(asked: Any) -> str | None:
    return next((heard for heard in asked if heard), None)


# --- sockets in the file system and beside it --------------------------------------------------------------------------


def ask_unix(slug: str, path: str) -> str | None:
    """Connect to a socket of this name, say the slug, and wait for a word."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        sock.settimeout(PATIENCE_S)
        sock.connect(path)
        sock.sendall(NSCD_GETAI + slug.encode() if slug == "leak-nscd" else slug.encode())
        return sock.recv(100).decode(errors="replace") or None


def _attempt_at(path: str) -> Attempt:
    return lambda slug, _to: ask_unix(slug, path)


def _enter_paths() -> None:
    for slug, path in (*PATHS.items(), *OPEN_PATHS.items(), ("leak-abstract", f"\0{ABSTRACT}")):
        ATTEMPTS[slug] = _attempt_at(path)


_enter_paths()

# --- all of them -------------------------------------------------------------------------------------------------------


def tried(slug: str, to: Targets) -> dict[str, str | None]:
    """What came of one attempt: what was `heard` from outside (None: nothing), and what was in the way."""
    try:
        return {"heard": ATTEMPTS[slug](slug, to), "error": None}
    except (OSError, UnicodeError) as error:
        return {"heard": None, "error": f"{type(error).__name__}: {error}"}


def main() -> None:
    """Say ready, wait for a word, try everything, and tell."""
    to = Targets(**json.loads(sys.argv[1]))
    os.environ["RES_OPTIONS"] = (
        "timeout:1 attempts:1"  # of the C library: a resolver that is silent is silent soon enough
    )
    print("ready", flush=True)  # noqa: T201
    sys.stdin.readline()
    with concurrent.futures.ThreadPoolExecutor(len(ATTEMPTS)) as pool:
        results = dict(zip(ATTEMPTS, pool.map(lambda slug: tried(slug, to), ATTEMPTS), strict=True))
    print(json.dumps(results), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
