"""The engine's pool of sockets that its keeper makes."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tsns.node import keeper_channel, messages
from tsns.node.inside_sockets import AT_ONCE, MAX_IDLE, InsideSockets
from tsns.node.keeper_channel import KeeperChannel

UDP, TCP = socket.SOCK_DGRAM, socket.SOCK_STREAM
V4, V6 = socket.AF_INET, socket.AF_INET6


class Keeper:
    """Answers a channel; `error` is what it says instead of giving sockets."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.asked: list[dict[str, Any]] = []
        self.error = ""

    def answer(self) -> None:
        message, _ = messages.receive(self.sock)
        self.asked.append(message)
        kind = {"udp": UDP, "tcp": TCP}[message["kind"]]
        family = {4: V4, 6: V6}[message["family"]]
        sockets = [] if self.error else [socket.socket(family, kind) for _ in range(message["count"])]
        messages.send(self.sock, {"done": "sockets", "error": self.error}, [sock.fileno() for sock in sockets])
        for sock in sockets:
            sock.close()


@contextmanager
def channel(*, answers: bool = True) -> Iterator[tuple[KeeperChannel, Keeper]]:
    """In a running loop."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        keeper = Keeper(theirs)
        here = KeeperChannel(ours, lambda _: None, lambda _: None, lambda _: None)
        here.start()
        loop = asyncio.get_running_loop()
        if answers:
            loop.add_reader(theirs, keeper.answer)
        try:
            yield here, keeper
        finally:
            loop.remove_reader(ours)
            loop.remove_reader(theirs)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_sockets_are_asked_for_a_few_at_a_time_and_used_again() -> None:
    async def play() -> None:
        with channel() as (here, keeper):
            pool = InsideSockets(here)
            taken = await asyncio.gather(*(pool.take(UDP, V4) for _ in range(AT_ONCE + 1)))
            assert keeper.asked == [{"ask": "sockets", "kind": "udp", "family": 4, "count": AT_ONCE}] * 2
            assert {(sock.type, sock.family, sock.gettimeout()) for sock in taken} == {(UDP, V4, 0.0)}
            for sock in taken:
                pool.give_back(sock)
            again = await asyncio.gather(*(pool.take(UDP, V4) for _ in range(2 * AT_ONCE)))
            assert len(keeper.asked) == 2
            stream = await pool.take(TCP, V6)
            assert keeper.asked[2:] == [{"ask": "sockets", "kind": "tcp", "family": 6, "count": AT_ONCE}]
            for sock in (*again, stream):
                pool.give_back(sock)
            await pool.fill(UDP, V4)
            assert len(keeper.asked) == 3
            pool.close()

    before = descriptors()
    asyncio.run(play())
    assert descriptors() == before


def test_a_socket_that_is_used_again_hears_nothing_of_before() -> None:
    async def play() -> None:
        with channel() as (here, _), socket.socket(V4, UDP) as server:
            server.bind(("127.0.0.1", 0))
            pool = InsideSockets(here)
            sock = await pool.take(UDP, V4)
            sock.connect(server.getsockname())
            sock.send(b"?")
            _, former = server.recvfrom(10)
            server.sendto(b"late", former)
            pool.give_back(sock)
            assert sock in pool._idle[UDP, V4]
            sock.connect(server.getsockname())
            with pytest.raises(BlockingIOError):
                sock.recv(10)
            pool.close()

    asyncio.run(play())


def test_no_more_are_kept_than_are_of_use() -> None:
    async def play() -> None:
        with channel() as (here, _):
            pool = InsideSockets(here)
            taken = [await pool.take(UDP, V4) for _ in range(MAX_IDLE + AT_ONCE)]
            for sock in taken:
                pool.give_back(sock)
            assert len(pool._idle[UDP, V4]) == MAX_IDLE
            pool.close()

    asyncio.run(play())


def test_a_keeper_that_gives_none() -> None:
    async def play() -> None:
        with channel() as (here, keeper):
            keeper.error = "too many sockets at once"
            pool = InsideSockets(here)
            with pytest.raises(OSError, match="too many sockets at once"):
                await pool.take(UDP, V4)
            keeper.error = ""
            pool.give_back(await pool.take(UDP, V4))
            pool.close()

    asyncio.run(play())


@pytest.mark.parametrize("how", ["late", "cancelled"])
def test_descriptors_that_come_when_nobody_waits_are_closed(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper_channel, "ANSWER_TIMEOUT_S", 0.05 if how == "late" else 10.0)

    async def play() -> None:
        with channel(answers=False) as (here, keeper):
            before = descriptors()
            asking = asyncio.ensure_future(InsideSockets(here).take(UDP, V4))
            await asyncio.sleep(0)
            if how == "cancelled":
                await asyncio.sleep(0.01)
                asking.cancel()
            await asyncio.wait([asking])
            assert asking.cancelled() or "did not answer" in str(asking.exception())
            keeper.answer()
            here._read()
            await asyncio.sleep(0)
            assert descriptors() == before

    asyncio.run(play())
