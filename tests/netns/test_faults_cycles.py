"""Many short lives: after 200 of them this machine and the tailnet are as before."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

import pytest

from tests.machine import patiently
from tests.netns.anatomy import descriptors, engine_of, keeper_of, processes
from tests.netns.nodes import Tsns
from tests.netns.steered_lab import SteeredLab
from tsns.node.files import CACHE_NAME

pytestmark = pytest.mark.netns

CYCLES: Final = 200
AT_ONCE: Final = 4


def inventory(tsns: Tsns, server: int) -> dict[str, object]:
    """Everything that a life may leave behind; the netmap is cached some seconds after it came, which is no leftover."""
    now = processes(tsns.directories)
    keeper = now.keepers["web"]
    return {
        "files": sorted(path.name for path in tsns.directories.run.rglob("*") if not path.name.startswith("serve-")),
        "state": sorted(path.name for path in tsns.directories.state.rglob("*") if path.name != CACHE_NAME),
        "mounts": _mounts(tsns),
        "links": sorted(name for name in os.listdir("/sys/class/net") if name.startswith("tsns")),
        "keepers": now.keepers,
        "engines": now.engines,
        "others": now.others,
        "descriptors": [descriptors(pid) for pid in (server, keeper, engine_of(keeper) or 0)],
    }


def _mounts(tsns: Tsns) -> list[str]:
    """All but those of other test runs on this machine."""
    places = sorted(line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines())
    others = ("/tmp/tsns-test-", "/run/netns/rig-")
    return [place for place in places if place.startswith(str(tsns.directories.run)) or not place.startswith(others)]


@pytest.mark.timeout(180)
def test_two_hundred_lives_leave_nothing(steered_tsns: Tsns, steered: SteeredLab) -> None:
    tsns = steered_tsns
    tsns.up("web")
    assert tsns.run("true").returncode == 0
    assert patiently(lambda: [name for name in steered.nodes() if name != "web"]) == []
    [server] = processes(tsns.directories).servers
    before = inventory(tsns, server)

    def live(_: int) -> int:
        return tsns.run("true").returncode

    with ThreadPoolExecutor(AT_ONCE) as workers:
        assert set(workers.map(live, range(CYCLES))) == {0}
    patiently(lambda: [] if inventory(tsns, server) == before else ["not yet"])
    assert inventory(tsns, server) == before
    assert keeper_of(tsns.directories, "web") is not None
    assert patiently(lambda: [name for name in steered.nodes() if name != "web"]) == []
