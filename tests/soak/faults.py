"""The faults of the soak: what each does, and within what time everything has to be well again."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Final

from tests.netns.anatomy import engine_of, keeper_of, processes
from tests.soak.stage import NODES, STEADY, VICTIMS, Stage

VOLLEY: Final = 10  # clients that are killed in one go
MOST_CLIENTS: Final = 40
LONGEST_MOMENT_S: Final = 0.5
CROWD: Final = 100
STARTERS: Final = 6  # of the crowd, at once
CHURNED: Final = 50
CHURN_ROUNDS: Final = 40
GARBAGE: Final = 60


@dataclass(frozen=True, slots=True)
class Fault:
    """`play` does it and gives what went wrong meanwhile; from its end on there are `within_s` until all is well."""

    name: str
    play: Callable[[Stage], list[str]]
    within_s: float
    loses_nothing: bool = False  # traffic must not notice it at all


def _kill(stage: Stage, kind: str, pid: int | None) -> None:
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            stage.kills[kind] += 1


def kill_engines(stage: Stage) -> list[str]:
    """All three, one shortly after the other."""
    for name in stage.choice.sample(VICTIMS, len(VICTIMS)):
        keeper = keeper_of(stage.directories, name)
        _kill(stage, "engine", engine_of(keeper) if keeper else None)
        time.sleep(stage.choice.uniform(0, 0.4))
    return []


def kill_keeper(stage: Stage) -> list[str]:
    """And start the node again: the new keeper adopts the namespace in which the probe runs."""
    name = stage.choice.choice(VICTIMS)
    _kill(stage, "keeper", keeper_of(stage.directories, name))
    time.sleep(stage.choice.uniform(0, 1.5))
    done = stage.tsns("up", name)
    return [] if done.returncode == 0 else [f"up {name}: {done.stderr[-300:]}"]


def kill_clients(stage: Stage) -> list[str]:
    """Of all kinds, at random moments of their short lives; more of them when the soak is behind."""
    count = min(MOST_CLIENTS, max(VOLLEY, 2 * (stage.kills_due - sum(stage.kills.values()))))
    name = stage.choice.choice(VICTIMS)
    kinds = [  # with the time in which the client surely lives
        (stage.run_words("sleep", "0.5"), 0.6),
        (("exec", name, "--", "sleep", "0.5"), 0.5),
        (("status", name), 0.25),
        (("up", name), 0.12),
    ]
    plans = []
    for _ in range(count):
        words, lives_s = stage.choice.choice(kinds)
        plans.append((words, stage.choice.uniform(0, lives_s)))

    def strike(plan: tuple[tuple[str, ...], float]) -> None:
        words, moment_s = plan
        with stage.start(*words) as client:
            time.sleep(moment_s)
            if client.poll() is None:
                _kill(stage, "client", client.pid)
            client.communicate()

    with ThreadPoolExecutor(STARTERS) as workers:
        list(workers.map(strike, plans))
    return []


def kill_server(stage: Stage) -> list[str]:
    """Once at rest and once while a node starts from it."""
    for server in processes(stage.directories).servers:
        _kill(stage, "server", server)
    found = []
    with stage.start(*stage.run_words("true")) as client:
        time.sleep(stage.choice.uniform(0, LONGEST_MOMENT_S))
        for server in processes(stage.directories).servers:
            _kill(stage, "server", server)
        _, said = client.communicate(timeout=60)
        if client.returncode != 0:
            found.append(f"a run without its server: {client.returncode}, {said[-300:]}")
    return found + stage.cycle(1, 1)


def stop_control(stage: Stage) -> list[str]:
    """For some seconds; flows between peers do not need it."""
    stage.lab.wait(lambda lab: lab.control.stop())
    time.sleep(stage.choice.uniform(0.5, 6))
    stage.lab.wait(lambda lab: lab.control.start())
    back = time.monotonic()
    while (away := _without_stream(stage)) and time.monotonic() < back + 30:
        time.sleep(0.1)
    return [f"{name} has not come back to control within 30 s" for name in away]


def _without_stream(stage: Stage) -> list[str]:
    return stage.lab.do(lambda lab: [name for name in NODES if not lab.control.streams(name)])


def drop_control(stage: Stage) -> list[str]:
    """All its connections are reset."""
    stage.lab.wait(lambda lab: lab.control.drop_connections())
    return []


def stop_derp(stage: Stage) -> list[str]:
    """Everybody's home is gone: traffic goes by the other region, and home again later."""
    began = time.monotonic()
    stage.lab.wait(lambda lab: lab.derps[1].stop())
    found = []
    while (
        silent := [flow.name for flow in stage.flows if not flow.flows_since(began + 0.5)]
    ) and time.monotonic() < began + 10:
        time.sleep(0.05)
    if silent:
        found.append(f"no traffic by the other region within 10 s: {', '.join(silent)}")
    stage.lab.wait(lambda lab: lab.derps[1].start())
    return found


def stall_derp(stage: Stage) -> list[str]:
    """The relay neither reads from one node nor writes to it."""
    key = stage.key(stage.choice.choice(NODES))
    with contextlib.suppress(KeyError):
        stage.lab.do(lambda lab: lab.derps[1].stall(key))
    time.sleep(stage.choice.uniform(0.5, 4))
    with contextlib.suppress(KeyError):
        stage.lab.do(lambda lab: lab.derps[1].resume(key))
    return []


def drop_derp(stage: Stage) -> list[str]:
    """All connections are reset."""
    stage.lab.do(lambda lab: lab.derps[1].drop())
    return []


