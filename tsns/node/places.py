"""Where the files of nodes lie (ring 1, standard library only).

RUN/NAME.lock      held by the keeper for life; a kill frees it
RUN/NAME.ctl       SOCK_SEQPACKET: descriptors and waiting messages, for root and the node's owner
RUN/NAME.sock      HTTP: status and ping, for root and the node's owner
RUN/NAME.resolv, RUN/NAME.nsswitch    what a command inside sees as resolv.conf and nsswitch.conf
RUN/NAME.d/        identity and log of a node that is not to last
STATE/NAME/        identity, settings and log of a lasting node
/run/netns/tsns-NAME    the namespace, for the default RUN; else RUN/ns/NAME
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from tsns.error import UsageError, UserError

DEFAULT_RUN: Final = Path("/run/tsns")
DEFAULT_STATE: Final = Path("/var/lib/tsns")
NETNS_DIRECTORY: Final = Path("/run/netns")
NAME_PATTERN: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
RUN_DIRECTORY_MODE: Final = 0o755  # the sockets in it have rights of their own


def check_name(name: str) -> str:
    """The name of a node, which is a DNS label; UsageError where it is none."""
    if not NAME_PATTERN.fullmatch(name):
        raise UsageError(
            f"{name!r} cannot be the name of a node",
            "use 1 to 63 of a-z, 0-9 and hyphen, with no hyphen at either end",
        )
    return name


class NodePlaces(NamedTuple):
    """The files of one node."""

    name: str
    lock: Path
    control: Path
    api: Path
    resolv: Path
    nsswitch: Path
    namespace: Path
    passing: Path
    lasting: Path

    def home(self, *, lasting: bool) -> Path:
        """The directory of its identity and log."""
        return self.lasting if lasting else self.passing


class Places(NamedTuple):
    """The two directories of all nodes."""

    run: Path
    state: Path

    def node(self, name: str) -> NodePlaces:
        """The files of the node of this name; UsageError for what is no name."""
        check_name(name)
        named = NETNS_DIRECTORY / f"tsns-{name}" if self.run == DEFAULT_RUN else self.run / "ns" / name
        return NodePlaces(
            name=name,
            lock=self.run / f"{name}.lock",
            control=self.run / f"{name}.ctl",
            api=self.run / f"{name}.sock",
            resolv=self.run / f"{name}.resolv",
            nsswitch=self.run / f"{name}.nsswitch",
            namespace=named,
            passing=self.run / f"{name}.d",
            lasting=self.state / name,
        )

    def running(self) -> list[str]:
        """The names with a control socket: nodes that run, or ran until they were killed."""
        return sorted(path.stem for path in self.run.glob("*.ctl")) if self.run.is_dir() else []

    def known(self) -> list[str]:
        """The names of lasting nodes, running or not."""
        try:
            return sorted(path.name for path in self.state.iterdir() if (path / "identity.json").exists())
        except (FileNotFoundError, PermissionError):
            return []


def places(environ: Mapping[str, str]) -> Places:
    """The directories that this environment asks for, by default root's."""
    run = Path(environ.get("TSNS_RUN_DIR") or DEFAULT_RUN)
    state = Path(environ.get("TSNS_STATE_DIR") or DEFAULT_STATE)
    return Places(run=run.absolute(), state=state.absolute())


def make_run_directory(run: Path) -> None:
    """Make the run directory; UserError where somebody else may write in it."""
    run.mkdir(mode=RUN_DIRECTORY_MODE, parents=True, exist_ok=True)
    status = os.lstat(run)
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UserError(f"{run} is not a directory of our own", "remove it, or set TSNS_RUN_DIR to another place")
