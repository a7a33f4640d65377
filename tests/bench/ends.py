"""Who is measured by traffic: nodes of one contender that can reach each other, each in namespaces of its own.

tsns stands twice, once with each engine of its data plane. wireguard-go is what tailscaled's data plane came from; it has no relay.
"""

from __future__ import annotations

import contextlib
import os
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from tests.bench.contenders import OurStation, Station, TheirStation, first_pong, our_station, their_station
from tests.bench.figures import THEIRS
from tests.bench.parts import Bench, new_tailnet, node_name
from tests.bench.processes import parent
from tests.interop.rig.internet import Host, wait_for
from tests.interop.rig.tailnet import Tailnet
from tsns.keys import NodePrivate

NATIVE: Final = "tsns native"
PYTHON: Final = "tsns Python"
WIREGUARD: Final = "wireguard-go"
ENGINES: Final = {NATIVE: "native", PYTHON: "python"}
ENGINE_VARIABLE: Final = "TSNS_DATA_PLANE"
LINE_UP: Final = (NATIVE, PYTHON, THEIRS, WIREGUARD)  # in the order of the table's columns
WITH_A_TAILNET: Final = LINE_UP[:3]

DIRECT_PATIENCE_S: Final = 15.0
WIREGUARD_PORT: Final = 51820
WIREGUARD_MTU: Final = 1280  # the tailnet's
WIREGUARD_PREFIX: Final = "100.64.0"


@dataclass(frozen=True, slots=True)
class End:
    """A node that is up."""

    host: Host
    address: str  # in the tailnet
    netns: str  # the file of the namespace that the tailnet is in
    pids: tuple[int, ...]  # its own processes: of tsns engine and keeper, for the server is not in the way of packets
    name: str  # by which the control server knows it
    station: Station | None = None  # wireguard-go has none

    def inside(self, *words: str) -> tuple[str, ...]:
        """A command line for its host that runs `words` where the network is the tailnet."""
        return ("nsenter", f"--net={self.netns}", "--", *words)


def present(bench: Bench, contenders: Sequence[str]) -> list[str]:
    """Those of the contenders that there are here; who is not gets a note."""
    found = list(contenders)
    with new_tailnet() as net:
        for contender in [name for name in contenders if name in ENGINES]:
            if why := _why_not(net, ENGINES[contender]):
                found.remove(contender)
                if (note := f"{contender} is left out: {why}") not in bench.notes:
                    bench.notes.append(note)
    return found


def _why_not(net: Tailnet, engine: str) -> str:
    """What keeps tsns from running this engine; empty when nothing does. It is asked and not looked into."""
    with our_station(net) as station:
        station.host.environment[ENGINE_VARIABLE] = engine
        tried = station.tsns.run("up", "one", *station.login(), check=False)
        if tried.returncode != 0:
            said = [line for line in tried.stderr.splitlines() if line.startswith("error:")]
            return f"`tsns up` failed with status {tried.returncode}: {' '.join(said)}"
        return "" if (runs := _engine_of(station)) == engine else f"`tsns status` says that the engine is {runs}"


def _engine_of(station: OurStation) -> str:
    """A tsns that does not say which engine it has knows one only."""
    return str((station.tsns.status("one").get("data_plane") or {}).get("engine", ENGINES[PYTHON]))


def in_rotation(contenders: Sequence[str], number: int) -> list[str]:
    """Each begins in its turn: who comes first, or after whom, must not decide."""
    start = number % len(contenders)
    return [*contenders[start:], *contenders[:start]]


@contextlib.contextmanager
def ends(net: Tailnet, contender: str, count: int = 2, *, only_relays: bool = False) -> Iterator[list[End]]:
    """So many nodes of one contender, of which the others reach the first, directly or by the relay only."""
    if contender == WIREGUARD:
        assert not only_relays, "wireguard-go has no relay"
        with _wireguard(net, count) as found:
            yield found
        return
    with contextlib.ExitStack() as stack:
        found = [stack.enter_context(_end(net, contender, only_relays=only_relays)) for _ in range(count)]
        meet(found, directly=not only_relays)
        yield found


