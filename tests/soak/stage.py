"""Where the soak plays: a lab, nodes that are hurt, one that is not, and traffic between them."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from tests.machine import PrivateDirectories, new_private_directories
from tests.netns.anatomy import engine_of, identity_of, keeper_of, processes, remains
from tests.netns.nodes import Tsns
from tests.netns.steered_lab import SteeredLab, steered_lab
from tests.soak.flows import Flow
from tests.soak.samples import Life
from tsns.keys import NodePublic

VICTIMS: Final = ("ada", "bob", "cat")  # their engines and keepers are killed
STEADY: Final = "sue"  # nobody's victim: its processes live as long as the soak
NODES: Final = (*VICTIMS, STEADY)
RELAYED: Final = "cat"  # goes by relays only: two of the routes are direct, two lead through the relay
ROUTES: Final = (("ada", "bob"), ("bob", "cat"), ("cat", "sue"), ("sue", "ada"))  # one probe in each
STATE_DISK: Final = "size=96m,mode=0700"
FAR_S: Final = 0.03  # how far the second region is, so that all have the first one as home
POLL_S: Final = 0.05
PROBE: Final = Path(__file__).with_name("probe.py")
BAD_WORDS: Final = ("Traceback", "never retrieved", "was destroyed", "imported after the fork")


class Stage:
    """All that the faults need."""

    def __init__(self, tsns: Tsns, lab: SteeredLab, choice: random.Random) -> None:
        self.tsns = tsns
        self.lab = lab
        self.choice = choice
        self.flows: list[Flow] = []
        self.kills: Counter[str] = Counter()
        self.kills_due = 0  # by now
        self.cycles = 0
        self.identities: dict[str, bytes] = {}
        self.addresses: dict[str, str] = {}
        self.lives: list[Life] = []

    # --- the play

    def begin(self) -> None:
        """Bring the nodes up, and let them talk."""
        for name in NODES:
            self.tsns.up(name, *(["--no-direct"] if name == RELAYED else []))
            self.identities[name] = identity_of(self.directories, name)
            self.addresses[name] = str(self.tsns.json("ip", name)["addresses"][0])
        for source, target in ROUTES:
            self._talk(source, target)
        keeper = keeper_of(self.directories, STEADY)
        assert keeper is not None
        engine = engine_of(keeper)
        assert engine is not None
        self.lives = [Life("keeper", keeper), Life("engine", engine)]

    def _talk(self, source: str, target: str) -> None:
        words = self.tsns.command("exec", source, "--", sys.executable, str(PROBE), self.addresses[target])
        probe = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=self.tsns.environ,
            start_new_session=True,
        )
        self.flows.append(Flow(f"{source}>{target}", probe))

    def end(self) -> float:
        """End all of it; how long the slowest node took."""
        for flow in self.flows:
            flow.close()
        slowest = 0.0
        for name in NODES:
            began = time.monotonic()
            self.tsns("down", name)
            slowest = max(slowest, time.monotonic() - began)
        return slowest

    @property
    def directories(self) -> PrivateDirectories:
        """Of all nodes."""
        return self.tsns.directories

    def key(self, name: str) -> NodePublic:
        """The node key that control knows."""
        return self.lab.do(lambda lab: lab.tailnet.find(name).key)

    # --- commands

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A tsns command at work, which no Ctrl-C of ours reaches."""
        return subprocess.Popen(
            self.tsns.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env=self.tsns.environ,
            start_new_session=True,
        )

    def run_words(self, *command: str) -> tuple[str, ...]:
        """`run` of a node for this command alone."""
        return (
            "run",
            "--login-server",
            self.lab.process.url,
            "--auth-key",
            self.lab.process.ephemeral_auth_key,
            "--",
            *command,
        )

    def cycle(self, count: int, at_once: int) -> list[str]:
        """Run and exit so many times; what went wrong."""
        with ThreadPoolExecutor(at_once) as workers:
            done = list(workers.map(lambda _: self.tsns(*self.run_words("true"), timeout_s=60), range(count)))
        self.cycles += count
        return [f"run ended with {each.returncode}: {each.stderr[-200:]}" for each in done if each.returncode != 0]

    # --- what must hold

    def wrong(self) -> list[str]:
        """What is not as it has to be, whatever happened."""
        now = processes(self.directories)
        probes = {flow.name for flow in self.flows if not flow.alive}
        found = [f"the probe of {name} has ended" for name in sorted(probes)]
        found += [f"no keeper of {name}" for name in NODES if name not in now.keepers]
        found += [f"an orphan keeper of {name}" for name in now.keepers if name not in NODES]
        if len(now.engines) != len(NODES):
            found.append(f"{len(now.engines)} engines for {len(NODES)} nodes")
        sockets = Counter(_last_word(pid) for pid in now.servers)  # each build has a socket of its own
        found += [f"{count} servers at {path}" for path, count in sockets.items() if path and count > 1]
        found += [f"a file {path.name}" for path in self.directories.run.iterdir() if not self._known(path.name)]
        found += [
            f"a namespace {path.name}" for path in (self.directories.run / "ns").iterdir() if path.name not in NODES
        ]
        found += [f"{life.name} of {STEADY} has ended" for life in self.lives if not Path(f"/proc/{life.pid}").exists()]
        for name in NODES:
            try:
                if identity_of(self.directories, name) != self.identities[name]:
                    found.append(f"{name} has another identity")
            except OSError as error:
                found.append(f"{name} has no identity: {error}")
        return found

    @staticmethod
    def _known(name: str) -> bool:
        return name in {"ns", "server.log", "start"} or name.startswith("serve-") or name.partition(".")[0] in NODES

    def await_right(self, within_s: float) -> list[str]:
        """What is still wrong after so long."""
        deadline = time.monotonic() + within_s
        while (found := self.wrong()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return found

    def duplicates(self) -> list[str]:
        """Nodes of the tailnet that are our lasting ones once more."""
        return [name for name in self.lab.nodes() if name.rstrip("-0123456789") in NODES and name not in NODES]

    def homes(self) -> dict[str, str]:
        """The home region of each node, as it says itself; empty where it does not answer."""
        answers: dict[str, Any] = {}
        for name in NODES:
            try:
                answers[name] = self.tsns.json("status", name)["home_region"]
            except AssertionError:
                answers[name] = ""
        return answers

    def complaints(self) -> list[str]:
        """Lines of the logs that speak of a bug."""
        found = []
        logs = [self.directories.run / "server.log", *(self.directories.state / name / "log" for name in NODES)]
        for path in logs:
            with contextlib.suppress(OSError):
                lines = path.read_text(errors="replace").splitlines()
                found += [f"{path.parent.name}: {line}" for line in lines if any(word in line for word in BAD_WORDS)]
        return found

    def log_bytes(self) -> int:
        """Of all nodes' logs together."""
        return sum(path.stat().st_size for name in NODES for path in (self.directories.state / name).glob("log*"))


def _last_word(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[-2].decode()
    except (OSError, IndexError):
        return ""


@contextmanager
def staged(seed: int) -> Iterator[Stage]:
    """The stage, cleared afterwards; AssertionError when something of it stays."""
    with new_private_directories() as directories, _disk(directories.state), steered_lab(regions=2) as lab:
        lab.do(lambda made: made.derps[2].set_latency(FAR_S))
        tsns = Tsns(directories, lab.process)
        stage = Stage(tsns, lab, random.Random(seed))
        try:
            yield stage
        finally:
            for flow in stage.flows:
                flow.close()
            tsns("down", "--all", timeout_s=120)
            deadline = time.monotonic() + 10
            while (left := remains(directories)) and time.monotonic() < deadline:
                time.sleep(POLL_S)
            tsns("serve", "--stop")
            assert not left, f"left behind: {', '.join(left)}"


@contextmanager
def _disk(place: Path) -> Iterator[None]:
    """A disk for the state directory, which can be filled."""
    place.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", STATE_DISK, "none", str(place)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=False)
