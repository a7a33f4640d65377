"""Whoever takes an engine over and speaks its keeper's protocol by hand gets nothing that an engine has no right to."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import pytest

from tests.machine import patiently
from tests.netns.anatomy import keeper_of, remains, status_of
from tests.netns.hijacked_engine import FINDINGS, hijack
from tests.netns.nodes import Tsns
from tsns.node import messages

pytestmark = pytest.mark.netns

ANSWER_S: Final = 3.0
MEMORY_KB: Final = 200_000


@contextmanager
def hijacked(tsns: Tsns, deed: str) -> Iterator[str]:
    """A node in the wrong hands; gives what its client heard. Afterwards it is stopped, and nothing of it may be left."""
    tsns.directories.run.mkdir(parents=True)
    tsns.directories.state.mkdir(mode=0o700)
    with hijack(tsns, deed) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.wait(20)
    assert patiently(lambda: remains(tsns.directories)) == []


def log_of(tsns: Tsns) -> str:
    return (tsns.directories.state / "web" / "log").read_text(errors="replace")


def findings(tsns: Tsns) -> Any:
    [line] = [line for line in log_of(tsns).splitlines() if line.startswith(FINDINGS)]
    return json.loads(line.removeprefix(FINDINGS))


def test_it_is_refused_what_is_not_an_engines(tsns: Tsns) -> None:
    with hijacked(tsns, "asks") as told:
        assert told == "ready web. [31m ['100.64.0.9', '[2J', '7']"  # nothing that a terminal would obey
        identity = (tsns.directories.state / "web" / "identity.json").read_text()
        found = findings(tsns)
        assert found.pop("done") == "done"  # so it was heard at all
        assert [what for what, answer in found.items() if answer == "done"] == []
        assert all(len(answer) < 3000 for answer in found.values())
        resolv = (tsns.directories.run / "web.resolv").read_text()
        assert "192.0.2.1" not in resolv
        assert "search b.example" in resolv
        assert "elsewhere.example" not in identity
        assert not (tsns.directories.state / "web" / "netmap.cache").exists()


def test_a_flood_leaves_the_keeper_time_for_others(tsns: Tsns) -> None:
    with hijacked(tsns, "flood") as told:
        assert told.startswith("ready")
        keeper = keeper_of(tsns.directories, "web")
        assert keeper is not None
        for _ in range(5):
            began = time.monotonic()
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
                client.settimeout(2 * ANSWER_S)
                client.connect(str(tsns.directories.run / "web.ctl"))
                messages.send(client, {"ask": "join"})
                answer, _ = messages.receive(client)
            assert answer.get("ready")
            assert time.monotonic() - began < ANSWER_S
            time.sleep(0.3)
        assert int(status_of(keeper)["VmRSS"].split()[0]) < MEMORY_KB


def test_it_is_not_ready_before_there_is_a_namespace(tsns: Tsns) -> None:
    with hijacked(tsns, "early") as told:
        assert told.startswith("ready")


@pytest.mark.parametrize("deed", ["huge", "nonsense", "deep", "many-descriptors", "deaf"])
def test_who_talks_nonsense_is_ended_and_the_keeper_is_not(tsns: Tsns, deed: str) -> None:
    with hijacked(tsns, deed) as told:
        assert told == "the node's engine failed at its start"
    assert log_of(tsns).count("the engine ended unbidden (signal 9)") == 3
