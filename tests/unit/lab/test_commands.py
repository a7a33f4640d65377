"""Line commands to a lab."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from tsns.keys import MachinePublic, NodePublic
from tsns.lab.commands import serve
from tsns.lab.lab import Lab


def conversation(*lines: dict[str, Any] | bytes) -> list[dict[str, Any]]:
    """The answers of a lab with one node, `web`."""

    async def play() -> list[dict[str, Any]]:
        async with Lab() as lab:
            now = lab.control.now()
            lab.tailnet.add_node(MachinePublic(b"\x01" * 32), NodePublic(b"\x02" * 32), hostname="web", now=now)
            reader, answers = asyncio.StreamReader(), list[bytes]()
            for line in lines:
                reader.feed_data(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n")
            reader.feed_eof()
            await serve(lab, reader, answers.append)
            return [json.loads(answer) for answer in answers]

    return asyncio.run(play())


def test_what_an_admin_does() -> None:
    _, before, _, after, _, never, _, gone = conversation(
        {"do": "authorize", "node": "web"},
        {"do": "nodes"},
        {"do": "expire", "node": "web"},
        {"do": "nodes"},
        {"do": "expire", "node": "web", "in_s": None},
        {"do": "nodes"},
        {"do": "remove", "node": "web"},
        {"do": "nodes"},
    )
    assert before["nodes"][0]["name"] == "web"
    assert before["nodes"][0]["expires_at"] is None
    assert after["nodes"][0]["expires_at"] is not None
    assert never["nodes"][0]["expires_at"] is None
    assert gone == {"ok": True, "nodes": []}


def test_faults() -> None:
    answers = conversation(
        {"do": "set", "approval_required": True, "visits_approve": False},
        {"do": "fail", "path": "/key", "status": 503, "retry_after": "2"},
        {"do": "stop"},
        {"do": "start"},
        {"do": "drop"},
        {"do": "stop_derp", "region": 1},
        {"do": "start_derp", "region": 1},
        {"do": "auth_key", "reusable": False},
        {"do": "urls"},
        {"do": "requests"},
    )
    assert [answer["ok"] for answer in answers] == [True] * 10
    assert answers[-3]["auth_key"].startswith("hskey-auth-")
    assert answers[-2]["urls"] == []
    assert answers[-1] == {"ok": True, "requests": {}, "registered": []}


@pytest.mark.parametrize(
    "line",
    [
        {"do": "dance"},
        {},
        {"do": "expire", "node": "nobody"},
        {"do": "approve", "url": "x"},
        {"do": "set", "key": 1},
        {"do": "fail"},
        b"nonsense\n",
        b"[1]\n",
    ],
)
def test_what_cannot_be_done_is_said(line: dict[str, Any] | bytes) -> None:
    [answer, after] = conversation(line, {"do": "nodes"})
    assert answer["ok"] is False
    assert answer["error"]
    assert after["ok"]
