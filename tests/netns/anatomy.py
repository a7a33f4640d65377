"""What nodes consist of on this machine, and what is left of them: processes, files, mounts, locks."""

from __future__ import annotations

import contextlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.machine import PrivateDirectories, processes_in
from tsns.node.engine_life import UID_BASE as ENGINE_UID_BASE

PID_MAX: Final = 1 << 22
SERVERS_OWN: Final = (
    "server.log",
    "start",
    "serve-",
)  # what servers leave in the run directory, and the next one uses again


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes of some private directories, by what they are."""

    keepers: dict[str, int]  # by the node's name
    engines: list[int]
    servers: list[int]
    others: list[int]


def status_of(pid: int) -> dict[str, str]:
    """/proc/PID/status; OSError when there is no such process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


def parent_of(pid: int) -> int:
    """The parent process; OSError when there is no such process."""
    return int(status_of(pid)["PPid"])


def keeper_of(directories: PrivateDirectories, name: str) -> int | None:
    """Who holds the node's lock."""
    try:
        inode = os.stat(directories.run / f"{name}.lock").st_ino
    except FileNotFoundError:
        return None
    for line in Path("/proc/locks").read_text().splitlines():
        words = line.split()
        if "FLOCK" in words and "->" not in words and int(words[5].rpartition(":")[2]) == inode:
            return int(words[4])
    return None


def engine_of(keeper: int) -> int | None:
    """The engine that this keeper has now."""
    return next((pid for pid in engines() if _is_child(pid, keeper)), None)


def _is_child(pid: int, parent: int) -> bool:
    try:
        return parent_of(pid) == parent
    except OSError:
        return False


def engines() -> list[int]:
    """Every engine on this machine, known by its uid."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                uid = int(status_of(int(entry))["Uid"].split()[0])
                if ENGINE_UID_BASE < uid <= ENGINE_UID_BASE + PID_MAX:
                    found.append(int(entry))
    return found


def processes(directories: PrivateDirectories) -> Processes:
    """All that is at work in these directories; without what only waits to be reaped."""
    names = [path.stem for path in directories.run.glob("*.lock")]
    keepers = {name: pid for name in names if (pid := keeper_of(directories, name)) is not None}
    found = Processes(keepers, [], [], [])
    all_engines = set(engines())
    for pid, command in processes_in(str(directories.run.parent)).items():
        if pid in keepers.values():
            continue
        if pid in all_engines:
            found.engines.append(pid)
        elif "tsns.node.server" in command and not _is_child_of_ours(pid, directories):
            found.servers.append(pid)
        else:
            found.others.append(pid)
    return found


def _is_child_of_ours(pid: int, directories: PrivateDirectories) -> bool:
    """A server's parent is whoever adopts orphans; what a server or a keeper forked has its command line, too."""
    try:
        command = Path(f"/proc/{parent_of(pid)}/cmdline").read_bytes()
    except OSError:
        return True  # it ended just now
    return str(directories.run).encode() in command


def remains(directories: PrivateDirectories) -> list[str]:
    """What is left of nodes, where none is to be: empty is good. A server may wait for the next."""
    now = processes(directories)
    left = [f"keeper of {name}" for name in now.keepers]
    left += [f"engine {pid}" for pid in now.engines] + [f"process {pid}" for pid in now.others]
    for path in _files(directories.run):
        if path != directories.run / "ns" and not path.name.startswith(SERVERS_OWN):
            left.append(f"file {path.relative_to(directories.run)}")
    mounts = Path("/proc/self/mounts").read_text().splitlines()
    left += [f"mount {place}" for line in mounts if (place := line.split()[1]).startswith(str(directories.run) + "/")]
    return left + [f"a half-written {path}" for path in _files(directories.state) if re.match(r"\..*\.", path.name)]


def _files(directory: Path) -> list[Path]:
    """All below it; what goes while one looks is not there."""
    return [Path(place, name) for place, below, names in os.walk(directory) for name in (*below, *names)]


def identity_of(directories: PrivateDirectories, name: str) -> bytes:
    """The identity of a lasting node, as it is on disk."""
    return (directories.state / name / "identity.json").read_bytes()


def descriptors(pid: int) -> int:
    """How many a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))
