"""As much of an HTTP/1.1 server as the lab needs: one request, one answer, and upgrades that keep the rest of the stream (ring 1)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Final

from tsns.error import ProtocolError

MAX_BODY_BYTES: Final = 1 << 20
REQUEST_TIMEOUT_S: Final = 60.0  # how long a connection may idle between requests


@dataclass(frozen=True, slots=True)
class Request:
    """A request: header names in lower case."""

    method: str
    target: str  # as it came, query included
    headers: Mapping[str, str]
    body: bytes

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    @property
    def keeps_alive(self) -> bool:
        """Whether another request may follow."""
        return "close" not in self.headers.get("connection", "").lower()


async def read_request(reader: asyncio.StreamReader) -> Request | None:
    """The next request, None where the client has gone; what follows it stays in the reader. ProtocolError for no HTTP."""
    try:
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            head = await reader.readuntil(b"\r\n\r\n")
            method, target, headers = _parse_head(head)
            length = int(headers.get("content-length", "0"))
            if not 0 <= length <= MAX_BODY_BYTES:
                raise ProtocolError(f"a request body of {length} bytes")
            body = await reader.readexactly(length)
    except (asyncio.IncompleteReadError, ConnectionError, TimeoutError):
        return None
    except (asyncio.LimitOverrunError, ValueError) as error:
        raise ProtocolError("not an HTTP request") from error
    return Request(method, target, headers, body)


def _parse_head(head: bytes) -> tuple[str, str, dict[str, str]]:
    first, *lines = head.decode("latin-1").split("\r\n")[:-2]
    method, target, version = first.split(" ")
    if not version.startswith("HTTP/1."):
        raise ValueError(version)
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise ValueError(line)
        headers[name.strip().lower()] = value.strip()
    return method, target, headers


def response(
    status: int,
    body: bytes | str = b"",
    *,
    content_type: str = "text/plain; charset=utf-8",
    headers: Mapping[str, str] | None = None,
    head_only: bool = False,
) -> bytes:
    """An answer as it goes on the wire; with `head_only` it is one to HEAD."""
    content = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}"]
    if status != HTTPStatus.NO_CONTENT:
        lines += [f"Content-Type: {content_type}", f"Content-Length: {len(content)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode() + (b"" if head_only else content)


def switching(protocol: str, headers: Mapping[str, str] | None = None) -> bytes:
    """The answer to an upgrade."""
    lines = ["HTTP/1.1 101 Switching Protocols", f"Upgrade: {protocol}", "Connection: upgrade"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    return "\r\n".join([*lines, "", ""]).encode()
