"""The control group that is frozen, on machines with either version."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsns.attach import freeze
from tsns.error import UserError

PID = 7


@pytest.fixture
def machine(tmp_path: Path) -> Path:
    for who in ("7", "self"):
        (tmp_path / "proc" / who).mkdir(parents=True)
    return tmp_path


def groups(machine: Path, who: str, *lines: str) -> None:
    (machine / "proc" / who / "cgroup").write_text("\n".join(lines))


def find(machine: Path) -> freeze.Freezer:
    return freeze.find(PID, machine / "proc", machine / "cgroup")


def test_version_2(machine: Path) -> None:
    group = machine / "cgroup/system.slice/app.scope"
    group.mkdir(parents=True)
    (group / "cgroup.freeze").write_text("0\n")
    (group / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    groups(machine, "7", "0::/system.slice/app.scope")
    groups(machine, "self", "0::/user.slice")
    found = find(machine)
    assert (found.file, found.frozen, found.thawed) == (group / "cgroup.freeze", "1", "0")
    assert not found.is_frozen()
    (group / "cgroup.events").write_text("populated 1\nfrozen 1\n")
    assert found.is_frozen()


def test_version_1(machine: Path) -> None:
    group = machine / "cgroup/freezer/docker/abc"
    group.mkdir(parents=True)
    (group / "freezer.state").write_text("THAWED\n")
    groups(machine, "7", "9:freezer:/docker/abc", "3:cpu,cpuacct:/docker/abc", "0::/docker/abc")
    groups(machine, "self", "9:freezer:/", "0::/")
    found = find(machine)
    assert (found.file, found.frozen, found.thawed) == (group / "freezer.state", "FROZEN", "THAWED")
    assert not found.is_frozen()
    (group / "freezer.state").write_text("FREEZING\n")
    assert not found.is_frozen()
    (group / "freezer.state").write_text("FROZEN\n")
    assert found.is_frozen()


@pytest.mark.parametrize(("its", "ours"), [("/", "/"), ("/a", "/a/b"), ("/a", "/a")], ids=["all", "above us", "ours"])
def test_what_would_freeze_us_as_well_is_refused(machine: Path, its: str, ours: str) -> None:
    place = machine / "cgroup" / its.strip("/")
    place.mkdir(parents=True, exist_ok=True)
    (place / "cgroup.freeze").write_text("0\n")
    groups(machine, "7", f"0::{its}")
    groups(machine, "self", f"0::{ours}")
    with pytest.raises(UserError, match="no control group of its own"):
        find(machine)


def test_a_process_that_is_gone(machine: Path) -> None:
    with pytest.raises(UserError):
        find(machine)
