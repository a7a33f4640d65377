"""PingRequests of the lab's control server, and how they are answered (ring 1)."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import msgspec

from tsns.proto.types import MapResponse, PingRequest

MAX_ANSWERS: Final = 1000  # kept for tests
PATH: Final = "/machine/ping-response"
ECHO_REQUEST: Final = b"POST /echo HTTP/1.1\r\nHost: lab\r\nContent-Length: 5\r\n\r\nhello"


@dataclass(frozen=True, slots=True)
class PingAnswer:
    """How a node answered a PingRequest."""

    method: str
    body: bytes
    over_noise: bool


class Pings:
    """Brings questions and answers together, by a number in the URL."""

    def __init__(self) -> None:
        self.answers: deque[PingAnswer] = deque(maxlen=MAX_ANSWERS)
        self._waiting: dict[str, asyncio.Future[PingAnswer]] = {}

    async def ask(
        self, request: PingRequest, base_url: str, send: Callable[[MapResponse], None], timeout_s: float
    ) -> PingAnswer:
        """Send this request with a URL of its own; TimeoutError where nobody comes to it."""
        number = os.urandom(8).hex()
        future: asyncio.Future[PingAnswer] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            url = f"{base_url}{PATH}?id={number}"
            send(MapResponse(ping_request=msgspec.structs.replace(request, url=url)))
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            del self._waiting[number]

    def take(self, query: Mapping[str, Sequence[str]], answer: PingAnswer) -> None:
        """Somebody came to the URL with this query."""
        self.answers.append(answer)
        future = self._waiting.get(query.get("id", [""])[0])
        if future is not None and not future.done():
            future.set_result(answer)

    def cancel(self) -> None:
        """Nobody can answer any more."""
        for future in self._waiting.values():
            future.cancel()
