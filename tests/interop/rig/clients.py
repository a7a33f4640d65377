"""tsns and the official client behind one face, for tests that have both in both roles."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Protocol

from tests.interop.rig.internet import Daemon, Host, wait_for
from tests.interop.rig.router import Nat
from tests.interop.rig.tailnet import Tailnet
from tests.interop.rig.tailscaled import Tailscaled
from tests.interop.rig.tsns import Tsns, tsns_on

TSNS: Final = "tsns"
TAILSCALED: Final = "tailscaled"
NODE: Final = "web"  # what the one node of tsns on a host is called there


class Client(Protocol):
    """A client that is up, on a host of its own. Peers go by their IPv4 addresses."""

    host: Host
    address: str
    netns: str  # the file of the namespace in which its tailnet is

    def until_direct(self, peer: str, patience_s: float) -> bool:
        """Pings a peer until it answers directly; false when it does not within so many seconds."""

    def is_direct(self, peer: str) -> bool:
        """Whether what it sends to a peer goes directly just now."""

    def knows(self, peer: str) -> bool:
        """Whether a peer can be sent to."""

    def start(self, *words: str, log: str) -> Daemon:
        """Starts a command for which the network is the tailnet."""


@dataclass(slots=True)
class OurClient:
    """tsns."""

    tsns: Tsns
    host: Host
    address: str
    netns: str

    def until_direct(self, peer: str, patience_s: float) -> bool:
        return self.tsns.until_direct(NODE, peer, patience_s)

    def is_direct(self, peer: str) -> bool:
        return self.tsns.is_direct(NODE, peer)

    def knows(self, peer: str) -> bool:
        return any(peer in entry["addresses"] for entry in self.tsns.status(NODE)["peers"])

    def start(self, *words: str, log: str) -> Daemon:
        return self.tsns.start_inside(NODE, *words, log=log)

    def last_handshake(self, peer: str) -> float | None:
        """When the last WireGuard handshake with a peer ended, in the time of the wall clock."""
        found: float | None = next(
            entry["last_handshake"] for entry in self.tsns.status(NODE)["peers"] if peer in entry["addresses"]
        )
        return found


@dataclass(slots=True)
class TheirClient:
    """The official one."""

    client: Tailscaled
    host: Host
    address: str
    netns: str

    def until_direct(self, peer: str, patience_s: float) -> bool:
        return self.client.until_direct(peer, patience_s)

    def is_direct(self, peer: str) -> bool:
        return self.client.is_direct(peer)

    def knows(self, peer: str) -> bool:
        return self.client.has_route(peer)

    def start(self, *words: str, log: str) -> Daemon:
        return self.host.popen(*words, log=log)


@contextlib.contextmanager
def new_client(
    tailnet: Tailnet, make: str, *, behind: Nat = Nat.NONE, only_relays: bool = False, without_udp: bool = False
) -> Iterator[Client]:
    """A client on a new host, up, as long as the context lasts; `without_udp` its line has let no UDP through from the beginning."""
    with tailnet.host(make, only_relays=only_relays, behind=behind) as host:
        if without_udp:
            host.uplink.block_udp()
        url, auth_key = tailnet.control.url, tailnet.control.auth_key()
        if make == TSNS:
            with tsns_on(host) as tsns:
                tsns.run("up", NODE, "--login-server", url, "--auth-key", auth_key, "--hostname", host.name)
                yield OurClient(tsns, host, tsns.ip(NODE), str(tsns.status(NODE)["netns"]))
        else:
            with Tailscaled(host) as client:
                client.up(url, auth_key)
                yield TheirClient(client, host, client.ip(), f"/run/netns/{host.namespace}")


def introduce(one: Client, other: Client) -> None:
    """Returns when each of the two can be sent to by the other."""
    wait_for(lambda: one.knows(other.address), f"{one.host.name} knows {other.host.name}")
    wait_for(lambda: other.knows(one.address), f"{other.host.name} knows {one.host.name}")
