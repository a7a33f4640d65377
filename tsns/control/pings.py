"""Answers to control's PingRequests (ring 1).

Source: control/controlclient (direct.go, answerPing) of Tailscale's module. Without a type, control wants a HEAD request to one of its own
URLs, as a rule outside Noise; `c2n` carries a request whose response goes back over Noise.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import logging
import urllib.parse
from typing import Final

from tsns.control.c2n import respond
from tsns.control.connection import Connection
from tsns.control.dial import Dialer
from tsns.error import ProtocolError, TsnsError
from tsns.proto.text import one_line
from tsns.proto.types import PingRequest

MAX_AT_ONCE: Final = 4
ANSWER_TIMEOUT_S: Final = 15.0

log = logging.getLogger(__name__)


class Pings:
    """Answers them in the background, a few at a time."""

    def __init__(self, dialer: Dialer) -> None:
        self._dialer = dialer
        self._tasks: set[asyncio.Task[None]] = set()
        self._last_url = ""

    def take(self, ping: PingRequest, connection: Connection) -> None:
        """Begin to answer one, unless it is the one before again."""
        url = ping.url or ""
        if url == self._last_url:
            return
        self._last_url = url
        if len(self._tasks) >= MAX_AT_ONCE:
            log.debug("control pings faster than we answer")
            return
        task = asyncio.create_task(self._answer(ping, url, connection), name="control ping")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Leave the rest unanswered."""
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _answer(self, ping: PingRequest, url: str, connection: Connection) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT_S):
                target = self._target(url)
                match ping.types or "":
                    case "" if ping.url_is_noise:
                        await connection.request("HEAD", target, timeout_s=None)
                    case "":
                        self._check_host(url)
                        await self._dialer.head(target)
                    case "c2n":
                        answer = respond(_decoded(ping.payload))
                        await connection.request("POST", target, answer, timeout_s=None)
                    case types:
                        log.debug("control asks for a ping of type %s, which is not known here", one_line(types, 40))
        except (TsnsError, TimeoutError) as error:
            log.debug("control's ping to %s is not answered: %s", one_line(url), error)

    def _target(self, url: str) -> str:
        """Path and query."""
        try:
            parts = urllib.parse.urlsplit(url)
        except ValueError:
            raise ProtocolError("its URL is none") from None
        target = urllib.parse.urlunsplit(("", "", parts.path or "/", parts.query, ""))
        if not target.startswith("/") or not target.isascii() or not target.isprintable() or " " in target:
            raise ProtocolError("its URL is none")
        return target

    def _check_host(self, url: str) -> None:
        """Control may have us ask control, and nobody else."""
        parts = urllib.parse.urlsplit(url)
        server = self._dialer.server
        if parts.hostname != server.host or parts.scheme != server.scheme:
            raise ProtocolError("its URL is not control's own")


def _decoded(payload: str | None) -> bytes:
    try:
        return base64.b64decode(payload or "", validate=True)
    except (binascii.Error, ValueError):
        raise ProtocolError("its payload is not base64") from None
