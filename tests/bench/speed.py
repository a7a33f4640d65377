"""The parts about the data plane: streams of packets inside a tailnet. They take minutes, and run only when they are named."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

from tests.bench.ends import LINE_UP, WITH_A_TAILNET, End, ends, in_rotation, present
from tests.bench.iperf import Tcp, tcp, tcp_at_once, udp
from tests.bench.parts import MB, STORM_DRAIN_S, STORM_RATE, Bench, new_tailnet, upstream, wait_for_peers
from tests.bench.processes import memory, spent_s
from tests.interop.rig.relay import Derper
from tests.interop.rig.tailnet import Tailnet
from tests.interop.rig.traffic import Pings, pings

GB: Final = 1e9
WARM_UP_S: Final = 1.0
REST_S: Final = 0.5  # after a stream, for queues to run empty
PAYLOADS: Final = (1200, 100)  # bytes; the small ones last, for they are the hardest to recover from
IDLE_PINGS: Final = 50
IDLE_PING_S: Final = 0.02
BULK_PING_S: Final = 0.05
PING_START_S: Final = 0.3  # after a stream has begun
SENDERS: Final = 8
CALM_S: Final = 5.0  # after ten thousand peers have come
ANEW_PINGS: Final = 1500
ANEW_PING_S: Final = 0.002
ANEW_LEAD_S: Final = 0.5
STORM_LEAD_S: Final = 1.0  # of changes before the stream begins

# What a single stream may end in; the others then go on, and the part has failed all the same.
FAILURES: Final = (AssertionError, subprocess.SubprocessError, OSError, ValueError, KeyError)


def speed(bench: Bench) -> None:
    """TCP and UDP between two nodes with a direct path: how much, for how much processor time, and what pings make of it."""
    _courses(bench, "speed", LINE_UP, only_relays=False)


def relay(bench: Bench) -> None:
    """The same between two nodes that can meet at the relay only, and what the relay drops."""
    _courses(bench, "relay", WITH_A_TAILNET, only_relays=True)


def _courses(bench: Bench, part: str, line_up: Sequence[str], *, only_relays: bool) -> None:
    failures: list[str] = []
    contenders = present(bench, line_up)
    for number in range(bench.rounds):
        for contender in in_rotation(contenders, number):
            with (
                _go_on(bench, failures, f"{part}, {contender}"),
                new_tailnet(bench.control) as net,
                ends(net, contender, only_relays=only_relays) as (one, two),
            ):
                course = Course(bench, part, contender, one, two, net.relays[0] if only_relays else None)
                course.run()
                failures += course.failures
    assert not failures, f"{len(failures)} of what was to be measured went wrong; the notes say what"


@dataclass(frozen=True, slots=True)
class Course:
    """What a pair of one contender goes through in one round; `one` sends to `two`."""

    bench: Bench
    part: str
    contender: str
    one: End
    two: End
    relay: Derper | None = None  # where all has to go through it
    failures: list[str] = field(default_factory=list)

    def run(self) -> None:
        """All streams, one after the other."""
        tcp(self.one, self.two, WARM_UP_S)
        time.sleep(REST_S)
        with self._step("idle pings"):
            self._add_idle_pings()
        self._tcp("TCP one stream", meanwhile=self._look_at_memory)
        self._tcp("TCP four streams", "--parallel", "4")
        self._tcp("TCP reverse", "--reverse")
        with self._step("pings while TCP runs"):
            tcp(self.one, self.two, self.bench.stream_s, meanwhile=self._add_bulk_pings)
        for payload in PAYLOADS:
            time.sleep(REST_S)
            self._udp(f"UDP {payload} B", payload)

    def _tcp(self, what: str, *flags: str, meanwhile: Callable[[], None] | None = None) -> None:
        with self._step(what):
            relayed, before = self._relayed(), self._spent()
            found = tcp(self.one, self.two, self.bench.stream_s, *flags, meanwhile=meanwhile)
            self._add(what, "Gbit/s", found.gbit_s)
            self._add_cpu(what, before, found.received_bytes)
            self._add(f"{what}: retransmits", "", found.retransmits)
            if self.relay:
                self._add(f"{what}: retransmits per GB", "", found.retransmits / (found.received_bytes / GB))
                self._add_relayed(what, relayed)

    def _udp(self, what: str, payload: int) -> None:
        with self._step(what):
            relayed, before = self._relayed(), self._spent()
            found = udp(self.one, self.two, self.bench.stream_s, payload)
            self._add(f"{what}: received", "k/s", found.received / found.seconds / 1000)
            self._add(f"{what}: sent", "k/s sent", found.sent / found.seconds / 1000)
            self._add(f"{what}: lost", "%", 100 * found.lost_share)
            self._add_cpu(what, before, found.received_bytes)
            if self.relay:
                self._add_relayed(what, relayed)

    def _add_idle_pings(self) -> None:
        counted = ping(self.one, self.two, IDLE_PINGS, IDLE_PING_S)
        self._add("ping, idle: fastest", "ms", 1000 * counted.fastest_s)
        self._add("ping, idle: average", "ms", 1000 * counted.average_s)

    def _add_bulk_pings(self) -> None:
        counted = _ping_beside(self.one, self.two, self.bench.stream_s)
        self._add("ping, while TCP runs: average", "ms", 1000 * counted.average_s)
        self._add("ping, while TCP runs: lost", "", counted.sent - counted.received)

    def _look_at_memory(self) -> None:
        """Of the end that has more: both count, and which of them it is differs between contenders."""
        time.sleep(self.bench.stream_s / 2)
        used = [memory(end.pids) for end in (self.one, self.two)]
        self._add("RSS of a node under load", "MB", max(each.rss for each in used) / MB)
        self._add("PSS of a node under load", "MB", max(each.pss for each in used) / MB)

    def _add_cpu(self, what: str, before: float, octets: int) -> None:
        self._add(f"{what}: CPU", "s/GB", (self._spent() - before) / (octets / GB))

    def _spent(self) -> float:
        return spent_s([*self.one.pids, *self.two.pids])

    def _relayed(self) -> tuple[int, int, float]:
        """Frames that the relay received and dropped so far, and its processor time."""
        if self.relay is None:
            return (0, 0, 0.0)
        received, dropped = self.relay.count("derp_packets_received"), self.relay.count("derp_packets_dropped")
        return received, dropped, spent_s([self.relay.pid])

    def _add_relayed(self, what: str, before: tuple[int, int, float]) -> None:
        received, dropped, used_s = (now - then for now, then in zip(self._relayed(), before, strict=True))
        self._add(f"{what}: frames that the relay dropped", "%", 100 * dropped / max(1, received))
        self._add(f"{what}: CPU of the relay, for a million frames", "s", 1e6 * used_s / max(1, received))

    def _add(self, what: str, unit: str, value: float) -> None:
        self.bench.speeds.add(self.part, what, unit, self.contender, value)

    @contextlib.contextmanager
    def _step(self, what: str) -> Iterator[None]:
        with _go_on(self.bench, self.failures, f"{self.part}, {self.contender}, {what}"):
            yield
            time.sleep(REST_S)


@contextlib.contextmanager
def _go_on(bench: Bench, failures: list[str], what: str) -> Iterator[None]:
    """What goes wrong in it is noted, and no reason not to measure the rest."""
    try:
        yield
    except FAILURES as error:
        failures.append(what)
        bench.notes.append(f"{what}: FAILED: {' '.join(str(error).split())[-500:]}")


def ping(sender: End, receiver: End, count: int, every_s: float) -> Pings:
    """So many pings, with some patience for the last ones."""
    words = ("ping", "-n", "-q", f"-i{every_s}", f"-c{count}", "-W2", receiver.address)
    return pings(sender.host.run(*sender.inside(*words), check=False))


def _ping_beside(sender: End, receiver: End, seconds: float) -> Pings:
    """Within a stream of so many seconds that has just begun, and not beyond it."""
    time.sleep(PING_START_S)
    return ping(sender, receiver, max(1, int((seconds - 2 * PING_START_S) / BULK_PING_S)), BULK_PING_S)


def storm(bench: Bench) -> None:
    """TCP and pings in a tailnet of 10,000 peers, while nothing changes there and while 1000 peers a second do."""
    count, failures = 1000 if bench.quick else 10_000, list[str]()
    contenders = present(bench, WITH_A_TAILNET)
    for number in range(bench.rounds):
        for contender in in_rotation(contenders, number):
            with _go_on(bench, failures, f"storm, {contender}"), new_tailnet() as net:
                upstream(net).tell(f"fake {count}")  # before them: tailscaled's status cannot bear a fake half made
                with ends(net, contender) as (one, two):
                    assert one.station is not None
                    wait_for_peers(one.station, count)
                    time.sleep(CALM_S)
                    tcp(one, two, WARM_UP_S)
                    _storm_stream(bench, contender, one, two, f"{count:,} peers")
                    _all_anew(bench, contender, net, one, two, f"{count:,} peers told anew")
                    changes = int((bench.stream_s + 2 * STORM_LEAD_S) * STORM_RATE)
                    command = f"storm {one.name} {changes} {STORM_RATE}"
                    changing = threading.Thread(target=upstream(net).tell, args=(command,))
                    changing.start()
                    try:
                        time.sleep(STORM_LEAD_S)
                        _storm_stream(bench, contender, one, two, f"{count:,} peers, {STORM_RATE} changes/s")
                    finally:
                        changing.join()
                    time.sleep(STORM_DRAIN_S)
    assert not failures, f"{len(failures)} of what was to be measured went wrong; the notes say what"


def _storm_stream(bench: Bench, contender: str, one: End, two: End, what: str) -> None:
    counted: list[Pings] = []
    found = tcp(one, two, bench.stream_s, meanwhile=lambda: counted.append(_ping_beside(one, two, bench.stream_s)))
    bench.speeds.add("storm", f"{what}: TCP", "Gbit/s", contender, found.gbit_s)
    for each in counted:
        bench.speeds.add("storm", f"{what}: pings lost", "", contender, each.sent - each.received)
        bench.speeds.add("storm", f"{what}: slowest ping", "ms", contender, 1000 * each.slowest_s)


def _all_anew(bench: Bench, contender: str, net: Tailnet, one: End, two: End, what: str) -> None:
    """Pings on a line that is idle otherwise, before and while control tells both ends the whole netmap anew, for one peer more."""
    calm = ping(one, two, ANEW_PINGS, ANEW_PING_S)
    telling = threading.Timer(ANEW_LEAD_S, upstream(net).tell, args=("fake 1",))
    telling.start()
    found = ping(one, two, ANEW_PINGS, ANEW_PING_S)
    telling.join()
    bench.speeds.add("storm", f"{what}: pings lost", "", contender, found.sent - found.received)
    bench.speeds.add("storm", f"{what}: slowest ping before", "ms", contender, 1000 * calm.slowest_s)
    bench.speeds.add("storm", f"{what}: slowest ping", "ms", contender, 1000 * found.slowest_s)


def fair(bench: Bench) -> None:
    """Eight nodes send to one at once: what each of them gets."""
    failures: list[str] = []
    contenders = present(bench, LINE_UP)
    for number in range(bench.rounds):
        for contender in in_rotation(contenders, number):
            with (
                _go_on(bench, failures, f"fair, {contender}"),
                new_tailnet(bench.control) as net,
                ends(net, contender, SENDERS + 1) as found,
            ):
                receiver, *senders = found
                tcp_at_once(senders, receiver, WARM_UP_S)
                time.sleep(REST_S)
                pids = [pid for end in found for pid in end.pids]
                before = spent_s(pids)
                streams = tcp_at_once(senders, receiver, bench.stream_s)
                _add_shares(bench, contender, streams, spent_s(pids) - before)
    assert not failures, f"{len(failures)} of what was to be measured went wrong; the notes say what"


def _add_shares(bench: Bench, contender: str, found: Sequence[Tcp], used_s: float) -> None:
    shares = [each.gbit_s for each in found]
    what = f"{len(shares)} to one"
    bench.speeds.add("fair", f"{what}: all together", "Gbit/s", contender, sum(shares))
    for share in shares:
        bench.speeds.add("fair", f"{what}: each", "Gbit/s", contender, share)
    bench.speeds.add("fair", f"{what}: Jain's index", "", contender, jain(shares))
    octets = sum(each.received_bytes for each in found)
    bench.speeds.add("fair", f"{what}: CPU of all nodes", "s/GB", contender, used_s / (octets / GB))
    bench.speeds.add("fair", f"{what}: retransmits", "", contender, sum(each.retransmits for each in found))


def jain(shares: Sequence[float]) -> float:
    """Jain's index of fairness (R. Jain et al., DEC-TR-301, 1984): 1 when all have the same, 1/n when one has everything."""
    squares = sum(share * share for share in shares)
    return sum(shares) ** 2 / (len(shares) * squares) if squares else 1.0
