"""When the netmap is written, and what becomes of a file that is none."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from tsns import slices
from tsns.control import cache as control_cache
from tsns.control.cache import dump, load
from tsns.control.netmap import NetMap
from tsns.keys import NodePublic
from tsns.node import netmap_cache
from tsns.node.netmap_cache import NetmapCache, read
from tsns.proto.types import MapResponse, Node
from tsns.steps import Steps

NOW = 1_800_000_000.0
OURS = NodePublic(b"\x01" * 32)


def node(number: int) -> Node:
    return Node(id=number, key=str(NodePublic(bytes([number]) * 32)), addresses=[f"100.64.0.{number}/32"])


class Keeper:
    """Keeps what it is given."""

    def __init__(self, error: str = "") -> None:
        self.contents: list[bytes] = []
        self.error = error

    async def save(self, fd: int) -> str:
        self.contents.append(os.pread(fd, 1 << 20, 0))
        return self.error


def test_a_burst_is_written_once_and_no_news_never(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netmap_cache, "FIRST_AFTER_S", 0.02)
    monkeypatch.setattr(netmap_cache, "INTERVAL_S", 0.05)

    async def play() -> None:
        keeper, netmap = Keeper(), NetMap()
        cache = NetmapCache(keeper.save)
        task = asyncio.create_task(cache.run())
        cache.note(netmap, netmap.apply(MapResponse(node=node(1), peers=[node(2)]), NOW))
        for number in range(3, 9):
            cache.note(netmap, netmap.apply(MapResponse(peers_changed=[node(number)]), NOW))
        await asyncio.sleep(0.05)
        assert [len(load(data, OURS).peers or ()) for data in keeper.contents] == [7]
        cache.note(netmap, netmap.apply(MapResponse(online_change={2: True}), NOW))
        await asyncio.sleep(0.1)
        assert len(keeper.contents) == 1
        cache.note(netmap, netmap.apply(MapResponse(peers_removed=[3]), NOW))
        await cache.finish()
        await cache.finish()
        assert len(keeper.contents) == 2
        await cache.clear()
        assert keeper.contents[2:] == [b""]
        task.cancel()

    asyncio.run(play())


@pytest.mark.parametrize("cleared", [True, False])
def test_what_is_just_being_collected(monkeypatch: pytest.MonkeyPatch, cleared: bool) -> None:
    """It takes many slices, amid which the node may end or be logged out."""
    monkeypatch.setattr(netmap_cache, "FIRST_AFTER_S", 0.0)
    monkeypatch.setattr(slices, "SLICE_S", 0.0)
    begun, dumping = asyncio.Event(), control_cache.dumping

    def watched(netmap: NetMap) -> Steps[bytes | None]:
        begun.set()
        return (yield from dumping(netmap))

    monkeypatch.setattr(control_cache, "dumping", watched)

    async def play() -> None:
        keeper, netmap = Keeper(), NetMap()
        cache = NetmapCache(keeper.save)
        task = asyncio.create_task(cache.run())
        peers = [node(number) for number in range(2, 250)]
        cache.note(netmap, netmap.apply(MapResponse(node=node(1), peers=peers), NOW))
        async with asyncio.timeout(2):
            await begun.wait()
        assert keeper.contents == []
        if cleared:
            await cache.clear()
            await asyncio.sleep(0.05)
            assert keeper.contents == [b""], "and nothing of it afterwards"
        else:
            await cache.finish()
            assert len(load(keeper.contents[0], OURS).peers or ()) == len(peers)
        task.cancel()

    asyncio.run(play())


def test_a_keeper_that_cannot_save_is_mentioned_once(caplog: pytest.LogCaptureFixture) -> None:
    async def play() -> None:
        keeper, netmap = Keeper("the disk is full"), NetMap()
        cache = NetmapCache(keeper.save)
        cache.note(netmap, netmap.apply(MapResponse(node=node(1)), NOW))
        for number in (2, 3):
            await cache.finish()
            cache.note(netmap, netmap.apply(MapResponse(peers_changed=[node(number)]), NOW))
        await cache.finish()
        assert len(keeper.contents) == 3

    asyncio.run(play())
    assert caplog.text.count("the disk is full") == 1


def test_what_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    netmap = NetMap()
    netmap.apply(MapResponse(node=node(1)), NOW)
    good = dump(netmap)
    assert good is not None

    def reading(data: bytes, key: NodePublic | None = OURS) -> MapResponse | None:
        (tmp_path / "cache").write_bytes(data)
        return read(os.open(tmp_path / "cache", os.O_RDONLY), key)

    assert reading(good) is not None
    assert reading(good, None) is None
    assert reading(b"") is None
    assert read(-1, OURS) is None
    assert caplog.text == ""
    assert reading(good[:-1]) is None
    assert reading(good, NodePublic(b"\x02" * 32)) is None
    assert caplog.text.count("the cached netmap cannot be used") == 2
