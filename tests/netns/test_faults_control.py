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


def test_addresses_that_stay_are_set_once(steered_tsns: Tsns, steered: SteeredLab) -> None:
    """Control tells a node of itself again and again, above all while it starts, and each setting costs a process."""
    tsns = steered_tsns
    tsns.up("web")
    log = tsns.directories.state / "web" / "log"
    first = tsns.json("ip", "web")["addresses"]
    steered.do(lambda lab: lab.tailnet.change(lab.tailnet.find("web"), tags=("tag:other",)))
    steered.do(lambda lab: lab.tailnet.change(lab.tailnet.find("web"), addresses=("100.64.7.7", "fd7a:115c:a1e0::77")))
    assert patiently(lambda: [] if "100.64.7.7" in log.read_text() else ["not yet"]) == []
    settings = [
        line.partition("addresses set: ")[2].partition(";")[0]
        for line in log.read_text().splitlines()
        if "addresses set" in line
    ]
    assert settings == [
        " ".join(f"{address}/{128 if ':' in address else 32}" for address in first),
        "100.64.7.7/32 fd7a:115c:a1e0::77/128",
    ]
