"""What may stand between a host and the internet: a NAT or a firewall, in a namespace of its own.

       home                      router                     internet
    eth0 ------------------- inside | eth0 ------------------ lan
    192.168.1.2        192.168.1.1    10.91.0.7

Every home has the same addresses, as homes do. Behind a firewall without NAT the host has an address of the internet, for which the
router answers out there.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Final

from tests.interop.rig.namespace import Namespace

OUTSIDE: Final = "eth0"
INSIDE: Final = "inside"
GATEWAY: Final = {4: "192.168.1.1", 6: "fe80::1"}  # the router as its home sees it
HOME_PREFIX_LENGTH: Final = 24
FIRST_NEW_PORT: Final = 20_000  # of an easy NAT that has forgotten; below the ports that programs get by themselves
NEW_PORTS: Final = 64  # from which a socket gets one, the same for all destinations


class Nat(enum.Enum):
    """The kinds of ways to the internet."""

    NONE = "none"  # nothing stands in between
    EASY = "easy"  # a NAT that keeps the port, and so has one mapping for all destinations
    HARD = "hard"  # a NAT with a new random port for each destination
    FIREWALL = "firewall"  # no NAT, but nothing comes in that is no answer

    @property
    def translates(self) -> bool:
        """Whether the host has another address out there."""
        return self in {Nat.EASY, Nat.HARD}


def home_addresses() -> Iterator[str]:
    """The addresses that a router with NAT has for its home, one after the other."""
    return (f"192.168.1.{number}" for number in range(2, 255))


@dataclass(slots=True)
class Router:
    """One home's router; `start` configures its two devices, which are there already."""

    namespace: Namespace
    kind: Nat
    version: int  # of IP
    prefix_length: int  # of the internet
    new_address: Callable[[], str]  # the internet's next free one
    address: str = field(init=False)  # as the internet knows it
    _epoch: int = 1  # how often it has forgotten

    def __post_init__(self) -> None:
        assert self.version == 4 or not self.kind.translates, "IPv6 goes without NAT"
        self.address = self.new_address()

    def start(self) -> None:
        """From now on it lets out, and lets in what answers."""
        if self.version == 4:
            self.namespace.sysctl(net__ipv4__ip_forward=1, net__ipv4__neigh__eth0__proxy_delay=0)
        else:
            self.namespace.sysctl(
                net__ipv6__conf__all__forwarding=1,
                net__ipv6__conf__eth0__proxy_ndp=1,
                net__ipv6__conf__eth0__accept_dad=0,  # it could ask nobody for his neighbour's address meanwhile
                net__ipv6__neigh__eth0__proxy_delay=0,
            )
        gateway = f"{GATEWAY[self.version]}/{HOME_PREFIX_LENGTH if self.version == 4 else 64}"
        for device, address in ((INSIDE, gateway), (OUTSIDE, f"{self.address}/{self.prefix_length}")):
            self.namespace.ip("address", "add", address, "dev", device, *(["nodad"] if self.version == 6 else []))
            self.namespace.ip("link", "set", device, "up")
        self._set_rules()

    def know(self, address: str) -> None:
        """The host inside has this address of the internet, for which the router answers out there."""
        self.namespace.ip("route", "add", address, "dev", INSIDE)
        self.namespace.ip("neighbour", "add", "proxy", address, "dev", OUTSIDE)

    def do_not_know(self, address: str) -> None:
        """Takes `know` back."""
        self.namespace.ip("route", "delete", address, "dev", INSIDE)
        self.namespace.ip("neighbour", "delete", "proxy", address, "dev", OUTSIDE)

    def rebind(self) -> None:
        """All that was known of UDP flows is forgotten, and what an easy NAT maps from now on has another port. TCP goes on."""
        self._epoch += 1
        self._set_rules()

    def renumber(self) -> None:
        """The internet knows the home by another address, and every flow's mapping is gone, TCP's too."""
        assert self.kind.translates, "there is no address to change but the host's own"
        old, self.address = self.address, self.new_address()
        self.namespace.ip("address", "delete", f"{old}/{self.prefix_length}", "dev", OUTSIDE)
        self.namespace.ip("address", "add", f"{self.address}/{self.prefix_length}", "dev", OUTSIDE)

    def _set_rules(self) -> None:
        self.namespace.nft(rules(self.kind, self._epoch))


def rules(kind: Nat, epoch: int) -> str:
    """A router's nftables rules, which replace any earlier ones at once.

    A conntrack zone for each epoch is how a router forgets its UDP flows without a program for it. What comes unasked must be dropped,
    and in the input chain, too: else conntrack takes the first packet of the host's peer for a flow to the router itself, and gives the
    host's own flow another port.
    """
    return f"""
        table inet router
        delete table inet router
        table inet router {{
            chain forgetting {{
                type filter hook prerouting priority raw; policy accept;
                meta l4proto {{ udp, icmp, icmpv6 }} ct zone set {epoch}
            }}
            chain input {{
                type filter hook input priority filter; policy accept;
                iifname "{OUTSIDE}" meta l4proto {{ tcp, udp }} ct state != {{ established, related }} drop
            }}
            chain forward {{
                type filter hook forward priority filter; policy drop;
                iifname "{INSIDE}" oifname "{OUTSIDE}" accept
                iifname "{OUTSIDE}" oifname "{INSIDE}" ct state {{ established, related }} accept
            }}
            chain postrouting {{
                type nat hook postrouting priority srcnat; policy accept;
                {_translation(kind, epoch)}
            }}
        }}
    """


def _translation(kind: Nat, epoch: int) -> str:
    out = f'oifname "{OUTSIDE}"'
    match kind:
        case Nat.HARD:
            return f"{out} masquerade random,fully-random"
        case Nat.EASY if epoch > 1:
            first = FIRST_NEW_PORT + NEW_PORTS * epoch
            ports = ", ".join(f"{number} : {first + number}" for number in range(NEW_PORTS))
            port = f"jhash ip saddr . udp sport mod {NEW_PORTS} seed {epoch} map {{ {ports} }}"
            return f"{out} meta l4proto udp masquerade to :{port}; {out} masquerade"
        case Nat.EASY:
            return f"{out} masquerade"
        case _:
            return ""