def relay_frames(stage: Stage) -> list[str]:
    """A complaint, its end, and the announcement of a restart that then comes."""
    key = stage.key(STEADY)
    with contextlib.suppress(KeyError):
        stage.lab.do(lambda lab: lab.derps[1].send_health(key, "the soak complains"))
        time.sleep(0.3)
        stage.lab.do(lambda lab: lab.derps[1].send_health(key, ""))
    stage.lab.do(lambda lab: lab.derps[1].send_restarting(0.1, 5.0))
    time.sleep(0.2)
    stage.lab.do(lambda lab: lab.derps[1].drop())
    return []


def churn(stage: Stage) -> list[str]:
    """Peers come, change many times and go."""
    fakes = stage.lab.do(lambda lab: lab.control.add_fake_peers(CHURNED))
    for number in range(CHURN_ROUNDS):
        chosen = stage.choice.sample(fakes, 10)
        for fake in chosen:
            stage.lab.do(
                partial(
                    lambda lab, node, online: lab.tailnet.change(node, online=online),
                    node=fake,
                    online=bool(number % 2),
                )
            )
        time.sleep(0.02)
    for fake in fakes:
        stage.lab.do(partial(lambda lab, node: lab.control.remove(node), node=fake))
    return []


def run_and_exit(stage: Stage) -> list[str]:
    """Ten lives at once."""
    return stage.cycle(10, 10)


def fill_disk(stage: Stage) -> list[str]:
    """A node is made while nothing can be saved: it runs, says so once, and is forgotten afterwards."""
    filler = stage.directories.state / "filler"
    with open(filler, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    found = []
    login = ("--login-server", stage.lab.process.url, "--auth-key", stage.lab.process.ephemeral_auth_key)
    try:
        done = stage.tsns("up", "dan", "--ephemeral", *login)
        if done.returncode != 0:
            return [f"up on a full disk: {done.stderr[-300:]}"]
        warnings = [text for text in stage.tsns.json("status", "dan")["health"] if "could not be saved" in text]
        if len(warnings) != 1:
            found.append(f"a full disk is told of {len(warnings)} times")
    finally:
        filler.unlink()
        stage.tsns("down", "dan", "--logout")
        stage.tsns("rm", "dan")
        shutil.rmtree(stage.directories.state / "dan", ignore_errors=True)  # what there was to forget was not saved
    return found


def garbage(stage: Stage) -> list[str]:
    """On both sockets of every node."""
    for name in NODES:
        for kind, suffix in ((socket.SOCK_SEQPACKET, "ctl"), (socket.SOCK_STREAM, "sock")):
            for _ in range(GARBAGE):
                with socket.socket(socket.AF_UNIX, kind) as sock, contextlib.suppress(OSError):
                    sock.settimeout(1)
                    sock.connect(str(stage.directories.run / f"{name}.{suffix}"))
                    sock.send(stage.choice.randbytes(stage.choice.randrange(1, 3000)))
    return []


def crowd(stage: Stage) -> list[str]:
    """A hundred nodes that live at the same time, besides ours."""
    with _at_once(stage, CROWD) as (clients, wrong):
        alive = len(processes(stage.directories).keepers) - len(NODES)
        if alive < CROWD:
            wrong.append(f"{alive} nodes at once, not {CROWD}")
        for client in clients:
            client.terminate()
    return wrong


@contextlib.contextmanager
def _at_once(stage: Stage, count: int) -> Iterator[tuple[list[subprocess.Popen[str]], list[str]]]:
    clients: list[subprocess.Popen[str]] = []
    wrong: list[str] = []

    def begin(_: int) -> None:
        client = stage.start(*stage.run_words("sleep", "600"))
        clients.append(client)
        deadline = time.monotonic() + 60
        while _command(client.pid) != b"sleep" and client.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        if _command(client.pid) != b"sleep":
            wrong.append(f"one of {count} did not start")

    try:
        with ThreadPoolExecutor(STARTERS) as workers:
            list(workers.map(begin, range(count)))
        yield clients, wrong
    finally:
        for client in clients:
            client.kill()
            client.communicate()


def _command(pid: int) -> bytes:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            return file.read().partition(b"\0")[0]
    except OSError:
        return b""


CROWDED: Final = Fault("100 nodes at once", crowd, 20.0)
KILLING: Final = (
    Fault("engines killed", kill_engines, 5.0),
    Fault("keeper killed", kill_keeper, 5.0),
    Fault("clients killed", kill_clients, 5.0),
    Fault("server killed", kill_server, 5.0),
)
OTHERS: Final = (
    Fault("control stopped", stop_control, 5.0, loses_nothing=True),
    Fault("control dropped", drop_control, 5.0, loses_nothing=True),
    Fault("relay stopped", stop_derp, 10.0),
    Fault("relay stalled", stall_derp, 10.0),
    Fault("relay dropped", drop_derp, 5.0),
    Fault("relay's frames", relay_frames, 5.0),
    Fault("netmap churn", churn, 5.0, loses_nothing=True),
    Fault("10 lives at once", run_and_exit, 5.0, loses_nothing=True),
    Fault("disk full", fill_disk, 5.0, loses_nothing=True),
    Fault("garbage on sockets", garbage, 5.0, loses_nothing=True),
)
KILLS_IN_A_DECK: Final = ((0, 4), (1, 3), (2, 4), (3, 2))  # of KILLING, how many of each
OTHERS_IN_A_DECK: Final = 5


def deck(stage: Stage) -> Iterator[Fault]:
    """Faults for ever, in an order that the seed decides: the crowd first, while everything still warms up."""
    yield CROWDED
    rest: list[Fault] = []
    while True:
        cards = [KILLING[number] for number, count in KILLS_IN_A_DECK for _ in range(count)]
        for _ in range(OTHERS_IN_A_DECK):
            rest = rest or stage.choice.sample(OTHERS, len(OTHERS))
            cards.append(rest.pop())
        stage.choice.shuffle(cards)
        yield from cards
