"""Subnets behind peers and exit nodes: reached by the tunnel where a person has accepted them, and by no other way whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from tests.interop.rig.internet import wait_for
from tests.netns.anatomy import engine_of, keeper_of
from tests.netns.nodes import Tsns
from tests.netns.steered_lab import SteeredLab

pytestmark = pytest.mark.netns

SUBNETS: Final = ("10.55.0.0/24", "fd55:1::/64")
BEHIND: Final = ("10.55.0.1", "fd55:1::1")  # addresses in them, which a router has itself
WORLD: Final = ("198.51.100.7", "2001:db8:7::7")
EVERYTHING: Final = ("0.0.0.0/0", "::/0")
HEALTHY_S: Final = 10.0

ECHO: Final = """
import socket
listener = socket.create_server(("::", 7), family=socket.AF_INET6, dualstack_ipv6=True)
print("serves", flush=True)
while True:
    connection, peer = listener.accept()
    name = peer[0].removeprefix("::ffff:").encode()
    import threading
    def answer(connection=connection, name=name):
        while connection.recv(100):
            connection.sendall(name)
    threading.Thread(target=answer, daemon=True).start()
"""
# Talks all the time, and tells the longest silence when its input ends.
TALK: Final = """
import select, socket, sys, time
connection = socket.create_connection((sys.argv[1], 7), timeout=5)
print("talks", flush=True)
longest = 0.0
while not select.select([sys.stdin], [], [], 0.02)[0]:
    began = time.monotonic()
    connection.sendall(b"x")
    if not connection.recv(100):
        sys.exit("ended")
    longest = max(longest, time.monotonic() - began)
