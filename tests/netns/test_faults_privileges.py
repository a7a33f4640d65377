"""What each process may do: the engine nothing but its work, the command just what its caller could do without tsns."""

from __future__ import annotations

import json
import os
import pwd
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from tests.netns.anatomy import engine_of, keeper_of, status_of
from tests.netns.nodes import Tsns

pytestmark = pytest.mark.netns

RIGHTS: Final = ("Uid", "Gid", "Groups", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp")
UNCHANGED: Final = ("NoNewPrivs", "Seccomp", "SigBlk", "SigIgn", "SigPnd", "ShdPnd", "Umask", "Uid", "Gid")
SUDO_CALLER: Final = pwd.getpwnam("daemon")
LOOK: Final = """
import json, os, resource
links = {fd: os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")}
status = dict(line.split(":", 1) for line in open("/proc/self/status") if ":" in line)
limits = [resource.getrlimit(kind) for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_CORE, resource.RLIMIT_NPROC)]
print(json.dumps({"links": links, "status": status, "limits": limits, "cwd": os.getcwd(), "pgid": os.getpgid(0) == os.getpid(),
                  "nice": os.nice(0), "session": os.getsid(0), "parent": os.getppid(), "environment": dict(os.environ)}))
"""

# What an engine could try, by somebody with exactly its rights: argv is the keeper's pid, its engine's, another engine's, the pin.
INTRUDER: Final = """
import ctypes, errno, json, os, socket, sys
from tsns.netns import confinement, linux, tun
from tsns.node.engine_life import UID_BASE as ENGINE_UID_BASE
keeper, engine, other, pin = (int(word) if word.isdigit() else word for word in sys.argv[1:])
parent = os.getpid()
reading, writing = os.pipe()
if os.fork() == 0:
    confinement.confine(ENGINE_UID_BASE + keeper, parent)
    def attempt(what):
        try:
            what()
        except OSError as error:
            return errno.errorcode[error.errno]
        return "allowed"
    def trace(pid):
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.ptrace(16, pid, 0, 0) < 0:
            raise OSError(ctypes.get_errno(), "")
    tries = {
        "keeper's memory": lambda: open(f"/proc/{keeper}/mem", "rb"),
        "its engine's memory": lambda: open(f"/proc/{engine}/mem", "rb"),
        "another engine's memory": lambda: open(f"/proc/{other}/mem", "rb"),
        "keeper's environment": lambda: open(f"/proc/{keeper}/environ", "rb"),
        "another engine's descriptors": lambda: os.listdir(f"/proc/{other}/fd"),
        "tracing the keeper": lambda: trace(keeper),
        "tracing another engine": lambda: trace(other),
        "signalling the keeper": lambda: os.kill(keeper, 0),
        "signalling another engine": lambda: os.kill(other, 0),
        "entering its namespace": lambda: linux.setns(os.open(pin, os.O_RDONLY), linux.CLONE_NEWNET),
        "a new namespace": lambda: linux.unshare(linux.CLONE_NEWNET),
        "mounting": lambda: linux.mount("none", "/mnt", 0, kind="tmpfs"),
        "root again": lambda: os.setuid(0),
        "a process of its own": os.fork,
        "another program": lambda: os.execv("/bin/true", ["true"]),
        "a Unix socket": lambda: socket.socket(socket.AF_UNIX),
        "a packet socket": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM),
        "writing a file": lambda: open("/tmp/tsns-engine-was-here", "w"),
        "a directory": lambda: os.mkdir("/tmp/tsns-engine-was-here"),
        "being dumped": lambda: linux._check(linux._prctl(4, 1), ""),
        "a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
        "a TUN": tun.open_tun,
        "the state directory": lambda: os.listdir(os.environ["TSNS_STATE_DIR"]),
    }
    status = dict(line.split(":", 1) for line in open("/proc/self/status"))
    os.write(writing, json.dumps({"status": status, "tries": {name: attempt(what) for name, what in tries.items()}}).encode())
    os._exit(0)
os.close(writing)
os.wait()
print(os.read(reading, 100_000).decode())
"""


def rights(pid: int) -> dict[str, str]:
    """What the kernel lets a process do."""
    status = status_of(pid)
    return {name: " ".join(status[name].split()) for name in RIGHTS}


def look(words: list[str], tsns: Tsns, fd: int) -> Any:
    """What a command sees of itself, with one more descriptor than usual."""
    done = subprocess.run(
        words, capture_output=True, text=True, timeout=30, env=tsns.environ, pass_fds=[fd], check=False, umask=0o027
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_command_is_what_it_would_be_without_us(tsns: Tsns) -> None:
    tsns.up("web")
    own = os.memfd_create("the caller's own", 0)
    try:
        plain = look([sys.executable, "-c", LOOK], tsns, own)
        inside = look(tsns.command("exec", "web", "--", sys.executable, "-c", LOOK), tsns, own)
    finally:
        os.close(own)
    kinds = [{fd: to.partition(":")[0] for fd, to in seen["links"].items()} for seen in (plain, inside)]
    assert kinds[0] == kinds[1]
    assert "/memfd:the caller's own (deleted)" in inside["links"].values()
    assert [plain["status"][name] for name in UNCHANGED] == [inside["status"][name] for name in UNCHANGED]
    for name in ("limits", "cwd", "pgid", "nice", "session", "parent", "environment"):
        assert plain[name] == inside[name], name


def test_through_sudo_the_command_has_the_callers_groups(tsns: Tsns) -> None:
    by_sudo = replace(tsns, environment={"SUDO_UID": str(SUDO_CALLER.pw_uid), "SUDO_GID": str(SUDO_CALLER.pw_gid)})
    script = "cat /proc/self/status; echo HOME=$HOME"
    done = by_sudo.run("sh", "-c", script)
    assert done.returncode == 0, done.stderr
    status = {name: value.strip() for name, _, value in (line.partition(":") for line in done.stdout.splitlines())}
    groups = sorted(os.getgrouplist(SUDO_CALLER.pw_name, SUDO_CALLER.pw_gid))
    assert sorted(map(int, status["Groups"].split())) == groups
    assert status["Uid"].split() == [str(SUDO_CALLER.pw_uid)] * 4
    assert status["Gid"].split() == [str(SUDO_CALLER.pw_gid)] * 4
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {0}
    assert f"HOME={SUDO_CALLER.pw_dir}" in done.stdout


def test_sudo_works_inside_for_whom_it_works_outside(tsns: Tsns) -> None:
    """no_new_privs would end it: shown with a program of our own that is root's and setuid."""
    identify = tsns.directories.run.parent / "id"
    shutil.copy("/usr/bin/id", identify)
    identify.chmod(0o4755)
    tsns.directories.run.parent.chmod(0o755)
    by_sudo = replace(tsns, environment={"SUDO_UID": str(SUDO_CALLER.pw_uid), "SUDO_GID": str(SUDO_CALLER.pw_gid)})
    done = by_sudo.run(str(identify), "-u")
    assert (done.returncode, done.stdout) == (0, "0\n"), done.stderr
    assert by_sudo.run("id", "-u").stdout == f"{SUDO_CALLER.pw_uid}\n"


def test_an_engine_can_do_nothing_but_its_work(tsns: Tsns) -> None:
    tsns.up("web")
    tsns.up("other")
    keeper, another = keeper_of(tsns.directories, "web"), keeper_of(tsns.directories, "other")
    assert keeper is not None
    assert another is not None
    engine, other = engine_of(keeper), engine_of(another)
    assert engine is not None
    assert other is not None
    words = [sys.executable, "-c", INTRUDER, str(keeper), str(engine), str(other), tsns.json("status", "web")["netns"]]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, env=tsns.environ, check=False)
    assert not done.stderr, done.stderr
    answer = json.loads(done.stdout)
    intruder = {name: " ".join(answer["status"][name].split()) for name in RIGHTS}
    assert intruder == rights(engine)  # so what it may not do, the engine may not
    assert {name: why for name, why in answer["tries"].items() if why not in {"EACCES", "EPERM"}} == {}
    for pid in (engine, other):
        assert os.stat(f"/proc/{pid}/mem").st_uid == 0  # not its own: it is not dumpable
        core = next(line for line in Path(f"/proc/{pid}/limits").read_text().splitlines() if "core file" in line)
        assert core.split()[4:6] == ["0", "0"]
    assert rights(engine)["Uid"] != rights(other)["Uid"]


def test_an_engine_has_no_descriptor_of_its_keepers(tsns: Tsns) -> None:
    tsns.up("web")
    keeper = keeper_of(tsns.directories, "web")
    assert keeper is not None
    engine = engine_of(keeper)
    links = [os.readlink(f"/proc/{engine}/fd/{fd}") for fd in os.listdir(f"/proc/{engine}/fd")]
    assert "/dev/net/tun" in links
    assert [link for link in links if str(tsns.directories.run.parent) in link or link.startswith("net:")] == []
