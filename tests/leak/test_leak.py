"""Nothing that a program inside does is seen outside: by whatever way it came in, whatever state its node is in.

Each row of the table is a way in and a state. The program (`attempts`) is inside and waits; the state comes about; the program tries everything
it can think of; and neither a sniffer on all of the machine's interfaces nor anybody who could be asked by mistake (`fakes`) notices it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from tests.interop.rig.internet import Daemon, wait_for
from tests.interop.rig.tsns import Tsns
from tests.leak.attempts import ATTEMPTS, OPEN_PATHS
from tests.leak.stage import Stage, new_stage
from tests.netns.anatomy import engine_of, keeper_of
from tsns.netns.tun import TUN_NAME

pytestmark = pytest.mark.netns

NAME: Final = "web"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Stage, Tsns]]:
    """A machine with all that could be asked by mistake, for all rows of the table."""
    with new_stage(tmp_path_factory.mktemp("leak")) as found:
        yield found


@dataclass(frozen=True)
class Node:
    """A node in whose namespace the program waits, and its processes."""

    stage: Stage
    tsns: Tsns
    program: Daemon
    keeper: int
    engine: int

    def has_a_tun(self) -> bool:
        """Whether there is a tunnel in the namespace where the program is."""
        return TUN_NAME in Path(f"/proc/{self.program.process.pid}/net/dev").read_text()


# --- ways in -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def behind(stage: Stage, tsns: Tsns, *entrance: str) -> Iterator[Node]:
    """The node of a program that is begun behind these words."""
    with stage.begin(*tsns.command(*entrance), environment=tsns.environment) as program:
        keeper = wait_for(lambda: keeper_of(tsns.directories, NAME), "a keeper")
        engine = wait_for(lambda: engine_of(keeper), "an engine")
        try:
            yield Node(stage, tsns, program, keeper, engine)
        finally:
            program.stop()
            tsns.run("rm", NAME, check=False)


@contextlib.contextmanager
def by_exec(stage: Stage, tsns: Tsns) -> Iterator[Node]:
    """Into a lasting node, as root: whoever has no capabilities can do less."""
    tsns.run("up", NAME, *stage.lab.login)
    with behind(stage, tsns, "exec", NAME, "--") as node:
        yield node


def by_run(stage: Stage, tsns: Tsns) -> AbstractContextManager[Node]:
    """With a node of its own."""
    return behind(stage, tsns, "run", "--name", NAME, *stage.lab.login, "--")


@contextlib.contextmanager
def attached(stage: Stage, tsns: Tsns) -> Iterator[Node]:
    """In a container with a network of its own, which leads out by the machine, attached with `--exclusive`."""
    tsns.run("up", NAME, *stage.lab.login)
    with stage.begin("unshare", "--net", "--mount", "--propagation", "slave") as program:
        pid = program.process.pid
        stage.give_network(pid)
        tsns.run("attach", "--pid", str(pid), "--to", NAME, "--exclusive")
        wishes, away = tsns.directories.state / ".attached", tsns.directories.state / ".away"
        wishes.rename(away)  # else somebody follows, and what is killed is soon there again
        keeper = wait_for(lambda: keeper_of(tsns.directories, NAME), "a keeper")
        engine = wait_for(lambda: engine_of(keeper), "an engine")
        try:
            yield Node(stage, tsns, program, keeper, engine)
        finally:
            shutil.rmtree(wishes, ignore_errors=True)
            away.rename(wishes)
            tsns.run("detach", "--pid", str(pid), check=False)
            program.stop()
            tsns.run("rm", NAME, check=False)


# --- states ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def both_alive(node: Node) -> Iterator[None]:
    assert node.has_a_tun()
    yield


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in reversed(pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


@contextlib.contextmanager
def engine_killed(node: Node) -> Iterator[None]:
    os.kill(node.engine, signal.SIGKILL)
    yield


@contextlib.contextmanager
def engine_killed_for_good(node: Node) -> Iterator[None]:
    with stopped(node.keeper):
        os.kill(node.engine, signal.SIGKILL)
        yield


@contextlib.contextmanager
def keeper_killed(node: Node) -> Iterator[None]:
    os.kill(node.keeper, signal.SIGKILL)
    wait_for(lambda: not os.path.exists(f"/proc/{node.engine}"), "the engine follows its keeper")
    wait_for(lambda: not node.has_a_tun(), "the tunnel is gone")
    yield


@contextlib.contextmanager
def starting(node: Node, *login: str) -> Iterator[None]:
    """Another keeper has come to the namespace in which the program is, of a new node that knows no netmap yet."""
    with keeper_killed(node):
        shutil.rmtree(node.tsns.directories.state / NAME, ignore_errors=True)
        with node.tsns.start("up", NAME, *login, log="starting") as client:
            wait_for(lambda: node.has_a_tun() or client.process.poll() is not None, "a new tunnel")
            yield
            assert client.process.poll() is None, f"it started, or gave up: {client.said()}"


@contextlib.contextmanager
def starting_without_a_netmap(node: Node) -> Iterator[None]:
    with node.stage.silent_control(), starting(node, *node.stage.lab.login):
        yield


@contextlib.contextmanager
def starting_without_a_network(node: Node) -> Iterator[None]:
    with node.stage.without_network(), starting(node, *node.stage.lab.login):
        yield


def starting_at_the_wrong_server(node: Node) -> AbstractContextManager[None]:
    return starting(node, "--login-server", f"http://{node.stage.server.address}:9", "--auth-key", "of-no-use")


def without_a_network(node: Node) -> AbstractContextManager[None]:
    return node.stage.without_network()


WAYS_IN: dict[str, Callable[[Stage, Tsns], AbstractContextManager[Node]]] = {
    "exec": by_exec,
    "run": by_run,
    "attach": attached,
}
STATES: dict[str, Callable[[Node], AbstractContextManager[None]]] = {
    "engine and keeper alive": both_alive,
    "engine killed, and started again": engine_killed,
    "engine killed, keeper stopped": engine_killed_for_good,
    "engine stopped": lambda node: stopped(node.engine),
    "keeper stopped": lambda node: stopped(node.keeper),
    "keeper and engine stopped": lambda node: stopped(node.keeper, node.engine),
    "keeper killed": keeper_killed,
    "starting, before the first netmap": starting_without_a_netmap,
    "starting, the host has no network": starting_without_a_network,
    "starting, no control server there": starting_at_the_wrong_server,
    "the host has lost its network": without_a_network,
}
TABLE: Final = [
    *(("exec", state) for state in STATES),
    ("run", "engine and keeper alive"),
    ("run", "keeper killed"),
    *(("attach", state) for state in STATES if not state.startswith("starting")),
]


# --- the table ---------------------------------------------------------------------------------------------------------


def test_outside_each_attempt_is_seen(scene: tuple[Stage, Tsns]) -> None:
    """The positive control: the same program, without tsns around it."""
    assert not [(one, other) for one in ATTEMPTS for other in ATTEMPTS if one != other and other.startswith(one)]
    stage, _ = scene
    with stage.begin() as program:
        tried = stage.let_try(program)
    assert {slug: tried.results[slug] for slug in set(ATTEMPTS) - tried.seen} == {}
    assert len(tried.leaks()) > len(ATTEMPTS)


@pytest.mark.parametrize(("way", "state"), TABLE)
def test_nothing_leaks(scene: tuple[Stage, Tsns], way: str, state: str) -> None:
    stage, tsns = scene
    with WAYS_IN[way](stage, tsns) as node, STATES[state](node):
        tried = stage.let_try(node.program)
    assert tried.leaks() == []
    assert tried.heard <= set(OPEN_PATHS)
    assert tried.seen <= set(OPEN_PATHS), "in clear, in what the engine sends"


def test_outside_each_attempt_of_a_container_is_seen(scene: tuple[Stage, Tsns]) -> None:
    """The positive control of the rows with `attach`: before that, its network leads out."""
    stage, _ = scene
    with stage.begin("unshare", "--net", "--mount", "--propagation", "slave") as program:
        stage.give_network(program.process.pid)
        tried = stage.let_try(program)
    assert len(tried.leaks()) > len(ATTEMPTS) / 2


def test_what_stays_open_is_what_is_said_to(scene: tuple[Stage, Tsns]) -> None:
    """Sockets in the file system belong to no network: SECURITY.md says so."""
    stage, tsns = scene
    with by_exec(stage, tsns) as node:
        tried = stage.let_try(node.program)
    assert tried.heard == set(OPEN_PATHS)
