"""One netmap stream of the lab's control server: what a node that polls is told, and when (ring 1).

    first message -> (difference | injected message | keep-alive)* -> end, by either side

The session sleeps until the tailnet changes or somebody injects something; then it sends what its node does not know yet.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable
from typing import Final

from tsns.lab.faults import Faults
from tsns.lab.http2 import Exchange
from tsns.lab.netmap import View, difference, first_message
from tsns.lab.tailnet import LabNode
from tsns.proto.types import MapResponse

MAX_INJECTED: Final = 10_000  # messages that wait for a client

KEEP_ALIVE: Final = MapResponse(keep_alive=True)


class Cut(enum.Enum):
    """How a stream can be made to go wrong."""

    END = enum.auto()  # END_STREAM, as when another stream takes over
    MID_FRAME = enum.auto()  # half a message, then a reset of the connection
    STALL = enum.auto()  # a length prefix, then silence


class MapSession:
    """A stream. `view` makes the present view of its node, None once the node is gone; then a stream that `outlives_node` only goes silent."""

    def __init__(
        self,
        node: LabNode,
        exchange: Exchange,
        *,
        zstd: bool,
        faults: Faults,
        view: Callable[[], View | None],
        now: Callable[[], float],
        keep_alive_s: Callable[[], float],
        batch_s: float,
        outlives_node: bool = False,
    ) -> None:
        self.node = node
        self.sent = 0  # messages, keep-alives included
        self._exchange = exchange
        self._zstd = zstd
        self._faults = faults
        self._view = view
        self._now = now
        self._keep_alive_s = keep_alive_s
        self._batch_s = batch_s
        self._outlives_node = outlives_node
        self._known: View | None = None
        self._injected: deque[MapResponse | bytes | Cut] = deque()
        self._wake = asyncio.Event()

    def changed(self) -> None:
        """The tailnet may look different now."""
        self._wake.set()

    def inject(self, what: MapResponse | bytes | Cut) -> None:
        """Send this message (or this JSON) as it is, or cut the stream."""
        if len(self._injected) >= MAX_INJECTED:
            raise RuntimeError(f"{self.node.name} does not read its stream")
        self._injected.append(what)
        self._wake.set()

    async def run(self) -> None:
        """Serve the stream to its end."""
        self._exchange.start(200, {"Content-Type": "application/json"})
        view = self._view()
        if view is not None:
            self._known = view
            await self._send(first_message(view, now=self._now()), first=True)
        while await self._injected_sent() and await self._difference_sent():
            await self._sleep()
        self._exchange.end()

    async def _sleep(self) -> None:
        """Wait for news; send keep-alives meanwhile."""
        while True:
            try:
                async with asyncio.timeout(self._keep_alive_s()):
                    await self._wake.wait()
            except TimeoutError:
                if not self._faults.no_keep_alives:
                    await self._send(KEEP_ALIVE)
                continue
            if self._batch_s and not self._injected:
                await asyncio.sleep(self._batch_s)
            self._wake.clear()
            return

    async def _injected_sent(self) -> bool:
        """Send what was injected; False where that ends the stream."""
        while self._injected:
            match self._injected.popleft():
                case Cut.END:
                    return False
                case Cut() as cut:
                    await self._break_off(cut)
                case message:
                    await self._send(message)
        return True

    async def _difference_sent(self) -> bool:
        view = self._view()
        if view is None or self._known is None:
            return self._outlives_node and self._known is not None
        message = difference(self._known, view, patches=self._faults.dialect.patches, now=self._now())
        self._known = view
        if message is not None:
            await self._send(message)
        return True

    async def _send(self, message: MapResponse | bytes, *, first: bool = False) -> None:
        encoded = self._faults.message(self.node, message, first=first)
        self.sent += 1
        await self._exchange.write(self._faults.frame(encoded, zstd=self._zstd))

    async def _break_off(self, cut: Cut) -> None:
        frame = self._faults.frame(self._faults.message(self.node, KEEP_ALIVE, first=False), zstd=self._zstd)
        if cut is Cut.STALL:
            await self._exchange.write(frame[:4])
            await asyncio.Event().wait()  # until the client has had enough
        await self._exchange.write(frame[: 4 + (len(frame) - 4) // 2])
        await asyncio.sleep(0.05)  # so that the half arrives before the reset does
        self._exchange.abort()
