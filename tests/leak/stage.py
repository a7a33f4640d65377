"""The stage: a machine of the test's own, with an uplink, a LAN and everything on it that could be asked by mistake.

    bridge ---- machine     eth0: 10.91.0.2, fd91:7e57::2; tsns, and the services a host has (fakes), in a private mount namespace
           |--- server      10.91.0.1: control and relays, in a process of their own; the default route leads here
           |--- friend      10.91.0.3: another node of the tailnet
           `--- neighbour   10.91.0.4: somebody on the LAN who says hello, and the nameserver in the machine's resolv.conf

All that passes any interface of the machine is sniffed. What is explained: the machine's engine with the server and with the friend. What
is not is a leak.
"""

from __future__ import annotations

import contextlib
import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from tests.interop.rig.internet import Daemon, Host, Internet
from tests.interop.rig.namespace import Namespace
from tests.interop.rig.tsns import Tsns, tsns_on
from tests.leak import attempts
from tests.leak.attempts import ATTEMPTS, BAIT_PORT, OPEN_PATHS, Targets
from tests.leak.sniffer import Seen, about, between, sniffing
from tests.netns.nodes import LabProcess
from tsns.disco.messages import MAGIC as DISCO

ROOT: Final = Path(__file__).parents[2]
PYTHON_HERE: Final = {"PYTHONPATH": str(ROOT)}
TOOK_AT_MOST_S: Final = 30.0
SETTLE_S: Final = 0.4
OUTSIDE: Final = "container0"  # the machine's end of a container's network
QUIET_PORTS: Final = {BAIT_PORT, 4999}  # of attempts: an engine has no business there


@dataclass(frozen=True, slots=True)
class PrivateMounts(Namespace):
    """A network namespace together with a mount namespace, which a process holds."""

    holder: int

    def command(self, *words: str) -> list[str]:
        """A command line that runs `words` in both."""
        return ["nsenter", f"--target={self.holder}", "--net", "--mount", "--", *words]


@dataclass(frozen=True)
class Fakes:
    """Processes of tests.leak.fakes."""

    daemons: tuple[Daemon, ...]

    def told(self) -> list[int]:
        """How many contacts each has told of, once there has been none for a moment: what was sent before has been heard by then."""
        before: list[int] = []
        while (now := [len(lines) for lines in self._lines()]) != before:
            time.sleep(SETTLE_S)
            before = now
        return now

    def contacts(self, since: list[int]) -> list[tuple[str, bytes]]:
        """Who was contacted since then, and what was said to them."""
        self.told()
        lines = [line for told, start in zip(self._lines(), since, strict=True) for line in told[start:]]
        return [(where, bytes.fromhex(said)) for where, said in map(json.loads, lines)]

    def _lines(self) -> list[list[str]]:
        return [[line for line in daemon.said().splitlines() if line.startswith("[")] for daemon in self.daemons]


@dataclass(frozen=True)
class Tried:
    """What came of all attempts: what they say themselves, what passed the machine's interfaces, whom they contacted."""

    results: dict[str, dict[str, str | None]]
    frames: list[Seen]
    contacts: list[tuple[str, bytes]]
    explained: Any

    @property
    def heard(self) -> set[str]:
        """The attempts to which something answered."""
        return {slug for slug, result in self.results.items() if result["heard"]}

    @property
    def seen(self) -> set[str]:
        """The attempts of which something was seen on an interface of the machine, or by a fake."""
        everything = [frame.data for frame in self.frames] + [said for _, said in self.contacts]
        return {slug for slug in ATTEMPTS if any(slug.encode() in data for data in everything)}

    def leaks(self) -> list[str]:
        """Frames and contacts that should not be, as lines for a person."""
        open_ = {f"socket {path!r}" for path in OPEN_PATHS.values()}
        return [str(frame) for frame in self.frames if not self.explained(frame)] + [
            f"{where} was asked {said!r}" for where, said in self.contacts if where not in open_
        ]


