"""Who streams from the lab's control server, and so who is online (ring 1).

A node is online while it has a stream. Some time after its last one ends it is told of as offline, and if it is ephemeral, deleted.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Final

import msgspec

from tsns.keys import NodePublic
from tsns.lab.faults import Faults
from tsns.lab.http2 import Exchange
from tsns.lab.netmap import View, Views
from tsns.lab.registrar import Mode, Registrar
from tsns.lab.session import Cut, MapSession
from tsns.lab.tailnet import LabNode, Tailnet
from tsns.proto.types import MapResponse

KEEP_ALIVE_S: Final = 50.0
EPHEMERAL_TIMEOUT_S: Final = 120.0


class StreamServer:
    """The part of a control server that serves netmaps. Its intervals and `faults` may be changed at any time."""

    def __init__(self, tailnet: Tailnet, registrar: Registrar) -> None:
        self.tailnet = tailnet
        self.registrar = registrar
        self.faults = Faults()
        self.keep_alive_s = KEEP_ALIVE_S
        self.batch_s = 0.0  # how long changes are collected before they are told
        self.offline_grace_s = 0.0
        self.ephemeral_timeout_s = EPHEMERAL_TIMEOUT_S
        self.sessions: dict[int, list[MapSession]] = {}  # by node id, the latest at the end
        self._views = Views(tailnet)
        self._timers: dict[int, list[asyncio.TimerHandle]] = {}
        self._notices_leaving = False  # who leaves because the server stops does not go offline
        tailnet.on_change = self._tell_all

    def now(self) -> float:
        """The server's own time, unix seconds."""
        return time.time() + self.faults.clock_offset_s

    def send(self, node: LabNode | NodePublic | str, message: MapResponse | bytes) -> None:
        """Put a message, or any JSON, into a node's stream. KeyError where it has none."""
        self._latest(node).inject(message)

    def cut(self, node: LabNode | NodePublic | str, cut: Cut) -> None:
        """Let a node's stream go wrong. KeyError where it has none."""
        self._latest(node).inject(cut)

    def streams(self, node: LabNode | NodePublic | str) -> int:
        """How many streams a node has open."""
        return len(self.sessions.get(self.tailnet.find(node).id, ()))

    def _latest(self, node: LabNode | NodePublic | str) -> MapSession:
        return self.sessions[self.tailnet.find(node).id][-1]

    def _view(self, node: LabNode) -> View | None:
        """What a node may know by now; None once it is deleted."""
        if node.id not in self.tailnet.nodes:
            return None
        if self.registrar.mode is Mode.SAAS:
            return self._views.of(node, cap=None, now=self.now())
        view = self._views.of(node, cap=node.cap, now=self.now())  # Headscale: every peer has the viewer's own
        if node.expired(self.now()):  # and whose key has expired is not authorised
            return replace(view, self_node=msgspec.structs.replace(view.self_node, machine_authorized=None))
        return view

    async def _stream(self, node: LabNode, exchange: Exchange, *, zstd: bool) -> None:
        """Answer a streaming map request, until the stream ends."""
        sessions = self.sessions.setdefault(node.id, [])
        if self.registrar.mode is Mode.SAAS:
            for other in sessions:
                other.inject(Cut.END)
        session = MapSession(
            node,
            exchange,
            zstd=zstd,
            faults=self.faults,
            view=lambda: self._view(node),
            now=self.now,
            keep_alive_s=lambda: self.keep_alive_s,
            batch_s=self.batch_s,
            outlives_node=self.registrar.mode is Mode.HEADSCALE,
        )
        sessions.append(session)
        self._cancel_timers(node)
        self.tailnet.change(node, online=True)
        try:
            await session.run()
        finally:
            sessions.remove(session)
            if not sessions:
                self.sessions.pop(node.id, None)
                self._left(node)

    def _left(self, node: LabNode) -> None:
        """A node's last stream has ended."""
        if not self._notices_leaving or node.id not in self.tailnet.nodes:
            return
        loop = asyncio.get_running_loop()
        self._cancel_timers(node)
        timers = [loop.call_later(self.offline_grace_s, self._set_offline, node)]
        if node.ephemeral:
            timers.append(loop.call_later(self.ephemeral_timeout_s, self.tailnet.remove_node, node))
        self._timers[node.id] = timers

    def _set_offline(self, node: LabNode) -> None:
        self.tailnet.change(node, online=False, last_seen_at=self.now())

    def _forget_timers(self) -> None:
        for handles in self._timers.values():
            for handle in handles:
                handle.cancel()
        self._timers.clear()

    def _cancel_timers(self, node: LabNode) -> None:
        for handle in self._timers.pop(node.id, ()):
            handle.cancel()

    def _tell_all(self) -> None:
        for sessions in self.sessions.values():
            for session in sessions:
                session.changed()
