"""SIGTERM and Ctrl-C anywhere: everything is gone within 3 s, and what the caller sees is the command's own end."""

from __future__ import annotations

import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO, Final

import pytest

from tests.machine import patiently
from tests.netns.anatomy import Processes, engine_of, keeper_of, processes, remains
from tests.netns.doomed_keeper import doomed_keepers
from tests.netns.nodes import Tsns

pytestmark = pytest.mark.netns

GONE_S: Final = 3.0
POLL_S: Final = 0.02
PATIENCE_S: Final = 15.0
SEED: Final = 15
MOMENTS: Final = 10
SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
INTERRUPTED: Final = {signal.SIGTERM: -signal.SIGTERM, signal.SIGINT: 130}  # 130: told in order, as by a shell


def some_keeper(tsns: Tsns) -> int:
    """The only keeper, as soon as there is one."""
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if found := processes(tsns.directories).keepers:
            return next(iter(found.values()))
        time.sleep(POLL_S)
    raise AssertionError("no node has begun to start")


def await_gone(tsns: Tsns) -> None:
    """Wait until nothing is left of any node."""
    deadline = time.monotonic() + PATIENCE_S
    while (left := remains(tsns.directories)) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    assert not left, left


@contextmanager
def silent_server() -> Iterator[str]:
    """Somebody who takes connections and says nothing."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


@contextmanager
def begun(tsns: Tsns, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A client at work, which is gone with the block."""
    with tsns.popen(*words) as client:
        try:
            yield client
        finally:
            client.kill()


def hears(stream: IO[str] | None, text: str) -> bool:
    """Whether a line with this text comes, before the stream ends."""
    assert stream is not None
    return any(text in line for line in iter(stream.readline, ""))


def end(client: subprocess.Popen[str], number: signal.Signals) -> int:
    """Send the signal; the exit status. Python itself knows no better one than 1 as long as it has not got as far as our code."""
    client.send_signal(number)
    _, said = client.communicate(timeout=PATIENCE_S)
    return -number if client.returncode == 1 and "Fatal Python error: init_" in said else client.returncode


@pytest.mark.parametrize("number", SIGNALS)
def test_during_the_start(tsns: Tsns, number: signal.Signals) -> None:
    with silent_server() as url, begun(tsns, "run", "--login-server", url, "--auth-key", "k", "--", "true") as client:
        some_keeper(tsns)
        time.sleep(0.3)
        began = time.monotonic()
        assert end(client, number) == INTERRUPTED[number]
        await_gone(tsns)
        assert time.monotonic() - began < GONE_S


@pytest.mark.parametrize("number", SIGNALS)
def test_while_somebody_is_to_log_in(tsns: Tsns, number: signal.Signals) -> None:
    with begun(tsns, "run", "--login-server", tsns.lab.url, "--", "true") as client:
        assert hears(client.stderr, "to log in, open http")
        began = time.monotonic()
        assert end(client, number) == INTERRUPTED[number]
        await_gone(tsns)
        assert time.monotonic() - began < GONE_S


@pytest.mark.parametrize("number", [*SIGNALS, signal.SIGHUP, signal.SIGKILL])
def test_inside(tsns: Tsns, number: signal.Signals) -> None:
    key = tsns.lab.ephemeral_auth_key
    words = ("run", "--login-server", tsns.lab.url, "--auth-key", key, "--", "sh", "-c", "echo inside; exec sleep 30")
    with begun(tsns, *words) as client:
        assert hears(client.stdout, "inside")
        began = time.monotonic()
        assert end(client, number) == -number
        await_gone(tsns)
        assert time.monotonic() - began < GONE_S


def test_at_random_moments(tsns: Tsns) -> None:
    choice = random.Random(SEED)
    for _ in range(MOMENTS):
        number, delay_s = choice.choice(SIGNALS), choice.uniform(0.05, 0.6)
        words = ("run", "--login-server", tsns.lab.url, "--auth-key", tsns.lab.ephemeral_auth_key)
        with begun(tsns, *words, "--", "sleep", "0.1") as client:
            time.sleep(delay_s)
            began = time.monotonic()
            status = end(client, number)
            told = f"{number.name} after {delay_s:.3f} s"
            assert status in {0, -number, INTERRUPTED[number]}, told
            await_gone(tsns)
            assert time.monotonic() - began < GONE_S, told


