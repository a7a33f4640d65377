"""What a request makes of a response, however long that is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tsns.control.connection import MAX_REPLY_BYTES, Connection
from tsns.control.http2 import Head
from tsns.error import ProtocolError

PIECE = bytes(64 << 10)
TOO_MANY = MAX_REPLY_BYTES // len(PIECE) + 1


class Canned:
    """A response."""

    def __init__(self, status: int, pieces: int) -> None:
        self._status = status
        self._pieces: Iterator[bytes] = iter(pieces * [PIECE])
        self.read_whole = False

    async def head(self) -> Head:
        return Head(stream=1, status=self._status)

    async def read(self) -> bytes | None:
        piece = next(self._pieces, None)
        self.read_whole = piece is None
        return piece


class Answering(Connection):
    """A connection that answers everything with one response."""

    def __init__(self, response: Canned) -> None:
        nothing: Any = None
        super().__init__((nothing, nothing), nothing, "control.test")
        self._response = response

    @contextlib.asynccontextmanager
    async def exchange(self, *_: Any) -> AsyncIterator[Any]:
        yield self._response


def ask(response: Canned, *, reads_success: bool) -> bytes:
    async def play() -> bytes:
        connection = Answering(response)
        return (await connection.request("POST", "/x", timeout_s=5, reads_success=reads_success)).body

    return asyncio.run(play())


def test_a_reply_has_a_bound() -> None:
    assert ask(Canned(200, 2), reads_success=True) == 2 * PIECE
    with pytest.raises(ProtocolError, match="more than"):
        ask(Canned(200, TOO_MANY), reads_success=True)


def test_a_success_that_nobody_reads_may_be_of_any_size() -> None:
    """Tailscale's test control server answers a lite update with the whole netmap: that of a large tailnet is beyond the bound."""
    response = Canned(200, TOO_MANY)
    assert ask(response, reads_success=False) == b""
    assert response.read_whole, "else the server sees a request that was broken off"


def test_a_failure_is_read_and_bounded_all_the_same() -> None:
    assert ask(Canned(500, 1), reads_success=False) == PIECE
    with pytest.raises(ProtocolError, match="more than"):
        ask(Canned(500, TOO_MANY), reads_success=False)
