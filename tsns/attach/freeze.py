"""Nothing in a container runs while it is being attached: its control group is frozen (ring 2).

Source: the kernel's cgroup-v2.rst (`cgroup.freeze`) and freezer-subsystem.rst of version 1 (`freezer.state`). A helper thaws it when its
input ends, which our own end brings about as well, however that comes.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tsns.error import UserError

ROOT: Final = Path("/sys/fs/cgroup")
FREEZING_S: Final = 2.0
POLL_S: Final = 0.002
_THAW: Final = 'read -r _; echo "$1" > "$2"'


class Freezer(NamedTuple):
    """The file that freezes one control group, and its words."""

    file: Path
    frozen: str
    thawed: str
    state: Path  # which says when it has come about
    done: str

    def is_frozen(self) -> bool:
        """Whether nothing in it runs."""
        return self.done in self.state.read_text().split("\n")


@contextlib.contextmanager
def frozen(pid: int) -> Iterator[None]:
    """Freeze the control group of this process. One that is frozen already stays so. UserError where it cannot be."""
    freezer = find(pid)
    if freezer.is_frozen():
        yield
        return
    with subprocess.Popen(
        ["/bin/sh", "-c", _THAW, "sh", freezer.thawed, str(freezer.file)], stdin=subprocess.PIPE, start_new_session=True
    ) as thawing:
        assert thawing.stdin is not None
        try:
            freezer.file.write_text(freezer.frozen)
            until = time.monotonic() + FREEZING_S
            while not freezer.is_frozen():
                if time.monotonic() > until:
                    raise UserError("the container cannot be paused", "attach it without --pause")
                time.sleep(POLL_S)
            yield
        except OSError as error:
            raise UserError(f"the container cannot be paused: {error}", "attach it without --pause") from None
        finally:
            thawing.stdin.close()


def find(pid: int, proc: Path = Path("/proc"), root: Path = ROOT) -> Freezer:
    """The freezer of a process's control group, if that is not ours as well. UserError where there is none."""
    groups, own = (_groups(proc / who / "cgroup") for who in (str(pid), "self"))
    for name, place in (("freezer", root / "freezer"), ("", root), ("", root / "unified")):
        group = groups.get(name)
        ours = own.get(name, "")
        if not group or group in {"/", ours} or ours.startswith(f"{group}/"):
            continue
        directory = place / group.lstrip("/")
        if name and (directory / "freezer.state").exists():
            file = directory / "freezer.state"
            return Freezer(file, "FROZEN", "THAWED", file, "FROZEN")
        if not name and (directory / "cgroup.freeze").exists():
            return Freezer(directory / "cgroup.freeze", "1", "0", directory / "cgroup.events", "frozen 1")
    raise UserError("the container has no control group of its own that could be paused", "attach it without --pause")


def _groups(file: Path) -> dict[str, str]:
    """The control group of a process by controller; by "" that of version 2 (cgroups(7))."""
    try:
        lines = file.read_text().splitlines()
    except OSError:
        return {}
    found: dict[str, str] = {}
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        for controller in controllers.split(","):
            found[controller] = group
    return found