def test_a_keeper_with_a_descendant_of_the_command_inside(tsns: Tsns) -> None:
    """What runs inside is the person's and stays; it keeps nothing of the node but a namespace without a name."""
    done = tsns.run("sh", "-c", "sleep 30 >/dev/null 2>&1 & echo $!")
    sleeper = int(done.stdout)
    try:
        began = time.monotonic()
        os.kill(some_keeper(tsns), signal.SIGTERM)
        assert patiently(lambda: [left for left in remains(tsns.directories) if left != f"process {sleeper}"]) == []
        assert time.monotonic() - began < GONE_S
        os.kill(sleeper, 0)
    finally:
        os.kill(sleeper, signal.SIGKILL)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_keeper_whose_control_server_hangs(tsns: Tsns, number: signal.Signals) -> None:
    """It cannot log out, and does not wait for ever."""
    key = tsns.lab.ephemeral_auth_key
    words = ("run", "--login-server", tsns.lab.url, "--auth-key", key, "--", "sh", "-c", "echo inside; exec sleep 30")
    with begun(tsns, *words) as client:
        assert hears(client.stdout, "inside")
        with stopped(tsns.lab.pid):
            began = time.monotonic()
            os.kill(some_keeper(tsns), number)
            assert patiently(lambda: [left for left in remains(tsns.directories) if f"{client.pid}" not in left]) == []
            assert time.monotonic() - began < GONE_S


@contextmanager
def stopped(pid: int) -> Iterator[None]:
    """A process that does nothing for a while."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_server_that_is_ended_takes_no_node_with_it(tsns: Tsns) -> None:
    tsns.up("web")
    before = processes(tsns.directories)
    for server in before.servers:
        os.kill(server, signal.SIGTERM)
    assert patiently(lambda: processes(tsns.directories).servers) == []
    now = processes(tsns.directories)
    assert (now.keepers, now.engines) == (before.keepers, before.engines)
    assert tsns("exec", "web", "--", "true").returncode == 0


# --- one keeper for each name ----------------------------------------------------------------------------------------


def test_starters_at_once_after_a_kill_make_one_node(tsns: Tsns) -> None:
    """The dead keeper's socket and lock are still there, and there is no server."""
    tsns.up("web")
    now = processes(tsns.directories)
    for victim in (*now.servers, *now.keepers.values()):
        os.kill(victim, signal.SIGKILL)
    starters = [tsns.popen("up", "web") for _ in range(6)]
    for starter in starters:
        _, said = starter.communicate(timeout=30)
        assert starter.returncode == 0, said
    assert patiently(lambda: not_one_node(processes(tsns.directories))) == []
    assert tsns("exec", "web", "--", "true").returncode == 0


def not_one_node(now: Processes) -> list[str]:
    """What there is more or less than one node web."""
    wrong = [] if list(now.keepers) == ["web"] else [f"keepers: {now.keepers}"]
    return wrong + ([] if len(now.engines) == 1 else [f"engines: {now.engines}"])


def test_starting_and_stopping_at_once_ends_in_one_of_both(tsns: Tsns) -> None:
    tsns.up("web")
    for _ in range(3):
        crowd = [tsns.popen(*words) for words in (("up", "web"), ("down", "web"), ("up", "web"), ("down", "web"))]
        for member in crowd:
            member.communicate(timeout=30)
            assert member.returncode in {0, 1}
        up = keeper_of(tsns.directories, "web") is not None
        wrong: Callable[[], list[str]] = (
            (lambda: not_one_node(processes(tsns.directories))) if up else (lambda: remains(tsns.directories))
        )
        assert patiently(wrong) == []
    tsns.up("web")
    keeper = keeper_of(tsns.directories, "web")
    assert keeper is not None
    assert engine_of(keeper) is not None


def test_a_keeper_of_a_name_that_has_one_leaves(tsns: Tsns) -> None:
    tsns.up("web")
    before = processes(tsns.directories)
    with doomed_keepers() as live:
        assert live(tsns, 0) == "busy"
    assert processes(tsns.directories).keepers == before.keepers
