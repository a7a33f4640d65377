"""`kill -9` at any moment: the node is itself again, and nothing is left of what died."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from typing import Final

import pytest

from tests.machine import patiently
from tests.netns.anatomy import engine_of, identity_of, keeper_of, processes, remains
from tests.netns.doomed_keeper import doomed_keepers
from tests.netns.nodes import Tsns
from tests.netns.steered_lab import SteeredLab

pytestmark = pytest.mark.netns

SEED: Final = 20
KILLS: Final = 30
LONGEST_DELAY_S: Final = 0.35  # a start and an end take less
MOST_STEPS: Final = 100
STEPS_OF_A_SAVE: Final = 9
STRIDE: Final = 3  # of the slower test, which begins anew each time
VICTIMS: Final = ("client", "keeper", "engine", "server")
WORKS: Final = (
    ("run", "--name", "web", "--", "sleep", "0.1"),
    ("exec", "web", "--", "sleep", "0.1"),
    ("up", "web", "--shields-up"),
    ("up", "web"),
    ("down", "web"),
)


def whole(tsns: Tsns, *names: str) -> list[str]:
    """What is wrong with the processes of these nodes; empty when each has just what it needs."""
    now = processes(tsns.directories)
    wrong = [f"no keeper of {name}" for name in names if name not in now.keepers]
    wrong += [f"a keeper of {name}" for name in now.keepers if name not in names]
    if len(now.engines) != len(names):
        wrong.append(f"{len(now.engines)} engines")
    return wrong + [f"process {pid}" for pid in now.others]


def victim_of(kind: str, tsns: Tsns, client: subprocess.Popen[str]) -> int | None:
    """The process to kill; None when there is none just now."""
    keeper = keeper_of(tsns.directories, "web")
    match kind:
        case "client":
            return client.pid if client.poll() is None else None
        case "keeper":
            return keeper
        case "engine":
            return engine_of(keeper) if keeper else None
        case _:
            return next(iter(processes(tsns.directories).servers), None)


def kill_during(tsns: Tsns, work: tuple[str, ...], kind: str, delay_s: float) -> bool:
    """Start something and kill somebody while it goes on; False when there was nobody to kill."""
    with tsns.popen(*work) as client:
        time.sleep(delay_s)
        victim = victim_of(kind, tsns, client)
        if victim is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
        client.communicate(timeout=30)
    return victim is not None


def test_thirty_kills_at_random_moments(steered_tsns: Tsns, steered: SteeredLab) -> None:
    tsns = steered_tsns
    tsns.up("web")
    identity = identity_of(tsns.directories, "web")
    choice = random.Random(SEED)
    killed = 0
    while killed < KILLS:
        kind, work, delay_s = choice.choice(VICTIMS), choice.choice(WORKS), choice.uniform(0, LONGEST_DELAY_S)
        killed += kill_during(tsns, work, kind, delay_s)
        done = tsns("up", "web")
        told = f"{kind} killed {delay_s:.3f} s into {work}"
        assert done.returncode == 0, f"{told}: {done.stderr}"
        assert identity_of(tsns.directories, "web") == identity, told
        assert patiently(lambda: whole(tsns, "web")) == [], told
    assert tsns("exec", "web", "--", "true").returncode == 0
    assert steered.nodes() == ["web"]  # never a second one
    tsns("down", "web")
    assert patiently(lambda: remains(tsns.directories)) == []


@pytest.mark.parametrize("kind", ["client", "keeper", "engine"])
def test_a_nameless_node_leaves_nothing_when_it_is_killed(tsns: Tsns, kind: str) -> None:
    with tsns.popen(
        "run", "--login-server", tsns.lab.url, "--auth-key", tsns.lab.ephemeral_auth_key, "--", "sleep", "1"
    ) as client:
        [name] = patiently_some(lambda: list(processes(tsns.directories).keepers))
        time.sleep(0.5)
        keeper = keeper_of(tsns.directories, name)
        assert keeper is not None
        victim = {"client": client.pid, "keeper": keeper, "engine": engine_of(keeper)}[kind]
        assert victim is not None
        os.kill(victim, signal.SIGKILL)
        client.communicate(timeout=30)
    assert client.returncode == (-signal.SIGKILL if kind == "client" else 0)
    assert patiently(lambda: remains(tsns.directories)) == []


def patiently_some(look: Callable[[], list[str]]) -> list[str]:
    """What `look` finds, as soon as it finds something."""
    patiently(lambda: [] if look() else ["nothing yet"])
    return look()


# --- at each step of a save ----------------------------------------------------------------------------------------


def unpinned(tsns: Tsns) -> dict[str, object]:
    """Who the node is; on disk now without control's key, so that it saves its identity when it learns that one."""
    path = tsns.directories.state / "web" / "identity.json"
    known = {**json.loads(path.read_bytes()), "control_key": None}
    path.write_text(json.dumps(known))
    return known


def test_killed_at_each_step_of_a_save_the_node_keeps_its_identity(steered_tsns: Tsns, steered: SteeredLab) -> None:
    tsns = steered_tsns
    tsns.up("web")
    tsns("down", "web")
    before = unpinned(tsns)
    outcomes: list[str] = []
    with doomed_keepers() as live:
        while len(outcomes) < MOST_STEPS and "ready" not in outcomes:
            outcomes.append(live(tsns, len(outcomes) + 1))
            assert unpinned(tsns) == before, f"step {len(outcomes)}"
    assert outcomes == ["killed"] * (len(outcomes) - 1) + ["ready"]
    assert len(outcomes) > 2 * STEPS_OF_A_SAVE  # settings and identity
    assert tsns("up", "web").returncode == 0
    assert steered.nodes() == ["web"]
    assert [path.name for path in (tsns.directories.state / "web").glob(".*")] == []


def test_killed_at_each_step_of_its_first_login_a_node_is_no_second_one(
    steered_tsns: Tsns, steered: SteeredLab
) -> None:
    tsns = steered_tsns
    tsns.directories.run.mkdir(mode=0o755)
    outcomes: list[str] = []
    with doomed_keepers() as live:
        for step in range(1, MOST_STEPS, STRIDE):
            outcomes.append(live(tsns, step))
            tsns.up("web")
            assert steered.nodes() == ["web"], f"step {step}"
            tsns("down", "web")
            shutil.rmtree(tsns.directories.state / "web")
            steered.do(lambda lab: lab.control.remove("web"))
            if outcomes[-1] == "ready":
                break
    assert outcomes == ["killed"] * (len(outcomes) - 1) + ["ready"]
    assert STRIDE * len(outcomes) > 2 * STEPS_OF_A_SAVE
