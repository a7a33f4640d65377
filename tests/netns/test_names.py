"""Names inside a node: who answers them, which way others are asked, and what holds when the host changes its files."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.interop.rig.peers import peer
from tests.machine import patiently
from tests.netns.nodes import Tsns
from tests.netns.steered_lab import SteeredLab
from tsns.lab.lab import Lab
from tsns.node import client
from tsns.node.places import Places
from tsns.proto.types import DNSRecord, Resolver

pytestmark = pytest.mark.netns

SERVER: Final = Path(__file__).with_name("fake_dns_server.py")
OWN_RESOLVER: Final = """
import dns.resolver
for name in ("host.corp.example", "web"): print(dns.resolver.resolve(name, "A", search=True)[0])
"""  # which reads resolv.conf itself, as those of Go and musl do


@contextmanager
def dns_server(tsns: Tsns, node: str) -> Iterator[str]:
    """A DNS server on a node of the tailnet, and the address where it is."""
    [address, *_] = tsns.json("ip", node)["addresses"]
    with tsns.popen("exec", node, "--", sys.executable, str(SERVER), address, "53") as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        try:
            yield address
        finally:
            server.terminate()
            server.communicate()


def follow(lab: SteeredLab, **dns: Any) -> None:
    """Let the tailnet have this in its DNSConfig."""

    def change(lab: Lab) -> None:
        lab.tailnet.dns = dns
        lab.tailnet._changed(None)

    lab.do(change)


def wait_for_default(tsns: Tsns, node: str, address: str) -> None:
    """Until the node asks this server for all else."""

    def missing() -> list[str]:
        found = tsns.json("dns", "status", node)["default"]["resolvers"]
        return [] if [one["address"] for one in found] == [address] else [address]

    assert patiently(missing) == []


def ask(tsns: Tsns, node: str, name: str, kind: str = "") -> dict[str, Any]:
    """The answer of `dns query`, asked for without the command line, which takes its time."""
    where = Places(run=tsns.directories.run, state=tsns.directories.state)
    return client.query(node, where, "/tsns/v1/dns/query", {"name": name, "type": kind}, timeout_s=12.0)


def parent_of(pid: int) -> int:
    [line] = [line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("PPid:")]
    return int(line.split()[1])


def digs(tsns: Tsns, node: str, *questions: str) -> list[str]:
    """What dig says in short to each of these, from inside the node."""
    script = "".join(f"echo $(dig +short +tries=1 {question});" for question in questions)
    done = tsns("exec", node, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.splitlines()


def test_names_of_a_server_on_the_tailnet(steered: SteeredLab, steered_tsns: Tsns) -> None:
    tsns = steered_tsns
    tsns.up("web")
    tsns.up("app")
    with dns_server(tsns, "web") as address:
        resolver = Resolver(addr=address)
        follow(
            steered,
            routes={"lab.test.": None, "corp.example": [resolver], "ours.corp.example": []},
            resolvers=[resolver],
            extra_records=[DNSRecord(name="db.ours.corp.example", value="10.1.1.1")],
        )
        wait_for_default(tsns, "app", address)

        # each kind of program, each listener
        listeners = tsns.json("dns", "status", "app")["listeners"]
        asked = ("web.lab.test", "+tcp host.corp.example")
        told = digs(
            tsns, "app", "host.corp.example", *(f"@{listener} {each}" for listener in listeners for each in asked)
        )
        assert told == ["192.0.2.7", *[address, "192.0.2.7"] * len(listeners)]
        [long] = digs(tsns, "app", "long.corp.example TXT")  # too long for UDP, at each hop
        assert long.count("x" * 200) == 15
        script = f"getent ahostsv4 host.corp.example; {sys.executable} -c '{OWN_RESOLVER}'"
        done = tsns("exec", "app", "--", "sh", "-c", script)
        assert done.stdout.split()[:2] == ["192.0.2.7", "STREAM"]
        assert done.stdout.split()[-2:] == ["192.0.2.7", address]

        # each rule
        def outcome(name: str) -> tuple[Any, ...]:
            found = ask(tsns, "app", name)
            return found["code"], found["rule"]["kind"], found["rule"]["suffix"], found["cached"]

        outcome("host.corp.example")
        assert outcome("host.corp.example") == ("NOERROR", "route", "corp.example", True)
        assert outcome("nobody.corp.example") == ("NXDOMAIN", "route", "corp.example", False)
        assert outcome("nobody.corp.example") == ("NXDOMAIN", "route", "corp.example", True)
        assert outcome("host.example") == ("NOERROR", "default", "", False)
        assert outcome("refused.example") == ("REFUSED", "default", "", False)
        assert outcome("fails.example") == ("SERVFAIL", "default", "", False)
        assert outcome("web") == ("NOERROR", "netmap", "", False)
        assert outcome("nobody.lab.test") == ("NXDOMAIN", "netmap", "", False)
        assert outcome("db.ours.corp.example") == ("NOERROR", "netmap", "", False)
        assert outcome("host.ours.corp.example") == ("NXDOMAIN", "netmap", "", False)
        assert outcome(address) == ("NOERROR", "netmap", "", False)
        slow = ask(tsns, "app", "slow.example", "TXT")
        assert (slow["code"], slow["transport"], slow["way"]) == ("NOERROR", "tcp", "tunnel")
        assert 1.9 < slow["seconds"] < 4.0
        assert tsns("dns", "query", "app", "host.corp.example").returncode == 0
        assert tsns("dns", "query", "app", "nobody.corp.example").returncode == 1
    assert "imported after the fork" not in (tsns.directories.state / "app" / "log").read_text()


@pytest.mark.interop
def test_a_static_program_of_go(steered: SteeredLab, steered_tsns: Tsns) -> None:
    """It reads resolv.conf itself, and asks for both families at once."""
    tsns = steered_tsns
    tsns.up("web")
    with dns_server(tsns, "web") as address:
        follow(steered, routes={"lab.test.": None, "corp.example": [Resolver(addr=address)]})
        names = ("web", "web.lab.test", "host.corp.example", "nobody.lab.test", "example.com")
        told = tsns.run(peer("lookup"), *names)
        assert told.stdout.split() == [address, address, "192.0.2.7", "-", "-"], told.stderr


def test_only_servers_of_the_tailnet_are_asked(steered: SteeredLab, steered_tsns: Tsns) -> None:
    """A server that the host could reach is not asked, neither by UDP nor by TCP, and whoever asks is told at once."""
    tsns = steered_tsns
    tsns.up("app")
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp,
        socket.create_server(("0.0.0.0", 0)) as tcp,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe,
    ):
        udp.bind(tcp.getsockname())
        probe.connect(("192.0.2.1", 9))
        server = f"{probe.getsockname()[0]}:{tcp.getsockname()[1]}"
        follow(steered, resolvers=[Resolver(addr=server)], fallback_resolvers=[Resolver(addr=server)])
        wait_for_default(tsns, "app", server)
        done = tsns("exec", "app", "--", "sh", "-c", "for way in +notcp +tcp; do dig +tries=1 $way host.example; done")
        assert done.stdout.count("status: REFUSED") == 2
        found = ask(tsns, "app", "host.example")
        assert (found["code"], found["resolver"], found["way"]) == ("REFUSED", server, "")
        assert "not on the tailnet" in found["reason"]
        status = tsns.json("dns", "status", "app")
        assert status["default"]["resolvers"] == [{"address": server, "way": "none"}]
        assert status["counters"]["refused: no server may be asked"] == 3
        for sock in (udp, tcp):
            sock.setblocking(False)
        with pytest.raises(BlockingIOError):
            udp.recv(100)
        with pytest.raises(BlockingIOError):
            tcp.accept()


def test_listeners_outlive_the_engine(steered: SteeredLab, steered_tsns: Tsns) -> None:
    tsns = steered_tsns
    tsns.up("app")
    [address, *_] = tsns.json("ip", "app")["addresses"]
    listeners = tsns.json("dns", "status", "app")["listeners"]
    assert {"100.100.100.100", "127.0.0.53", "fd7a:115c:a1e0::53"} <= set(listeners)
    pid = tsns.json("status", "app")["pid"]
    os.kill(pid, signal.SIGKILL)
    assert patiently(lambda: [] if tsns("dns", "status", "app").returncode == 0 else ["app"]) == []
    assert tsns.json("status", "app", "--wait")["pid"] != pid
    assert patiently(lambda: set(listeners) - set(tsns.json("dns", "status", "app")["listeners"])) == set()
    told = digs(tsns, "app", *(f"@{listener} app.lab.test" for listener in listeners))
    assert told == [address] * len(listeners)


def test_a_namespace_that_is_adopted_gives_up_what_is_nobodys_any_more(tsns: Tsns) -> None:
    """A keeper that was killed leaves the addresses of name servers that the host may not have by now."""
    tsns.up("app")
    with tsns.popen(
        "exec",
        "--keep-caps",
        "app",
        "--",
        "sh",
        "-c",
        "ip address add 192.0.2.99/32 dev lo && echo ready && exec sleep 60",
    ) as command:
        assert command.stdout is not None
        assert command.stdout.readline() == "ready\n"
        engine = tsns.json("status", "app")["pid"]
        listeners = tsns.json("dns", "status", "app")["listeners"]
        os.kill(parent_of(engine), signal.SIGKILL)
        assert patiently(lambda: [engine] if Path(f"/proc/{engine}").exists() else []) == []
        tsns.up("app")
        addresses = tsns("exec", "app", "--", "ip", "-o", "address", "show", "dev", "lo").stdout
        assert "192.0.2.99" not in addresses
        assert patiently(lambda: set(listeners) - set(tsns.json("dns", "status", "app")["listeners"])) == set()
        [own, *_] = tsns.json("ip", "app")["addresses"]
        assert digs(tsns, "app", *(f"@{listener} app.lab.test" for listener in listeners)) == [own] * len(listeners)
        command.kill()


def test_without_accept_dns_nodes_have_names_and_nobody_is_asked(steered: SteeredLab, steered_tsns: Tsns) -> None:
    tsns = steered_tsns
    tsns.up("web")
    [address, *_] = tsns.json("ip", "web")["addresses"]
    follow(
        steered,
        routes={"lab.test.": None, "corp.example": [Resolver(addr=address)]},
        resolvers=[Resolver(addr=address)],
    )
    tsns.up("app", "--accept-dns=false")
    status = tsns.json("dns", "status", "app")
    assert (status["accept_dns"], status["routes"], status["default"]["resolvers"]) == (False, [], [])
    assert digs(tsns, "app", "@100.100.100.100 web.lab.test") == [address]
    found = ask(tsns, "app", "host.corp.example")
    assert (found["code"], found["reason"]) == ("REFUSED", "there is no server for this name")
    assert "nameserver" not in tsns("exec", "app", "--", "cat", "/etc/resolv.conf").stdout


# A host of its own: a mount namespace with another /etc. Its files are replaced while a command is inside.
HOST: Final = """
set -e
cd "$1"; shift
cp -a /etc etc
echo nameserver 192.0.2.53 > etc/resolv.conf
mount --bind etc /etc
trap '"$@" serve --stop' EXIT
"$@" up app $LOGIN
"$@" exec app -- sh -c '
    touch there
    for step in 1 2 3; do
        while [ ! -e go$step ]; do sleep 0.02; done
        echo step $step; cat /etc/resolv.conf; tail -n1 /etc/nsswitch.conf; echo end
        touch done$step
    done' > said &