@contextlib.contextmanager
def _end(net: Tailnet, contender: str, *, only_relays: bool) -> Iterator[End]:
    if contender == THEIRS:
        with their_station(net, only_relays=only_relays) as theirs:
            theirs.up()
            yield _described(theirs, theirs.pids())
        return
    engine = ENGINES[contender]
    with our_station(net, only_relays=only_relays) as ours:
        ours.host.environment[ENGINE_VARIABLE] = engine
        ours.up()
        runs = _engine_of(ours)
        assert runs == engine, f"{contender} was asked for, and {runs} runs"
        yield _described(ours, [ours.engine(), parent(ours.engine())])


def _described(station: OurStation | TheirStation, pids: Sequence[int]) -> End:
    return End(station.host, station.address(), station.netns(), tuple(pids), node_name(station), station)


def meet(found: Sequence[End], *, directly: bool) -> None:
    """Returns when the first has heard all others, and in the way that is to be measured; AssertionError when there is none."""
    first = found[0]
    assert first.station is not None
    for other in found[1:]:
        assert other.station is not None
        first_pong(other.station, first.address)
        for station, address in ((first.station, other.address), (other.station, first.address)):
            way = f"from {station.contender} on {station.host.name} to {address}"
            if directly:
                assert station.until_direct(address, DIRECT_PATIENCE_S), f"no direct path {way}"
            else:
                assert not station.is_direct(address), f"a direct path {way}"


@contextlib.contextmanager
def _wireguard(net: Tailnet, count: int) -> Iterator[list[End]]:
    """Interfaces that know each other, with the tailnet's MTU, on hosts of the same internet."""
    keys = [NodePrivate.generate(os.urandom(32)) for _ in range(count)]
    with contextlib.ExitStack() as stack:
        hosts = [stack.enter_context(net.host("w", only_relays=False)) for _ in range(count)]
        found = [
            stack.enter_context(_interface(host, key, number))
            for number, (host, key) in enumerate(zip(hosts, keys, strict=True), start=1)
        ]
        for one in found:
            for other, key in zip(found, keys, strict=True):
                if other is not one:
                    _introduce(one, other, key)
        for other in found[1:]:
            words = other.inside("ping", "-nqc1", f"-w{DIRECT_PATIENCE_S:.0f}", found[0].address)
            other.host.run(*words)
        yield found


@contextlib.contextmanager
def _interface(host: Host, key: NodePrivate, number: int) -> Iterator[End]:
    name = f"wg{os.getpid()}-{number}"  # its control socket is the machine's, not the namespace's
    address = f"{WIREGUARD_PREFIX}.{number}"
    with host.popen("wireguard-go", "--foreground", name, log="wireguard-go") as daemon:
        wait_for(lambda: host.run("wg", "show", name, check=False).returncode == 0, "wireguard-go answers")
        key_file = host.directory / "key"
        key_file.touch(mode=0o600)
        key_file.write_text(b64encode(key.raw).decode())
        host.run("wg", "set", name, "listen-port", str(WIREGUARD_PORT), "private-key", str(key_file))
        host.run("ip", "address", "add", f"{address}/24", "dev", name)
        host.run("ip", "link", "set", name, "mtu", str(WIREGUARD_MTU), "up")
        yield End(host, address, f"/run/netns/{host.namespace}", (daemon.process.pid,), name)


def _introduce(one: End, other: End, key: NodePrivate) -> None:
    public, endpoint = b64encode(key.public.raw).decode(), f"{other.host.address}:{WIREGUARD_PORT}"
    one.host.run("wg", "set", one.name, "peer", public, "endpoint", endpoint, "allowed-ips", f"{other.address}/32")
