"""The names of one attached container: its neighbours' by its engine's own resolver, all else by the node's (ring 1).

container --query--> SingleLabels --Send--> 127.0.0.11 inside
                           `--------Pass--> NameService
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import socket
from collections.abc import Callable, Sequence
from typing import Final

from tsns.dns.message import MAX_QUERY_BYTES, read_header
from tsns.dns.server import DnsServer
from tsns.dns.single_labels import Answer, Output, Pass, Send, SingleLabels, is_single_label
from tsns.node.name_service import NameService
from tsns.wg.socket import boot_time

ANSWERS_AT_ONCE: Final = 32

_Asker = tuple[bool, Callable[[bytes], None]]  # whether it asked by TCP, and how it is answered

log = logging.getLogger(__name__)


class ContainerNames:
    """Serves one container; `resolver` is a UDP socket that is connected to its engine's resolver, None where it has none."""

    def __init__(self, names: NameService, resolver: socket.socket | None) -> None:
        self._names = names
        self._resolver = resolver
        self._labels: SingleLabels[_Asker] = SingleLabels(secrets.token_bytes)
        self._server = DnsServer(self._ask)
        self._timer: asyncio.TimerHandle | None = None
        self._beginning = asyncio.Lock()  # what has just begun may have to end at once

    async def serve(self, sockets: Sequence[socket.socket]) -> None:
        """Answer on these, which are ours from now on."""
        async with self._beginning:
            await self._names.know()
            if self._resolver is not None:
                self._resolver.setblocking(False)
                asyncio.get_running_loop().add_reader(self._resolver, self._receive)
            await self._server.start(
                [sock for sock in sockets if sock.type == socket.SOCK_DGRAM],
                [sock for sock in sockets if sock.type == socket.SOCK_STREAM],
            )

    async def close(self) -> None:
        """Answer nobody any more."""
        async with self._beginning:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
            if self._resolver is not None:
                asyncio.get_running_loop().remove_reader(self._resolver)
                self._resolver.close()
                self._resolver = None
            await self._server.close()

    def _ask(self, query: bytes, over_tcp: bool, reply: Callable[[bytes], None]) -> bool:
        if self._resolver is None:
            completed = self._names.complete(query, over_tcp) if is_single_label(query) else None
            if completed is not None:
                reply(completed)
                return True
            return self._names.ask(query, over_tcp, reply)
        if read_header(query) is None:
            return False  # no answer is possible
        self._do(self._labels.ask(query, (over_tcp, reply), boot_time()))
        return True

    def _receive(self) -> None:
        for _ in range(ANSWERS_AT_ONCE):
            try:
                assert self._resolver is not None  # read from
                data = self._resolver.recv(MAX_QUERY_BYTES)
            except BlockingIOError:
                return
            except OSError as error:  # nobody listens there
                log.debug("the container's resolver: %s", error)
                return
            self._do(self._labels.receive(data))

    def _on_time(self) -> None:
        self._timer = None
        self._do(self._labels.tick(boot_time()))

    def _do(self, outputs: list[Output[_Asker]]) -> None:
        for output in outputs:
            match output:
                case Send(data=data):
                    self._send(data)
                case Answer(asker=(_, reply), data=data):
                    reply(data)
                case Pass():
                    self._pass(output)
        due = self._labels.deadline()
        if due is not None and self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - boot_time()), self._on_time)

    def _send(self, data: bytes) -> None:
        assert self._resolver is not None  # else nothing is asked of it
        try:
            self._resolver.send(data)
        except OSError as error:  # it goes on when the time is over
            log.debug("the container's resolver: %s", error)

    def _pass(self, question: Pass[_Asker]) -> None:
        over_tcp, reply = question.asker
        if question.completed:
            answer = self._names.complete(question.query, over_tcp) or question.denied
            if answer is not None:
                reply(answer)
                return
        self._names.ask(question.query, over_tcp, reply)
