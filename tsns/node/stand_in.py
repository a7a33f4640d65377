"""Answers a container's questions while the engine is away (ring 1): its neighbours' names as ever, SERVFAIL for all others.

Without that a container would lose sight of its neighbours with the tailnet. SERVFAIL makes programs ask again; an answer by anybody else
would be a leak. TCP connections wait for the next engine.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Final

from tsns.dns.message import MAX_QUERY_BYTES, Code, read_header, refusal
from tsns.dns.single_labels import Answer, Output, Pass, Send, SingleLabels
from tsns.node.watch import Watch

AT_ONCE: Final = 32  # messages in a row before others have their turn
_Asker = tuple[socket.socket, Any]  # the socket that it asked, and its address


class StandIn:
    """For one container: `served` are its DNS sockets, `resolver` is one that is connected to its engine's resolver, -1 where there is none."""

    def __init__(self, watch: Watch, served: Sequence[int], resolver: int) -> None:
        self._watch = watch
        sockets = [socket.socket(fileno=os.dup(fd)) for fd in served]
        self._served = [sock for sock in sockets if sock.type == socket.SOCK_DGRAM]
        self._resolver = socket.socket(fileno=os.dup(resolver)) if resolver >= 0 else None
        for sock in sockets:
            if sock.type != socket.SOCK_DGRAM:
                sock.close()
        self._labels: SingleLabels[_Asker] = SingleLabels(secrets.token_bytes)
        for sock in self._served:
            sock.setblocking(False)
            watch.reader(sock.fileno(), partial(self._on_query, sock))
        if self._resolver is not None:
            self._resolver.setblocking(False)
            watch.reader(self._resolver.fileno(), self._on_answer)

    def close(self) -> None:
        """The engine is back."""
        self._watch.cancel(self._moment)
        for sock in [*self._served, *([self._resolver] if self._resolver is not None else [])]:
            self._watch.forget(sock.fileno())
            sock.close()

    @property
    def _moment(self) -> str:
        return f"stand-in {id(self)}"

    def _on_query(self, sock: socket.socket) -> None:
        for _ in range(AT_ONCE):
            try:
                query, source = sock.recvfrom(MAX_QUERY_BYTES)
            except OSError:
                return
            if read_header(query) is None:
                continue
            if self._resolver is None:
                self._do([Pass((sock, source), query, completed=False)])
            else:
                self._do(self._labels.ask(query, (sock, source), time.monotonic()))

    def _on_answer(self) -> None:
        assert self._resolver is not None  # read from
        for _ in range(AT_ONCE):
            try:
                data = self._resolver.recv(MAX_QUERY_BYTES)
            except OSError:
                return
            self._do(self._labels.receive(data))

    def _on_time(self) -> None:
        self._do(self._labels.tick(time.monotonic()))

    def _do(self, outputs: list[Output[_Asker]]) -> None:
        for output in outputs:
            match output:
                case Send(data=data):
                    assert self._resolver is not None  # else nothing is asked of it
                    with contextlib.suppress(OSError):  # it goes on when the time is over
                        self._resolver.send(data)
                case Answer(asker=asker, data=data):
                    self._reply(asker, data)
                case Pass(asker=asker, query=query, denied=denied):
                    ident, flags = read_header(query) or (0, 0)
                    self._reply(asker, denied or refusal(ident, flags, Code.SERVFAIL))
        due = self._labels.deadline()
        if due is not None:
            self._watch.at(self._moment, due, self._on_time)

    def _reply(self, asker: _Asker, data: bytes) -> None:
        sock, source = asker
        with contextlib.suppress(OSError):  # who asked has gone
            sock.sendto(data, source)