class Stage:
    """All of it, at work."""

    def __init__(
        self, machine: Host, server: Host, friend: Host, neighbour: Host, lab: LabProcess, friend4: str
    ) -> None:
        self.machine = machine
        self.server = server
        self.neighbour = neighbour
        self.lab = lab
        self.addresses = {host.name: addresses_of(host) for host in (machine, server, friend, neighbour)}
        self.targets = Targets(
            neighbour4=neighbour.address,
            neighbour6=_six(self.addresses["neighbour"], "fd"),
            neighbour_link_local=_six(self.addresses["neighbour"], "fe80"),
            host4=machine.address,
            host6=_six(self.addresses["machine"], "fd"),
            server4=server.address,
            broadcast4=neighbour.address.rpartition(".")[0] + ".255",
            friend4=friend4,
        )
        self._fakes: Fakes | None = None

    def explained(self, frame: Seen) -> bool:
        """Whether this is an engine's business: with control, relays and the friend, and how those are found on the LAN."""
        refused = about(frame)
        if refused is not None and frame.device == "lo":
            return self.explained(refused)  # the kernel tells the engine that what it has sent did not arrive
        ours = self.addresses["machine"]
        theirs = self.addresses["server"] | self.addresses["friend"]
        # What an engine has sealed to find a path may go to wherever a peer has once been, and the kernel may say that nobody is there.
        return (
            between(ours, theirs, but_ports=QUIET_PORTS)(frame)
            or _finds_neighbours(frame, ours | theirs)
            or DISCO in frame.data
        )

    @contextlib.contextmanager
    def served(self) -> Iterator[None]:
        """With everybody there who might be asked by mistake."""
        at = self.targets
        words = (sys.executable, "-m", "tests.leak.fakes")
        with contextlib.ExitStack() as stack:
            daemons = []
            for host, place, addresses in (
                (self.machine, "host", (at.host4, at.host6, "127.0.0.1", "::1")),
                (self.neighbour, "neighbour", (at.neighbour4, at.neighbour6)),
                (self.server, "server", (at.server4,)),
            ):
                daemon = stack.enter_context(
                    host.popen(*words, place, *addresses, log=f"fakes-{place}", environment=PYTHON_HERE)
                )
                daemon.wait_until_said("ready")
                daemons.append(daemon)
            self._fakes = Fakes(tuple(daemons))
            yield

    def begin(self, *entrance: str, environment: dict[str, str] | None = None) -> Daemon:
        """Start the program that tries to get out, behind these words: it is ready, and waits."""
        words = (*entrance, sys.executable, attempts.__file__, json.dumps(asdict(self.targets)))
        program = self.machine.popen(*words, log="attempts", environment=environment, conversation=True)
        assert program.process.stdout is not None
        line = program.process.stdout.readline()
        assert line == "ready\n", f"{line!r}\n{program.said()}"
        return program

    def give_network(self, pid: int) -> None:
        """Give a process that is in namespaces of its own what Docker gives a container: a network that leads out by the machine, an empty /run."""
        machine, inside = self.machine, ["nsenter", f"--target={pid}", "--net", "--mount", "--"]
        machine.run("ip", "link", "add", OUTSIDE, "type", "veth", "peer", "name", "eth0", "netns", str(pid))
        machine.run("sh", "-c", f"echo 1 > /proc/sys/net/ipv6/conf/{OUTSIDE}/disable_ipv6")
        machine.run("ip", "address", "add", "172.30.0.1/24", "dev", OUTSIDE)
        machine.run("ip", "link", "set", OUTSIDE, "up")
        machine.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        steps = (
            "mount -t tmpfs tmpfs /run; ip link set lo up; ip address add 172.30.0.2/24 dev eth0; ip link set eth0 up; "
            "ip route add default via 172.30.0.1; echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range"
        )
        subprocess.run([*inside, "sh", "-ec", steps], check=True, timeout=TOOK_AT_MOST_S)

    def let_try(self, program: Daemon) -> Tried:
        """Let it make its attempts, and watch."""
        assert self._fakes is not None
        assert program.process.stdin is not None
        assert program.process.stdout is not None
        told_before = self._fakes.told()
        with sniffing(f"/proc/{holder_of(self.machine)}/ns/net") as sniffer:
            program.process.stdin.write("now\n")
            program.process.stdin.flush()
            results = json.loads(program.process.stdout.readline())
            contacts = self._fakes.contacts(told_before)
        return Tried(results, sniffer.seen(), contacts, self.explained)

    @contextlib.contextmanager
    def without_network(self) -> Iterator[None]:
        """While the machine has neither address nor route."""
        state = self.machine.run("ip", "-4", "address", "show", "dev", "eth0").stdout
        assert self.machine.address in state
        self.machine.run("ip", "address", "flush", "dev", "eth0")
        try:
            yield
        finally:
            give_addresses(self.machine, self.server.address)

    @contextlib.contextmanager
    def silent_control(self) -> Iterator[None]:
        """While control and relays say nothing."""
        os.kill(self.lab.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self.lab.pid, signal.SIGCONT)


