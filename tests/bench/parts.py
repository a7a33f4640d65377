"""What is measured when nothing is named, part by part. Every part sets up tailnets of its own and takes them down."""

from __future__ import annotations

import contextlib
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.bench.contenders import (
    CONTENDERS,
    OurStation,
    Station,
    TheirStation,
    first_pong,
    in_turn,
    our_station,
    their_station,
)
from tests.bench.figures import OURS, THEIRS, Figures
from tests.bench.grid import Grid
from tests.bench.processes import Memory, cpu_s, memory, parent
from tests.interop.rig.control import UpstreamControl
from tests.interop.rig.internet import wait_for
from tests.interop.rig.tailnet import Tailnet, tailnet
from tests.interop.rig.traffic import pings

TESTCONTROL: Final = "testcontrol"
MB: Final = 1e6
SETTLE_S: Final = 5.0  # after `up`, before a node counts as idle
PEERS_PATIENCE_S: Final = 60.0
STARTS_AT_A_TIME: Final = 4
STORM_RATE: Final = 1000  # changes of a peer a second
STORM_PING_S: Final = 0.02
STORM_DRAIN_S: Final = 3.0  # to work off what waits, for its processor time to be counted


@dataclass(frozen=True, slots=True)
class Bench:
    """How a part is to measure, and where its figures go."""

    figures: Figures
    rounds: int
    quick: bool
    control: str = TESTCONTROL  # for the parts about paths; what others do with it, only this one can
    grid: Grid = field(default_factory=Grid)
    stream_s: float = 3.0  # how long each stream of the parts about the data plane lasts
    speeds: Figures = field(default_factory=Figures)  # of those parts, which have more contenders
    notes: list[str] = field(default_factory=list)  # what a reader of the figures has to know

    def add(self, part: str, what: str, unit: str, contender: str, value: float) -> None:
        """One sample."""
        self.figures.add(part, what, unit, contender, value)


@contextlib.contextmanager
def new_tailnet(kind: str = TESTCONTROL) -> Iterator[Tailnet]:
    """A tailnet with this kind of control server, for one measurement."""
    with tempfile.TemporaryDirectory(prefix="tsns-bench-") as directory, tailnet(kind, Path(directory)) as found:
        yield found


def start(bench: Bench) -> None:
    """Start and `up`, and how soon the first packets get through."""
    for number in range(bench.rounds):
        for contender in in_turn(number):
            with new_tailnet() as net, CONTENDERS[contender](net) as old:
                old.up()
                with CONTENDERS[contender](net) as new:
                    bench.add("start", "cold start and up", "s", contender, new.up())
                    bench.add("start", "first pong, new to old", "s", contender, first_pong(new, old.address()))
                    if isinstance(new, OurStation):
                        bench.add("start", "up of a second node", "s", contender, new.up("two"))
                with CONTENDERS[contender](net) as new:
                    bench.add("start", "cold start and up", "s", contender, new.up())
                    bench.add("start", "first pong, old to new", "s", contender, first_pong(old, new.address()))


def run(bench: Bench) -> None:
    """`run -- true`, with a control server that is not ours and with the lab."""
    for kind in ("testcontrol", "lab"):
        for _ in range(bench.rounds):
            with new_tailnet(kind) as net, our_station(net) as station:
                flags = station.login(ephemeral=True)
                cold = station.timed("run", *flags, "--", "true")
                bench.add("run", f"cold, {kind}", "s", OURS, cold)
                station.up()
                for _ in range(3):
                    bench.add(
                        "run", f"new node beside another, {kind}", "s", OURS, station.timed("run", *flags, "--", "true")
                    )
                    inside = station.timed("run", "--name", "one", *station.login(), "--", "true")
                    bench.add("run", f"into a running node, {kind}", "s", OURS, inside)


def idle(bench: Bench) -> None:
    """What a node costs that has nothing to do: processor time and memory."""
    seconds = 5.0 if bench.quick else 15.0
    for number in range(bench.rounds):
        for contender in in_turn(number):
            with new_tailnet() as net, CONTENDERS[contender](net) as station:
                station.up()
                time.sleep(SETTLE_S)
                pids = station.pids()
                before = cpu_s(pids)
                time.sleep(seconds)
                bench.add("idle", "CPU", "%", contender, 100 * (cpu_s(pids) - before) / seconds)
                _add_memory(bench, "idle", contender, memory(pids))
                if isinstance(station, OurStation):
                    _add_own_parts(bench, station)


def _add_memory(bench: Bench, part: str, contender: str, used: Memory, suffix: str = "") -> None:
    bench.add(part, f"RSS{suffix}", "MB", contender, used.rss / MB)
    bench.add(part, f"PSS{suffix}", "MB", contender, used.pss / MB)
    bench.add(part, f"private{suffix}", "MB", contender, used.private / MB)


def _add_own_parts(bench: Bench, station: OurStation) -> None:
    """By process: the server, where there is one, is what all nodes share."""
    engine = station.engine()
    keeper = parent(engine)
    bench.add("idle", "private, node (engine and keeper)", "MB", OURS, memory([engine, keeper]).private / MB)
    for name, pid in (("engine", engine), ("keeper", keeper)):
        bench.add("idle", f"private, {name}", "MB", OURS, memory([pid]).private / MB)


