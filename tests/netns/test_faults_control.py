"""A control server with wishes that are none of its business."""

from __future__ import annotations

import json

import pytest

from tests.machine import patiently
from tests.netns.anatomy import processes
from tests.netns.nodes import Tsns
from tests.netns.steered_lab import SteeredLab

pytestmark = pytest.mark.netns


def test_control_cannot_end_a_node(steered_tsns: Tsns, steered: SteeredLab) -> None:
    tsns = steered_tsns
    tsns.up("web")
    before = processes(tsns.directories)
    wishes = [
        {"Debug": {"Exit": 7}},
        {"Debug": {"Exit": 0, "SleepSeconds": -1}},
        {"Debug": {"SleepSeconds": 0.1, "DisableLogTail": True}},
        {"PopBrowserURL": "file:///etc/shadow"},
    ]
    for wish in wishes:
        message = json.dumps(wish).encode()
        steered.do(lambda lab, message=message: lab.control.send("web", message))  # type: ignore[misc]
    log = tsns.directories.state / "web" / "log"
    assert patiently(lambda: [] if log.read_text().count("it stays") == 2 else ["not heard yet"]) == []
    now = processes(tsns.directories)
    assert (now.keepers, now.engines) == (before.keepers, before.engines)
    assert tsns.json("status", "web")["state"] == "running"
