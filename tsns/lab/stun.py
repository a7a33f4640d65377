"""The lab's STUN server (ring 1): answers binding requests as a DERP region's server does, and nothing else."""

from __future__ import annotations

import asyncio
from typing import Final

from tsns.paths.stun import parse_request, response

MAX_DELAYED: Final = 1024  # answers that wait for `latency_s` to pass


class StunServer(asyncio.DatagramProtocol):
    """Tells clients the address that they come from. `latency_s` delays its answers, `silent` withholds them."""

    def __init__(self) -> None:
        self.address = ""
        self.port = 0
        self.latency_s = 0.0
        self.silent = False
        self.answered = 0
        self.ignored = 0  # datagrams that were no request of ours
        self._transport: asyncio.DatagramTransport | None = None
        self._delayed: set[asyncio.TimerHandle] = set()

    async def start(self, address: str, port: int = 0) -> None:
        """Listen on UDP; on the same port as before after a `stop`."""
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_datagram_endpoint(lambda: self, local_addr=(address, port or self.port))
        self._transport = transport
        self.address, self.port = transport.get_extra_info("sockname")[:2]

    async def stop(self) -> None:
        """Listen no more."""
        for handle in self._delayed:
            handle.cancel()
        self._delayed.clear()
        if self._transport is not None:
            self._transport.close()
            self._transport = None
            await asyncio.sleep(0)  # the transport closes in the loop's next round

    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        transaction = parse_request(data)
        if transaction is None:
            self.ignored += 1
            return
        if self.silent or len(self._delayed) >= MAX_DELAYED:
            return
        answer = response(transaction, addr[:2])
        if not self.latency_s:
            self._send(answer, addr)
            return
        handle = asyncio.get_running_loop().call_later(self.latency_s, self._send, answer, addr)
        self._delayed.add(handle)

    def error_received(self, exc: Exception) -> None:
        """A client that is gone is no error of ours."""

    def _send(self, answer: bytes, address: tuple[str, int]) -> None:
        self._delayed = {handle for handle in self._delayed if not handle.cancelled() and handle.when() > self._now()}
        if self._transport is not None:
            self.answered += 1
            self._transport.sendto(answer, address)

    @staticmethod
    def _now() -> float:
        return asyncio.get_running_loop().time()
