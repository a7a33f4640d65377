"""tsns on a host, as a person runs it there: by the command line, except where the time matters that a command takes to start."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any, Final

from tests.interop.rig.internet import RUN_TIMEOUT_S, Daemon, Host
from tests.machine import PrivateDirectories, new_private_directories
from tsns.error import UserError
from tsns.node.client import query
from tsns.node.places import places

LOG_TAIL_BYTES: Final = 6000
ANSWER_TIMEOUT_S: Final = 10.0
PING_TIMEOUT_S: Final = 1.0
PING_REST_S: Final = 0.1  # between pings that wait for a direct path


@dataclass(frozen=True)
class Tsns:
    """The program with run and state directories of its own, on a host whose underlay it uses."""

    host: Host
    directories: PrivateDirectories

    def command(self, *words: str) -> tuple[str, ...]:
        """The command line of `tsns WORDS`."""
        return (sys.executable, "-m", "tsns", *words)

    @property
    def environment(self) -> dict[str, str]:
        """What the program finds in its environment besides the host's."""
        return self.directories.environment

    def run(
        self, *words: str, stdin: str = "", timeout_s: float = RUN_TIMEOUT_S, check: bool = True
    ) -> CompletedProcess[str]:
        """Runs `tsns WORDS` to its end; AssertionError with the nodes' logs when it fails and `check` is set."""
        result = self.host.run(
            *self.command(*words), environment=self.environment, stdin=stdin, timeout_s=timeout_s, check=False
        )
        if check:
            said = f"{result.stdout}\n{result.stderr}\n{self.logs()}"
            assert result.returncode == 0, f"tsns {' '.join(words)}: status {result.returncode}\n{said}"
        return result

    def start(self, *words: str, log: str) -> Daemon:
        """Starts `tsns WORDS`, which goes on; all that it says is in the log."""
        return self.host.popen(*self.command(*words), log=log, environment=self.environment)

    def inside(self, name: str, *words: str, check: bool = True) -> CompletedProcess[str]:
        """Runs a command in the namespace of a running node."""
        return self.run("exec", name, "--", *words, check=check)

    def start_inside(self, name: str, *words: str, log: str) -> Daemon:
        """Starts a command in the namespace of a running node."""
        return self.start("exec", name, "--", *words, log=log)

    def answer(self, *words: str, may_fail: bool = False) -> dict[str, Any]:
        """What a query answers with --json; some answer, and fail, where a node is not as it should be."""
        found: dict[str, Any] = json.loads(self.run(*words, "--json", check=not may_fail).stdout)
        assert found["schema"] == 1
        return found

    def ip(self, name: str, version: int = 4) -> str:
        """A node's own address."""
        return self.run("ip", name, f"-{version}").stdout.strip()

    def path_kind(self, name: str, peer: str) -> str:
        """By what way the node `name` reaches a peer (a name or an address): direct, derp or none."""
        peers = self.answer("status", name)["peers"]
        return str(next(entry["path"]["kind"] for entry in peers if peer in (entry["name"], *entry["addresses"])))

    def status(self, name: str) -> dict[str, Any]:
        """What `tsns status NAME --json` says, without the time that it takes a command to start."""
        return self._ask(name, "/tsns/v1/status")

    def is_direct(self, name: str, peer: str) -> bool:
        """Whether what the node `name` sends to a peer (an address) goes directly just now; asking changes nothing."""
        peers = self.status(name)["peers"]
        return any(entry["path"]["kind"] == "direct" for entry in peers if peer in entry["addresses"])

    def until_direct(self, name: str, peer: str, patience_s: float) -> bool:
        """Returns as soon as a peer has answered the node `name` directly; false when it did not within so many seconds.

        It asks as `tsns ping NAME PEER --until-direct` does, but without its second of rest after each, and without a start for each.
        """
        deadline = time.monotonic() + patience_s
        while (left_s := deadline - time.monotonic()) > 0:
            ping = {"peer": peer, "timeout_s": min(left_s, PING_TIMEOUT_S), "kind": "disco"}
            with contextlib.suppress(UserError):  # it may not know the peer yet
                pong = self._ask(name, "/tsns/v1/ping", ping)
                if pong["ok"] and pong["path"]["kind"] == "direct":
                    return True
            time.sleep(PING_REST_S)
        return False

    def _ask(self, name: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        return query(name, places(self.environment), path, body, ANSWER_TIMEOUT_S)

    def node_names(self) -> list[str]:
        """The nodes that run."""
        return [node["name"] for node in self.answer("ls")["nodes"] if node["state"] != "stopped"]

    def logs(self) -> str:
        """The ends of all logs of this program's nodes, for a failed test's message."""
        found = (
            os.path.join(where, name)  # os.walk passes over directories that a keeper is just removing; rglob fails
            for directory in (self.directories.run, self.directories.state)
            for where, _, names in os.walk(directory)
            for name in names
            if "log" in name
        )
        return "\n".join(f"--- {path}\n{_tail(Path(path))}" for path in sorted(found))


def _tail(path: Path) -> str:
    try:
        return path.read_bytes()[-LOG_TAIL_BYTES:].decode(errors="replace")
    except FileNotFoundError:
        return "(its node has just ended)"


@contextlib.contextmanager
def tsns_on(host: Host) -> Iterator[Tsns]:
    """tsns on this host, with all its nodes taken down at the end."""
    with new_private_directories() as directories:
        tsns = Tsns(host, directories)
        try:
            yield tsns
        finally:
            tsns.run("down", "--all", check=False)
            tsns.run("serve", "--stop", check=False)
