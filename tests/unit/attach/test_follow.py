"""Who follows: one at a time, and with an environment that gives nothing away."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.unit.attach.test_wishes import WISH
from tsns.attach import follow, wishes
from tsns.error import UserError
from tsns.node import detached
from tsns.node.places import Places


@pytest.fixture
def where(tmp_path: Path) -> Places:
    return Places(tmp_path / "run", tmp_path / "state")


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What would have been started, each with a copy of its lock that the test closes."""
    found: list[tuple[Any, ...]] = []

    def spawn(module: str, arguments: list[str], inherited: int, log: Path, environ: dict[str, str]) -> None:
        found.append((module, arguments, os.dup(inherited), log, environ))

    monkeypatch.setattr(detached, "spawn", spawn)
    return found


def test_without_a_wish_nobody_follows(where: Places, started: list[Any]) -> None:
    follow.ensure(where, {})
    assert started == []
    assert not where.run.exists()


def test_one_follows_however_often_that_is_asked_for(where: Places, started: list[Any]) -> None:
    wishes.save(where, WISH)
    follow.ensure(where, {"DOCKER_HOST": "unix:///d", "TS_AUTHKEY": "x"})
    follow.ensure(where, {})
    ((module, arguments, lock, log, environ),) = started
    assert (module, arguments) == ("tsns.attach.follow", [str(where.run), str(where.state)])
    assert log == where.run / "follow.log"
    assert environ == {"DOCKER_HOST": "unix:///d"}
    os.close(lock)  # it ends
    follow.ensure(where, {})
    assert len(started) == 2
    os.close(started[1][2])


def test_no_file_of_ours_looks_like_a_nodes(where: Places) -> None:
    lock = follow.hold(where)
    assert lock is not None
    assert [path.name for path in where.run.iterdir()] == [follow.LOCK_NAME]
    assert where.running() == []
    assert not list(where.run.glob("*.lock"))
    os.close(lock)


def test_who_has_just_begun_is_nobody_yet(where: Places) -> None:
    assert follow.holder(where) == (0, "")
    lock = follow.hold(where)
    assert lock is not None
    follow.say_role(lock, follow.FOLLOWS)
    assert follow.holder(where) == (os.getpid(), follow.FOLLOWS)
    os.close(lock)
    again = follow.hold(where)
    assert again is not None
    assert follow.holder(where) == (0, ""), "the number of the one before is anybody's by now"
    os.close(again)


def test_a_watch_is_not_taken_the_place_of(where: Places) -> None:
    lock = follow.hold(where)
    assert lock is not None
    follow.say_role(lock, follow.WATCHES)
    with pytest.raises(UserError, match="runs already"):
        follow.take_over(where)
    os.close(lock)


def test_a_follower_is_asked_to_end(where: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = follow.hold(where)
    assert lock is not None
    follow.say_role(lock, follow.FOLLOWS)
    ended: list[int] = []

    def end(pid: int) -> None:
        ended.append(pid)
        os.close(lock)

    monkeypatch.setattr(follow, "_end", end)
    mine = follow.take_over(where)
    assert ended == [os.getpid()]
    os.close(mine)


def test_one_that_does_not_end_is_told_of(where: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    lock = follow.hold(where)
    assert lock is not None
    follow.say_role(lock, follow.FOLLOWS)
    monkeypatch.setattr(follow, "_end", lambda _: None)
    monkeypatch.setattr(follow, "END_PATIENCE_S", 0.0)
    with pytest.raises(UserError, match="does not end"):
        follow.take_over(where)
    os.close(lock)


@pytest.mark.parametrize(
    ("environ", "kept"),
    [
        ({"TS_AUTHKEY": "k", "TS_AUTH_KEY": "k", "LD_PRELOAD": "x", "TSNS_RUN_DIR": "/r"}, {}),
        ({"HTTPS_PROXY": "http://p:1", "no_proxy": "x"}, {"HTTPS_PROXY": "http://p:1", "no_proxy": "x"}),
        ({"https_proxy": "http://user:word@p:1"}, {}),
        ({"SUDO_UID": "7", "HOME": "/h"}, {"SUDO_UID": "7", "HOME": "/h"}),
    ],
)
def test_what_of_an_environment_is_kept(environ: dict[str, str], kept: dict[str, str]) -> None:
    assert follow.kept_variables(environ) == kept


def test_a_log_that_is_large_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bound: Callable[[], None] = follow._bound_log
    monkeypatch.setattr(detached, "MAX_LOG_BYTES", 10)
    with open(tmp_path / "log", "a") as file:
        monkeypatch.setattr(sys, "stderr", file)
        file.write("x" * 10)
        file.flush()
        bound()
        assert (tmp_path / "log").stat().st_size == 10
        file.write("x")
        file.flush()
        bound()
        assert (tmp_path / "log").stat().st_size == 0
        file.write("after")
    assert (tmp_path / "log").read_text() == "after"
