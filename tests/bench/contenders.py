"""The two contenders, each on hosts of its own, behind one interface."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from typing import Final, Protocol

from tests.bench import figures
from tests.bench.processes import ancestry
from tests.interop.rig.internet import Host
from tests.interop.rig.router import Nat
from tests.interop.rig.tailnet import Tailnet
from tests.interop.rig.tailscaled import Tailscaled
from tests.interop.rig.tsns import Tsns, tsns_on

PONG_PATIENCE_S: Final = 20
PING_EVERY_S: Final = "0.01"


class Station(Protocol):
    """One host with a contender on it."""

    contender: str
    host: Host

    def up(self) -> float:
        """Start what there is to start and join the tailnet; seconds."""

    def address(self) -> str:
        """Its node's address."""

    def netns(self) -> str:
        """The path of the namespace in which its node's tailnet is."""

    def pids(self) -> list[int]:
        """All processes of its node."""

    def peers(self) -> int:
        """How many peers its node knows."""

    def until_direct(self, address: str, patience_s: float) -> bool:
        """Returns as soon as a peer has answered a ping directly; false when none was within so many seconds."""

    def is_direct(self, address: str) -> bool:
        """Whether what it sends to a peer goes directly and nowhere else just now; asking changes nothing."""


class OurStation:
    """tsns; its node is called `one`, others may stand beside it."""

    contender = figures.OURS

    def __init__(self, tailnet: Tailnet, tsns: Tsns) -> None:
        self.host = tsns.host
        self.tsns = tsns
        self._tailnet = tailnet

    def login(self, *, ephemeral: bool = False) -> tuple[str, ...]:
        """The flags with which a node gets in."""
        control = self._tailnet.control
        return ("--login-server", control.url, "--auth-key", control.auth_key(ephemeral=ephemeral))

    def up(self, node: str = "one") -> float:
        return self.timed("up", node, *self.login(), "--hostname", f"{self.host.name}-{node}")

    def timed(self, *words: str) -> float:
        """How long `tsns WORDS` takes."""
        began = time.perf_counter()
        self.tsns.run(*words)
        return time.perf_counter() - began

    def address(self) -> str:
        return self.tsns.ip("one")

    def netns(self) -> str:
        return str(self.tsns.answer("status", "one")["netns"])

    def pids(self) -> list[int]:
        return ancestry(self.engine())

    def engine(self, node: str = "one") -> int:
        """The process that does the work of a node; its keeper is above it, and above that the server, if there is one."""
        return int(self.tsns.answer("status", node)["pid"])

    def peers(self) -> int:
        return len(self.tsns.answer("status", "one")["peers"])

    def until_direct(self, address: str, patience_s: float) -> bool:
        return self.tsns.until_direct("one", address, patience_s)

    def is_direct(self, address: str) -> bool:
        return self.tsns.is_direct("one", address)


class TheirStation:
    """tailscaled."""

    contender = figures.THEIRS

    def __init__(self, tailnet: Tailnet, host: Host) -> None:
        self.host = host
        self.client = Tailscaled(host)
        self._tailnet = tailnet

    def up(self) -> float:
        began = time.perf_counter()
        self.client.start()
        self.client.up(self._tailnet.control.url, self._tailnet.control.auth_key())
        return time.perf_counter() - began

    def address(self) -> str:
        return self.client.ip()

    def netns(self) -> str:
        return f"/run/netns/{self.host.namespace}"

    def pids(self) -> list[int]:
        return [self.client.pid]

    def peers(self) -> int:
        return len(json.loads(self.client.command("status", "--json")).get("Peer") or {})

    def until_direct(self, address: str, patience_s: float) -> bool:
        return self.client.until_direct(address, patience_s)

    def is_direct(self, address: str) -> bool:
        return self.client.is_direct(address)


class StationKind(Protocol):
    """How a station of one contender is made, for as long as the context lasts."""

    def __call__(
        self, tailnet: Tailnet, *, only_relays: bool = True, behind: Nat = Nat.NONE
    ) -> contextlib.AbstractContextManager[Station]: ...


@contextlib.contextmanager
def our_station(tailnet: Tailnet, *, only_relays: bool = True, behind: Nat = Nat.NONE) -> Iterator[OurStation]:
    """tsns on a new host."""
    with tailnet.host("o", only_relays=only_relays, behind=behind) as host, tsns_on(host) as tsns:
        yield OurStation(tailnet, tsns)


@contextlib.contextmanager
def their_station(tailnet: Tailnet, *, only_relays: bool = True, behind: Nat = Nat.NONE) -> Iterator[TheirStation]:
    """tailscaled on a new host."""
    with tailnet.host("t", only_relays=only_relays, behind=behind) as host:
        station = TheirStation(tailnet, host)
        try:
            yield station
        finally:
            station.client.stop()


CONTENDERS: Final[dict[str, StationKind]] = {
    figures.OURS: our_station,
    figures.THEIRS: their_station,
}


def in_turn(number: int) -> list[str]:
    """The contenders' names in the order of this round: each begins every other time."""
    names = list(CONTENDERS)
    return names if number % 2 == 0 else names[::-1]


def first_pong(station: Station, address: str) -> float:
    """Seconds until an address answers, pinged all the time from now on."""
    netns = station.netns()
    command = [
        "nsenter",
        f"--net={netns}",
        "ping",
        "-n",
        "-q",
        "-c1",
        f"-i{PING_EVERY_S}",
        f"-w{PONG_PATIENCE_S}",
        address,
    ]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    took = time.perf_counter() - began
    assert done.returncode == 0, f"{station.contender}: no pong from {address}\n{done.stdout}{done.stderr}"
    return took
