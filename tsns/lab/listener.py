"""A TCP listener that can be stopped and started again, and that owns the tasks of its connections (ring 1)."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable
from typing import Final

from tsns.error import ProtocolError

READER_LIMIT_BYTES: Final = 256 << 10
LOOPBACK: Final = "127.0.0.1"

log = logging.getLogger(__name__)

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


class Listener:
    """Serves each connection by one task; `stop` ends them all. It keeps its address and port from one start to the next."""

    def __init__(self, name: str, handle: Handler) -> None:
        self.address = ""
        self.port = 0
        self._name = name
        self._handle = handle
        self._server: asyncio.Server | None = None
        self._tasks: dict[asyncio.Task[None], asyncio.StreamWriter] = {}

    @property
    def serving(self) -> bool:
        """Whether it takes connections."""
        return self._server is not None

    async def start(self, address: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        """Listen; OSError where the address or the port cannot be had. Empty and 0 stand for those of the start before."""
        self._server = await asyncio.start_server(
            self._on_connection,
            address or self.address or LOOPBACK,
            port or self.port,
            limit=READER_LIMIT_BYTES,
            ssl=tls,
        )
        name = self._server.sockets[0].getsockname()
        self.address, self.port = name[0], name[1]

    async def stop(self) -> None:
        """Listen no more, and drop all connections."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.drop_all()

    async def drop_all(self) -> None:
        """Reset all connections."""
        tasks = dict(self._tasks)
        for task, writer in tasks.items():
            writer.transport.abort()
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # the transports close in the loop's next round

    def _on_connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._server is None:  # it came while we stopped
            writer.transport.abort()
            return
        sock: socket.socket = writer.get_extra_info("socket")
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer), name=f"{self._name} connection")
        self._tasks[task] = writer
        task.add_done_callback(self._tasks.pop)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await self._handle(reader, writer)
        except (ConnectionError, TimeoutError, ssl.SSLError, asyncio.IncompleteReadError) as error:
            log.debug("%s: connection lost: %s", self._name, error)
        except ProtocolError as error:
            log.info("%s: a client broke the protocol: %s", self._name, error)
        except Exception:
            log.exception("%s: connection failed", self._name)
        finally:
            await close_writer(writer)


async def close_writer(writer: asyncio.StreamWriter) -> None:
    """Close a connection, whatever its state; what was written is still sent."""
    writer.close()
    try:
        await writer.wait_closed()
    except (ConnectionError, ssl.SSLError, TimeoutError, asyncio.CancelledError):
        writer.transport.abort()
