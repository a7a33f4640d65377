"""An ordinary user's nodes: what root's do, without root, and no more than this user may do anyway."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from tests.machine import PrivateDirectories, patiently
from tests.netns.anatomy import keeper_of, parent_of, remains, status_of
from tests.netns.nodes import LabProcess
from tests.netns.ordinary_user import NO_NAMESPACES, NO_TUN, STRANGER, UID, UserTsns, ordinary_user
from tests.netns.test_run import DOCKER_CAPABILITIES, FETCH, PAGE, SERVER, field_of
from tsns.netns import landlock

pytestmark = pytest.mark.netns

NOBODY: Final = 65534
CAPABILITIES: Final = ("CapInh", "CapPrm", "CapEff", "CapAmb")

# By somebody with the user's uid: argv is the descriptor of the namespace in the keeper, a process inside, the keeper, a file of the user's.
INTRUDER: Final = """
import ctypes, errno, json, os, signal, socket, sys
from tsns.netns import confinement, linux, user_namespace
namespace, inside, keeper, secret = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
parent = os.getpid()
def attempt(what):
    try:
        what()
    except OSError as error:
        return errno.errorcode[error.errno]
    return "allowed"
def trace(pid):
    if ctypes.CDLL(None, use_errno=True).ptrace(16, pid, 0, 0) < 0:
        raise OSError(ctypes.get_errno(), "")
def enter():
    user_namespace.enter(os.open(namespace, os.O_RDONLY))
def connect(address):
    socket.socket(socket.AF_UNIX).connect(address)
def execute():
    os.execv("/bin/true", ["true"])
tries = {
    "entering by the keeper": enter,
    "entering by the command": lambda: user_namespace.enter(os.open(f"/proc/{inside}/ns/net", os.O_RDONLY)),
    "the command's environment": lambda: open(f"/proc/{inside}/environ", "rb").read(),
    "the keeper's memory": lambda: open(f"/proc/{keeper}/mem", "rb").read(1),
    "the keeper's descriptors": lambda: os.readlink(f"/proc/{keeper}/fd/0"),
    "tracing the command": lambda: trace(inside),
}
beyond = {
    "signalling the keeper": lambda: os.kill(keeper, 0),
    "signalling the command": lambda: os.kill(inside, 0),
    "a process of its own": os.fork,
    "a program": execute,
    "a path socket": lambda: connect("/run/tsns-nothing"),
    "an abstract socket": lambda: connect("\\0tsns-nothing"),
    "a new namespace": lambda: linux.unshare(linux.CLONE_NEWUSER),
    "a raw socket": lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP),
    "writing a file": lambda: open("/tmp/tsns-intruder", "w"),
    "removing a file": lambda: os.unlink(secret),
    "a limit of the keeper's": lambda: linux._check(ctypes.CDLL(None, use_errno=True).prlimit(keeper, 0, None, ctypes.create_string_buffer(16)), ""),
    "being root": lambda: linux._check(ctypes.CDLL(None, use_errno=True).prctl(4, 1, 0, 0, 0), ""),
}
files = {"a file of the user's": lambda: open(secret).read(), "the home": lambda: os.listdir(os.path.dirname(secret))}
reading, writing = os.pipe()
def child(confine, tries):
    if os.fork() == 0:
        confine()
        os.write(writing, json.dumps({name: attempt(what) for name, what in tries.items()}).encode() + b"\\n")
        os._exit(0)
    os.wait()
