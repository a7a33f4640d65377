"""`--with-internet`: what the host reaches is reached from inside, too, and nothing of the tailnet ever goes that way."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.interop.rig.internet import Daemon, Host, Internet, wait_for
from tests.interop.rig.tsns import Tsns, tsns_on
from tests.machine import new_private_directories
from tests.netns.anatomy import engine_of, keeper_of
from tests.netns.nodes import LabProcess
from tests.netns.ordinary_user import UserTsns, ordinary_user

pytestmark = pytest.mark.netns

WORLD: Final = "198.51.100.7"
SUBNET: Final = "10.91.7.0/24"  # a tailnet's; the world has such addresses, too
IN_SUBNET: Final = "10.91.7.7"
PEER: Final = "100.64.0.9"  # nobody's
LAB_PORT: Final = 8080
SERVE: Final = """
import socket, sys, threading
def serve(listener, word):
    while True:
        connection, peer = listener.accept()
        connection.sendall(f"{word} {peer[0]}".encode()); connection.close()
for place in sys.argv[1:]:
    address, port, word = place.split(",")
    listener = socket.create_server((address, int(port)))
    threading.Thread(target=serve, args=(listener, word)).start()
print("serves", flush=True)
"""
ASK: Final = """
import socket, sys
try:
    print(socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2).recv(100).decode())
except OSError as error:
    print(type(error).__name__, error)
"""
# By a device, whatever the routes say.
ASK_BY_DEVICE: Final = """
import socket, sys
sock = socket.socket()
sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"uplink0")
sock.settimeout(1)
try:
    sock.connect((sys.argv[1], int(sys.argv[2])))
    print(sock.recv(100).decode())
except OSError as error:
    print(type(error).__name__, error)
"""
# The first packet of a connection, as a frame; the kernel inside has no part in it.
RAW_SYN: Final = """
import socket, struct, sys
from tsns.proto.addresses import pack
from tsns.proto.packets import build, upper_checksum
source, destination = pack(sys.argv[1]), pack(sys.argv[2])
syn = bytearray(struct.pack(">HHIIBBHHH", 4242, int(sys.argv[3]), 1, 0, 0x50, 2, 1000, 0, 0))
syn[16:18] = upper_checksum(6, source, destination, bytes(syn)).to_bytes(2, "big")
sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
sock.bind(("uplink0", 0x0800))
sock.setsockopt(263, 20, 1)  # past all queues and hooks: SOL_PACKET, PACKET_QDISC_BYPASS
own = sock.getsockname()[4]
sock.settimeout(1)
try:
    sock.send(b"\\x02\\0\\0\\0\\0\\1" + own + b"\\x08\\0" + build(6, source, destination, bytes(syn)))
    while True:
        frame = sock.recv(2000)
        if frame[26:30] == destination and frame[47] & 0x12 == 0x12:
            print("answered")
            break
except OSError:
    print("silence")