appears() { while [ ! -e $1 ]; do sleep 0.02; done; }
step() { # until the address is listened at, the command must not look
    step=$1 address=$2; shift 2
    while ! "$@" dns status app --json | grep -q "$address"; do sleep 0.05; done
    touch go$step
    appears done$step
}
appears there

echo 'hosts: resolve' > /etc/new; mv /etc/new /etc/nsswitch.conf
echo nameserver 192.0.2.54 > /etc/new; mv /etc/new /etc/resolv.conf
step 1 192.0.2.54 "$@"

rm /etc/resolv.conf
mkdir elsewhere; echo nameserver 192.0.2.55 > elsewhere/resolv.conf; ln -s "$PWD/elsewhere/resolv.conf" /etc/resolv.conf
step 2 192.0.2.55 "$@"

echo nameserver 192.0.2.56 > elsewhere/new; mv elsewhere/new elsewhere/resolv.conf
step 3 192.0.2.56 "$@"

wait
cat said
"$@" exec app -- dig +short @192.0.2.56 app.lab.test
"$@" exec app -- ip -o address show dev lo
"$@" down app
"""


def test_the_answer_holds_when_the_host_replaces_its_files(steered_tsns: Tsns, tmp_path: Path) -> None:
    tsns = steered_tsns
    environ = {**tsns.environ, "LOGIN": " ".join(tsns.lab.login)}
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", HOST, "sh", str(tmp_path), *tsns.command()]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for step in (1, 2, 3):
        said = done.stdout.partition(f"step {step}\n")[2].partition("end\n")[0].splitlines()
        assert "nameserver 100.100.100.100" in said, done.stdout
        assert not any("192.0.2." in line for line in said)
        assert said[-1] == "hosts: files dns"
    lines = done.stdout.rpartition("end\n")[2].splitlines()
    assert lines[0].startswith("100.64.")
    assert [line.split()[3] for line in lines if "192.0.2." in line] == ["192.0.2.56/32"]