def _six(addresses: set[str], beginning: str) -> str:
    return next(address for address in sorted(addresses) if address.startswith(beginning))


def _finds_neighbours(frame: Seen, known: set[str]) -> bool:
    """ARP and neighbour discovery for those who are known, and what the kernel says of itself when its addresses change."""
    if frame.kind == 0x0806:
        return {frame.source, frame.destination} <= known
    if frame.protocol == 0 and frame.destination == "ff02::16":
        return True  # multicast listener reports, behind a hop-by-hop header: of groups that the kernel itself is in
    if frame.protocol != 58 or len(frame.data) < 64:
        return False
    kind, target = frame.data[40], frame.data[48:64]
    wanted = {address for address in known if ":" in address}
    return kind in (135, 136) and str(ipaddress.IPv6Address(target)) in wanted


def addresses_of(host: Host) -> set[str]:
    """All of a host's own, without the loopback's."""
    links = json.loads(host.run("ip", "-json", "address", "show", "dev", "eth0").stdout)
    return {str(item["local"]) for item in links[0]["addr_info"]}


def give_addresses(host: Host, gateway: str) -> None:
    """IPv4 and IPv6, and a way to everywhere."""
    six = f"fd91:7e57::{host.address.rpartition('.')[2]}"
    host.run("ip", "address", "replace", f"{host.address}/24", "broadcast", "+", "dev", "eth0")
    host.run("ip", "address", "replace", f"{six}/64", "dev", "eth0", "nodad")
    if host.address != gateway:
        host.run("ip", "route", "replace", "default", "via", gateway)
        host.run("ip", "-6", "route", "replace", "default", "via", f"fd91:7e57::{gateway.rpartition('.')[2]}")


def allow_pings(host: Host) -> None:
    """Ping sockets for everybody, as in a node's namespace."""
    host.run("sh", "-c", "echo 0 2147483647 > /proc/sys/net/ipv4/ping_group_range")


def holder_of(host: Host) -> int:
    """The process that holds a host's mount namespace."""
    namespace = host._namespace
    assert isinstance(namespace, PrivateMounts)
    return namespace.holder


@contextlib.contextmanager
def private_mounts(host: Host, resolv: str) -> Iterator[None]:
    """A mount namespace for everything that runs on a host: /run is empty, and /etc/resolv.conf says this."""
    file = host.directory / "resolv.conf"
    file.write_text(resolv)
    steps = f"mount -t tmpfs tmpfs /run && mount --bind {file} $(realpath /etc/resolv.conf) && echo ready && exec cat"
    former = host._namespace
    command = former.command("unshare", "--mount", "--propagation", "private", "sh", "-c", steps)
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        host._namespace = PrivateMounts(former.name, holder.pid)
        try:
            yield
        finally:
            host._namespace = former
            holder.stdin.close()
            holder.wait(TOOK_AT_MOST_S)


@contextlib.contextmanager
def lab_on(host: Host) -> Iterator[LabProcess]:
    """Control and relays on a host."""
    words = (sys.executable, "-m", "tsns.lab", "--stdin", "--address", host.address)
    with host.popen(*words, log="lab", environment=PYTHON_HERE, conversation=True) as daemon:
        assert daemon.process.stdout is not None
        ready = json.loads(daemon.process.stdout.readline())
        yield LabProcess(ready["url"], ready["auth_key"], ready["ephemeral_auth_key"], ready["pid"])


@contextlib.contextmanager
def new_stage(directory: Path) -> Iterator[tuple[Stage, Tsns]]:
    """A stage, and tsns on its machine. The friend's node is up."""
    with Internet(directory) as internet, contextlib.ExitStack() as stack:
        server, machine, friend, neighbour = (
            internet.host(name) for name in ("server", "machine", "friend", "neighbour")
        )
        for host in (server, machine, friend, neighbour):
            give_addresses(host, server.address)
        allow_pings(machine)
        stack.enter_context(private_mounts(machine, f"nameserver {neighbour.address}\n"))
        lab = stack.enter_context(lab_on(server))
        friends, ours = stack.enter_context(tsns_on(friend)), stack.enter_context(tsns_on(machine))
        friends.run("up", "friend", *lab.login)
        stage = Stage(machine, server, friend, neighbour, lab, friends.ip("friend"))
        stack.enter_context(stage.served())
        yield stage, ours
