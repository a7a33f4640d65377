"""What tests have on this machine: private directories for nodes, and a look at everything that nodes are made of."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from tests.interop.rig.internet import NAME_PREFIX

DIRECTORY_PREFIX: Final = f"tsns-test-{os.getpid()}-"  # of every private directory; short, for the sockets in it
PATIENCE_S: Final = 10.0  # how long what was stopped may take to be gone
POLL_S: Final = 0.1
PROCESS_FILES: Final = ("cmdline", "environ")

Left = TypeVar("Left", bound=Sized)


@dataclass(frozen=True, slots=True)
class PrivateDirectories:
    """Where a test's own nodes live, apart from any others on this machine."""

    run: Path
    state: Path

    @property
    def environment(self) -> dict[str, str]:
        """The two variables that lead tsns there."""
        return {"TSNS_RUN_DIR": str(self.run), "TSNS_STATE_DIR": str(self.state)}


@contextlib.contextmanager
def new_private_directories() -> Iterator[PrivateDirectories]:
    """Fresh run and state directories, removed afterwards; AssertionError when a process or a mount is left in them."""
    base = Path(tempfile.mkdtemp(prefix=DIRECTORY_PREFIX))
    try:
        yield PrivateDirectories(base / "run", base / "state")
        left = patiently(lambda: _left_in(str(base)))
        assert not left, f"left in the private directories: {', '.join(left)}"
    finally:
        for pid in processes_in(str(base)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for place in sorted((place for place in _mounts() if place.startswith(str(base))), reverse=True):
            subprocess.run(["umount", "--lazy", place], capture_output=True, check=False)
        shutil.rmtree(base, ignore_errors=True)


def _left_in(directory: str) -> list[str]:
    processes = [f"process {pid} ({command})" for pid, command in processes_in(directory).items()]
    return processes + [f"mount {place}" for place in _mounts() if place.startswith(directory)]


def processes_in(directory: str) -> dict[int, str]:
    """The processes (and their command lines) that name this directory, are in it or hold a file of it."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                if _is_at_work_in(entry, directory):
                    found[int(entry.name)] = entry.joinpath("cmdline").read_bytes().replace(b"\0", b" ").decode()
    return found


def _is_at_work_in(process: Path, directory: str) -> bool:
    if any(directory.encode() in process.joinpath(name).read_bytes() for name in PROCESS_FILES):
        return True
    links = [process / "cwd", *process.joinpath("fd").iterdir()]
    return any(_target(link).startswith(directory) for link in links)


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def ours() -> set[str]:
    """Everything on this machine that nodes and test hosts are made of, as words for a person."""
    return {
        *(f"namespace {name}" for name in _names_in("/run/netns") if name.startswith(("tsns-", NAME_PREFIX))),
        *(f"/run/tsns/{name}" for name in _names_in("/run/tsns")),
        *(f"link {name}" for name in _names_in("/sys/class/net") if name.startswith(("tsns", "tailscale"))),
        *_left_in(str(Path(tempfile.gettempdir(), DIRECTORY_PREFIX))),
    }


def _names_in(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _mounts() -> list[str]:
    with open("/proc/self/mounts", encoding="utf-8", errors="surrogateescape") as mounts:
        return [line.split(" ")[1] for line in mounts]


def patiently(look: Callable[[], Left]) -> Left:
    """What `look` still finds after the last second of patience; nothing as soon as it finds nothing."""
    deadline = time.monotonic() + PATIENCE_S
    while (left := look()) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left
