"""What a keeper writes down of other people's namespaces, without any namespace."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tsns.error import UserError
from tsns.netns import attachment, port_range
from tsns.node import attachment_records
from tsns.node.attachments import Attachments
from tsns.node.places import Places
from tsns.node.watch import Watch

REQUEST = {
    "key": "docker-web", "kind": "docker", "id": "abc", "name": "web", "exclusive": False, "docker_names": False,
    "publish": ["tcp/80", "nonsense"], "search": ["a.example", "no domain"], "options": "ndots:0",
}  # fmt: skip


class Stage:
    """Attachments whose namespaces are files, and what is done to them, in its order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, directory: Path) -> None:
        self.done: list[str] = []
        self.disk_is_full = False
        self.told: list[dict[str, Any]] = []
        self.watch = Watch()
        (directory / "run").mkdir()
        self.places = Places(directory / "run", directory / "state").node("gate")
        monkeypatch.setattr(attachment, "make", self.make)
        monkeypatch.setattr(attachment, "lead", lambda *_, **__: self.done.append("lead"))
        monkeypatch.setattr(attachment, "remove", lambda *_: self.done.append("remove"))
        monkeypatch.setattr(port_range, "set_range", lambda *_: None)
        self.save = attachment_records.save
        monkeypatch.setattr(attachment_records, "save", self.write)
        self.attachments = Attachments(
            self.watch, self.places, lambda message, _: self.told.append(message), lambda: None
        )
        self.network = os.open(directory / "network", os.O_CREAT | os.O_RDONLY)
        self.target = subprocess.Popen(["sleep", "60"])
        self.pidfd = os.pidfd_open(self.target.pid)

    def make(self, *_: object, **__: object) -> attachment.Made:
        self.done.append("make")
        return attachment.Made(os.dup(0), os.dup(0), [], {"ports": [32768, 60999]})

    def write(self, path: Path, records: Any) -> None:
        if self.disk_is_full:
            raise OSError(28, "No space left on device")
        self.done.append("write")
        self.save(path, records)

    def attach(self, **other: object) -> str:
        return self.attachments.attach({**REQUEST, "pid": self.target.pid, **other}, [self.network, self.pidfd])

    def kept(self) -> list[str]:
        return [record.key for record in attachment_records.load(self.places.attached)]


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Stage]:
    stage = Stage(monkeypatch, tmp_path)
    yield stage
    stage.target.kill()
    stage.target.wait()
    for fd in (stage.network, stage.pidfd):
        os.close(fd)


def test_what_is_done_is_written_down_before(stage: Stage) -> None:
    assert stage.attach() == ""
    assert stage.done[:2] == ["write", "make"]
    assert stage.kept() == ["docker-web"]
    [place] = [message for message in stage.told if message["give"] == "place"]
    assert (place["place"], place["published"]) == (1, [(6, 80)])
    assert stage.attachments.detach("docker-web")
    assert stage.kept() == []
    assert stage.told[-2] == {"take": "place", "place": 1}


def test_what_cannot_be_written_down_is_not_done(stage: Stage) -> None:
    stage.disk_is_full = True
    with pytest.raises(OSError, match="No space left"):
        stage.attach()
    assert "make" not in stage.done
    assert not stage.attachments


def test_a_target_that_ends_while_the_disk_is_full_is_forgotten_all_the_same(stage: Stage) -> None:
    stage.attach()
    stage.disk_is_full = True
    stage.target.kill()
    stage.target.wait()
    stage.watch.turn()
    assert not stage.attachments


def test_the_same_target_again_is_refreshed(stage: Stage) -> None:
    stage.attach()
    stage.done.clear()
    stage.attach(name="renamed")
    assert "make" not in stage.done
    assert [each["name"] for each in stage.attachments.listed()] == ["renamed"]
    with pytest.raises(UserError, match="in another manner"):
        stage.attach(exclusive=True)


@pytest.mark.parametrize(
    "other",
    [
        {"key": "../x"},
        {"kind": "lxc"},
        {"pid": "x"},
        {"search": 7},
        {"options": "ndots:0\nnameserver 192.0.2.1"},
        {"publish": None},
    ],
    ids=["key", "kind", "pid", "search", "options", "publish"],
)
def test_a_request_that_makes_no_sense(stage: Stage, other: dict[str, object]) -> None:
    with pytest.raises(UserError, match="cannot be understood"):
        stage.attach(**other)
    assert stage.done == []


def test_what_ends_with_the_node_is_given_back(stage: Stage) -> None:
    stage.attach()
    stage.attachments.end()
    assert stage.done[-2:] == ["remove", "write"]
    assert stage.kept() == []
