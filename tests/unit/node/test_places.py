"""Where a node's files lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsns.error import UsageError, UserError
from tsns.node.places import Places, check_name, make_run_directory, places


@pytest.mark.parametrize("name", ["web", "a", "0", "a-b", "x" * 63])
def test_names_are_dns_labels(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a.b", "../x", "a/b", "x" * 64, "ä", "a\n"])
def test_other_names_are_refused_before_they_become_paths(name: str) -> None:
    with pytest.raises(UsageError):
        Places(Path("/r"), Path("/s")).node(name)


def test_the_default_namespace_is_where_ip_netns_looks() -> None:
    assert places({}).node("web").namespace == Path("/run/netns/tsns-web")


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
