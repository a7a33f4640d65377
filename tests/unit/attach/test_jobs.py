"""What is done to one container, with a node that is not there."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.attach.test_reconciliation import BY_ID, BY_LABELS, container
from tsns.attach import container as attaching_container
from tsns.attach import jobs, wishes
from tsns.attach.reconciliation import Attach, Forget
from tsns.attach.wishes import Wish
from tsns.config import NodeConfig
from tsns.error import UserError
from tsns.node import client
from tsns.node.attaching import Attached
from tsns.node.places import Places

ATTACHED = {"dns_name": "web.lab.test", "addresses": ["100.64.0.1"]}


class Node:
    """Records what is asked of it."""

    def __init__(self) -> None:
        self.attached: list[tuple[Wish, NodeConfig | None]] = []
        self.detached: list[str] = []
        self.says: str = ""
        self.error: Exception | None = None
        self.during: Callable[[], None] = lambda: None

    def attach(
        self, _where: Places, wish: Wish, _found: object, _env: object, progress: Callable[[str], None], config: Any
    ) -> Attached:
        self.during()
        progress(self.says)
        if self.error is not None:
            raise self.error
        self.attached.append((wish, config))
        return Attached(wish.key, "web.lab.test", ("100.64.0.1",))

    def detach(self, where: Places, wish: Wish) -> bool:
        self.detached.append(wish.key)
        wishes.remove(where, wish.key)
        return True


@pytest.fixture
def where(tmp_path: Path) -> Places:
    return Places(tmp_path / "run", tmp_path / "state")


@pytest.fixture
def node(monkeypatch: pytest.MonkeyPatch, where: Places) -> Node:
    made = Node()

    @contextlib.contextmanager
    def opened(_wish: Wish, find: Callable[[], Any]) -> Iterator[Any]:
        yield find()

    monkeypatch.setattr(attaching_container, "opened", opened)
    monkeypatch.setattr(attaching_container, "attach", made.attach)
    monkeypatch.setattr(attaching_container, "detach", made.detach)
    monkeypatch.setattr(client, "names", lambda _: ["web"])
    monkeypatch.setattr(client, "saved_settings", lambda *_: {"hostname": "old", "port": 7})
    wishes.save(where, BY_ID)
    return made


def attach(where: Places, wish: Wish = BY_ID, *, fresh: bool = False) -> jobs.Outcome:
    outcome = jobs.do(Attach(wish, container(), "x"), where, {}, fresh=fresh)
    return jobs.from_line(jobs.to_line(outcome))


def test_it_is_attached_and_remembered_as_it_is_now(where: Places, node: Node) -> None:
    now = BY_ID._replace(name="site")
    assert attach(where, now) == ATTACHED
    assert node.attached == [(now, None)]
    assert wishes.load(where) == [now]


def test_where_a_person_is_at_it_nothing_is_done(where: Places, node: Node) -> None:
    with wishes.held(where, BY_ID.key):
        assert attach(where) == {"busy": True}
        assert jobs.do(Forget(BY_ID, "x"), where, {}, fresh=False) == {"busy": True}
    assert (node.attached, node.detached) == ([], [])


def test_what_was_detached_meanwhile_stays_so(where: Places, node: Node) -> None:
    node.during = lambda: wishes.remove(where, BY_ID.key)
    assert attach(where) == ATTACHED
    assert node.detached == [BY_ID.key]
    assert wishes.load(where) == []
    assert attach(where) == {}
    assert len(node.attached) == 1, "nobody wishes for it"


def test_what_is_forgotten_is_detached(where: Places, node: Node) -> None:
    assert jobs.do(Forget(BY_ID, "x"), where, {}, fresh=False) == {}
    assert node.detached == [BY_ID.key]
    assert list(wishes.directory(where).iterdir()) == []


@pytest.mark.parametrize(
    ("error", "text"),
    [(UserError("no", "do this"), "no"), (OSError(28, "No space left"), "OSError: [Errno 28] No space left")],
)
def test_what_goes_wrong_is_told(where: Places, node: Node, error: Exception, text: str) -> None:
    node.error = error
    assert attach(where)["error"] == text
    assert wishes.load(where) == [BY_ID], "and wished for on"


def test_nobody_waits_for_a_person_to_log_in(where: Places, node: Node) -> None:
    node.says = "to log in, open https://control.example/a/b"
    outcome = attach(where)
    assert outcome == {"error": "its node web has to be logged in by a person", "hint": "run `tsns up web`"}


def test_what_labels_say_of_a_node_stands_above_what_it_had(
    where: Places, node: Node, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("a-key\n")
    wish = BY_LABELS._replace(settings={"hostname": "new"}, auth_key_file=str(tmp_path / "key"))
    wishes.save(where, wish)
    attach(where, wish, fresh=True)
    attach(where, wish)
    monkeypatch.setattr(client, "names", lambda _: [])
    attach(where, wish)
    attach(where, wish._replace(own=False))
    configs = [config for _, config in node.attached]
    assert [bool(config) for config in configs] == [True, False, True, False], "where it is new, or does not run"
    assert configs[0] is not None
    assert (configs[0].hostname, configs[0].port) == ("new", 7)
    assert configs[0].auth_key is not None
    assert configs[0].auth_key.reveal() == "a-key"