"""


@dataclass(frozen=True)
class Stage:
    """A host with a world behind it, and a tailnet."""

    tsns: Tsns
    host: Host
    world: Host
    lab: Daemon
    login: tuple[str, ...]

    def offer(self, name: str, *routes: str) -> None:
        """An administrator approves what a node may carry."""
        pipe = self.lab.process
        assert pipe.stdin is not None
        assert pipe.stdout is not None
        pipe.stdin.write(json.dumps({"do": "offer", "node": name, "routes": routes}) + "\n")
        pipe.stdin.flush()
        assert json.loads(pipe.stdout.readline())["ok"]

    def up(self, name: str, *flags: str) -> None:
        self.tsns.run("up", name, *self.login, *flags)

    def ask(self, name: str, address: str, port: int = 80) -> str:
        return self.tsns.inside(name, sys.executable, "-c", ASK, address, str(port)).stdout.strip()

    def tries_hard(self, name: str, address: str, port: int = 80) -> set[str]:
        """What root inside gets by a socket bound to the device, and by a frame of its own making."""
        tries = ((ASK_BY_DEVICE, address), (RAW_SYN, self.host.address, address))
        done = [
            self.tsns.run("exec", "--keep-caps", name, "--", sys.executable, "-c", *words, str(port)) for words in tries
        ]
        return {word.stdout.split()[0] for word in done}

    def pasta(self) -> list[int]:
        """The processes of that name, or passt's, under the node's keeper."""
        keeper = keeper_of(self.tsns.directories, "web")
        assert keeper is not None
        children = Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split()
        return [int(child) for child in children if Path(f"/proc/{child}/comm").read_text().startswith("pass")]


@dataclass(frozen=True, slots=True)
class UserOnHost(UserTsns):
    """An ordinary user's command line on one of the rig's hosts."""

    host: Host | None = None

    def command(self, *words: str) -> list[str]:
        """What root executes for these words."""
        assert self.host is not None
        return self.host.command(*self.as_user(sys.executable, "-m", "tsns", *words))


REFUSED: Final = {"TimeoutError", "ConnectionRefusedError", "OSError", "silence"}


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with ExitStack() as stack:
        internet = stack.enter_context(Internet(tmp_path))
        world = internet.host("world")
        host = internet.host("host")
        host.run("ip", "route", "add", "default", "via", world.address)
        host.run("sh", "-c", "echo 0 > /proc/sys/net/ipv4/ip_forward")  # a Docker on this machine may have other ideas
        for address in (WORLD, IN_SUBNET, PEER):
            world.run("ip", "address", "add", address, "dev", "lo")
        lab = world.popen(
            sys.executable, "-m", "tsns.lab", "--stdin", f"--address={world.address}", f"--port={LAB_PORT}",
            log="lab", conversation=True,
        )  # fmt: skip
        stack.enter_context(lab)
        assert lab.process.stdout is not None
        ready = json.loads(lab.process.stdout.readline())
        for where, places in (
            (
                world,
                (f"{WORLD},80,world", f"{IN_SUBNET},80,world", f"{PEER},80,world", f"{world.address},80,neighbour"),
            ),
            (host, ("127.0.0.1,81,loopback", f"{host.address},82,host")),
        ):
            server = stack.enter_context(where.popen(sys.executable, "-uc", SERVE, *places, log="serve"))
            server.wait_until_said("serves")
        program = stack.enter_context(tsns_on(host))
        yield Stage(program, host, world, lab, ("--login-server", ready["url"], "--auth-key", ready["auth_key"]))


def test_the_internet_is_there_and_the_hosts_own_services_are_not(stage: Stage) -> None:
    stage.up("web", "--with-internet")
    assert stage.ask("web", WORLD) == f"world {stage.host.address}"
    assert stage.ask("web", stage.world.address) == f"neighbour {stage.host.address}"
    assert stage.tries_hard("web", WORLD) == {"world", "answered"}, "else the tries below would prove nothing"
    for address, port in (("127.0.0.1", 81), (stage.host.address, 82)):
        assert stage.ask("web", address, port).startswith("ConnectionRefusedError")
        assert stage.tries_hard("web", address, port) <= REFUSED
    assert stage.tries_hard("web", PEER) <= REFUSED
    [pasta] = stage.pasta()
    status = Path(f"/proc/{pasta}/status").read_text()
    assert "\nUid:\t0\t" not in status
    assert "\nCapEff:\t0000000000000000\n" in status or not os.path.samefile(
        f"/proc/{pasta}/ns/user", "/proc/self/ns/user"
    )

    stage.tsns.run("set", "web", "--only-tailnet")
    assert stage.pasta() == []
    assert stage.ask("web", WORLD).startswith("OSError")
    stage.tsns.run("set", "web", "--with-internet")
    assert stage.ask("web", WORLD) == f"world {stage.host.address}"


def test_what_the_tailnet_carries_never_goes_by_the_internet(stage: Stage) -> None:
    stage.up("gw", f"--advertise-routes={SUBNET}")
    stage.up("web", "--with-internet", "--accept-routes")
    assert stage.ask("web", IN_SUBNET) == f"world {stage.host.address}", "nobody carries it yet"
    stage.offer("gw", SUBNET)
    wait_for(lambda: "world" not in stage.ask("web", IN_SUBNET), "it goes by the tunnel")
    keeper = keeper_of(stage.tsns.directories, "web")
    assert keeper is not None
    engine = engine_of(keeper)
    assert engine is not None
    for fate in (None, signal.SIGSTOP, signal.SIGKILL):
        if fate is not None:
            os.kill(engine, fate)
        assert "world" not in stage.ask("web", IN_SUBNET)
        assert "world" not in stage.ask("web", PEER)
        assert stage.tries_hard("web", IN_SUBNET) <= REFUSED
        assert stage.ask("web", WORLD) == f"world {stage.host.address}", "which needs no engine"


def test_when_pasta_dies_the_tailnet_stays_and_the_internet_comes_back(stage: Stage) -> None:
    stage.up("gw")
    stage.up("web", "--with-internet")
    [pasta] = stage.pasta()
    os.kill(pasta, signal.SIGKILL)
    assert stage.ask("web", WORLD).startswith("OSError")
    assert any("internet cannot be reached" in text for text in stage.tsns.answer("status", "web")["health"])
    assert "1 received" in stage.tsns.inside("web", "ping", "-c1", "-W2", "gw").stdout
    wait_for(lambda: stage.ask("web", WORLD).startswith("world"), "it is there again")
    assert stage.tsns.answer("status", "web")["health"] == []


def test_with_an_exit_node_the_host_leads_to_its_neighbours_at_most(stage: Stage) -> None:
    stage.up("gw", "--advertise-exit-node")
    stage.offer("gw", "0.0.0.0/0", "::/0")
    stage.up("web", "--with-internet", "--exit-node", "gw")
    assert stage.pasta() == []
    assert "world" not in stage.ask("web", WORLD)
    assert "neighbour" not in stage.ask("web", stage.world.address)
    stage.tsns.run("set", "web", "--exit-node-allow-lan-access")
    assert stage.ask("web", stage.world.address) == f"neighbour {stage.host.address}"
    stage.tsns.run("down", "gw")
    assert "world" not in stage.ask("web", WORLD)
    assert stage.tries_hard("web", WORLD) <= REFUSED
    assert stage.tries_hard("web", stage.world.address) == {"neighbour", "answered"}
    stage.tsns.run("set", "web", "--exit-node=")
    assert stage.ask("web", WORLD) == f"world {stage.host.address}"


def test_without_pasta_the_package_is_named(stage: Stage) -> None:
    """Something that cannot be executed stands in its place, in a mount namespace of the command's own."""
    script = 'mount --bind /dev/null /usr/bin/pasta && exec "$0" "$@"'
    words = stage.tsns.command("up", "web", *stage.login, "--with-internet")
    done = stage.host.run(
        "unshare", "--mount", "sh", "-c", script, *words, environment=stage.tsns.environment, check=False
    )
    assert done.returncode == 1
    assert "error: --with-internet needs pasta" in done.stderr
    assert "passt" in done.stderr


