"""The node's HTTP interface, over a real Unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from tsns.error import UserError
from tsns.node.localapi import MAX_BODY_BYTES, Answer, Handler, LocalApi, need_root

OURS = frozenset({os.getuid()})


async def echo(asked: Answer, _: int) -> Answer:
    return {"asked": asked}


async def root_only(_: Answer, uid: int) -> Answer:
    need_root(uid + 1 if uid == os.getuid() else 0)  # whoever runs the tests counts as somebody else
    return {}


async def refuse(_: Answer, _uid: int) -> Answer:
    raise UserError("there is no peer x", "see `tsns status`")


def ask(path: Path, request: bytes, uids: frozenset[int] = OURS) -> tuple[bytes, Any]:
    """Send these bytes; gives the status line and the answer's JSON."""

    async def converse() -> bytes:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        handlers: dict[tuple[str, str], Handler] = {
            ("GET", "/echo"): echo,
            ("POST", "/echo"): echo,
            ("POST", "/refuse"): refuse,
            ("POST", "/root"): root_only,
        }
        api = LocalApi(listener, uids, handlers)
        await api.start()
        reader, writer = await asyncio.open_unix_connection(str(path))
        writer.write(request)
        answer = b""
        with contextlib.suppress(ConnectionError):  # which is how nothing looks to one who was still writing
            answer = await reader.read()
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()
        await api.close()
        return answer

    head, _, body = asyncio.run(converse()).partition(b"\r\n\r\n")
    return head.partition(b"\r\n")[0], json.loads(body) if body else None


def post(path: str, body: bytes) -> bytes:
    return b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (path.encode(), len(body), body)


@pytest.mark.parametrize(
    ("request_", "status", "answer"),
    [
        (b"GET /echo?x=1 HTTP/1.1\r\nHost: x\r\n\r\n", 200, {"asked": {}}),
        (post("/echo", b'{"peer": "web"}'), 200, {"asked": {"peer": "web"}}),
        (post("/root", b"{}"), 403, {"error": "only root may do that to this node", "hint": "try again with sudo"}),
        (post("/refuse", b"{}"), 409, {"error": "there is no peer x", "hint": "see `tsns status`"}),
    ],
)
def test_who_asks_gets_an_answer(tmp_path: Path, request_: bytes, status: int, answer: Any) -> None:
    line, got = ask(tmp_path / "sock", request_)
    assert line.startswith(b"HTTP/1.1 %d" % status)
    assert got == answer


@pytest.mark.parametrize(
    ("request_", "status"), [(post("/echo", b"[1]"), 400), (post("/echo", b"{"), 400), (post("/no", b"{}"), 404)]
)
def test_what_cannot_be_understood_is_told(tmp_path: Path, request_: bytes, status: int) -> None:
    line, got = ask(tmp_path / "sock", request_)
    assert line.startswith(b"HTTP/1.1 %d" % status)
    assert set(got) == {"error", "hint"}


def test_strangers_get_nothing(tmp_path: Path) -> None:
    request = b"GET /echo HTTP/1.1\r\nHost: x\r\n\r\n"
    assert ask(tmp_path / "sock", request, uids=frozenset({os.getuid() + 1})) == (b"", None)


@pytest.mark.parametrize(
    "request_", [b"\x00\xff\r\n\r\n", post("/echo", b" " * (MAX_BODY_BYTES + 1))], ids=["garbage", "too much"]
)
def test_nonsense_gets_nothing(tmp_path: Path, request_: bytes) -> None:
    assert ask(tmp_path / "sock", request_) == (b"", None)
