"""What the keeper does of what an engine asks it about names, and what it refuses."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest

from tsns.netns import names
from tsns.netns.namespace import Made
from tsns.node.engine_process import EngineProcess
from tsns.node.files import NodeFiles
from tsns.node.inside_names import ANSWERS_BURST, MAX_SOCKETS, InsideNames
from tsns.node.places import Places
from tsns.node.watch import Watch


class Engine:
    """What the engine is told."""

    def __init__(self) -> None:
        self.told: list[tuple[dict[str, Any], int]] = []

    def tell(self, message: dict[str, Any], fds: Sequence[int] = ()) -> None:
        for fd in fds:
            os.fstat(fd)  # they are open
        self.told.append((message, len(fds)))


class Scene:
    def __init__(self, directory: Path) -> None:
        self.engine = Engine()
        places = Places(run=directory, state=directory).node("app")
        files = NodeFiles(places, lasting=False)
        self.names = InsideNames(Watch(), places, files, cast("EngineProcess", self.engine))
        self.names._host.addresses = ["192.0.2.1", "192.0.2.2"]
        self.inside: list[str] = []  # addresses on the namespace's loopback

    def listen(self, _: int, addresses: Sequence[str]) -> list[socket.socket]:
        self.inside += addresses
        return [Listener(address) for address in addresses for _ in range(2)]

    def give_up(self, _: int, addresses: Sequence[str]) -> None:
        self.inside = [address for address in self.inside if address not in addresses]


class Listener(socket.socket):
    """As if bound to an address that this machine has not."""

    def __init__(self, address: str) -> None:
        super().__init__(socket.AF_INET, socket.SOCK_DGRAM)
        self.address = address

    def getsockname(self) -> tuple[str, int]:
        return self.address, 53


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    found = Scene(tmp_path)
    monkeypatch.setattr(names, "listen", found.listen)
    monkeypatch.setattr(names, "give_up", found.give_up)
    monkeypatch.setattr(
        names,
        "asking_sockets",
        lambda _, kind, family, count: [socket.socket(family, kind).detach() for _ in range(count)],
    )
    yield found
    for sockets in found.names._listening.values():
        for sock in sockets:
            sock.close()


def test_before_there_is_a_namespace_nothing_can_be_had(scene: Scene) -> None:
    scene.names.sockets({"kind": "udp", "family": 4, "count": 1})
    scene.names.listeners(["192.0.2.1"])
    assert [(message["error"], fds) for message, fds in scene.engine.told] == [
        ("there is no namespace yet", 0),
        ("there is no namespace yet", 0),
    ]


def test_sockets(scene: Scene) -> None:
    scene.names.made(Made([-1, -1]))
    before = len(os.listdir("/proc/self/fd"))
    scene.names.sockets({"kind": "udp", "family": 4, "count": MAX_SOCKETS})
    scene.names.sockets({"kind": "tcp", "family": 6, "count": 1})
    assert scene.engine.told == [
        ({"done": "sockets", "error": ""}, MAX_SOCKETS),
        ({"done": "sockets", "error": ""}, 1),
    ]
    assert len(os.listdir("/proc/self/fd")) == before  # the keeper keeps none


@pytest.mark.parametrize(
    "asked",
    [
        {},
        {"kind": "raw", "family": 4, "count": 1},
        {"kind": "udp", "family": 17, "count": 1},
        {"kind": "udp", "family": 4, "count": 0},
        {"kind": "udp", "family": 4, "count": MAX_SOCKETS + 1},
        {"kind": "udp", "family": 4, "count": True},
        {"kind": "udp", "family": 4, "count": "1"},
        {"kind": "udp", "family": 4, "count": 1.0},
        {"kind": 3, "family": 4, "count": 1},
        {"kind": [], "family": {}, "count": []},
        {"kind": "udp", "family": "4", "count": 1},
    ],
)
def test_no_other_sockets_can_be_had(scene: Scene, asked: dict[str, Any]) -> None:
    scene.names.made(Made([-1, -1]))
    scene.names.sockets(asked)
    assert scene.engine.told == [({"done": "sockets", "error": "no such sockets"}, 0)]


def test_an_engine_that_asks_without_end_is_refused(scene: Scene) -> None:
    scene.names.made(Made([-1, -1]))
    for _ in range(int(ANSWERS_BURST) + 20):
        scene.names.sockets({"kind": "udp", "family": 4, "count": 1})
    refused = [message["error"] for message, _ in scene.engine.told if message["error"]]
    assert len(refused) >= 10
    assert set(refused) == {"too many sockets at once"}


def test_listeners_come_and_go(scene: Scene) -> None:
    scene.names.made(Made([-1, -1]))
    scene.names.listeners(["192.0.2.1", "192.0.2.2"])
    scene.names.listeners(["192.0.2.2"])
    scene.names.listeners([])
    assert scene.engine.told == [
        ({"done": "listeners", "error": "", "addresses": ["192.0.2.1", "192.0.2.2"]}, 4),
        ({"done": "listeners", "error": "", "addresses": ["192.0.2.2"]}, 2),
        ({"done": "listeners", "error": "", "addresses": []}, 0),
    ]
    assert scene.inside == []


def test_only_the_hosts_name_servers_are_answered_for(scene: Scene) -> None:
    scene.names.made(Made([-1, -1]))
    scene.names.listeners(["192.0.2.2", "198.51.100.1", "127.0.0.1", "100.64.0.9", "nonsense"])
    assert scene.inside == ["192.0.2.2"]


def test_the_engine_is_told_of_the_hosts_name_servers(scene: Scene) -> None:
    scene.names._host.servers = ["192.0.2.1"]
    scene.names.tell()
    assert scene.engine.told == [
        ({"give": "nameservers", "servers": ["192.0.2.1"], "addresses": ["192.0.2.1", "192.0.2.2"]}, 0)
    ]


def test_a_namespace_that_cannot_be_changed_is_said(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> list[socket.socket]:
        raise OSError("no such namespace")

    monkeypatch.setattr(names, "listen", fail)
    scene.names.made(Made([-1, -1]))
    scene.names.listeners(["192.0.2.1"])
    assert scene.engine.told == [({"done": "listeners", "error": "no such namespace", "addresses": []}, 0)]