def peers(bench: Bench) -> None:
    """How time and memory grow with the tailnet."""
    for count in (10, 1000) if bench.quick else (10, 100, 1000, 10_000):
        with new_tailnet() as net:
            upstream(net).tell(f"fake {count}")
            for number in range(bench.rounds):
                for contender in in_turn(number):
                    with CONTENDERS[contender](net) as station:
                        _add_growth(bench, station, count)


def _add_growth(bench: Bench, station: Station, count: int) -> None:
    began = time.perf_counter()
    station.up()
    known_s = wait_for_peers(station, count) - began
    pids = station.pids()
    bench.add("peers", f"{count:,}: all known", "s", station.contender, known_s)
    bench.add("peers", f"{count:,}: CPU", "s", station.contender, cpu_s(pids))
    _add_memory(bench, "peers", station.contender, memory(pids), f", {count:,}")


def wait_for_peers(station: Station, count: int) -> float:
    """When the first question was asked whose answer had them all: the contenders' command lines are not equally quick."""

    def look() -> float | None:
        asked = time.perf_counter()
        return asked if station.peers() >= count else None

    return wait_for(look, f"{count} peers are known", PEERS_PATIENCE_S)


def deltas(bench: Bench) -> None:
    """Many changes of single peers in a large tailnet, while packets go to and fro."""
    count, seconds = (1000, 3) if bench.quick else (10_000, 60)
    for contender in CONTENDERS:
        with new_tailnet() as net, CONTENDERS[contender](net) as old, CONTENDERS[contender](net) as new:
            upstream(net).tell(f"fake {count}")  # before them: tailscaled's status cannot bear a fake half made
            old.up()
            new.up()
            wait_for_peers(new, count)
            address, netns = old.address(), new.netns()
            first_pong(new, address)
            pids = new.pids()
            time.sleep(STORM_DRAIN_S)
            before = cpu_s(pids)
            stream = threading.Thread(
                target=upstream(net).tell, args=(f"storm {node_name(new)} {seconds * STORM_RATE} {STORM_RATE}",)
            )
            stream.start()
            words = ("ping", "-n", "-q", f"-i{STORM_PING_S}", f"-c{int(seconds / STORM_PING_S)}", "-W2", address)
            counted = pings(new.host.run("nsenter", f"--net={netns}", *words, timeout_s=3 * seconds + 30, check=False))
            stream.join()
            time.sleep(STORM_DRAIN_S)
            what = f"{STORM_RATE}/s for {seconds} s, {count:,} peers"
            bench.add("deltas", f"{what}: pings lost", "", contender, counted.sent - counted.received)
            bench.add("deltas", f"{what}: slowest ping", "ms", contender, 1000 * counted.slowest_s)
            used = (cpu_s(pids) - before) / (seconds * STORM_RATE)
            bench.add("deltas", f"{what}: CPU for each (with the pings)", "ms", contender, 1000 * used)
            _add_memory(bench, "deltas", contender, memory(pids), f" after {what}")


def node_name(station: Station) -> str:
    """The host name by which the control server knows a station's node."""
    return f"{station.host.name}-one" if isinstance(station, OurStation) else station.host.name


def nodes(bench: Bench) -> None:
    """How memory grows with the number of nodes on one machine."""
    for count in (1, 10) if bench.quick else (1, 10, 50):
        for contender, several in ((OURS, _our_nodes), (THEIRS, _their_nodes)):
            with new_tailnet() as net, several(net, count) as pids:
                used = memory(pids)
                bench.add("nodes", f"{count}: PSS of each", "MB", contender, used.pss / count / MB)
                bench.add("nodes", f"{count}: private of each", "MB", contender, used.private / count / MB)


@contextlib.contextmanager
def _our_nodes(net: Tailnet, count: int) -> Iterator[list[int]]:
    """All processes of this many nodes on one host."""
    with our_station(net) as station:
        names = ["one", *(f"n{number}" for number in range(1, count))]
        station.up()
        with ThreadPoolExecutor(STARTS_AT_A_TIME) as starts:
            list(starts.map(station.up, names[1:]))
        engines = [station.engine(name) for name in names]
        time.sleep(SETTLE_S)
        yield sorted({*engines, *map(parent, engines), *station.pids()})


@contextlib.contextmanager
def _their_nodes(net: Tailnet, count: int) -> Iterator[list[int]]:
    """All processes of this many clients, which need a host each."""
    with contextlib.ExitStack() as stack:
        stations = [stack.enter_context(their_station(net)) for _ in range(count)]
        with ThreadPoolExecutor(STARTS_AT_A_TIME) as starts:
            list(starts.map(TheirStation.up, stations))
        time.sleep(SETTLE_S)
        yield [pid for station in stations for pid in station.pids()]


def upstream(net: Tailnet) -> UpstreamControl:
    """The test control server of a tailnet that has one: it does what it is told."""
    assert isinstance(net.control, UpstreamControl)
    return net.control


DEFAULT: Final[dict[str, Callable[[Bench], None]]] = {
    "start": start,
    "run": run,
    "idle": idle,
    "peers": peers,
    "deltas": deltas,
    "nodes": nodes,
}
