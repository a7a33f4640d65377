"""Control goes away, in mid-flow and before a start: the tailnet goes on as it was last known."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.netns.nodes import Tsns
from tests.netns.steered_lab import SteeredLab
from tsns.control import cache
from tsns.state import Identity

pytestmark = pytest.mark.netns

PATIENCE_S = 10.0
RECONNECT_S = 30.0
MAX_LOST = 2  # pings in the time of one handshake
TABLE = "tsns-test-silence"  # of nftables
OFFLINE_START_S = 5.0


def until(holds: Callable[[], object], patience_s: float = PATIENCE_S) -> float:
    """Wait until something holds; how long that took."""
    began = time.monotonic()
    while not holds():
        assert time.monotonic() - began < patience_s, "it never came true"
        time.sleep(0.05)
    return time.monotonic() - began


def state(tsns: Tsns, name: str = "web") -> dict[str, Any]:
    found: dict[str, Any] = tsns.json_of("status", name)
    return found


def both_up(tsns: Tsns) -> None:
    for name in ("web", "db"):
        done = tsns("up", name, *tsns.lab.login)
        assert done.returncode == 0, done.stderr


def reaches(tsns: Tsns, name: str, peer: str) -> bool:
    """Through the tunnel: without control, peers do not know each other's disco keys of today."""
    return tsns("ping", name, peer, "--tsmp", "-c", "1", "--timeout", "2").returncode == 0


def losses(output: str) -> int:
    """How many pings were lost, by ping's own count."""
    found = re.search(r"(\d+) packets transmitted, (\d+) received", output)
    assert found is not None, output
    return int(found[1]) - int(found[2])


def everybody(lab: SteeredLab) -> list[tuple[int, str, str]]:
    """The nodes that control knows."""
    return lab.do(lambda lab: [(node.id, node.name, str(node.key)) for node in lab.tailnet.nodes.values()])


def cached(tsns: Tsns, name: str = "web") -> Path:
    return tsns.directories.state / name / "netmap.cache"


@pytest.fixture
def tsns(steered_tsns: Tsns) -> Tsns:
    return steered_tsns


@pytest.fixture
def lab(steered: SteeredLab) -> SteeredLab:
    return steered


def test_flows_do_not_notice_that_control_is_gone(tsns: Tsns, lab: SteeredLab) -> None:
    """Guards against peers that are dropped with the stream, a reconnection that takes long, and a second entry after it."""
    both_up(tsns)
    until(lambda: reaches(tsns, "web", "db"))
    before, handshake = everybody(lab), state(tsns)["peers"][0]["last_handshake"]
    address = state(tsns, "db")["self"]["addresses"][0]
    command = ("exec", "web", "--", "ping", "-q", "-i", "0.02", "-c", "300", address)
    with tsns.popen(*command) as ping:
        time.sleep(0.5)
        lab.wait(lambda lab: lab.control.stop())
        until(lambda: state(tsns)["state"] == "offline")
        assert any("control cannot be reached" in text for text in state(tsns)["health"])
        time.sleep(2.5)
        lab.wait(lambda lab: lab.control.start())
        assert until(lambda: state(tsns)["state"] == "running", RECONNECT_S) < RECONNECT_S
        output, _ = ping.communicate(timeout=PATIENCE_S)
    assert losses(output) == 0
    assert everybody(lab) == before
    assert state(tsns)["health"] == []
    assert state(tsns)["peers"][0]["last_handshake"] == handshake, "the session outlived control"


