"""The node's own HTTP interface on a Unix socket: status, ping, login, logout (ring 1).

One request a connection; the path decides who answers. Whoever may open the socket may ask: root, and the one whom the keeper gave it to.
Each handler learns who asks, since what changes the node is for root alone.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import h11
import msgspec

from tsns.error import UserError
from tsns.node import messages
from tsns.slices import in_slices
from tsns.steps import Steps

MAX_BODY_BYTES: Final = 64 << 10
MAX_CONNECTIONS: Final = 32
REQUEST_TIMEOUT_S: Final = 10.0
READ_BYTES: Final = 64 << 10
ITEMS_AT_ONCE: Final = 64

Answer = dict[str, Any]
Handler = Callable[[Answer, int], Awaitable[Answer]]  # gets the request's body, and the uid of whoever asks

log = logging.getLogger(__name__)


class ForbiddenError(UserError):
    """Not for this caller."""


def need_root(uid: int) -> None:
    """ForbiddenError for anybody else."""
    if uid != 0:
        raise ForbiddenError("only root may do that to this node", "try again with sudo")


class LocalApi:
    """Serves `handlers`, by (method, path), on a listening socket."""

    def __init__(
        self, listener: socket.socket, uids: frozenset[int], handlers: Mapping[tuple[str, str], Handler]
    ) -> None:
        self._listener = listener
        self._uids = uids
        self._handlers = handlers
        self._serving: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Begin to listen."""
        self._server = await asyncio.start_unix_server(self._serve, sock=self._listener)

    async def close(self) -> None:
        """Answer nobody any more."""
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # the stream server runs us as one
        self._serving.add(task)
        try:
            peer = messages.peer_uid(writer.get_extra_info("socket"))
            if peer in self._uids and len(self._serving) <= MAX_CONNECTIONS:
                await self._converse(reader, writer, peer)
        except (OSError, h11.ProtocolError, TimeoutError) as error:
            log.debug("a request came to nothing: %s", error)
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
            self._serving.discard(task)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, uid: int) -> None:
        http = h11.Connection(h11.SERVER)
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            request, body = await _read_request(http, reader)
        status, answer = await self._answer(request, body, uid)
        data = await in_slices(_encoding(answer))
        headers = [("Content-Type", "application/json"), ("Content-Length", str(len(data))), ("Connection", "close")]
        writer.write(
            (http.send(h11.Response(status_code=status, headers=headers)) or b"")
            + (http.send(h11.Data(data=data)) or b"")
            + (http.send(h11.EndOfMessage()) or b"")
        )
        await writer.drain()

    async def _answer(self, request: h11.Request, body: bytes, uid: int) -> tuple[int, Answer]:
        method, path = request.method.decode(), request.target.decode().partition("?")[0]
        handler = self._handlers.get((method, path))
        if handler is None:
            return 404, {"error": f"{method} {path} is not served here", "hint": "see docs/json.md"}
        try:
            asked = json.loads(body or b"{}")
            if not isinstance(asked, dict):
                raise ValueError("the body is not an object")
            return 200, await handler(asked, uid)
        except (ValueError, RecursionError) as error:  # the latter: nested too deeply
            return 400, {"error": f"the request cannot be understood: {error}", "hint": "see docs/json.md"}
        except UserError as error:
            return 403 if isinstance(error, ForbiddenError) else 409, {"error": error.message, "hint": error.hint}


def _encoding(answer: Answer) -> Steps[bytes]:
    """The answer as JSON. A list of its own is written in several steps: it may be of all peers."""
    members = []
    for name, value in answer.items():
        if isinstance(value, list):
            items = []
            for start in range(0, len(value), ITEMS_AT_ONCE):
                items.append(msgspec.json.encode(value[start : start + ITEMS_AT_ONCE])[1:-1])
                yield
            text = b"[" + b",".join(items) + b"]"
        else:
            text = msgspec.json.encode(value)
        members.append(msgspec.json.encode(name) + b":" + text)
    return b"{" + b",".join(members) + b"}"


async def _read_request(http: h11.Connection, reader: asyncio.StreamReader) -> tuple[h11.Request, bytes]:
    """The request and its whole body; h11.ProtocolError for anything else."""
    request: h11.Request | None = None
    body = b""
    while True:
        match http.next_event():
            case h11.Request() as request:
                pass
            case h11.Data(data=data):
                body += data
                if len(body) > MAX_BODY_BYTES:
                    raise h11.RemoteProtocolError("the body is too large")
            case h11.EndOfMessage() if request is not None:
                return request, body
            case h11.NEED_DATA:
                http.receive_data(await reader.read(READ_BYTES))
            case _:
                raise h11.RemoteProtocolError("no request")
