"""A home on the small internet: a router between it and the outside, which translates addresses as home routers do.

         home                   router                  outside
    10.91.0.x eth0 ------ eth0        wan 11.0.0.1 ------ eth0 11.0.0.2

Programs that run there are the tests' business. The outside's addresses are public ones, since routers give mappings for such only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.interop.rig.internet import Host, Internet

WAN: Final = "11.0.0.1"
OUTSIDE: Final = "11.0.0.2"
NAT: Final = """
table ip nat {
    chain postrouting { type nat hook postrouting priority 100; oifname "wan" masquerade; }
}
"""


@dataclass(frozen=True)
class Home:
    """Its machine, its router, and somebody outside."""

    machine: Host
    router: Host
    outside: Host

    def is_reached_at(self, address: tuple[str, int], timeout_s: float) -> bool:
        """Whether a datagram from outside to this address is echoed, from there."""
        with contextlib.closing(self.outside.udp_socket(0, OUTSIDE)) as sock:
            sock.settimeout(timeout_s)
            sock.sendto(b"is anybody at home?", address)
            try:
                return sock.recvfrom(100) == (b"is anybody at home?", address)
            except TimeoutError:
                return False


@contextlib.contextmanager
def home(directory: Path) -> Iterator[Home]:
    """A home, until the end of the block."""
    with Internet(directory) as internet:
        router, machine, outside = internet.host("router"), internet.host("machine"), internet.host("outside")
        outside.run("ip", "link", "delete", "eth0")
        router.run("ip", "link", "add", "wan", "type", "veth", "peer", "name", "eth0", "netns", outside.namespace)
        for host, device, address in ((router, "wan", WAN), (outside, "eth0", OUTSIDE)):
            host.run("ip", "address", "add", f"{address}/24", "dev", device)
            host.run("ip", "link", "set", device, "up")
        machine.run("ip", "route", "add", "default", "via", router.address)
        router.run("sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward")
        router.run("nft", "-f", "-", stdin=NAT)
        yield Home(machine, router, outside)
