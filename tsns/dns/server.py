"""The MagicDNS server: UDP and TCP on sockets that were made inside the namespace (ring 1).

Source: RFC 1035 4.2, RFC 7766 (TCP). What is answered, and when, is the answerer's business; over TCP each connection has one query at a
time.
"""

from __future__ import annotations

import asyncio
import enum
import logging
import socket
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from tsns.dns.message import MAX_QUERY_BYTES
from tsns.proto.addresses import CGNAT, ULA, Prefix, pack

MAX_IN_FLIGHT: Final = 256  # connections, each with one query at a time
TCP_IDLE_S: Final = 45.0  # for a whole query to come, and for an answer to go
UDP_BUDGET: Final = 32  # queries in a row before others have their turn
LISTEN_BACKLOG: Final = 64

_INSIDE: Final = (Prefix.parse("127.0.0.0/8"), Prefix.parse("::1"), CGNAT, ULA)
_LENGTH: Final = struct.Struct(">H")

# Gets a query, whether it came by TCP, and who is to have the answer, now or later; False where there must be none.
Answerer = Callable[[bytes, bool, Callable[[bytes], None]], bool]

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
    """Serves one answerer. `dropped` counts what got no answer."""

    def __init__(self, ask: Answerer) -> None:
        self.dropped: Counter[Drop] = Counter()
        self._ask = ask
        self._udp: list[socket.socket] = []
        self._servers: dict[asyncio.Server, str] = {}  # with their addresses
        self._own: frozenset[bytes] = (
            frozenset()
        )  # what we listen at: programs that ask there have it as their own address, too
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, udp: Sequence[socket.socket], tcp: Sequence[socket.socket]) -> None:
        """Serve on bound UDP sockets and listening TCP sockets too, which are the server's from now on: it closes them."""
        loop = asyncio.get_running_loop()
        for sock in udp:
            sock.setblocking(False)
            loop.add_reader(sock, partial(self._receive, sock))
            self._udp.append(sock)
        for sock in tcp:
            address = str(sock.getsockname()[0])
            server = await asyncio.start_server(self._serve, sock=sock, limit=MAX_QUERY_BYTES, backlog=LISTEN_BACKLOG)
            self._servers[server] = address
        self._own = frozenset(map(pack, self.addresses))

    @property
    def addresses(self) -> list[str]:
        """Where programs are answered."""
        return sorted({str(sock.getsockname()[0]) for sock in self._udp} | set(self._servers.values()))

    def stop(self, addresses: Sequence[str]) -> None:
        """Listen at these addresses no more; what is asked there already is still answered over TCP."""
        loop = asyncio.get_running_loop()
        for sock in [sock for sock in self._udp if sock.getsockname()[0] in addresses]:
            loop.remove_reader(sock)
            sock.close()
            self._udp.remove(sock)
        for server in [server for server, address in self._servers.items() if address in addresses]:
            server.close()
            del self._servers[server]
        self._own = frozenset(map(pack, self.addresses))

    async def close(self) -> None:
        """Answer nobody any more."""
        self.stop(self.addresses)
        tasks = list(self._connections)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _receive(self, sock: socket.socket) -> None:
        for _ in range(UDP_BUDGET):
            try:
                query, source = sock.recvfrom(MAX_QUERY_BYTES + 1)
            except BlockingIOError:
                return
            except OSError as error:  # an ICMP error about an earlier answer
                log.debug("DNS: %s", error)
                return
            self._answer(query, source, False, partial(self._send, sock, source))

    def _send(self, sock: socket.socket, source: tuple[Any, ...], answer: bytes) -> None:
        try:
            sock.sendto(answer, source)
        except OSError:  # the asker's socket is full or gone, or ours is closed; it will ask again
            self.dropped[Drop.NOT_SENT] += 1

    def _answer(self, query: bytes, source: tuple[Any, ...], over_tcp: bool, reply: Callable[[bytes], None]) -> bool:
        if not self._is_inside(source):
            self.dropped[Drop.FOREIGN] += 1
        elif len(query) > MAX_QUERY_BYTES:
            self.dropped[Drop.TOO_LONG] += 1
        elif not self._ask(query, over_tcp, reply):
            self.dropped[Drop.NO_QUERY] += 1
        else:
            return True
        return False

    def _is_inside(self, source: tuple[Any, ...]) -> bool:
        try:
            address = pack(str(source[0]))
        except (ValueError, IndexError):
            return False
        return address in self._own or any(prefix.covers(address) for prefix in _INSIDE)

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
            later: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
            if not self._answer(query, source, True, partial(_settle, later)):
                return
            answer = await later
            writer.write(_LENGTH.pack(len(answer)) + answer)
            async with asyncio.timeout(TCP_IDLE_S):
                await writer.drain()
            await asyncio.sleep(0)  # others have their turn, however many queries have come at once


def _settle(later: asyncio.Future[bytes], answer: bytes) -> None:
    if not later.done():  # else the connection is gone
        later.set_result(answer)
