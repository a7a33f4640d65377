"""An ordinary user of this machine, for tests: a uid that nobody has, a home, and the machine as they are to see it.

The user's processes live in a mount namespace of the test's own, in which /dev/net/tun has the mode that the test wants and the program is
within reach wherever it lies. `python -m tests.netns.ordinary_user` (as root) makes that namespace and holds it until its input ends; with
`enter PID UID -- COMMAND` it becomes the command, as that user, in the namespace that PID holds.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.machine import PrivateDirectories
from tests.netns.nodes import LabProcess, Tsns
from tsns.netns import linux, tun

ROOT: Final = Path(__file__).parents[2]
UID: Final = 58_231
STRANGER: Final = 58_232
TUN_DEVICE: Final = os.makedev(10, 200)
EXTRA_GROUP: Final = 100
NO_NAMESPACES: Final = "no-namespaces"  # of what a machine can be like
NO_TUN: Final = "no-tun"


@dataclass(frozen=True, slots=True)
class UserTsns(Tsns):
    """The command line, as an ordinary user types it."""

    holder: int = 0
    uid: int = UID
    home: Path = field(default_factory=Path)

    def command(self, *words: str) -> list[str]:
        """What root executes for these words."""
        return self.as_user(sys.executable, "-m", "tsns", *words)

    def as_user(self, *words: str) -> list[str]:
        """What root executes to have this user execute it."""
        return [sys.executable, "-m", "tests.netns.ordinary_user", "enter", str(self.holder), str(self.uid), *words]

    @property
    def environ(self) -> dict[str, str]:
        """The user's environment: no variables of tsns's own, as with any person."""
        kept = {
            key: value for key, value in os.environ.items() if not key.startswith(("TS_", "TSNS_", "SUDO_", "XDG_"))
        }
        return {
            **kept,
            "HOME": str(self.home),
            "XDG_RUNTIME_DIR": str(self.directories.run.parent),
            "PYTHONPATH": str(ROOT),
            **self.environment,
        }


@contextmanager
def ordinary_user(directories: PrivateDirectories, lab: LabProcess, machine: str = "") -> Iterator[UserTsns]:
    """A user on such a machine; afterwards their nodes and server are ended."""
    base = directories.run.parent
    base.chmod(0o755)
    home, runtime = base / "home", base / "runtime"
    for directory in (home, runtime):
        directory.mkdir(mode=0o700)
        os.chown(directory, UID, UID)
    own = PrivateDirectories(runtime / "tsns", home / ".local" / "state" / "tsns")
    words = [sys.executable, "-m", "tests.netns.ordinary_user", "hold", machine]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout is not None
        assert holder.stdin is not None
        user = UserTsns(own, lab, holder=int(holder.stdout.readline()), home=home)
        try:
            yield user
        finally:
            user("down", "--all")
            user("serve", "--stop")
            holder.stdin.close()
            holder.wait(10)


def _hold(machine: str) -> None:
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", linux.MS_REC | linux.MS_SLAVE)
    _uncover([ROOT, Path(sys.prefix), Path(sys.base_prefix)])
    _offer_tun(0o600 if machine == NO_TUN else 0o666)
    if machine == NO_NAMESPACES:
        _forbid_namespaces()
    print(os.getpid(), flush=True)  # noqa: T201
    sys.stdin.read()


def _forbid_namespaces() -> None:
    """Go on in a user namespace with everybody in it and none below it: that limit is each one's own."""
    (unshared, done), parent = os.pipe(), os.getpid()
    writer = os.fork()
    if writer == 0:  # only from outside may everybody be mapped
        os.read(unshared, 1)
        for name in ("uid_map", "gid_map"):
            Path(f"/proc/{parent}", name).write_text("0 0 4294967295")
        os._exit(0)
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    os.write(done, b".")
    os.waitpid(writer, 0)
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def _offer_tun(mode: int) -> None:
    """A device of this mode over the machine's own, which stays as it is."""
    linux.mount("tmpfs", "/mnt", 0, kind="tmpfs")
    device = "/mnt/tun"
    os.mknod(device, stat.S_IFCHR | mode, TUN_DEVICE)
    os.chmod(device, mode)  # whatever the mask is
    linux.mount(device, tun.TUN_PATH, linux.MS_BIND)
    linux.unmount("/mnt")


def _uncover(wanted: list[Path]) -> None:
    """Put these directories within everybody's reach: what is above them may be root's alone."""
    opened = {path: os.open(path, os.O_PATH | os.O_DIRECTORY) for path in wanted}
    closed = {above for path in wanted for above in path.parents if not above.stat().st_mode & 0o001}
    for above in closed:
        if not closed & set(above.parents):
            linux.mount("tmpfs", str(above), 0, kind="tmpfs", options="mode=0755")
    for path, fd in sorted(opened.items()):
        if closed & set(path.parents):
            path.mkdir(parents=True, exist_ok=True)
            linux.mount(f"/proc/self/fd/{fd}", str(path), linux.MS_BIND | linux.MS_REC)
        os.close(fd)


def _enter(holder: int, uid: int, command: list[str]) -> None:
    namespaces: dict[str, Any] = {"user": linux.CLONE_NEWUSER, "mnt": linux.CLONE_NEWNS}
    for kind, flag in namespaces.items():
        path = f"/proc/{holder}/ns/{kind}"
        if os.stat(path).st_ino != os.stat(f"/proc/self/ns/{kind}").st_ino:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            linux.setns(fd, flag)
            os.close(fd)
    os.chdir("/")
    linux.become(uid, uid, [uid, EXTRA_GROUP])
    os.execvp(command[0], command)


if __name__ == "__main__":
    if sys.argv[1] == "hold":
        _hold(sys.argv[2])
    else:
        _enter(int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