def test_a_node_carries_its_peers_packets_to_where_it_leads_itself(stage: Stage) -> None:
    stage.up("gw", "--with-internet", "--advertise-exit-node", f"--advertise-routes={SUBNET}")
    stage.offer("gw", "0.0.0.0/0", SUBNET)
    stage.up("web", "--exit-node", "gw", "--accept-routes")
    for address in (WORLD, IN_SUBNET):
        assert stage.ask("web", address) == f"world {stage.host.address}"
    assert "neighbour" not in stage.ask("web", stage.world.address), "an exit node leads to the internet alone"
    assert stage.host.run("cat", "/proc/sys/net/ipv4/ip_forward").stdout == "0\n", "the host forwards nothing"
    stage.tsns.run("set", "gw", "--no-advertise-exit-node")
    assert "world" not in stage.ask("web", WORLD)
    assert stage.ask("web", IN_SUBNET) == f"world {stage.host.address}"


def test_an_ordinary_user_has_it_as_well(stage: Stage, tmp_path: Path) -> None:
    """With pasta as themselves, and nothing of root's."""
    lab = LabProcess(stage.login[1], stage.login[3], "")
    with new_private_directories() as directories, ordinary_user(directories, lab) as user:
        on_host = UserOnHost(**{name: getattr(user, name) for name in UserTsns.__dataclass_fields__}, host=stage.host)
        done = on_host("up", "web", *stage.login, "--with-internet")
        assert done.returncode == 0, done.stderr
        for address, word in ((WORLD, "world"), (stage.world.address, "neighbour")):
            assert (
                on_host("exec", "web", "--", sys.executable, "-c", ASK, address, "80").stdout.strip()
                == f"{word} {stage.host.address}"
            )
        for address, port in ((PEER, 80), ("127.0.0.1", 81), (stage.host.address, 82)):
            assert "world" not in on_host("exec", "web", "--", sys.executable, "-c", ASK, address, str(port)).stdout
        on_host("set", "web", "--only-tailnet")
        assert on_host("exec", "web", "--", sys.executable, "-c", ASK, WORLD, "80").stdout.startswith("OSError")
        on_host("down", "web")
