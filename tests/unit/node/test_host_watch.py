"""The host's network is looked at when the kernel says that something changed, and told of when it concerns us."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Iterator

import pytest

from tsns.netns import host_network
from tsns.node import host_watch
from tsns.node.host_watch import HostWatch

HOME = ["127.0.0.1", "192.168.1.2"]
AWAY = ["127.0.0.1", "10.0.0.7"]


class Host:
    """A network that the test changes, behind the calls that look at it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses = HOME
        self.now = 1000.0
        self.told: list[tuple[list[str], str]] = []
        self.turns = 0
        self._turned = asyncio.Event()
        self.wake, self._readable = socket.socketpair()
        self._readable.setblocking(False)
        monkeypatch.setattr(host_network, "addresses", lambda: self.addresses)
        monkeypatch.setattr(host_network, "source_addresses", lambda: (self.addresses[-1],))
        monkeypatch.setattr(host_network, "Changes", lambda: self)
        monkeypatch.setattr(host_watch, "SETTLE_S", 0.0)
        monkeypatch.setattr(host_watch, "LOOK_EVERY_S", 0.02)
        monkeypatch.setattr(host_watch, "_clock", lambda: self.now)

    def fileno(self) -> int:
        return self._readable.fileno()

    def clear(self) -> None:
        self._readable.recv(100)

    def close(self) -> None:
        self._readable.close()
        self.wake.close()

    def tell(self, addresses: list[str], why: str) -> None:
        self.told.append((addresses, why))

    def turn(self) -> None:
        self.turns += 1
        self._turned.set()

    def play(self, *steps: Callable[[], object]) -> list[tuple[list[str], str]]:
        """What is told when these things happen, one after the other."""

        async def watch() -> None:
            one = HostWatch(self.tell, self.turn)
            one.look()
            task = asyncio.create_task(one.run())
            for step in steps:
                await self._await_turns(1)
                step()
                await self._await_turns(2)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()

        asyncio.run(watch())
        return self.told

    async def _await_turns(self, count: int) -> None:
        async with asyncio.timeout(2):
            for _ in range(count):
                self._turned.clear()
                await self._turned.wait()

    def move(self) -> None:
        self.addresses = AWAY
        self.wake.send(b"!")

    def flutter(self) -> None:
        self.wake.send(b"!")

    def sleep(self) -> None:
        self.now += 600


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    host = Host(monkeypatch)
    yield host
    host.close()


def test_the_first_look_is_no_change(host: Host) -> None:
    assert host.play() == [(HOME, "")]


def test_another_address_is_a_change(host: Host) -> None:
    assert host.play(host.move) == [(HOME, ""), (sorted(AWAY), "the host's network has changed")]


def test_what_changes_nothing_of_ours_is_not_told(host: Host) -> None:
    assert host.play(host.flutter, host.flutter) == [(HOME, "")]


def test_time_that_passed_without_us_is_told(host: Host) -> None:
    assert (HOME, "it has slept") in host.play(host.sleep)


def test_a_kernel_that_does_not_tell_is_no_failure(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> list[str]:
        raise OSError(1, "Operation not permitted")

    monkeypatch.setattr(host_network, "addresses", refuse)
    assert host.play() == [([], "")]