json.dumps(attempt(lambda: os.stat("/nothing")))
child(lambda: None, tries)
child(lambda: user_namespace.make(as_root=True), tries)
child(lambda: confinement.confine(0, parent), {**tries, **beyond, **files})
os.close(writing)
print(json.dumps([json.loads(line) for line in os.fdopen(reading)]))
"""


@pytest.fixture
def user(private_directories: PrivateDirectories, lab: LabProcess) -> Iterator[UserTsns]:
    with ordinary_user(private_directories, lab) as user:
        yield user


def inside(user: UserTsns, name: str, *words: str) -> str:
    """What a command inside a node prints; it must succeed."""
    done = user("exec", name, "--", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def child_of(parent: int) -> int | None:
    """An engine's uid says nothing here: it is its keeper's child."""
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and parent_of(int(entry)) == parent:
                return int(entry)
    return None


def keeper_and_engine(user: UserTsns, name: str) -> tuple[int, int]:
    keeper = keeper_of(user.directories, name)
    assert keeper is not None
    engine = child_of(keeper)
    assert engine is not None
    return keeper, engine


@contextlib.contextmanager
def staying(user: UserTsns, name: str, *words: str) -> Iterator[subprocess.Popen[str]]:
    """A command inside a node that is there until the block ends; it has said its first line."""
    with user.popen("exec", name, "--", *words) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline(), process.communicate()
            yield process
        finally:
            process.kill()
            process.communicate()


SLEEP: Final = ("sh", "-c", "echo $$; exec sleep 60")


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_is_its_callers(user: UserTsns) -> None:
    script = "cat /proc/self/status; id -u; id -g; stat -c %u ~; echo $HOME; echo; ls /proc/self/fd | wc -l; exit 7"
    done = user.run("sh", "-c", script)
    assert done.returncode == 7, done.stderr
    assert field_of(done.stdout, "Uid").split() == [str(UID)] * 4
    assert field_of(done.stdout, "Gid").split() == [str(UID)] * 4
    assert set(field_of(done.stdout, "Groups").split()) == {
        str(UID),
        str(NOBODY),
    }  # the other group is there, and has no name
    assert {int(field_of(done.stdout, name), 16) for name in CAPABILITIES} == {0}
    assert field_of(done.stdout, "NoNewPrivs") == "0"
    assert done.stdout.splitlines()[-6:-2] == [str(UID), str(UID), str(UID), str(user.home)]


@pytest.mark.parametrize(("script", "status"), [("kill -TERM $$", -signal.SIGTERM), ("kill -KILL $$", -signal.SIGKILL)])
def test_its_end_is_its_own(user: UserTsns, script: str, status: int) -> None:
    assert user.run("sh", "-c", script).returncode == status


def test_by_map_root_it_is_root_inside_and_the_user_outside(user: UserTsns) -> None:
    done = user.run("sh", "-c", "id -u; touch ~/made; cat /proc/self/status", flags=("--map-root",))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "0"
    assert field_of(done.stdout, "CapEff") == DOCKER_CAPABILITIES
    assert (user.home / "made").stat().st_uid == UID
    refused = user.run("sh", "-c", "ip link set tsns0 down || umount /etc/resolv.conf", flags=("--map-root",))
    assert refused.returncode != 0


def test_it_cannot_undo_what_keeps_it_inside(user: UserTsns) -> None:
    script = """
for words in "ip link set tsns0 down" "ip route flush table all" "umount /etc/resolv.conf" "umount /sys/class/net" "mount -t tmpfs x /mnt"; do
    $words 2>/dev/null && echo "$words"
