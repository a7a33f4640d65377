"""`tsns demo`, as somebody types it who has just come."""

from __future__ import annotations

import json

import pytest

from tests.netns.nodes import Tsns

pytestmark = pytest.mark.netns


def test_the_demo_works_and_leaves_nothing(tsns: Tsns) -> None:
    done = tsns("demo", "--json", timeout_s=60)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["schema"], told["ok"]) == (1, True)
    assert all(step["ok"] for step in told["steps"])
    assert told["steps"][-1]["detail"] == "nothing is left"
    assert told["throughput_mbit_s"] > 0
