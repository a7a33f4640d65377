"""Where the files of nodes lie (ring 1, standard library only).

RUN/NAME.lock      held by the keeper for life; a kill frees it
RUN/NAME.ctl       SOCK_SEQPACKET: descriptors and waiting messages, for root and the node's owner
RUN/NAME.sock      HTTP: status and ping, for root and the node's owner
RUN/NAME.resolv, RUN/NAME.nsswitch    what a command inside sees as resolv.conf and nsswitch.conf
RUN/NAME.attached  what was done in the namespaces of containers; RUN/NAME.KEY.resolv is what one of them sees as resolv.conf
RUN/NAME.d/        identity and log of a node that is not to last
STATE/NAME/        identity, settings and log of a lasting node
/run/netns/tsns-NAME    the namespace, for the default RUN; else RUN/ns/NAME

RUN is /run/tsns for root; for anybody else $XDG_RUNTIME_DIR/tsns, else /run/user/UID/tsns, else /tmp/tsns-UID. STATE is /var/lib/tsns, or
$XDG_STATE_HOME/tsns. TSNS_RUN_DIR and TSNS_STATE_DIR stand above that.
"""

from __future__ import annotations

import os
import pwd
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
USERS_RUN: Final = Path("/run/user")
RUN_DIRECTORY_MODE: Final = 0o755  # root's: the sockets in it have rights of their own
USERS_RUN_DIRECTORY_MODE: Final = 0o700


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
    attached: Path
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
            attached=self.run / f"{name}.attached",
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
    """The directories that this environment asks for, by default root's or the user's own."""
    run, state = environ.get("TSNS_RUN_DIR"), environ.get("TSNS_STATE_DIR")
    uid = os.geteuid()
    return Places(
        run=Path(run or (DEFAULT_RUN if uid == 0 else _users_run(environ, uid))).absolute(),
        state=Path(state or (DEFAULT_STATE if uid == 0 else _users_state(environ))).absolute(),
    )


def roots_places(environ: Mapping[str, str]) -> Places | None:
    """Where an ordinary user may look for nodes that they made with sudo; None where the environment names other directories."""
    elsewhere = os.geteuid() == 0 or environ.get("TSNS_RUN_DIR") or environ.get("TSNS_STATE_DIR")
    return None if elsewhere else Places(run=DEFAULT_RUN, state=DEFAULT_STATE)


def _users_run(environ: Mapping[str, str], uid: int) -> Path:
    for directory in (Path(environ.get("XDG_RUNTIME_DIR") or USERS_RUN / str(uid)), USERS_RUN / str(uid)):
        try:
            status = directory.stat()
        except OSError:
            continue
        if directory.is_absolute() and stat.S_ISDIR(status.st_mode) and status.st_uid == uid:  # `su` leaves another's
            return directory / "tsns"
    return Path(f"/tmp/tsns-{uid}")  # ours alone, or it is not used: `make_run_directory`


def _users_state(environ: Mapping[str, str]) -> Path:
    base = environ.get("XDG_STATE_HOME", "")
    return (Path(base) if base.startswith("/") else _home(environ) / ".local/state") / "tsns"


def _home(environ: Mapping[str, str]) -> Path:
    try:
        return Path(environ.get("HOME") or pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        return Path("/nonexistent")  # whoever wants to keep something there is told


def make_run_directory(run: Path) -> None:
    """Make the run directory; UserError where somebody else may write in it, or has put something there."""
    mode = RUN_DIRECTORY_MODE if os.geteuid() == 0 else USERS_RUN_DIRECTORY_MODE
    try:
        run.mkdir(mode=mode, parents=True, exist_ok=True)
        status = os.lstat(run)
    except OSError as error:
        raise UserError(f"{run} cannot be made: {error.strerror}", "set TSNS_RUN_DIR to another place") from None
    if not stat.S_ISDIR(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise UserError(f"{run} is not a directory of our own", "remove it, or set TSNS_RUN_DIR to another place")
    if status.st_mode & 0o777 & ~mode:
        run.chmod(mode)