def test_a_start_without_control(tsns: Tsns, lab: SteeredLab) -> None:
    """Guards against a node that waits for control for ever, and against sessions that flap when it is back."""
    both_up(tsns)
    until(lambda: cached(tsns).exists())
    assert tsns("down", "web").returncode == 0
    before = everybody(lab)
    lab.wait(lambda lab: lab.control.stop())

    began = time.monotonic()
    done = tsns("up", "web")
    assert done.returncode == 0, done.stderr
    assert reaches(tsns, "web", "db")
    assert time.monotonic() - began < OFFLINE_START_S
    found = state(tsns)
    assert found["state"] == "offline"
    assert any("control cannot be reached" in text for text in found["health"])

    lab.wait(lambda lab: lab.control.start())
    address = state(tsns, "db")["self"]["addresses"][0]
    with tsns.popen("exec", "web", "--", "ping", "-q", "-i", "0.02", "-c", "150", address) as ping:
        until(lambda: state(tsns)["state"] == "running", RECONNECT_S)
        output, _ = ping.communicate(timeout=PATIENCE_S)
    assert losses(output) <= MAX_LOST  # the peer learns only now that this node has begun anew, and ends the session
    assert everybody(lab) == before


def test_a_server_that_says_nothing_is_no_reason_to_wait(tsns: Tsns, lab: SteeredLab) -> None:
    """Guards against patience with a connection that opens and stays silent: a half-dead server, or a firewall that drops."""
    both_up(tsns)
    until(lambda: cached(tsns).exists())
    assert tsns("down", "web").returncode == 0
    port = lab.do(lambda lab: int(lab.url.rpartition(":")[2]))
    lab.wait(lambda lab: lab.control.stop())
    rules = f"table inet {TABLE} {{ chain in {{ type filter hook input priority 0; policy accept; tcp dport {port} drop; }}; }}\n"
    subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True)
    try:
        began = time.monotonic()
        done = tsns("up", "web")
        assert done.returncode == 0, done.stderr
        assert reaches(tsns, "web", "db")
        assert time.monotonic() - began < OFFLINE_START_S
    finally:
        subprocess.run(["nft", "delete", "table", "inet", TABLE], check=True)


def test_a_start_without_anybody(tsns: Tsns, lab: SteeredLab) -> None:
    """Guards against a complaint that outlives its reason: control and relay are one server on many a tailnet, and come back together."""
    both_up(tsns)
    until(lambda: cached(tsns).exists())
    assert tsns("down", "web").returncode == 0
    lab.wait(lambda lab: lab.control.stop())
    lab.wait(lambda lab: lab.derp.stop())

    done = tsns("up", "web")
    assert done.returncode == 0, done.stderr
    assert any("no relay can be reached" in text for text in state(tsns)["health"])

    lab.wait(lambda lab: lab.derp.start())
    lab.wait(lambda lab: lab.control.start())
    until(lambda: state(tsns)["state"] == "running", RECONNECT_S)
    until(lambda: reaches(tsns, "web", "db"), RECONNECT_S)
    until(lambda: state(tsns)["health"] == [])


def test_a_garbled_cache_is_passed_over(tsns: Tsns, lab: SteeredLab) -> None:
    """Guards against an engine that dies of its own file."""
    both_up(tsns)
    until(lambda: cached(tsns).exists())
    assert tsns("down", "web").returncode == 0
    content = cached(tsns).read_bytes()
    cached(tsns).write_bytes(content[: len(content) // 2] + b"\x00" * 40)
    done = tsns("up", "web")
    assert done.returncode == 0, done.stderr
    assert "the cached netmap cannot be used" in tsns("logs", "web").stdout


def test_what_is_cached_holds_no_secret(tsns: Tsns, lab: SteeredLab) -> None:
    both_up(tsns)
    until(lambda: cached(tsns).exists())
    assert cached(tsns).stat().st_mode & 0o077 == 0
    identity = Identity.load((cached(tsns).parent / "identity.json").read_bytes())
    assert identity.node_key is not None
    message = cache.load(cached(tsns).read_bytes(), identity.node_key.public)
    text = repr(message)
    secrets = (identity.node_key.reveal(), identity.machine_key.reveal(), identity.lock_key.reveal(), tsns.lab.auth_key)
    assert identity.node_key.public.raw.hex() in text, "else this would prove nothing"
    assert [secret for secret in secrets if secret.rpartition(":")[2] in text] == []
