"""What `tsns demo` starts, and how all of it is ended again (ring 2).

A lab, nodes with a run and a state directory of their own, programs inside. Each is ended by its own pid, in the reverse order; what does
not end by itself is killed. Nothing outside the stage's directory is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tsns.error import UserError
from tsns.netns import linux
from tsns.proto.text import one_line

COMMAND_TIMEOUT_S: Final = 90.0
LAB_TIMEOUT_S: Final = 30.0
DOWN_TIMEOUT_S: Final = 25.0
READY_TIMEOUT_S: Final = 20.0
END_PATIENCE_S: Final = 5.0
KILL_PATIENCE_S: Final = 3.0
POLL_S: Final = 0.02
MAX_LINE_BYTES: Final = 64 << 10
LOG_LINES: Final = 15
LOG_TAIL_BYTES: Final = 16 << 10
TSNS: Final = (sys.executable, "-m", "tsns")
LAB: Final = (sys.executable, "-m", "tsns.lab", "--stdin")
_FOREIGN_VARIABLES: Final = (
    "SUDO_UID",
    "SUDO_GID",
    "SUDO_USER",
    "TS_LOGIN_SERVER",
    "TS_HOSTNAME",
    "TS_AUTHKEY",
    "TS_AUTH_KEY",
)


class StageError(UserError):
    """Something of the demo did not work."""


@dataclass(frozen=True, slots=True)
class _Process:
    """A process that is not our child: its pid, and its start time, by which another of the same pid is told apart."""

    pid: int
    started: str

    @classmethod
    def find(cls, pid: int) -> _Process | None:
        fields = _stat(pid)
        return cls(pid, fields[19]) if fields else None

    @property
    def parent(self) -> int:
        fields = _stat(self.pid)
        return int(fields[1]) if fields else 0

    @property
    def lives(self) -> bool:
        fields = _stat(self.pid)
        return bool(fields) and fields[19] == self.started and fields[0] != "Z"


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the name; empty when there is no such process."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Stage:
    """All that the demo made. `close` ends it, whatever has happened before."""

    def __init__(self, *, tsns: Sequence[str] = TSNS, lab: Sequence[str] = LAB, keep: bool = False) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="tsns-demo-"))
        self.run = self.directory / "run"
        self.state = self.directory / "state"
        self._tsns = tsns
        self._lab = lab
        self._keep = keep
        self._lab_process: subprocess.Popen[bytes] | None = None
        self._children: list[subprocess.Popen[bytes]] = []
        self._node_processes: list[_Process] = []
        own = {"TSNS_RUN_DIR": str(self.run), "TSNS_STATE_DIR": str(self.state), "XDG_CONFIG_HOME": str(self.directory)}
        self.environ = {key: value for key, value in os.environ.items() if key not in _FOREIGN_VARIABLES} | own

    def _start(self, command: Sequence[str], *, stdin: int, stderr: int) -> subprocess.Popen[bytes]:
        """In a session of its own: Ctrl-C is for us, who end the others in order."""
        return subprocess.Popen(
            command, stdin=stdin, stdout=subprocess.PIPE, stderr=stderr, env=self.environ, start_new_session=True
        )

    def start_lab(self) -> dict[str, Any]:
        """The servers; returns what the lab says of itself: "url" and "auth_key"."""
        with open(self.directory / "lab.log", "wb") as log:
            lab = self._lab_process = self._start(self._lab, stdin=self._lab_input(), stderr=log.fileno())
        text = _first_line(lab, LAB_TIMEOUT_S)
        try:
            said = json.loads(text)
        except ValueError:
            said = None
        if not isinstance(said, dict) or not {"url", "auth_key"} <= said.keys():
            raise StageError("the servers of the demo did not start", "see what their log above says")
        return said

    @property
    def pids(self) -> list[int]:
        """Of the programs that run: those inside nodes, and last the servers."""
        return [child.pid for child in (*self._children, self._lab_process) if child is not None]

    def _lab_input(self) -> int:
        """The lab ends when its input does: with us, unless it is to stay."""
        if not self._keep:
            return subprocess.PIPE
        path = self.directory / "lab.stdin"
        os.mkfifo(path, 0o600)
        return os.open(path, os.O_RDWR)  # held at both ends by the lab itself: no end ever comes

    def tsns(self, *words: str, given: str = "", timeout_s: float = COMMAND_TIMEOUT_S) -> str:
        """Run `tsns WORDS`, with `given` as its input; returns its output. StageError with its own words where it fails.

        A failure that comes with an answer, as a ping that is lost does, is an answer.
        """
        child = self._start([*self._tsns, *words], stdin=subprocess.PIPE, stderr=subprocess.PIPE)
        try:
            output, errors = child.communicate(given.encode(), timeout_s)
        except subprocess.TimeoutExpired:
            raise StageError(f"`tsns {words[0]}` took more than {timeout_s:.0f} s", "see the logs above") from None
        finally:
            _end(child, signal.SIGINT)  # gone already, unless we are interrupted
        if child.returncode != 0 and (child.returncode != 1 or not output):
            raise StageError(f"`tsns {words[0]}` failed: {_complaint(errors)}", "see the logs above")
        return output.decode(errors="replace")

    def serve_inside(self, name: str, program: Sequence[str]) -> int:
        """Start a program in a node, by `tsns exec`, and wait for its first line; returns its pid."""
        with open(self.directory / "page.log", "wb") as log:
            child = self._start(
                [*self._tsns, "exec", name, "--", *program], stdin=subprocess.DEVNULL, stderr=log.fileno()
            )
        self._children.append(child)
        if not _first_line(child, READY_TIMEOUT_S):
            raise StageError(f"the web server inside {name} did not start", "see the logs above")
        return child.pid

    def remember_node(self, name: str) -> dict[str, Any]:
        """Note who keeps this node, to see later that they have ended; returns its status."""
        status: dict[str, Any] = json.loads(self.tsns("status", name, "--json"))
        engine = _Process.find(int(status.get("pid") or 0))
        if engine is not None:
            keeper = _Process.find(engine.parent)
            self._node_processes += [process for process in (keeper, engine) if process is not None and process.pid > 1]
        return status

    def wait_for_end(self, names: str) -> None:
        """Wait, not for ever, until the nodes whose names match have ended: a keeper's lock is the last thing to go."""
        deadline = time.monotonic() + END_PATIENCE_S
        while any(self.run.glob(f"{names}.lock")) and time.monotonic() < deadline:
            time.sleep(POLL_S)

    def last_words(self) -> Iterator[tuple[str, list[str]]]:
        """The ends of all logs, by name."""
        for path in sorted(
            {*self.directory.glob("*.log"), *self.run.glob("*.log"), *self.run.glob("*/log"), *self.state.glob("*/log")}
        ):
            with contextlib.suppress(OSError), open(path, "rb") as file:
                file.seek(max(0, path.stat().st_size - LOG_TAIL_BYTES))
                lines = [one_line(line) for line in file.read().splitlines()[-LOG_LINES:]]
                if lines:
                    yield str(path.relative_to(self.directory)), lines

    def close(self) -> list[str]:
        """End and remove everything; returns what could not be, in words. Takes no interruption, and not long."""
        with _uninterrupted():
            for child in reversed(self._children):
                _end(child, signal.SIGTERM)
            if self.run.is_dir():
                with contextlib.suppress(StageError):
                    self.tsns("down", "--all", "-q", timeout_s=DOWN_TIMEOUT_S)
            self.wait_for_end("*")
            if self.run.is_dir():
                with contextlib.suppress(StageError):
                    self.tsns("serve", "--stop", "-q", timeout_s=DOWN_TIMEOUT_S)
            left = [f"process {process.pid}" for process in self._node_processes if not _gone(process)]
            if (lab := self._lab_process) is not None:
                if lab.stdin is not None:
                    lab.stdin.close()
                _end(lab, signal.SIGTERM if self._keep else None)
            for pin in sorted((self.run / "ns").glob("*")):
                with contextlib.suppress(OSError):
                    linux.unmount(str(pin))
            shutil.rmtree(self.directory, ignore_errors=True)
            if self.directory.exists():
                left.append(str(self.directory))
            return left


