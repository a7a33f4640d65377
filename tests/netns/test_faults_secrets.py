"""No secret in any argument, environment, log or answer, and no file or socket that others may read."""

from __future__ import annotations

import contextlib
import json
import os
import stat
import subprocess
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.netns.anatomy import engines, identity_of, processes
from tests.netns.nodes import Tsns

pytestmark = pytest.mark.netns

POLL_S: Final = 0.002
READABLE: Final = {".resolv", ".nsswitch"}  # a command of any user has them as its resolver files


def wrong_modes(tsns: Tsns) -> set[str]:
    """Files, sockets and directories that somebody else could use."""
    wrong = set()
    for base in (tsns.directories.run, tsns.directories.state):
        for path in (base, *base.rglob("*")):
            with contextlib.suppress(FileNotFoundError):
                status = path.lstat()
                mode = stat.S_IMODE(status.st_mode)
                if stat.S_ISDIR(status.st_mode):
                    public = path in {tsns.directories.run, tsns.directories.run / "ns"}
                    allowed = 0o755 if public else 0o700
                elif path.parent == tsns.directories.run / "ns":
                    allowed = 0o644  # a namespace in the file system is 0444, and only root can enter; before that it is a file of ours
                else:
                    allowed = 0o644 if path.suffix in READABLE else 0o600
                if mode & ~allowed or status.st_uid != os.geteuid():
                    wrong.add(f"{path.name}: {mode:04o}, uid {status.st_uid}")
    return wrong


def test_nobody_else_can_use_a_file_at_any_moment(tsns: Tsns) -> None:
    tsns.directories.state.mkdir(parents=True, mode=0o700)
    found: set[str] = set()
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            found.update(wrong_modes(tsns))
            time.sleep(POLL_S)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        before = os.umask(0)  # whatever the caller's is
        tsns.up("web")
        assert tsns.run("true").returncode == 0
        assert tsns("up", "web", "--shields-up").returncode == 0
        tsns("down", "web")
    finally:
        os.umask(before)
        over.set()
        watcher.join()
    assert found == set()


def everything_said(tsns: Tsns) -> str:
    """Arguments and environments of all processes of ours, all logs, all answers."""
    now = processes(tsns.directories)
    ours = {*now.keepers.values(), *now.engines, *now.servers, *now.others, *engines()}
    texts = []
    for pid in ours:
        for name in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                texts.append(Path(f"/proc/{pid}/{name}").read_bytes().decode(errors="replace"))
    for base in (tsns.directories.run, tsns.directories.state):
        texts += [path.read_text(errors="replace") for path in base.rglob("*log*") if path.is_file()]
    for words in (("status", "web", "--json"), ("ls", "--json"), ("logs", "web"), ("status", "web", "-vv")):
        done = tsns(*words)
        texts.append(done.stdout + done.stderr)
    return "\n".join(texts)


def test_no_secret_is_said_anywhere(tsns: Tsns) -> None:
    key_file = tsns.directories.run.parent / "key"
    key_file.write_text(tsns.lab.auth_key)
    login = ("--login-server", tsns.lab.url, "--auth-key", f"file:{key_file}")
    said = []
    by_environment = replace(tsns, environment={"TS_AUTHKEY": tsns.lab.auth_key})
    for client, words in (
        (tsns, ("up", "web", *login, "-vv")),
        (by_environment, ("up", "web", "--login-server", tsns.lab.url, "--shields-up", "-vv")),
        (tsns, ("exec", "web", "-vv", "--", "env")),
        (by_environment, ("run", "--login-server", tsns.lab.url, "-vv", "--", "env")),
    ):
        done = client(*words)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout + done.stderr)
    identity = json.loads(identity_of(tsns.directories, "web"))
    said.append(everything_said(tsns))
    secrets = {tsns.lab.auth_key} | {
        text.partition(":")[2] for name, text in identity.items() if text and name.endswith("_key") and "priv" in text
    }
    assert len(secrets) >= 4  # the auth key, and the keys of machine, node and lock
    text = "\n".join(said)
    assert "tsns" in text
    assert [secret[:8] for secret in secrets if secret in text] == []


def test_no_core_file_is_written_of_what_holds_keys(tsns: Tsns) -> None:
    tsns.up("web")
    now = processes(tsns.directories)
    for pid in (*now.keepers.values(), *now.engines, *now.servers):
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert next(line for line in limits.splitlines() if "core file" in line).split()[4:6] == ["0", "0"]


def test_the_caller_sees_its_own_key_go(tsns: Tsns) -> None:
    """A key that a person passes is in that person's own process only, and only until the command begins."""
    words = tsns.command(
        "run", "--login-server", tsns.lab.url, "--auth-key", tsns.lab.ephemeral_auth_key, "--", "sleep"
    )
    with subprocess.Popen([*words, "1.5"], env=tsns.environ, stderr=subprocess.DEVNULL) as client:
        deadline = time.monotonic() + 10
        cmdline = Path(f"/proc/{client.pid}/cmdline")
        while not cmdline.read_bytes().startswith(b"sleep") and time.monotonic() < deadline:
            time.sleep(POLL_S)
        key = tsns.lab.ephemeral_auth_key.encode()
        holders = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != os.getpid():
                with contextlib.suppress(OSError):
                    said = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                    holders += [entry.name] if key in said else []
        assert holders == []
        client.communicate(timeout=20)
    assert client.returncode == 0
