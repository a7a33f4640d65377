"""The warmed server: started by whoever needs it first, one for all, and missed by nobody."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from functools import partial
from pathlib import Path

import pytest

from tests.machine import patiently
from tests.netns.nodes import Tsns

pytestmark = pytest.mark.netns

SLEEP_S = "30"


def parent(pid: int) -> int:
    """The parent of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("PPid:")))


def keeper(tsns: Tsns, name: str) -> int:
    """The process that keeps a node."""
    return parent(tsns.json("status", name)["pid"])


def servers(tsns: Tsns) -> list[int]:
    """The servers of these directories: a keeper or an engine has its server's command line, being its fork."""
    found = subprocess.run(
        ["pgrep", "-f", f"tsns.node.server {tsns.directories.run} "], capture_output=True, text=True, check=False
    )
    parents: dict[int, int] = {}
    for pid in map(int, found.stdout.split()):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
                parents[pid] = parent(pid)
    return sorted(pid for pid, its_parent in parents.items() if its_parent not in parents)


def namespace(tsns: Tsns, name: str) -> str:
    """The namespace that a command inside sees."""
    return tsns("exec", name, "--", "readlink", "/proc/self/ns/net").stdout


def test_all_nodes_come_from_one_server(tsns: Tsns) -> None:
    tsns.up("one")
    tsns.up("two")
    [server] = servers(tsns)
    assert {parent(keeper(tsns, name)) for name in ("one", "two")} == {server}


def test_first_calls_at_once_start_one_server(tsns: Tsns) -> None:
    login = ("--login-server", tsns.lab.url, "--auth-key", tsns.lab.ephemeral_auth_key)
    calls = [tsns.popen("run", *login, "--", "true") for _ in range(6)]
    for call in calls:
        _, said = call.communicate(timeout=30)
        assert call.returncode == 0, said
    assert len(servers(tsns)) == 1


def test_the_server_has_nothing_of_the_first_callers(tsns: Tsns) -> None:
    tsns.up("web")
    [server] = servers(tsns)
    environment = Path(f"/proc/{server}/environ").read_bytes()
    assert {entry.partition(b"=")[0] for entry in environment.split(b"\0") if entry} == {b"PATH", b"LANG"}
    assert os.readlink(f"/proc/{server}/cwd") == "/"
    assert os.getsid(server) != os.getsid(0)
    targets = {os.readlink(entry.path) for entry in os.scandir(f"/proc/{server}/fd")}
    strangers = [
        target
        for target in targets
        if target.startswith("/") and str(tsns.directories.run) not in target and "null" not in target
    ]
    assert strangers == []


def test_nodes_outlive_the_server_and_the_next_call_starts_another(tsns: Tsns) -> None:
    tsns.up("one")
    [server] = servers(tsns)
    os.kill(server, signal.SIGKILL)
    assert patiently(lambda: [pid for pid in servers(tsns) if pid == server]) == []
    tsns.up("two")
    assert tsns("exec", "one", "--", "ping", "-c1", "-W2", "two").returncode == 0


def test_a_server_that_is_stuck_is_done_without(tsns: Tsns) -> None:
    tsns.up("one")
    [server] = servers(tsns)
    os.kill(server, signal.SIGSTOP)
    try:
        tsns.up("two")
        assert parent(keeper(tsns, "two")) != server
    finally:
        os.kill(server, signal.SIGCONT)


def test_a_server_that_nobody_needs_ends(tsns: Tsns) -> None:
    with tsns.popen("serve", "--idle", "0.5") as server:
        server.communicate(timeout=15)
    assert server.returncode == 0
    assert not list(tsns.directories.run.glob("serve-*"))


def test_a_second_server_of_one_build_is_refused(tsns: Tsns) -> None:
    tsns.up("web")
    done = tsns("serve")
    assert done.returncode == 1
    assert "running already" in done.stderr
    assert tsns("serve", "--stop").returncode == 0
    assert tsns("serve", "--stop").returncode == 1


def test_what_a_killed_keeper_left_is_swept(tsns: Tsns) -> None:
    tsns.up("web")
    os.kill(keeper(tsns, "web"), signal.SIGKILL)
    left = patiently(lambda: [path.name for path in tsns.directories.run.rglob("web*")])
    assert left == []
    assert "web" in [node["name"] for node in tsns.json("ls")["nodes"]]  # its identity is not
    tsns.up("web")


def test_a_new_keeper_adopts_the_namespace_in_which_a_command_runs(tsns: Tsns) -> None:
    tsns.up("peer")
    tsns.up("web")
    before = namespace(tsns, "web")
    with tsns.popen("exec", "web", "--", "ping", "-i", "0.2", "-W", "2", "-c", "25", "peer") as ping:
        time.sleep(0.7)
        os.kill(keeper(tsns, "web"), signal.SIGKILL)
        time.sleep(1.5)  # longer than the sweep: the command keeps its namespace
        tsns.up("web")
        output, _ = ping.communicate(timeout=30)
    assert namespace(tsns, "web") == before
    last = [line for line in output.splitlines() if "icmp_seq" in line][-1]
    assert "icmp_seq=25" in last, output
    assert "bytes from" in last, output


def test_an_engine_that_keeps_crashing_is_started_with_growing_pauses(tsns: Tsns) -> None:
    tsns.up("web")
    for _ in range(4):
        engine = tsns.json("status", "web")["pid"]
        os.kill(engine, signal.SIGKILL)
        assert patiently(partial(_not_yet, tsns, engine)) == []
    log = (tsns.directories.state / "web" / "log").read_text()
    assert log.count("ended unbidden") == 4
    assert tsns("exec", "web", "--", "true").returncode == 0


def _not_yet(tsns: Tsns, former: int) -> list[int]:
    """Empty once there is another engine than the former one."""
    done = tsns("status", "web", "--json")
    now = json.loads(done.stdout)["pid"] if done.returncode == 0 else former
    return [now] if now == former else []


def test_a_shell_inside_a_node(tsns: Tsns) -> None:
    tsns.up("web")
    done = tsns("shell", "web", stdin="readlink /proc/self/ns/net; exit 5\n")
    assert done.returncode == 5
    assert done.stdout == namespace(tsns, "web")
