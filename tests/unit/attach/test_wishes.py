"""Wishes on disk, and who may see to one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tsns.attach import wishes
from tsns.attach.wishes import Wish
from tsns.node.places import Places

WISH = Wish("docker-web", "docker", "aaaa", "web", "name", "web", own=True, publish=("tcp/80",), settings={"port": 1})


@pytest.fixture
def where(tmp_path: Path) -> Places:
    return Places(tmp_path / "run", tmp_path / "state")


def test_what_is_saved_is_found_again(where: Places) -> None:
    assert wishes.load(where) == []
    wishes.save(where, WISH)
    assert wishes.load(where) == [WISH]
    assert wishes.find(where, WISH.key) == WISH
    assert wishes.of_node(where, "web") == [WISH]
    assert (wishes.directory(where) / "docker-web.json").stat().st_mode & 0o777 == 0o600
    wishes.remove(where, WISH.key)
    wishes.remove(where, WISH.key)
    assert wishes.find(where, WISH.key) is None


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"key": "other"}'],
)
def test_what_is_no_wish_is_left_alone(where: Places, text: str) -> None:
    wishes.save(where, WISH)
    (wishes.directory(where) / "other.json").write_text(text)
    (wishes.directory(where) / "renamed.json").write_bytes((wishes.directory(where) / "docker-web.json").read_bytes())
    assert wishes.load(where) == [WISH]


@pytest.mark.parametrize(("member", "value"), [("started", '"x"'), ("name", "7"), ("settings", "[]")])
def test_a_member_of_another_kind_makes_it_none(where: Places, member: str, value: str) -> None:
    import json

    wishes.save(where, WISH)
    path = wishes.directory(where) / "docker-web.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), member: json.loads(value)}))
    assert wishes.load(where) == []


def test_one_at_a_time_sees_to_a_wish(where: Places) -> None:
    wishes.save(where, WISH)
    with wishes.held(where, WISH.key) as ours:
        assert ours
        with wishes.held(where, WISH.key, wait=False) as theirs:
            assert not theirs
        with wishes.held(where, "docker-other", wait=False) as others:
            assert others
    with wishes.held(where, WISH.key, wait=False) as again:
        assert again
        wishes.remove(where, WISH.key)
    assert [path.name for path in wishes.directory(where).iterdir()] == [], "nothing is left of it"


def test_keys_are_no_paths(where: Places) -> None:
    with pytest.raises(ValueError, match="no key"):
        wishes.save(where, WISH._replace(key="../x"))


def test_who_may_not_look_has_none(where: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    wishes.save(where, WISH)

    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "glob", refuse)
    assert wishes.load(where) == []
