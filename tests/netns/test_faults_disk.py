"""Disks that are full, read-only or failing, and files full of garbage: the node runs on, says so once, and keeps what it had."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from tests.machine import patiently
from tests.netns.anatomy import identity_of, keeper_of
from tests.netns.nodes import Tsns
from tests.netns.steered_lab import SteeredLab
from tsns.proto.types import DNSRecord

pytestmark = pytest.mark.netns

DISK: Final = "size=256k,mode=0700"
NOT_SAVED: Final = "could not be saved"


def mount(*words: str) -> None:
    """mount(8)."""
    subprocess.run(["mount", *words], check=True, capture_output=True)


@contextmanager
def small_disk(place: Path) -> Iterator[None]:
    """A disk of its own for the state directory."""
    place.mkdir(parents=True)
    mount("-t", "tmpfs", "-o", DISK, "none", str(place))
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(place: Path) -> Path:
    """Leave no byte free; the file that takes all the space."""
    filler = place / "filler"
    with open(filler, "wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(1024))
        except OSError:
            return filler


def warnings_of(tsns: Tsns, name: str) -> list[str]:
    """What status says is wrong with saving."""
    return [text for text in tsns.json("status", name)["health"] if NOT_SAVED in text]


def runs(tsns: Tsns, name: str) -> bool:
    """Whether commands can be run in it."""
    return tsns("exec", name, "--", "true").returncode == 0


def test_a_full_disk_costs_a_new_node_its_memory_and_nothing_else(tsns: Tsns) -> None:
    with small_disk(tsns.directories.state):
        filler = fill(tsns.directories.state)
        tsns.up("web")
        assert runs(tsns, "web")
        assert len(warnings_of(tsns, "web")) == 1
        filler.unlink()
        tsns("down", "web")


def unpin(tsns: Tsns, name: str) -> bytes:
    """Make the node save its identity in its next life, since it has yet to learn control's key; its identity now."""
    path = tsns.directories.state / name / "identity.json"
    path.write_text(json.dumps({**json.loads(path.read_bytes()), "control_key": None}))
    return path.read_bytes()


def test_a_full_disk_leaves_the_old_identity(tsns: Tsns) -> None:
    with small_disk(tsns.directories.state):
        tsns.up("web")
        addresses = tsns.json("ip", "web")["addresses"]
        tsns("down", "web")
        before, files = unpin(tsns, "web"), set((tsns.directories.state / "web").iterdir())
        filler = fill(tsns.directories.state)
        assert tsns("up", "web").returncode == 0
        assert runs(tsns, "web")
        assert len(warnings_of(tsns, "web")) == 1
        assert identity_of(tsns.directories, "web") == before
        assert set((tsns.directories.state / "web").iterdir()) <= files
        tsns("down", "web")
        filler.unlink()
        assert tsns("up", "web").returncode == 0
        assert warnings_of(tsns, "web") == []
        assert identity_of(tsns.directories, "web") != before
        assert tsns.json("ip", "web")["addresses"] == addresses
        tsns("down", "web")


def test_a_disk_that_becomes_read_only_leaves_the_old_identity(tsns: Tsns) -> None:
    with small_disk(tsns.directories.state):
        tsns.up("web")
        tsns("down", "web")
        before = unpin(tsns, "web")
        mount("-o", "remount,ro", str(tsns.directories.state))
        assert tsns("up", "web").returncode == 0
        assert runs(tsns, "web")
        assert len(warnings_of(tsns, "web")) == 1
        assert identity_of(tsns.directories, "web") == before
        tsns("down", "web")


def test_a_state_directory_that_cannot_be_written_costs_a_new_node_its_memory(tsns: Tsns) -> None:
    with small_disk(tsns.directories.state):
        mount("-o", "remount,ro", str(tsns.directories.state))
        tsns.up("web")
        assert runs(tsns, "web")
        assert len(warnings_of(tsns, "web")) == 1
        assert tsns.run("true").returncode == 0  # and one that is not to last does not even notice
        tsns("down", "web")


def test_a_failing_save_is_logged_once(tsns: Tsns) -> None:
    """On a disk where the log still has its place."""
    tsns.up("web")
    tsns("down", "web")
    before = unpin(tsns, "web")
    identity = tsns.directories.state / "web" / "identity.json"
    mount("--bind", str(identity), str(identity))  # it can be read, and nothing can be renamed to it
    try:
        assert tsns("up", "web").returncode == 0
        assert tsns("up", "web", "--shields-up").returncode == 0  # another engine
        assert len(warnings_of(tsns, "web")) <= 1
        assert identity.with_name("log").read_text().count(NOT_SAVED) == 1
        assert identity.read_bytes() == before
        tsns("down", "web")
    finally:
        subprocess.run(["umount", "--lazy", str(identity)], check=True)


def test_garbage_on_the_disk_does_not_reach_a_node_that_runs(tsns: Tsns) -> None:
    tsns.up("web")
    good, addresses = identity_of(tsns.directories, "web"), tsns.json("ip", "web")["addresses"]
    path = tsns.directories.state / "web" / "identity.json"
    path.write_bytes(os.urandom(len(good)))
    path.with_name("settings.json").write_bytes(good[:7])
    assert runs(tsns, "web")
    engine = tsns.json("status", "web")["pid"]
    os.kill(engine, 9)  # the next engine has its identity from the keeper, not from the disk
    patiently(lambda: [] if tsns("status", "web").returncode == 0 else ["not yet"])
    assert tsns.json("ip", "web")["addresses"] == addresses
    tsns("down", "web")
    done = tsns("up", "web", *tsns.lab.login)
    assert done.returncode == 1
    assert "moved to identity.json.damaged-" in done.stderr
    assert str(good) not in done.stderr
    path.write_bytes(good)  # as the hint says
    assert tsns("up", "web", *tsns.lab.login).returncode == 0
    assert tsns.json("ip", "web")["addresses"] == addresses


def test_garbage_that_cannot_be_moved_aside_is_told_and_not_overwritten(tsns: Tsns) -> None:
    with small_disk(tsns.directories.state):
        tsns.up("web")
        tsns("down", "web")
        path = tsns.directories.state / "web" / "identity.json"
        path.write_bytes(b"{}")
        mount("-o", "remount,ro", str(tsns.directories.state))
        done = tsns("up", "web", *tsns.lab.login)
        assert done.returncode == 1
        assert "identity.json cannot be used" in done.stderr
        assert "read-only" in done.stderr.lower()
        assert path.read_bytes() == b"{}"


def test_a_resolver_file_that_cannot_be_written_does_not_end_the_node(steered_tsns: Tsns, steered: SteeredLab) -> None:
    tsns = steered_tsns
    tsns.up("web")
    keeper = keeper_of(tsns.directories, "web")
    (tsns.directories.run / "web.resolv").unlink()
    (tsns.directories.run / "web.resolv").mkdir()
    record = DNSRecord(name="extra.lab.test", value="100.64.7.7")
    steered.do(lambda lab: lab.tailnet.configure(extra_records=[record]))
    log = tsns.directories.state / "web" / "log"
    assert patiently(lambda: [] if "resolv" in log.read_text() else ["nothing said"]) == []
    assert keeper_of(tsns.directories, "web") == keeper
    assert json.loads(tsns("status", "web", "--json").stdout)["state"] == "running"
    (tsns.directories.run / "web.resolv").rmdir()
