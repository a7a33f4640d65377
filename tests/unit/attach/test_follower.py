"""The follower's turns, with engines, nodes and jobs that are not there: what makes it look, and what it begins."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit.attach.test_reconciliation import BY_ID, BY_NAME, PROCESS, container
from tsns.attach import children, engines, follower, jobs, sources, wishes
from tsns.attach.engines import Container, Event
from tsns.attach.follower import Follower
from tsns.attach.reconciliation import Attach, Forget
from tsns.error import UserError
from tsns.node import attaching, client
from tsns.node.attaching import Attachment
from tsns.node.places import Places

PATIENCE_S = 5.0


class FakeChild:
    """A pipe with somebody at its other end, who is not a process."""

    def __init__(self, work: Callable[[int], None]) -> None:
        self.fd, self.writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.work = work
        self.pid = 0

    def lines(self) -> list[bytes] | None:
        data = os.read(self.fd, 65536)
        return data.splitlines() or None

    def say(self, line: bytes) -> None:
        children.say(self.writing, line)

    def end(self) -> None:
        if self.writing >= 0:
            os.close(self.writing)
            self.writing = -1

    def close(self) -> None:
        self.end()
        os.close(self.fd)


class World:
    """Docker, with its containers, and the nodes with their attachments."""

    def __init__(self) -> None:
        self.containers: dict[str, Container] = {}
        self.attached: dict[str, Attachment] = {}
        self.running = ["web"]
        self.answers = True
        self.outcome: dict[str, Any] = {}
        self.done: list[Attach | Forget] = []
        self.fresh: list[bool] = []
        self.streams: list[FakeChild] = []
        self.jobs: list[FakeChild] = []
        self.kind = "docker"
        self.url = "unix:///docker"

    # an engine
    def container(self, name: str) -> Container | None:
        if not self.answers:
            raise UserError("docker does not answer", "")
        return next((each for each in self.containers.values() if name in {each.id, each.name}), None)

    def list(self, wanted: Callable[[Any, str], bool]) -> list[Container]:
        return [each for each in self.containers.values() if wanted(each.labels, each.network_mode)]

    def close(self) -> None:
        pass

    def set(self, *containers: Container) -> None:
        self.containers = {each.id: each for each in containers}

    def attach(self, action: Attach | Forget) -> dict[str, Any]:
        self.done.append(action)
        if not self.outcome and isinstance(action, Attach):
            found = action.container
            wish = action.wish
            self.attached[wish.key] = Attachment(wish.key, wish.kind, wish.id, wish.name, found.pid if found else 0)
        return self.outcome


@pytest.fixture
def where(tmp_path: Path) -> Places:
    return Places(tmp_path / "run", tmp_path / "state")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    made = World()

    class FakeEngine:
        kind, url = made.kind, made.url
        container = staticmethod(made.container)
        containers = staticmethod(made.list)
        close = staticmethod(made.close)

    def connect(kind: str, url: str) -> Any:
        if not made.answers:
            raise UserError("docker does not answer", "is its daemon running?")
        return FakeEngine()

    def stream(work: Callable[[int], None]) -> FakeChild:
        made.streams.append(FakeChild(work))
        return made.streams[-1]

    def job(work: Callable[[int], None]) -> FakeChild:
        child = FakeChild(work)
        made.jobs.append(child)
        work(child.writing)
        child.end()
        return child

    def do(action: Attach | Forget, where: Places, _environ: object, *, fresh: bool) -> dict[str, Any]:
        made.fresh.append(fresh)
        if isinstance(action, Attach):
            wishes.save(where, action.wish)
        return made.attach(action)

    monkeypatch.setattr(engines, "addresses", lambda _: [("docker", made.url)])
    monkeypatch.setattr(sources, "connect", connect)
    monkeypatch.setattr(sources, "Child", stream)
    monkeypatch.setattr(follower, "Child", job)
    monkeypatch.setattr(jobs, "do", do)
    monkeypatch.setattr(client, "names", lambda _: made.running)
    monkeypatch.setattr(attaching, "attachments", lambda *_: list(made.attached.values()))
    monkeypatch.setattr(Follower, "_watch_keeper", lambda *_: None)
    monkeypatch.setattr(follower, "BUSY_S", 0.0)
    return made


@pytest.fixture
def following(where: Places, world: World) -> Iterator[Follower]:
    made = Follower(where, {})
    made._watch_wishes()
    yield made
    made.close()
    made._watch.close()


def turn_until(each: Follower, is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        each._watch.at("test", time.monotonic() + 0.1, lambda: None)
        each._watch.turn()


def tell(world: World, event: Event) -> None:
    world.streams[-1].say(json.dumps(event).encode())


def test_what_is_missing_at_first_is_attached(following: Follower, world: World, where: Places) -> None:
    wishes.save(where, BY_ID)
    world.set(container())
    following._look()
    turn_until(following, lambda: not following._jobs)
    assert world.done == [Attach(BY_ID, container(), "it is not attached")]
    following._look()
    assert len(world.done) == 1


def test_an_event_is_seen_to_at_once(following: Follower, world: World, where: Places) -> None:
    wishes.save(where, BY_NAME)
    following._look()
    assert world.done == []
    world.set(container(id="bbbb", pid=7))
    tell(world, Event("start", "bbbb", "web", 1.0))
    turn_until(following, lambda: bool(world.done) and not following._jobs)
    assert world.done[0].wish.id == "bbbb"
    tell(world, Event("start", "bbbb", "web", 1.0))
    tell(world, Event("start", "cccc", "other", 1.0))
    following._watch.turn()
    assert len(world.done) == 1, "the same event again, and one of somebody else"
    tell(world, Event("connect", "bbbb", "", 2.0))
    turn_until(following, lambda: len(world.done) == 2)


def test_a_wish_that_is_written_is_seen_to_at_once(following: Follower, world: World, where: Places) -> None:
    world.set(container())
    following._look()
    assert world.streams == [], "no engine is asked before something is wished for"
    wishes.save(where, BY_ID)
    turn_until(following, lambda: len(world.done) == 1)


def test_it_ends_with_the_last_wish(following: Follower, world: World, where: Places) -> None:
    wishes.save(where, BY_ID)
    world.set(container())
    following._look()
    turn_until(following, lambda: not following._jobs)
    assert not following._done
    wishes.remove(where, BY_ID.key)
    turn_until(following, lambda: following._done)


def test_an_engine_that_ends_is_sought_again_and_nothing_is_given_up(
    following: Follower, world: World, where: Places
) -> None:
    wishes.save(where, BY_ID)
    world.set(container())
    following._look()
    turn_until(following, lambda: not following._jobs)
    world.answers = False
    world.set()
    world.streams[0].end()
    following._watch.turn()
    following._look()
    assert len(world.done) == 1, "its containers are unknown, not gone"
    world.answers = True
    world.set(container(pid=200))
    turn_until(following, lambda: len(world.done) == 2)
    assert len(world.streams) == 2


def test_what_fails_is_tried_again(following: Follower, world: World, where: Places, monkeypatch: Any) -> None:
    monkeypatch.setattr("tsns.attach.reconciliation.FIRST_PAUSE_S", 0.0)
    wishes.save(where, BY_ID)
    world.set(container())
    world.outcome = {"error": "no", "hint": "x"}
    following._look()
    turn_until(following, lambda: len(world.done) == 3)
    world.outcome = {"busy": True}
    turn_until(following, lambda: len(world.done) == 4)
    world.outcome = {}
    turn_until(following, lambda: BY_ID.key in world.attached and not following._jobs)
    assert following._machine.deadline() is None


def test_what_happens_while_it_is_attached_is_looked_at_afterwards(
    following: Follower, world: World, where: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow: list[FakeChild] = []

    def job(work: Callable[[int], None]) -> FakeChild:
        slow.append(FakeChild(work))
        return slow[-1]

    monkeypatch.setattr(follower, "Child", job)
    wishes.save(where, BY_ID)
    world.set(container())
    following._look()
    world.set(container(pid=300))
    tell(world, Event("start", BY_ID.id, "web", 1.0))
    following._watch.turn()
    assert len(slow) == 1, "one at a time for each"
    slow[0].work(slow[0].writing)
    slow[0].end()
    turn_until(following, lambda: len(slow) == 2)


def test_a_job_that_dies_has_failed(
    following: Follower, world: World, where: Places, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def dying(work: Callable[[int], None]) -> FakeChild:
        child = FakeChild(work)
        child.end()
        return child

    monkeypatch.setattr(follower, "Child", dying)
    wishes.save(where, BY_ID)
    world.set(container())
    following._look()
    turn_until(following, lambda: not following._jobs)
    assert "nothing came of it" in caplog.text
    assert following._machine.deadline() is not None


def test_a_rename_is_remembered(following: Follower, world: World, where: Places) -> None:
    wishes.save(where, BY_ID)
    world.set(container())
    following._look()
    turn_until(following, lambda: not following._jobs)
    world.set(container(name="site"))
    tell(world, Event("rename", BY_ID.id, "site", 1.0))
    following._watch.turn()
    assert wishes.load(where)[0].name == "site"
    assert len(world.done) == 1


def test_a_process_needs_no_engine(following: Follower, world: World, where: Places) -> None:
    wishes.save(where, PROCESS._replace(key="pid-1", id=str(os.getpid())))
    wishes.save(where, PROCESS._replace(key="pid-2", id=str(os.getpid()), started=1))
    following._look()
    assert world.streams == []
    assert [type(action) for action in world.done] == [Attach, Forget], "the second number is another one's now"


def test_labels_make_wishes_only_where_they_are_on(world: World, where: Places) -> None:
    world.set(container(labels={"tsns.enable": "true", "tsns.to": "web"}))
    without = Follower(where, {})
    without._look()
    assert world.done == []
    without.close()
    on = Follower(where, {}, labels_on=True)
    actions, made, complaints = on.plan()
    assert [type(action) for action in actions] == [Attach]
    assert complaints == []
    assert wishes.load(where) == [], "a plan keeps nothing"
    on.close()
    on = Follower(where, {}, labels_on=True)
    on._look()
    assert wishes.load(where) == made
    assert world.fresh == [True]
    on.close()


def test_a_node_that_does_not_answer_is_left_alone(
    following: Follower, world: World, where: Places, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(*_: object) -> list[Attachment]:
        raise UserError("the node web does not answer", "")

    monkeypatch.setattr(attaching, "attachments", silent)
    wishes.save(where, BY_ID)
    world.set(container())
    following._look()
    assert world.done == []
