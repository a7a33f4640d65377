"""What a request makes of a response, however long that is."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from tsns.control import connection as connection_module
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


# --- a change of the host's network ------------------------------------------------------------------------------------


class Line(Connection):
    """A connection over a writer that only notes what is done to it."""

    def __init__(self) -> None:
        nothing: Any = None
        self.sent: list[bytes] = []
        self.aborted = False
        self.transport = self
        here: Any = self
        super().__init__((nothing, here), here, "control.test")

    def get_extra_info(self, name: str) -> tuple[str, int]:
        assert name == "sockname"
        return "192.0.2.1", 40_000

    def send(self, data: bytes) -> bytes:
        return data

    def write(self, data: bytes) -> None:
        self.sent.append(data)

    def get_write_buffer_size(self) -> int:
        return 0

    def abort(self) -> None:
        self.aborted = True


async def _checked(monkeypatch: pytest.MonkeyPatch, addresses: list[str], *, answers: bool) -> Line:
    monkeypatch.setattr(connection_module, "CHECK_S", 0.01)
    line = Line()
    line.check(addresses)
    line._times_heard += answers
    await asyncio.sleep(0.05)
    return line


def test_a_connection_from_an_address_that_is_gone_is_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    line = asyncio.run(_checked(monkeypatch, ["192.0.2.9"], answers=False))
    assert line.aborted
    assert not line.sent
    assert not line.usable


@pytest.mark.parametrize("addresses", [["127.0.0.1", "192.0.2.1"], []], ids=["still there", "not known"])
@pytest.mark.parametrize("answers", [True, False])
def test_any_other_one_has_to_answer_soon(monkeypatch: pytest.MonkeyPatch, addresses: list[str], answers: bool) -> None:
    line = asyncio.run(_checked(monkeypatch, addresses, answers=answers))
    assert line.sent, "a ping"
    assert line.usable is answers
    assert line.aborted is not answers
