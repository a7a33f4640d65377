"""The MagicDNS server: UDP and TCP on sockets that were made inside the namespace (ring 1).

Source: RFC 1035 4.2, RFC 7766 (TCP). Answers are made at once from memory, so a query over UDP is never in flight; over TCP each
connection has one at a time.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from tsns.dns.message import MAX_QUERY_BYTES
from tsns.dns.resolver import Resolver
from tsns.proto.addresses import CGNAT, ULA, Prefix, pack

MAX_IN_FLIGHT: Final = 256  # connections, each with one query at a time
TCP_IDLE_S: Final = 45.0  # for a whole query to come, and for an answer to go
UDP_BUDGET: Final = 32  # queries in a row before others have their turn
LISTEN_BACKLOG: Final = 64

_INSIDE: Final = (Prefix.parse("127.0.0.0/8"), Prefix.parse("::1"), CGNAT, ULA)
_LENGTH: Final = struct.Struct(">H")

log = logging.getLogger(__name__)


class Drop(enum.StrEnum):
    """Why a query gets no answer."""

    FOREIGN = "from outside the tailnet"
    TOO_LONG = "longer than a query may be"
    NO_QUERY = "not a query"
    NOT_SENT = "the answer could not be sent"
    TOO_MANY = "too many connections"
    IDLE = "an idle connection"


class DnsServer:
    """Serves one resolver. `dropped` counts what got no answer."""

    def __init__(self, resolver: Resolver) -> None:
        self.dropped: Counter[Drop] = Counter()
        self._resolver = resolver
        self._udp: list[socket.socket] = []
        self._servers: list[asyncio.Server] = []
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, udp: Sequence[socket.socket], tcp: Sequence[socket.socket]) -> None:
        """Serve on bound UDP sockets and listening TCP sockets, which are the server's from now on: `close` closes them."""
        loop = asyncio.get_running_loop()
        for sock in udp:
            sock.setblocking(False)
            loop.add_reader(sock, partial(self._receive, sock))
            self._udp.append(sock)
        for sock in tcp:
            server = await asyncio.start_server(self._serve, sock=sock, limit=MAX_QUERY_BYTES, backlog=LISTEN_BACKLOG)
            self._servers.append(server)

    async def close(self) -> None:
        """Answer nobody any more."""
        loop = asyncio.get_running_loop()
        for sock in self._udp:
            loop.remove_reader(sock)
            sock.close()
        self._udp.clear()
        for server in self._servers:
            server.close()
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for server in self._servers:
            await server.wait_closed()
        self._servers.clear()

    def _receive(self, sock: socket.socket) -> None:
        for _ in range(UDP_BUDGET):
            try:
                query, source = sock.recvfrom(MAX_QUERY_BYTES + 1)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error about an earlier answer
                log.debug("DNS: %s", error)
                return
            answer = self._answer(query, source, over_tcp=False)
            if answer is None:
                continue
            try:
                sock.sendto(answer, source)
            except OSError:  # the asker's socket is full or gone; it will ask again
                self.dropped[Drop.NOT_SENT] += 1

    def _answer(self, query: bytes, source: tuple[Any, ...], *, over_tcp: bool) -> bytes | None:
        if not _is_inside(source):
            self.dropped[Drop.FOREIGN] += 1
            return None
        if len(query) > MAX_QUERY_BYTES:
            self.dropped[Drop.TOO_LONG] += 1
            return None
        answer = self._resolver.answer(query, over_tcp=over_tcp)
        if answer is None:
            self.dropped[Drop.NO_QUERY] += 1
        return answer

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # start_server makes one for each connection
        if len(self._connections) >= MAX_IN_FLIGHT:
            self.dropped[Drop.TOO_MANY] += 1
            writer.transport.abort()
            return
        self._connections.add(task)
        try:
            await self._converse(reader, writer)
            writer.close()
            async with asyncio.timeout(TCP_IDLE_S):
                await writer.wait_closed()
        except TimeoutError:
            self.dropped[Drop.IDLE] += 1
        except OSError:
            pass  # the asker has gone
        except asyncio.CancelledError:
            pass  # by `close`, which waits for us; some versions of asyncio would log it as an error
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        source = writer.get_extra_info("peername") or ()
        while True:
            try:
                async with asyncio.timeout(TCP_IDLE_S):
                    (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
                    if length > MAX_QUERY_BYTES:
                        self.dropped[Drop.TOO_LONG] += 1
                        return
                    query = await reader.readexactly(length)
            except asyncio.IncompleteReadError:
                return
            answer = self._answer(query, source, over_tcp=True)
            if answer is None:
                return
            writer.write(_LENGTH.pack(len(answer)) + answer)
            async with asyncio.timeout(TCP_IDLE_S):
                await writer.drain()
            await asyncio.sleep(0)  # others have their turn, however many queries have come at once


def _is_inside(source: tuple[Any, ...]) -> bool:
    try:
        address = pack(str(source[0]))
    except (ValueError, IndexError):
        return False
    return any(prefix.covers(address) for prefix in _INSIDE)