done; ls /sys/class/net; cat /etc/resolv.conf"""
    lines = user.run("sh", "-c", script).stdout.split()
    assert lines[:2] == ["lo", "tsns0"]
    assert "100.100.100.100" in lines


def test_nothing_but_the_tailnet_can_be_reached(user: UserTsns) -> None:
    inside = ["ConnectionRefusedError", "OSError", "OSError", "TimeoutError", "['lo', 'tsns0']"]
    assert user.reach() == inside


# --- nodes ---------------------------------------------------------------------------------------------------------


def test_up_exec_and_down(user: UserTsns) -> None:
    user.up("web")
    user.up("db")
    assert user.json("ls")["nodes"][0]["state"] == "running"
    with user.serving("web", SERVER):  # on port 80, for which others need a capability
        addresses = user.json("ip", "web")["addresses"]
        for host in ("web", *(f"[{address}]" if ":" in address else address for address in addresses)):
            assert inside(user, "db", sys.executable, "-c", FETCH, f"http://{host}/") == f"{PAGE}\n"
        assert addresses[0] in inside(user, "db", "getent", "hosts", "web") + " ".join(addresses)
        assert " 0% packet loss" in inside(user, "db", "ping", "-c2", "-i0.2", "-W2", "web")
    status = user.json("status", "web")
    keeper, engine = keeper_and_engine(user, "web")
    assert status["pid"] == engine
    with staying(user, "web", *SLEEP) as command:
        assert os.stat(status["netns"]).st_ino == os.stat(f"/proc/{command.pid}/ns/net").st_ino
        assert [found["id"] for found in user.json("status", "web")["attached"]] == [str(command.pid)]
    assert user("down", "web").returncode == 0
    assert user.json("status", "db")["state"] == "running"
    assert status_of(keeper_and_engine(user, "db")[0])["Uid"].split() == [str(UID)] * 4
    assert user("rm", "web", "db").returncode == 0
    assert patiently(lambda: remains(user.directories)) == []
    assert not Path(f"/proc/{keeper}").exists()


def test_the_demo(user: UserTsns) -> None:
    done = user("demo", "--json", timeout_s=90.0)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_login_is_the_owners_to_change(user: UserTsns) -> None:
    user.up("web")
    assert user("logout", "web").returncode == 0
    done = user("login", "web", "--auth-key", user.lab.auth_key)
    assert done.returncode == 0, done.stderr


def test_who_one_is_inside_is_decided_at_the_start(user: UserTsns) -> None:
    user.up("web", "--map-root")
    assert inside(user, "web", "id", "-u") == "0\n"
    done = user("up", "web", "--no-map-root")
    assert done.returncode == 1
    assert "--map-root is for its start" in done.stderr
    assert user("down", "web").returncode == 0
    user.up("web", "--no-map-root")
    assert inside(user, "web", "id", "-u") == f"{UID}\n"


def test_an_engine_that_is_killed_costs_no_packet(user: UserTsns) -> None:
    user.up("web")
    user.up("db")
    with user.popen("exec", "db", "--", "ping", "-c40", "-i0.05", "-W3", "web") as ping:
        time.sleep(0.7)
        _, engine = keeper_and_engine(user, "db")
        os.kill(engine, signal.SIGKILL)
        output, _ = ping.communicate(timeout=20)
    assert " 0% packet loss" in output
    assert keeper_and_engine(user, "db")[1] != engine


def test_with_the_keeper_dead_the_command_is_alone_until_another_adopts_it(user: UserTsns) -> None:
    user.up("web")
    user.up("db")
    with staying(user, "web", *SLEEP) as command:
        keeper, engine = keeper_and_engine(user, "web")
        os.kill(keeper, signal.SIGKILL)
        assert patiently(lambda: [pid for pid in (keeper, engine) if Path(f"/proc/{pid}").exists()]) == []
        links = ["nsenter", "--net", f"--target={command.pid}", "ls", "/proc/self/net/dev_snmp6"]
        namespace = os.stat(f"/proc/{command.pid}/ns/net").st_ino
        assert patiently(lambda: [name for name in said(links) if name != "lo"]) == []
        done = user("up", "web")
        assert done.returncode == 0, done.stderr
        assert "tsns0" in said(links)
        assert os.stat(user.json("status", "web")["netns"]).st_ino == namespace
        assert " 0% packet loss" in inside(user, "web", "ping", "-c1", "-W3", "db")


def said(words: list[str]) -> list[str]:
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.split()


@pytest.mark.parametrize("victim", ["keeper", "engine", "client", "server"])
def test_nothing_is_left_of_what_is_killed(user: UserTsns, victim: str) -> None:
    login = ("--login-server", user.lab.url, "--auth-key", user.lab.ephemeral_auth_key)
    with user.popen("run", *login, "--", "sh", "-c", "echo inside; sleep 1") as client:
        assert client.stdout is not None
        assert client.stdout.readline() == "inside\n"
        [name] = [path.stem for path in user.directories.run.glob("run-*.lock")]
        keeper, engine = keeper_and_engine(user, name)
        pid = {"keeper": keeper, "engine": engine, "client": client.pid, "server": parent_of(keeper)}[victim]
        os.kill(pid, signal.SIGKILL)
        client.communicate(timeout=20)
    if victim == "server":
        assert user("ls").returncode == 0
    assert patiently(lambda: remains(user.directories)) == []


# --- others --------------------------------------------------------------------------------------------------------


def test_another_user_reaches_nothing(user: UserTsns) -> None:
    user.up("web")
    netns = user.json("status", "web")["netns"]
    script = f"""
