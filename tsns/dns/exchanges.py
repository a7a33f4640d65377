"""Asks other DNS servers what the forwarder wants to know: by UDP, TCP and HTTP (ring 1).

Each step has a task and a socket of its own, connected to the server, so that the kernel drops what comes from anybody else. Where the
sockets come from decides which network they are in; nothing here chooses that.

Source: RFC 1035 4.2, RFC 7766 (TCP), RFC 8484 (DNS over HTTPS).
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import ssl
import struct
from collections.abc import Callable
from typing import Final, Protocol

import h11

from tsns.dns.forwarder import Begin, Step
from tsns.dns.upstreams import HTTP_PORT, HTTPS_PORT, Transport, Way
from tsns.error import ProtocolError
from tsns.proto.addresses import unpack

MAX_REPLY_BYTES: Final = 0xFFFF
READ_BYTES: Final = 16 << 10
MEDIA_TYPE: Final = "application/dns-message"

_LENGTH: Final = struct.Struct(">H")
_FAILURES: Final = (OSError, EOFError, TimeoutError, ProtocolError, h11.ProtocolError)

log = logging.getLogger(__name__)


class Sockets(Protocol):
    """Where sockets come from."""

    async def take(self, way: Way, kind: int, family: int) -> socket.socket:
        """An unconnected, non-blocking socket; OSError where there is none."""

    def give_back(self, way: Way, sock: socket.socket) -> None:
        """It is not needed any more."""


class Exchanges:
    """Carries out steps; `received` and `failed` get a step's number and what became of it."""

    def __init__(
        self,
        sockets: Sockets,
        tls: ssl.SSLContext,
        received: Callable[[int, bytes], None],
        failed: Callable[[int, str], None],
    ) -> None:
        self._sockets = sockets
        self._tls = tls
        self._received = received
        self._failed = failed
        self._tasks: dict[int, asyncio.Task[None]] = {}

    def begin(self, begin: Begin) -> None:
        """Ask."""
        task = asyncio.get_running_loop().create_task(self._ask(begin))
        self._tasks[begin.number] = task
        task.add_done_callback(lambda _: self._tasks.pop(begin.number, None))

    def end(self, number: int) -> None:
        """Ask no further."""
        task = self._tasks.get(number)
        if task is not None:
            task.cancel()

    async def close(self) -> None:
        """Ask nobody any more."""
        tasks = list(self._tasks.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _ask(self, begin: Begin) -> None:
        step = begin.step
        family = socket.AF_INET if len(step.address) == 4 else socket.AF_INET6
        kind = socket.SOCK_DGRAM if step.transport is Transport.UDP else socket.SOCK_STREAM
        try:
            sock = await self._sockets.take(step.way, kind, family)
            try:
                await asyncio.get_running_loop().sock_connect(sock, (unpack(step.address), step.upstream.port))
                if kind == socket.SOCK_DGRAM:
                    await self._by_datagrams(sock, begin)
                else:
                    self._received(begin.number, await self._by_stream(sock, begin))
            finally:
                self._sockets.give_back(step.way, sock)
        except _FAILURES as error:
            log.debug("DNS: %s by %s: %s", step.upstream.text, step.transport, error)
            self._failed(begin.number, _reason(error))

    async def _by_datagrams(self, sock: socket.socket, begin: Begin) -> None:
        """Until somebody ends it."""
        loop = asyncio.get_running_loop()
        sock.send(begin.data)
        while True:
            self._received(begin.number, await loop.sock_recv(sock, MAX_REPLY_BYTES))

    async def _by_stream(self, sock: socket.socket, begin: Begin) -> bytes:
        step = begin.step
        secure = step.transport is Transport.HTTPS
        reader, writer = await asyncio.open_connection(
            sock=sock.dup(),  # asyncio closes what it is given
            limit=MAX_REPLY_BYTES + _LENGTH.size,
            ssl=self._tls if secure else None,
            server_hostname=step.upstream.host.strip("[]") if secure else None,
        )
        try:
            if step.transport is not Transport.TCP:
                return await _post(reader, writer, step, begin.data)
            writer.write(_LENGTH.pack(len(begin.data)) + begin.data)
            (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
            return await reader.readexactly(length)
        finally:
            writer.transport.abort()


async def _post(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, step: Step, data: bytes) -> bytes:
    """One POST and its answer's body; ProtocolError or h11.ProtocolError where it is no DNS message."""
    upstream = step.upstream
    usual = upstream.port == (HTTPS_PORT if step.transport is Transport.HTTPS else HTTP_PORT)
    http = h11.Connection(h11.CLIENT)
    headers = [
        ("Host", upstream.host if usual else f"{upstream.host}:{upstream.port}"),
        ("Accept", MEDIA_TYPE),
        ("Content-Type", MEDIA_TYPE),
        ("Content-Length", str(len(data))),
        ("Connection", "close"),
    ]
    writer.write(
        (http.send(h11.Request(method="POST", target=upstream.path, headers=headers)) or b"")
        + (http.send(h11.Data(data=data)) or b"")
        + (http.send(h11.EndOfMessage()) or b"")
    )
    body = b""
    while True:
        match http.next_event():
            case h11.NEED_DATA:
                data = await reader.read(READ_BYTES)
                if not data and http.their_state is h11.SEND_RESPONSE:
                    raise EOFError
                http.receive_data(data)
            case h11.Response(status_code=status, headers=fields):
                if status != 200 or dict(fields).get(b"content-type", b"").lower() != MEDIA_TYPE.encode():
                    raise ProtocolError(f"HTTP status {status}, and no DNS message")
            case h11.Data(data=more):
                body += more
                if len(body) > MAX_REPLY_BYTES:
                    raise ProtocolError("an endless answer")
            case h11.EndOfMessage():
                return body


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"no valid certificate: {error.verify_message}"
    if isinstance(error, EOFError):
        return "it hung up"
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