def _first_line(child: subprocess.Popen[bytes], timeout_s: float) -> str:
    """What the child says first, or nothing."""
    assert child.stdout is not None
    fd, line, deadline = child.stdout.fileno(), b"", time.monotonic() + timeout_s
    while b"\n" not in line and len(line) < MAX_LINE_BYTES:
        if not select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0]:
            break
        data = os.read(fd, 4096)
        if not data:
            break
        line += data
    return line.decode(errors="replace").partition("\n")[0]


def _end(child: subprocess.Popen[bytes], number: signal.Signals | None) -> None:
    """End a child of ours: by this signal, or by itself; killed when it does not."""
    if child.poll() is None:
        if number is not None:
            child.send_signal(number)
        try:
            child.wait(END_PATIENCE_S)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
    for pipe in (child.stdin, child.stdout, child.stderr):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


def _gone(process: _Process) -> bool:
    """Wait for it to end, kill it if it does not, and say whether it is gone."""
    for number, patience_s in (
        (None, END_PATIENCE_S),
        (signal.SIGTERM, KILL_PATIENCE_S),
        (signal.SIGKILL, KILL_PATIENCE_S),
    ):
        if number is not None and process.lives:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)
        deadline = time.monotonic() + patience_s
        while process.lives and time.monotonic() < deadline:
            time.sleep(POLL_S)
    return not process.lives


def _complaint(errors: bytes) -> str:
    """What a tsns said on its standard error: its error line if there is one, else its last line."""
    lines = errors.decode(errors="replace").splitlines() or ["it said nothing"]
    own = [line.removeprefix("error:").strip() for line in lines if line.startswith("error:")]
    return one_line((own or lines)[-1])


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before: Mapping[signal.Signals, Any] = {number: signal.signal(number, signal.SIG_IGN) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def new_token() -> str:
    """A word that nobody else serves."""
    return secrets.token_hex(8)