import os, socket
for what in (lambda: socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).connect("{user.directories.run}/web.ctl"),
             lambda: socket.socket(socket.AF_UNIX).connect("{user.directories.run}/web.sock"),
             lambda: os.listdir("{user.directories.state}"), lambda: os.open("{netns}", os.O_RDONLY)):
    try: what(); print("reached")
    except OSError as error: print(type(error).__name__)
"""
    words = [
        "setpriv",
        f"--reuid={STRANGER}",
        f"--regid={STRANGER}",
        "--clear-groups",
        "/usr/bin/python3",
        "-c",
        script,
    ]
    assert said(words) == ["PermissionError"] * 4
    with contextlib.suppress(PermissionError):
        for name in ("web.ctl", "web.sock"):
            (user.directories.run / name).chmod(0o666)
        user.directories.run.chmod(0o755)
        user.directories.run.parent.chmod(0o755)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:  # root is somebody else, too
        client.connect(str(user.directories.run / "web.ctl"))
        client.settimeout(5)
        with contextlib.suppress(ConnectionError):
            client.send(b'{"ask": "stop"}')
            assert client.recv(100) == b""
    assert user.json("status", "web")["state"] == "running"


def test_an_engine_is_apart_from_all_else_of_its_user(user: UserTsns) -> None:
    user.up("web")
    keeper, engine = keeper_and_engine(user, "web")
    secret = user.home / "secret"
    secret.write_text("of the user's")
    os.chown(secret, UID, UID)
    with staying(user, "web", *SLEEP) as command:
        worlds = {pid: os.stat(f"/proc/{pid}/ns/user").st_ino for pid in (keeper, engine, command.pid)}
        assert len(set(worlds.values())) == 3
        status = status_of(engine)
        assert {int(status[name], 16) for name in (*CAPABILITIES, "CapBnd")} == {0}
        assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", "2")
        assert os.stat(f"/proc/{engine}/mem").st_uid == 0  # it is not dumpable
        words = user.as_user(
            sys.executable,
            "-c",
            INTRUDER,
            user.json("status", "web")["netns"],
            str(command.pid),
            str(keeper),
            str(secret),
        )
        done = subprocess.run(words, capture_output=True, text=True, timeout=30, env=user.environ, check=False)
        assert not done.stderr, done.stderr
        plain, apart, confined = json.loads(done.stdout)
    assert plain["entering by the keeper"] == "allowed"  # which is why an engine is not just a process of its user's
    assert {name: why for name, why in apart.items() if why not in {"EACCES", "EPERM"}} == {}
    files = {"a file of the user's", "the home"} if not landlock.version() else set()
    assert {name: why for name, why in confined.items() if why not in {"EACCES", "EPERM"} and name not in files} == {}
    assert secret.exists()


# --- machines that forbid it ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("machine", "told", "remedy"),
    [
        (NO_NAMESPACES, "user.max_user_namespaces is 0", "sudo sysctl user.max_user_namespaces="),
        (NO_TUN, "/dev/net/tun may not be opened by ordinary users", "sudo chmod 0666 /dev/net/tun"),
    ],
)
def test_a_machine_that_forbids_it(
    private_directories: PrivateDirectories, lab: LabProcess, machine: str, told: str, remedy: str
) -> None:
    with ordinary_user(private_directories, lab, machine) as user:
        done = user.run("true", flags=("--quiet",))
        assert done.returncode == 125
        error, hint = done.stderr.splitlines()
        assert told in error
        assert remedy in hint
        assert patiently(lambda: remains(user.directories)) == []


def test_a_run_directory_of_somebody_elses_is_not_used(user: UserTsns) -> None:
    user.directories.run.mkdir()
    done = user.run("true")
    assert done.returncode == 125
    assert "not a directory of our own" in done.stderr
