"""A DERP relay on loopback that does what a test wants, and tells what it was told."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import tempfile
from typing import Self

from cryptography import x509

from tests.unit.derp import certificates
from tsns.derp.framing import MAGIC, FrameReader, FrameType, frame
from tsns.error import ProtocolError
from tsns.keys import NodePrivate, NodePublic
from tsns.proto.types import DERPMap, DERPNode, DERPRegion
from tsns.sealed_box import SealedBox

HOST = "derp.test"
CERTIFICATE = certificates.make(HOST, "127.0.0.1")
RECEIVE_BUFFER_BYTES = 16 << 10  # small, so that a relay that does not read is noticed soon


class FakeRelay:
    """Use as `async with`. Attributes may be changed at any time; they count for what comes next."""

    def __init__(self, certificate: x509.Certificate = CERTIFICATE) -> None:
        self.key = NodePrivate.generate(os.urandom(32))
        self.status = 101
        self.nonsense: bytes | None = None  # the answer to whatever is asked
        self.glued = True  # the first frame comes in one piece with the HTTP answer
        self.may_read = asyncio.Event()
        self.may_read.set()
        self.logins = 0
        self.refuses_login = False
        self.paths: list[str] = []
        self.frames: list[tuple[int, bytes]] = []
        self.packets: list[tuple[NodePublic, bytes]] = []
        self.preferred: list[bool] = []
        self._writers: set[asyncio.StreamWriter] = set()
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile() as file:
            file.write(certificates.pem_with_key(certificate))
            file.flush()
            self._context.load_cert_chain(file.name)

    async def __aenter__(self) -> Self:
        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        self.port: int = listener.getsockname()[1]
        self._server = await asyncio.start_server(self._serve, sock=listener, ssl=self._context, limit=16 << 10)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        self.hang_up()
        await self._server.wait_closed()
        await asyncio.sleep(0.01)

    def node(self, name: str = "1a", cert_name: str | None = None) -> DERPNode:
        return DERPNode(
            name=name,
            host_name=HOST,
            ipv4="127.0.0.1",
            ipv6="none",
            derp_port=self.port,
            cert_name=certificates.pin(CERTIFICATE) if cert_name is None else cert_name,
        )

    @property
    def connections(self) -> int:
        return len(self._writers)

    def send(self, *frames: bytes) -> None:
        for writer in self._writers:
            writer.write(b"".join(frames))

    def hang_up(self) -> None:
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._converse(reader, writer)
        except (OSError, EOFError, ProtocolError):
            pass
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        self.paths.append(head.split()[1])
        self.head = head
        if self.nonsense is not None:
            writer.write(self.nonsense)
            await writer.drain()
            return
        if "/derp/latency-check" in head or self.status != 101:
            status = 200 if "latency" in head else self.status
            writer.write(f"HTTP/1.1 {status} So\r\nContent-Length: 0\r\n\r\n".encode())
            await writer.drain()
            return
        answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: DERP\r\nConnection: Upgrade\r\nDerp-Version: 2\r\n\r\n"
        greeting = frame(FrameType.SERVER_KEY, MAGIC, self.key.public.raw)
        if self.glued:
            writer.write(answer + greeting)
        else:
            writer.write(answer)
            await asyncio.sleep(0.02)
            writer.write(greeting)
        frames = FrameReader()
        while data := await reader.read(4096):
            for kind, payload in frames.feed(data):
                self._note(kind, payload, writer)
            if self.refuses_login:
                return
            await self.may_read.wait()

    def _note(self, kind: int, payload: bytes, writer: asyncio.StreamWriter) -> None:
        self.frames.append((kind, payload))
        if kind == FrameType.CLIENT_INFO and not self.refuses_login:
            self.logins += 1
            self.client = NodePublic(payload[:32])
            box = SealedBox(self.key, payload[:32])
            self.client_info = box.open(payload[32:])
            writer.write(frame(FrameType.SERVER_INFO, box.seal(b'{"version":2}', os.urandom)))
        elif kind == FrameType.SEND_PACKET:
            self.packets.append((NodePublic(payload[:32]), payload[32:]))
        elif kind == FrameType.NOTE_PREFERRED:
            self.preferred.append(payload == b"\x01")


def derp_map(**regions: DERPNode | list[DERPNode]) -> DERPMap:
    """A map of regions named r1, r2, ..."""
    return DERPMap(
        regions={
            int(name[1:]): DERPRegion(
                region_id=int(name[1:]), region_code=name, nodes=nodes if isinstance(nodes, list) else [nodes]
            )
            for name, nodes in regions.items()
        }
    )
