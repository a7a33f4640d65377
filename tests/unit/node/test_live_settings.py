"""Settings that a running node takes over: who is asked, who adopts them when, and what the client hears."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping
from typing import Any

import pytest

from tsns.config import NodeConfig
from tsns.node.clients import Client
from tsns.node.live_settings import LIVE, LiveChanges, changed, difference

CONFIG = NodeConfig(name="web", advertise_tags=("tag:a",))


class Stage:
    """A keeper that notes what happens."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.failure: OSError | None = None
        self.changes = LiveChanges(
            tell_engine=self.seen.append,
            adopt=self.adopt,
            reply=lambda _, message: self.seen.append(message["error"]),
            done=lambda _: self.seen.append("done"),
        )

    def adopt(self, settings: Mapping[str, Any]) -> None:
        self.seen.append(("adopted", dict(settings)))
        if self.failure is not None:
            raise self.failure

    def take(self) -> list[Any]:
        seen = list(self.seen)
        self.seen.clear()
        return seen


@pytest.fixture
def stage() -> Stage:
    return Stage()


@pytest.fixture
def client() -> Iterator[Client]:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Client(ours, waiting=False)


WANTED = {"exit_node": "out"}


def test_the_engine_agrees_before_they_are_adopted_and_has_done_it_before_the_client_hears(
    stage: Stage, client: Client
) -> None:
    stage.changes.ask(client, WANTED)
    assert stage.take() == [{"configure": WANTED}]
    stage.changes.settled()
    assert stage.take() == [], "it has not even agreed"
    stage.changes.configured("", "")
    assert stage.take() == [("adopted", WANTED)]
    stage.changes.configured("", "")
    assert stage.take() == [], "once is enough"
    stage.changes.settled()
    assert stage.take() == ["done"]
    stage.changes.settled()
    assert stage.take() == []


def test_what_the_engine_refuses_is_not_adopted(stage: Stage, client: Client) -> None:
    stage.changes.ask(client, WANTED)
    stage.changes.configured("there is no peer 'out'", "look again")
    assert stage.take() == [{"configure": WANTED}, "there is no peer 'out'"]


def test_one_at_a_time(stage: Stage, client: Client) -> None:
    stage.changes.ask(client, WANTED)
    stage.changes.ask(client, {"exit_node": ""})
    assert stage.take() == [{"configure": WANTED}, "the node is just taking over other settings"]


def test_a_namespace_that_cannot_be_changed_is_told(stage: Stage, client: Client) -> None:
    stage.failure = OSError("no nf_tables")
    stage.changes.ask(client, WANTED)
    stage.changes.configured("", "")
    assert stage.take()[-1] == "the namespace cannot be changed: no nf_tables"


@pytest.mark.parametrize("agreed", [False, True])
def test_an_engine_that_ends_meanwhile(stage: Stage, client: Client, agreed: bool) -> None:
    stage.changes.ask(client, WANTED)
    if agreed:
        stage.changes.configured("", "")
    stage.take()
    stage.changes.engine_ended("signal 9")
    assert stage.take() == ["done" if agreed else "the node's engine ended (signal 9)"]
    stage.changes.ask(client, WANTED)
    assert stage.take() == [{"configure": WANTED}], "and the next one is asked"


def test_only_what_can_be_taken_over_is() -> None:
    other = changed(CONFIG, {"exit_node": "out", "port": 7, "advertise_routes": ["10.1.0.0/16"]})
    assert difference(CONFIG, other) == {"exit_node": "out", "advertise_routes": ("10.1.0.0/16",)}
    assert changed(CONFIG, difference(CONFIG, other)).port == CONFIG.port
    assert not LIVE & {"name", "login_server", "auth_key", "port", "ephemeral"}


@pytest.mark.parametrize("settings", [{"exit_node": 7}, {"flux": True}, {"advertise_routes": [1]}])
def test_what_is_no_setting_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        changed(CONFIG, settings)
