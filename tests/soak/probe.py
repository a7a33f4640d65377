"""Traffic from inside a node: `probe.py TARGET` echoes what comes by UDP and TCP, and sends ping, UDP and TCP to TARGET for ever.

For each packet or line it writes one: [kind, when it was sent (monotonic seconds), seconds until its echo or null]. It ends with its input.
Standard library only: it runs by itself in a node's namespace.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import struct
import sys
import time
from typing import Any, Final

PORT: Final = 7007
PERIODS_S: Final = {"udp": 0.1, "icmp": 0.5, "tcp": 0.5}
LOST_AFTER_S: Final = 6.0
HEADER: Final = struct.Struct("!BBHHH")
ECHO_REQUEST: Final = 8


class Awaited:
    """What was sent and has not come back."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._sent: dict[int, float] = {}

    def sent(self, number: int) -> None:
        """This one is on its way; those that are too late count as lost."""
        now = time.monotonic()
        self._sent[number] = now
        for old, when in list(self._sent.items()):
            if now - when > LOST_AFTER_S:
                del self._sent[old]
                _tell(self.kind, when, None)

    def came(self, number: int) -> None:
        """Here is its echo."""
        when = self._sent.pop(number, None)
        if when is not None:
            _tell(self.kind, when, time.monotonic() - when)


def _tell(kind: str, sent: float, took: float | None) -> None:
    try:
        os.write(1, json.dumps([kind, sent, took]).encode() + b"\n")
    except OSError:
        os._exit(0)


class Echo(asyncio.DatagramProtocol):
    """Sends each datagram back."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, address: tuple[str, int]) -> None:
        self._transport.sendto(data, address)


class Answers(asyncio.DatagramProtocol):
    """Hears the echoes."""

    def __init__(self, awaited: Awaited) -> None:
        self._awaited = awaited

    def datagram_received(self, data: bytes, _address: tuple[str, int]) -> None:
        self._awaited.came(int(data))


async def _udp(target: str) -> None:
    loop, awaited = asyncio.get_running_loop(), Awaited("udp")
    transport, _ = await loop.create_datagram_endpoint(lambda: Answers(awaited), local_addr=("0.0.0.0", 0))
    for number in range(1 << 62):
        awaited.sent(number)
        transport.sendto(b"%d" % number, (target, PORT))
        await asyncio.sleep(PERIODS_S["udp"])


async def _icmp(target: str) -> None:
    awaited = Awaited("icmp")
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK, socket.IPPROTO_ICMP)

    def heard() -> None:
        with contextlib.suppress(OSError):
            data = sock.recv(2048)
            awaited.came(HEADER.unpack_from(data)[4])

    asyncio.get_running_loop().add_reader(sock, heard)
    number = 0
    while True:
        awaited.sent(number)
        with contextlib.suppress(OSError):
            sock.sendto(HEADER.pack(ECHO_REQUEST, 0, 0, 0, number), (target, 0))
        number = (number + 1) & 0xFFFF
        await asyncio.sleep(PERIODS_S["icmp"])


async def _tcp(target: str) -> None:
    """One connection for all lines, as long as it lives."""
    while True:
        began = time.monotonic()
        try:
            async with asyncio.timeout(LOST_AFTER_S):
                reader, writer = await asyncio.open_connection(target, PORT)
        except OSError:
            _tell("tcp", began, None)
            await asyncio.sleep(PERIODS_S["tcp"])
            continue
        try:
            await _talk(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()


async def _talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        sent = time.monotonic()
        try:
            writer.write(b"line\n")
            async with asyncio.timeout(LOST_AFTER_S):
                await reader.readexactly(5)
        except (OSError, asyncio.IncompleteReadError):
            _tell("tcp", sent, None)
            raise
        _tell("tcp", sent, time.monotonic() - sent)
        await asyncio.sleep(PERIODS_S["tcp"])


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(4096):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.transport.abort()


def _on_input() -> None:
    if not os.read(0, 4096):
        os._exit(0)


async def main(target: str) -> None:
    """Until the input ends."""
    loop = asyncio.get_running_loop()
    loop.add_reader(0, _on_input)
    await loop.create_datagram_endpoint(Echo, local_addr=("0.0.0.0", PORT))
    async with await asyncio.start_server(_answer, "0.0.0.0", PORT):
        await asyncio.gather(_udp(target), _icmp(target), _tcp(target))


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1]))