print(longest)
"""


def offer(steered: SteeredLab, name: str, *routes: str, **more: Any) -> None:
    """An administrator approves what a node may carry."""

    def change(lab: Any) -> None:
        lab.tailnet.change(lab.tailnet.find(name), routes=routes, **more)

    steered.do(change)


def router(tsns: Tsns, name: str, *addresses: str) -> None:
    """A node that carries packets to these addresses, which it has itself."""
    tsns.up(name, f"--advertise-routes={','.join(SUBNETS)}", "--advertise-exit-node")
    script = " && ".join(f"ip address add {address} dev lo" for address in addresses)
    done = tsns("exec", "--keep-caps", name, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr


@contextmanager
def talking(tsns: Tsns, name: str, address: str) -> Iterator[Callable[[], float]]:
    """A connection that is used all the time; calling what is yielded ends it, and gives its longest silence in seconds."""
    words = tsns.command("exec", name, "--", sys.executable, "-c", TALK, address)
    pipe = subprocess.PIPE
    with subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=tsns.environ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "talks\n"

        def end() -> float:
            out, err = process.communicate("", timeout=20)
            assert process.returncode == 0, err
            return float(out)

        try:
            yield end
        finally:
            process.kill()


def hostname_at_control(steered: SteeredLab, name: str) -> str:
    return str(steered.do(lambda lab: lab.tailnet.find(name).hostinfo["Hostname"]))


def answers(tsns: Tsns, name: str, address: str) -> bool:
    return tsns("exec", name, "--", "ping", "-c1", "-W1", address).returncode == 0


def status_of(tsns: Tsns, name: str, peer: str) -> dict[str, Any]:
    peers = tsns.json("status", name)["peers"]
    return next(found for found in peers if found["name"] == peer)


def is_unreachable(tsns: Tsns, name: str, address: str) -> bool:
    """Whether the kernel itself says so, at once."""
    code = f"import socket; socket.create_connection(({address!r}, 7), timeout=5)"
    done = tsns("exec", name, "--", sys.executable, "-c", code)
    return "No route to host" in done.stderr or "Network is unreachable" in done.stderr


def test_subnets_are_reached_where_they_are_accepted(steered_tsns: Tsns, steered: SteeredLab) -> None:
    tsns = steered_tsns
    router(tsns, "gw", *BEHIND)
    offer(steered, "gw", *SUBNETS)
    tsns.up("web")
    tsns.up("open", "--accept-routes")
    assert all(answers(tsns, "open", address) for address in BEHIND)
    assert all(is_unreachable(tsns, "web", address) for address in BEHIND)
    assert status_of(tsns, "open", "gw")["accepted_routes"] == list(SUBNETS)
    assert status_of(tsns, "web", "gw")["accepted_routes"] == []

    with tsns.serving("gw", ECHO), talking(tsns, "web", tsns.json("ip", "gw")["addresses"][0]) as end:
        engine = tsns.json("status", "web")["pid"]
        done = tsns("set", "web", "--accept-routes")
        assert done.returncode == 0, done.stderr
        assert all(answers(tsns, "web", address) for address in BEHIND)
        assert tsns("set", "web", "--no-accept-routes", "--hostname", "renamed").returncode == 0
        assert all(is_unreachable(tsns, "web", address) for address in BEHIND)
        assert tsns.json("status", "web")["pid"] == engine, "the same engine"
        assert end() < 1.0, "a flow to a peer went on"
    wait_for(lambda: hostname_at_control(steered, "web") == "renamed", "control knows the new name", HEALTHY_S)


def test_a_subnet_moves_to_another_router(steered_tsns: Tsns, steered: SteeredLab) -> None:
    tsns = steered_tsns
    for name in ("first", "second"):
        router(tsns, name, *BEHIND)
    tsns.up("other")
    offer(steered, "first", *SUBNETS)
    tsns.up("web", "--accept-routes")
    assert all(answers(tsns, "web", address) for address in BEHIND)
    with tsns.serving("other", ECHO), talking(tsns, "web", "other") as end:
        offer(steered, "first")
        offer(steered, "second", *SUBNETS)
        wait_for(lambda: status_of(tsns, "web", "second")["accepted_routes"], "the subnet has moved", HEALTHY_S)
        assert all(answers(tsns, "web", address) for address in BEHIND)
        offer(steered, "second")
        wait_for(lambda: is_unreachable(tsns, "web", BEHIND[0]), "nobody offers it any more", HEALTHY_S)
        assert end() < 0.5, "a flow to another peer does not notice"


def test_everything_goes_by_the_exit_node_and_by_nothing_else(steered_tsns: Tsns, steered: SteeredLab) -> None:
    tsns = steered_tsns
    for name in ("out", "spare"):
        router(tsns, name, *WORLD)
        offer(steered, name, *EVERYTHING)
    tsns.up("plain")
    wrong = tsns("up", "web", *tsns.lab.login, "--exit-node", "plain")
    assert wrong.returncode == 1
    assert "plain.lab.test offers no exit node" in wrong.stderr
    tsns.up("web", "--exit-node", "out")
    assert all(answers(tsns, "web", address) for address in WORLD)
    assert all(is_unreachable(tsns, "plain", address) for address in WORLD)
    assert tsns.json("status", "web")["exit_node"] == {
        "wanted": "out", "name": "out.lab.test", "online": True, "allow_lan_access": False
    }  # fmt: skip
    listed = tsns.json("exit-node", "list", "web")["exit_nodes"]
    assert {node["name"]: node["selected"] for node in listed} == {"out": True, "spare": False}

    with tsns.serving("plain", ECHO), talking(tsns, "web", "plain") as end:
        wrong = tsns("set", "web", "--exit-node", "nobody")
        assert wrong.returncode == 1
        assert "there is no peer 'nobody'" in wrong.stderr
        assert tsns.json("status", "web")["exit_node"]["wanted"] == "out"
        assert tsns("set", "web", "--exit-node", tsns.json("ip", "spare")["addresses"][0]).returncode == 0
        assert status_of(tsns, "web", "spare")["exit_node"]
        assert answers(tsns, "web", WORLD[0])
        assert end() < 0.5, "a flow to a peer does not notice"

    offer(steered, "spare")  # not any more
    wait_for(lambda: is_unreachable(tsns, "web", WORLD[0]), "nothing goes out", HEALTHY_S)
    assert any("offers no exit node" in text for text in tsns.json("status", "web")["health"])
    assert tsns("set", "web", "--exit-node=").returncode == 0
    assert tsns.json("status", "web")["health"] == []
    assert all(is_unreachable(tsns, "web", address) for address in WORLD)


def test_the_best_exit_node_is_another_when_it_goes_offline(steered_tsns: Tsns, steered: SteeredLab) -> None:
    tsns = steered_tsns
    for name in ("out", "spare"):
        router(tsns, name, *WORLD)
        offer(steered, name, *EVERYTHING)
    tsns.up("web", "--exit-node", "auto:any")
    assert status_of(tsns, "web", "out")["exit_node"]
    tsns("down", "out")
    wait_for(lambda: status_of(tsns, "web", "spare")["exit_node"], "another one is chosen", HEALTHY_S)
    assert answers(tsns, "web", WORLD[0])
    tsns("down", "spare")
    wait_for(lambda: is_unreachable(tsns, "web", WORLD[0]), "nothing goes out", HEALTHY_S)
    assert any("no exit node is online" in text for text in tsns.json("status", "web")["health"])


def test_a_thousand_subnets_are_there_at_once(steered_tsns: Tsns, steered: SteeredLab) -> None:
    tsns = steered_tsns
    router(tsns, "gw", "10.3.231.1")
    assert tsns("set", "gw", "--advertise-routes", "10.0.0.0/14").returncode == 0
    tsns.up("web", "--accept-routes")
    began = time.monotonic()
    offer(steered, "gw", *(f"10.{number >> 8}.{number & 255}.0/24" for number in range(1000)))
    wait_for(lambda: len(status_of(tsns, "web", "gw")["accepted_routes"]) == 1000, "they are accepted", HEALTHY_S)
    assert answers(tsns, "web", "10.3.231.1")
    assert time.monotonic() - began < HEALTHY_S


def test_whoever_dies_nothing_has_another_way(steered_tsns: Tsns, steered: SteeredLab) -> None:
    """The engine stopped or killed: packets wait. The keeper killed, too: they have nowhere to go."""
    tsns = steered_tsns
    router(tsns, "gw", *WORLD, *BEHIND)
    offer(steered, "gw", *EVERYTHING, *SUBNETS)
    tsns.up("web", "--exit-node", "gw", "--accept-routes")
    pin = tsns.json("status", "web")["netns"]
    with tsns.popen("exec", "web", "--", "sleep", "60") as inhabitant:
        keeper = keeper_of(tsns.directories, "web")
        assert keeper is not None
        engine = engine_of(keeper)
        assert engine is not None
        os.kill(engine, signal.SIGKILL)
        assert wait_for(lambda: answers(tsns, "web", WORLD[0]), "the next engine goes on", HEALTHY_S)
        os.kill(keeper, signal.SIGKILL)

        def routes() -> str:
            words = ("nsenter", f"--net={pin}", "ip", "route", "show", "table", "all")
            return subprocess.run(words, capture_output=True, text=True, check=False).stdout

        wait_for(lambda: "tsns0" not in routes(), "the tunnel is gone", HEALTHY_S)
        for address in (*WORLD, *BEHIND):
            words = ("nsenter", f"--net={pin}", "ip", "route", "get", address)
            done = subprocess.run(words, capture_output=True, text=True, check=False)
            assert "No route to host" in done.stderr, done.stdout + done.stderr
        inhabitant.kill()
    tsns.up("web", "--exit-node", "gw", "--accept-routes")
    assert wait_for(lambda: answers(tsns, "web", WORLD[0]), "another keeper goes on", HEALTHY_S)
