"""Direct paths between nodes of one machine: found, told of, doubted, and kept over what happens to an engine."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from tests.machine import patiently
from tests.netns.nodes import Tsns
from tests.netns.steered_lab import SteeredLab
from tsns.node.host_watch import ASLEEP_S, LOOK_EVERY_S

pytestmark = pytest.mark.netns


@pytest.fixture
def pair(tsns: Tsns) -> Tsns:
    """Two nodes, `web` and `app`."""
    tsns.up("web")
    tsns.up("app")
    return tsns


def peer(tsns: Tsns, node: str, name: str) -> Any:
    return next(peer for peer in tsns.json("status", node)["peers"] if peer["name"] == name)


def not_direct(tsns: Tsns, node: str, name: str) -> list[str]:
    path = peer(tsns, node, name)["path"]
    return [] if path["kind"] == "direct" else [str(path)]


def port_of(tsns: Tsns, node: str, name: str) -> str:
    return str(peer(tsns, node, name)["path"]["address"].rpartition(":")[2])


def test_two_nodes_find_a_direct_path(pair: Tsns) -> None:
    done = pair("ping", "app", "web", "--until-direct", "-c", "5")

    assert done.returncode == 0, done.stderr
    assert "pong from web via 127.0.0.1:" in done.stdout
    assert pair("exec", "app", "--", "ping", "-c2", "-i0.2", "web").returncode == 0
    found = peer(pair, "app", "web")
    assert found["path"]["kind"] == "direct"
    assert 0 < found["path"]["latency"] < 1
    assert found["path_changes"][-1]["kind"] == "direct"
    assert abs(found["path_changes"][-1]["at"] - time.time()) < 60
    assert "web: direct by 127.0.0.1:" in pair("logs", "app").stdout
    assert not_direct(pair, "web", "app") == []


@pytest.mark.parametrize("kind", ["--tsmp", "--icmp"])
def test_pings_through_the_tunnel(pair: Tsns, kind: str) -> None:
    done = pair("ping", "app", "web", kind, "-c", "2", "--no-until-direct")

    assert done.returncode == 0, done.stderr
    assert done.stdout.count("pong from web") == 2


def test_a_ping_of_our_own_is_not_seen_inside(pair: Tsns) -> None:
    """The host's pings are answered to the host, ours to us."""
    with pair.popen("exec", "app", "--", "ping", "-c", "10", "-i", "0.2", "web") as ping:
        assert pair("ping", "app", "web", "--icmp", "-c", "3", "--no-until-direct").returncode == 0
        output, _ = ping.communicate(timeout=30)
    assert "10 packets transmitted, 10 received" in output
    assert "duplicates" not in output


def test_the_path_outlives_an_engine(pair: Tsns) -> None:
    assert pair("ping", "web", "app", "--until-direct").returncode == 0
    port = port_of(pair, "web", "app")
    pid = pair.json("status", "app")["pid"]
    with pair.popen("exec", "app", "--", "ping", "-c", "20", "-i", "0.2", "-W", "5", "web") as ping:
        assert ping.stdout is not None
        next(line for line in ping.stdout if "icmp_seq=4 " in line)
        os.kill(pid, signal.SIGKILL)
        output, _ = ping.communicate(timeout=30)

    assert " 0% packet loss" in output, output
    assert patiently(lambda: not_direct(pair, "web", "app")) == []
    assert port_of(pair, "web", "app") == port, "a NAT in between would know it still"


def test_an_engine_that_was_stopped_is_back_soon(pair: Tsns) -> None:
    assert pair("ping", "web", "app", "--until-direct").returncode == 0
    pid = pair.json("status", "app")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(LOOK_EVERY_S + ASLEEP_S + 1)
    finally:
        os.kill(pid, signal.SIGCONT)
    began = time.monotonic()
    done = pair("exec", "web", "--", "ping", "-c1", "-W5", "app")

    assert done.returncode == 0, done.stdout
    assert time.monotonic() - began < 5
    log = Path(pair.directories.state / "app" / "log")
    assert patiently(lambda: [] if "has slept" in log.read_text() else ["not noticed"]) == []
    assert pair.json("status", "app")["pid"] == pid


def test_without_direct_paths_nobody_learns_where_we_are(steered_tsns: Tsns, steered: SteeredLab) -> None:
    tsns = steered_tsns
    tsns.up("web")
    tsns.up("app", "--no-direct")

    assert steered.do(lambda lab: lab.tailnet.find("web").endpoints)
    assert steered.do(lambda lab: lab.tailnet.find("app").endpoints) == ()
    for source, target in (("app", "web"), ("web", "app")):
        done = tsns("ping", source, target, "--until-direct", "-c", "2")
        assert done.returncode == 1
        assert "pong from" in done.stdout
        assert "DERP" in done.stdout
        assert "no pong" in done.stderr
    assert tsns("exec", "app", "--", "ping", "-c1", "web").returncode == 0
    assert peer(tsns, "web", "app")["path"]["kind"] == "derp"


def test_netcheck(tsns: Tsns) -> None:
    tsns.up("web")
    done = tsns("netcheck", "web")
    found = tsns.json("netcheck", "web")

    assert done.returncode == 0, done.stderr
    assert "UDP: yes" in done.stdout
    assert found["udp"] is True
    assert found["ipv4"].startswith("127.0.0.1:")
    assert found["captive_portal"] is None
    assert [region["id"] for region in found["regions"]] == [found["home"]]
    assert 0 < found["regions"][0]["latency"] < 1
