"""tsns as a person runs it, in private directories, on a lab that runs as a process beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

from tests.machine import PrivateDirectories

TIMEOUT_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class LabProcess:
    """A lab at work."""

    url: str
    auth_key: str
    ephemeral_auth_key: str
    pid: int = 0  # of its own process, where it has one

    @property
    def login(self) -> tuple[str, ...]:
        """The flags with which a node gets in."""
        return ("--login-server", self.url, "--auth-key", self.auth_key)


@contextmanager
def running_lab() -> Iterator[LabProcess]:
    """A lab in a process of its own, which ends with the block."""
    command = [sys.executable, "-m", "tsns.lab", "--stdin"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        ready = json.loads(process.stdout.readline())
        try:
            yield LabProcess(ready["url"], ready["auth_key"], ready["ephemeral_auth_key"], ready["pid"])
        finally:
            process.stdin.close()
            process.wait(TIMEOUT_S)


# Everything that is near, and what it is like inside; nothing but the tailnet answers.
REACH: Final = """
import socket, sys
for address in (("127.0.0.1", int(sys.argv[1])), ("192.0.2.1", 80), ("8.8.8.8", 53), ("100.64.99.99", 80)):
    sock = socket.socket(); sock.settimeout(0.5)
    try: sock.connect(address); print("reached", address)
    except OSError as error: print(type(error).__name__)
print(sorted(name for _, name in socket.if_nameindex()))
"""


@dataclass(frozen=True, slots=True)
class Tsns:
    """The command line. Calling it gives the finished process, its output as text."""

    directories: PrivateDirectories
    lab: LabProcess
    environment: Mapping[str, str] = field(default_factory=dict)

    def command(self, *words: str) -> list[str]:
        """What to execute for these words."""
        return [sys.executable, "-m", "tsns", *words]

    @property
    def environ(self) -> dict[str, str]:
        """Its environment."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("TS_", "TSNS_", "SUDO_"))}
        return {**kept, **self.directories.environment, **self.environment}

    def __call__(self, *words: str, stdin: str = "", timeout_s: float = TIMEOUT_S) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(*words),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            env=self.environ,
            check=False,
        )

    def json(self, *words: str) -> Any:
        """The answer of a query, which must succeed."""
        done = self(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def json_of(self, *words: str) -> Any:
        """The answer of a query, whatever its exit status says."""
        done = self(*words, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def up(self, name: str, *flags: str) -> None:
        """Bring a lasting node up."""
        done = self("up", name, *self.lab.login, *flags)
        assert done.returncode == 0, done.stderr

    def run(self, *command: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Run a command on a node of its own."""
        login = ("--login-server", self.lab.url, "--auth-key", self.lab.ephemeral_auth_key)
        return self("run", *login, *flags, "--", *command)

    def popen(self, *words: str) -> subprocess.Popen[str]:
        """Start it, and go on."""
        return subprocess.Popen(
            self.command(*words),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=self.environ,
        )

    def reach(self) -> list[str]:
        """What a command gets that tries to reach the host's loopback, where the lab listens, others outside, and nobody on the tailnet."""
        return self.run(sys.executable, "-c", REACH, self.lab.url.rpartition(":")[2]).stdout.splitlines()

    @contextmanager
    def serving(self, name: str, program: str, *words: str) -> Iterator[None]:
        """A program in a running node, from when it says that it serves to the end of the block."""
        with self.popen("exec", name, "--", sys.executable, "-uc", program, *words) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "serves\n"
            try:
                yield
            finally:
                process.terminate()
                process.communicate()
