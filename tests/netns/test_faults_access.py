"""Other users of this machine: nobody reaches a node that is not theirs, and sudo's caller may look at theirs, not end it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import pytest

from tests.netns.nodes import Tsns

pytestmark = pytest.mark.netns

OWNER: Final = 1
STRANGER: Final = 65534
# Both are asked as that user: the API, and the control socket for its answer to a `stop`. argv: uid, run directory.
VISITOR: Final = """
import json, os, socket, sys
uid, run = int(sys.argv[1]), sys.argv[2]
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
def ask(path, kind, request):
    sock = socket.socket(socket.AF_UNIX, kind)
    sock.settimeout(3)
    try:
        sock.connect(path)
        sock.sendall(request)
        return sock.recv(65536).decode(errors="replace").partition("\\r\\n")[0]
    except OSError as error:
        return type(error).__name__
print(json.dumps({
    "api": ask(f"{run}/web.sock", socket.SOCK_STREAM, b"GET /tsns/v1/status HTTP/1.1\\r\\nHost: t\\r\\nConnection: close\\r\\n\\r\\n"),
    "control": ask(f"{run}/web.ctl", socket.SOCK_SEQPACKET, b'{"ask": "stop"}'),
}))
"""
# First as root, which loads all modules: the interpreter's own files may be root's.
CLI: Final = """
import contextlib, io, os, sys
import tsns.__main__, tsns.cli.enter
with contextlib.redirect_stdout(io.StringIO()):
    tsns.__main__.main(["status", "web"])
uid = int(sys.argv[1])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
sys.argv = ["tsns", *sys.argv[2:]]
sys.exit(tsns.__main__.main())
"""


def visit(tsns: Tsns, uid: int) -> Any:
    """What the sockets say to this user."""
    tsns.directories.run.parent.chmod(0o755)
    words = [sys.executable, "-c", VISITOR, str(uid), str(tsns.directories.run)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=30, check=True)
    return json.loads(done.stdout)


def as_user(tsns: Tsns, uid: int, *words: str) -> subprocess.CompletedProcess[str]:
    """The command line, as this user."""
    return subprocess.run(
        [sys.executable, "-c", CLI, str(uid), *words],
        capture_output=True,
        text=True,
        timeout=30,
        env=tsns.environ,
        check=False,
    )


def up_through_sudo(tsns: Tsns) -> None:
    """A node that somebody made with sudo."""
    replace(tsns, environment={"SUDO_UID": str(OWNER), "SUDO_GID": str(OWNER)}).up("web")


def test_a_stranger_reaches_neither_socket(tsns: Tsns) -> None:
    up_through_sudo(tsns)
    assert visit(tsns, STRANGER) == {"api": "PermissionError", "control": "PermissionError"}
    assert tsns("exec", "web", "--", "true").returncode == 0


def test_sudos_caller_may_look_and_nothing_else(tsns: Tsns) -> None:
    up_through_sudo(tsns)
    assert visit(tsns, OWNER) == {"api": "HTTP/1.1 200 ", "control": "PermissionError"}
    done = as_user(tsns, OWNER, "status", "web", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["state"] == "running"
    for words in (("down", "web"), ("exec", "web", "--", "true")):
        refused = as_user(tsns, OWNER, *words)
        assert refused.returncode != 0
        assert "sudo" in refused.stderr
    assert tsns("exec", "web", "--", "true").returncode == 0


def test_without_sudo_a_node_is_roots_alone(tsns: Tsns) -> None:
    tsns.up("web")
    assert visit(tsns, OWNER) == {"api": "PermissionError", "control": "PermissionError"}
    refused = as_user(tsns, OWNER, "status", "web")
    assert refused.returncode != 0
    assert "sudo" in refused.stderr


def test_with_the_modes_gone_wrong_the_uid_still_decides(tsns: Tsns) -> None:
    """The mode of a socket is one barrier, who is at the other end is the second."""
    up_through_sudo(tsns)
    for name in ("web.sock", "web.ctl"):
        (tsns.directories.run / name).chmod(0o666)
    turned_away = {"", "ConnectionResetError", "BrokenPipeError"}
    stranger = visit(tsns, STRANGER)
    assert set(stranger.values()) <= turned_away
    owner = visit(tsns, OWNER)
    assert owner["api"].startswith("HTTP/1.1 200")
    assert owner["control"] in turned_away
    for server in Path(tsns.directories.run).glob("serve-*"):
        server.chmod(0o666)
    assert tsns("exec", "web", "--", "true").returncode == 0


def test_a_run_directory_of_somebody_else_is_not_used(tsns: Tsns) -> None:
    tsns.directories.run.mkdir(parents=True, mode=0o755)
    os.chown(tsns.directories.run, STRANGER, STRANGER)
    done = tsns("up", "web", *tsns.lab.login)
    assert done.returncode == 1
    assert "not a directory of our own" in done.stderr
    assert list(tsns.directories.run.iterdir()) == []
