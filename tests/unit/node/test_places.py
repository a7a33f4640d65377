"""Where a node's files lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from tsns.error import UsageError, UserError
from tsns.node import places as place_module
from tsns.node.places import Places, check_name, make_run_directory, places, roots_places


@pytest.mark.parametrize("name", ["web", "a", "0", "a-b", "x" * 63])
def test_names_are_dns_labels(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "../x", "a/b", "x" * 64, "ä", "a\n"])
def test_other_names_are_refused_before_they_become_paths(name: str) -> None:
    with pytest.raises(UsageError):
        Places(Path("/r"), Path("/s")).node(name)


ROOT: Final = 0
PERSON: Final = 1000


@pytest.fixture
def being(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda uid: monkeypatch.setattr(os, "geteuid", lambda: uid)


def test_roots_namespaces_are_where_ip_netns_looks(being: Callable[[int], None]) -> None:
    being(ROOT)
    assert places({}).node("web").namespace == Path("/run/netns/tsns-web")


def test_a_person_has_directories_of_their_own(being: Callable[[int], None], tmp_path: Path) -> None:
    uid = os.geteuid()
    being(PERSON if uid == ROOT else uid)
    os.chown(tmp_path, os.geteuid(), -1)
    where = places({"XDG_RUNTIME_DIR": str(tmp_path), "XDG_STATE_HOME": "/s", "HOME": "/h"})
    assert (where.run, where.state) == (tmp_path / "tsns", Path("/s/tsns"))
    assert where.node("web").namespace == tmp_path / "tsns" / "ns" / "web"
    assert places({"HOME": "/h", "XDG_STATE_HOME": "relative"}).state == Path("/h/.local/state/tsns")


def test_without_a_runtime_directory_of_ones_own_it_is_in_tmp(
    being: Callable[[int], None], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Somebody else's is left in the environment by `su`; none is there where nobody has logged in."""
    monkeypatch.setattr(place_module, "USERS_RUN", tmp_path / "nothing")
    being(PERSON + 1)
    for environ in ({}, {"XDG_RUNTIME_DIR": str(tmp_path)}, {"XDG_RUNTIME_DIR": "/does/not/exist"}):
        assert places(environ).run == Path(f"/tmp/tsns-{PERSON + 1}")


def test_where_roots_nodes_are_looked_for(being: Callable[[int], None]) -> None:
    being(ROOT)
    assert roots_places({}) is None
    being(PERSON)
    assert roots_places({}) == Places(Path("/run/tsns"), Path("/var/lib/tsns"))
    assert roots_places({"TSNS_RUN_DIR": "/r"}) is None


def test_a_persons_run_directory_is_theirs_alone(being: Callable[[int], None], tmp_path: Path) -> None:
    being(os.getuid() or PERSON)
    os.chown(tmp_path, os.geteuid(), -1)
    tmp_path.chmod(0o755)
    make_run_directory(tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o700


def test_a_run_directory_of_its_own_keeps_its_namespaces_too() -> None:
    where = places({"TSNS_RUN_DIR": "/tmp/r", "TSNS_STATE_DIR": "/tmp/s"})
    assert where.node("web").namespace == Path("/tmp/r/ns/web")
    assert where.node("web").home(lasting=True) == Path("/tmp/s/web")
    assert where.node("web").home(lasting=False) == Path("/tmp/r/web.d")


def test_a_run_directory_in_which_others_may_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    with pytest.raises(UserError, match="not a directory of our own"):
        make_run_directory(tmp_path)


def test_lasting_nodes_are_known_by_their_identity(tmp_path: Path) -> None:
    where = Places(tmp_path / "run", tmp_path / "state")
    assert (where.known(), where.running()) == ([], [])
    for name in ("b", "a"):
        where.node(name).lasting.mkdir(parents=True)
        (where.node(name).lasting / "identity.json").touch()
    (where.state / "empty").mkdir()
    assert where.known() == ["a", "b"]
