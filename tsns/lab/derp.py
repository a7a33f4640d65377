"""The lab's DERP relays: a TLS server for each region, with its STUN server (ring 1).

Source: derp/derpserver of Tailscale's module for what a server does; the frames are those of `derp.framing`.

    upgrade -> SERVER_KEY out -> CLIENT_INFO in -> SERVER_INFO out -> packets by node key, until the connection ends

A client that does not read has its packets dropped, the oldest first; one that does not read for long loses its connection. The methods
and attributes below `faults` let a test play a relay that fails.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections import Counter, deque
from collections.abc import Callable
from typing import Final

import msgspec

from tsns.derp.framing import (
    MAGIC,
    MAX_CLIENT_INFO_BYTES,
    MAX_SEND_PAYLOAD_BYTES,
    PING_BYTES,
    PROTOCOL_VERSION,
    ClientInfo,
    FrameReader,
    FrameType,
    GoneReason,
    ServerInfo,
    frame,
    restarting,
    split_key,
)
from tsns.error import ProtocolError
from tsns.keys import KEY_BYTES, NodePrivate, NodePublic
from tsns.lab import http1
from tsns.lab.certificate import Certificate
from tsns.lab.listener import Listener
from tsns.lab.stun import StunServer
from tsns.proto.types import DERPNode, DERPRegion
from tsns.sealed_box import SealedBox

MAX_QUEUED_FRAMES: Final = 32  # for a client that does not read
MAX_HEARD_PEERS: Final = 10_000  # whose leaving a client is told of
WRITE_STALL_S: Final = 2.0  # a client that does not read for so long is dropped
LOGIN_TIMEOUT_S: Final = 10.0
KEEP_ALIVE_S: Final = 60.0
READ_BYTES: Final = 64 << 10

_DISCO_MAGIC: Final = b"TS\xf0\x9f\x92\xac"

log = logging.getLogger(__name__)


class DerpClient:
    """One connection of a client that has logged in."""

    def __init__(self, key: NodePublic, writer: asyncio.StreamWriter) -> None:
        self.key = key
        self.preferred = False  # it told us that we are its home
        self.dropped = 0
        self.heard: dict[NodePublic, None] = {}  # who sent it something
        self.pongs: asyncio.Queue[bytes] = asyncio.Queue(MAX_QUEUED_FRAMES)
        self.running = asyncio.Event()  # cleared: we neither read from it nor write to it
        self.running.set()
        self._writer = writer
        self._queue: deque[bytes] = deque()
        self._blocked = False
        self._wake = asyncio.Event()

    def deliver(self, data: bytes) -> None:
        """Send it a frame, soon."""
        if (self._blocked or not self.running.is_set()) and len(self._queue) >= MAX_QUEUED_FRAMES:
            self._queue.popleft()
            self.dropped += 1
        self._queue.append(data)
        self._wake.set()

    async def write(self, stall_s: float) -> None:
        """Write what is delivered, until the client does not read for `stall_s` seconds (TimeoutError)."""
        while True:
            await self._wake.wait()
            await self.running.wait()
            self._wake.clear()
            self._writer.write(b"".join(self._queue))
            self._queue.clear()
            self._blocked = True
            async with asyncio.timeout(stall_s):
                await self._writer.drain()
            self._blocked = False

    def abort(self) -> None:
        """Reset the connection."""
        self._writer.transport.abort()


class DerpServer:
    """The relay of one region. `clients` lists the connections of each node, the one that wrote last at the end."""

    def __init__(self, region: int, certificate: Certificate, host_name: str) -> None:
        self.region_id = region
        self.host_name = host_name
        self.certificate = certificate
        self.key = NodePrivate.generate(os.urandom(KEY_BYTES))
        self.stun = StunServer()
        self.clients: dict[NodePublic, list[DerpClient]] = {}
        self.relayed: Counter[tuple[NodePublic, NodePublic]] = Counter()  # packets, by source and destination
        self.undeliverable = 0
        self.logins = 0
        # --- faults
        self.admit: Callable[[NodePublic], bool] = lambda _: True
        self.latency_s = 0.0  # of packets, latency checks and STUN answers (`set_latency`)
        self.refuse_status: int | None = None  # answer upgrades with this HTTP status
        self.server_info = ServerInfo(version=PROTOCOL_VERSION)
        self.keep_alive_s = KEEP_ALIVE_S
        self.write_stall_s = WRITE_STALL_S
        self.loses: Callable[[NodePublic, NodePublic, bytes], bool] = lambda *_: False  # whether a packet vanishes
        self._listener = Listener(f"derp {region}", self._serve)
        self._keep_alive: asyncio.Task[None] | None = None

    # --- life

    async def start(self, address: str = "", port: int = 0) -> None:
        """Serve; without an address or port, on those of before the last `stop`."""
        await self._listener.start(address, port, self.certificate.server_context())
        await self.stun.start(self._listener.address)
        self._keep_alive = asyncio.create_task(self._send_keep_alives(), name=f"derp {self.region_id} keep-alives")

    async def stop(self) -> None:
        """Drop everybody and serve no more."""
        if self._keep_alive is not None:
            self._keep_alive.cancel()
            await asyncio.gather(self._keep_alive, return_exceptions=True)
            self._keep_alive = None
        await self._listener.stop()
        await self.stun.stop()

    @property
    def port(self) -> int:
        """Where it serves TLS."""
        return self._listener.port

    def region(self) -> DERPRegion:
        """What the DERP map says of it."""
        address = self._listener.address
        node = DERPNode(
            name=f"{self.region_id}a",
            region_id=self.region_id,
            host_name=self.host_name,
            cert_name=self.certificate.cert_name,
            ipv4="none" if ":" in address else address,
            ipv6=address if ":" in address else "none",
            derp_port=self.port,
            stun_port=self.stun.port,
        )
        code = f"lab{self.region_id}"
        return DERPRegion(region_id=self.region_id, region_code=code, region_name=f"Lab {self.region_id}", nodes=[node])

    # --- for tests

    def client(self, key: NodePublic) -> DerpClient:
        """The active connection of a node; KeyError where it has none."""
        return self.clients[key][-1]

    def set_latency(self, latency_s: float) -> None:
        """Pretend to be far away."""
        self.latency_s = self.stun.latency_s = latency_s

    def stall(self, key: NodePublic) -> None:
        """Neither read from a client nor write to it."""
        self.client(key).running.clear()

    def resume(self, key: NodePublic) -> None:
        """End a `stall`."""
        self.client(key).running.set()

    def drop(self, key: NodePublic | None = None) -> None:
        """Reset the connections of a node, or all of them."""
        for name, connections in self.clients.items():
            if key in {None, name}:
                for client in connections:
                    client.abort()

    def send_health(self, key: NodePublic, complaint: str) -> None:
        """Complain to a client about its connection; an empty text withdraws the complaint."""
        self.client(key).deliver(frame(FrameType.HEALTH, complaint.encode()))

    def send_restarting(self, reconnect_in_s: float, try_for_s: float) -> None:
        """Announce to everybody that this relay restarts."""
        self._broadcast(restarting(reconnect_in_s, try_for_s))

    def send_raw(self, key: NodePublic, data: bytes) -> None:
        """Send a client any bytes."""
        self.client(key).deliver(data)

    async def ping(self, key: NodePublic, timeout_s: float = 5.0) -> None:
        """Ask a client for a sign of life; TimeoutError where none comes."""
        client, token = self.client(key), os.urandom(PING_BYTES)
        client.deliver(frame(FrameType.PING, token))
        async with asyncio.timeout(timeout_s):
            while await client.pongs.get() != token:
                pass

    # --- HTTP

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (request := await http1.read_request(reader)) is not None:
            if request.path == "/derp" and request.headers.get("upgrade", "").lower() in {"derp", "websocket"}:
                await self._upgrade(request, reader, writer)
                return
            await self._answer(request, writer)
            if not request.keeps_alive:
                return

    async def _answer(self, request: http1.Request, writer: asyncio.StreamWriter) -> None:
        head_only = request.method == "HEAD"
        if request.path in {"/derp/latency-check", "/derp/probe"}:
            await asyncio.sleep(self.latency_s)
            writer.write(http1.response(200, headers={"Access-Control-Allow-Origin": "*"}, head_only=head_only))
        elif request.path == "/generate_204":
            writer.write(http1.response(204))
        elif request.path == "/derp":
            writer.write(http1.response(426, "DERP requires connection upgrade\n", head_only=head_only))
        else:
            writer.write(http1.response(404, "not found\n", head_only=head_only))
        await writer.drain()

    async def _upgrade(
        self, request: http1.Request, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if self.refuse_status is not None or request.headers["upgrade"].lower() == "websocket":
            writer.write(http1.response(self.refuse_status or 400, "no\n"))
            await writer.drain()
            return
        if request.headers.get("derp-fast-start") != "1":
            headers = {"Derp-Version": str(PROTOCOL_VERSION), "Derp-Public-Key": self.key.public.raw.hex()}
            writer.write(http1.switching("DERP", headers))
        writer.write(frame(FrameType.SERVER_KEY, MAGIC, self.key.public.raw))
        await writer.drain()
        frames = FrameReader(MAX_CLIENT_INFO_BYTES)
        async with asyncio.timeout(LOGIN_TIMEOUT_S):
            client, rest = await self._log_in(reader, writer, frames)
        if client is not None:
            await self._relay(client, rest, frames, reader)

    # --- frames

    async def _log_in(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, frames: FrameReader
    ) -> tuple[DerpClient | None, list[tuple[int, bytes]]]:
        """The client, and the frames that came with its first one."""
        found: list[tuple[int, bytes]] = []
        while not found:
            data = await reader.read(READ_BYTES)
            if not data:
                return None, []
            found = list(frames.feed(data))
        kind, payload = found[0]
        if kind != FrameType.CLIENT_INFO:
            raise ProtocolError(f"a frame of type {kind:#04x} before CLIENT_INFO")
        raw, sealed = split_key(payload, "CLIENT_INFO")
        box = SealedBox(self.key, raw)
        try:
            info = msgspec.json.decode(box.open(sealed), type=ClientInfo)
        except (msgspec.MsgspecError, UnicodeDecodeError):
            raise ProtocolError("CLIENT_INFO is not JSON") from None
        key = NodePublic(raw)
        if not self.admit(key):
            raise ProtocolError(f"{key.short} is not admitted")
        log.debug("derp %d: %s is here, version %s", self.region_id, key.short, info.version)
        client = DerpClient(key, writer)
        client.deliver(frame(FrameType.SERVER_INFO, box.seal(msgspec.json.encode(self.server_info), os.urandom)))
        frames.limit = MAX_SEND_PAYLOAD_BYTES
        self.logins += 1
        return client, found[1:]

    async def _relay(
        self, client: DerpClient, rest: list[tuple[int, bytes]], frames: FrameReader, reader: asyncio.StreamReader
    ) -> None:
        connections = self.clients.setdefault(client.key, [])
        connections.append(client)
        writing = asyncio.create_task(self._write(client), name=f"derp {self.region_id} writer")
        try:
            for kind, payload in rest:
                self._handle(client, kind, payload)
            while data := await reader.read(READ_BYTES):
                await client.running.wait()
                for kind, payload in frames.feed(data):
                    self._handle(client, kind, payload)
        finally:
            writing.cancel()
            connections.remove(client)
            if not connections:
                self.clients.pop(client.key, None)
                self._tell_gone(client.key)
            await asyncio.gather(writing, return_exceptions=True)

    async def _write(self, client: DerpClient) -> None:
        try:
            await client.write(self.write_stall_s)
        except (TimeoutError, ConnectionError) as error:
            log.info("derp %d: %s does not read: %s", self.region_id, client.key.short, error)
            client.abort()

    def _handle(self, client: DerpClient, kind: int, payload: bytes) -> None:
        if kind == FrameType.SEND_PACKET:
            raw, packet = split_key(payload, "SEND_PACKET")
            self._forward(client, NodePublic(raw), packet)
        elif kind == FrameType.NOTE_PREFERRED:
            if len(payload) != 1:
                raise ProtocolError("NOTE_PREFERRED is not one byte")
            client.preferred = payload == b"\x01"
        elif kind == FrameType.PING:
            client.deliver(frame(FrameType.PONG, payload[:PING_BYTES]))
        elif kind == FrameType.PONG and not client.pongs.full():
            client.pongs.put_nowait(payload[:PING_BYTES])
        elif kind in {FrameType.WATCH_CONNS, FrameType.CLOSE_PEER, FrameType.FORWARD_PACKET}:
            raise ProtocolError(f"{FrameType(kind).name} from a client that is no relay")

    def _forward(self, client: DerpClient, destination: NodePublic, packet: bytes) -> None:
        connections = self.clients[client.key]
        if connections[-1] is not client:  # who wrote last is the active one
            connections.remove(client)
            connections.append(client)
        if self.loses(client.key, destination, packet):
            return
        if destination not in self.clients:
            self.undeliverable += 1
            if packet.startswith(_DISCO_MAGIC):
                client.deliver(frame(FrameType.PEER_GONE, destination.raw, bytes([GoneReason.NOT_HERE])))
            return
        self.relayed[client.key, destination] += 1
        data = frame(FrameType.RECV_PACKET, client.key.raw, packet)
        if self.latency_s:
            asyncio.get_running_loop().call_later(self.latency_s, self._deliver, client.key, destination, data)
        else:
            self._deliver(client.key, destination, data)

    def _deliver(self, source: NodePublic, destination: NodePublic, data: bytes) -> None:
        connections = self.clients.get(destination)
        if connections:
            target = connections[-1]
            if len(target.heard) < MAX_HEARD_PEERS:
                target.heard[source] = None
            target.deliver(data)

    def _tell_gone(self, key: NodePublic) -> None:
        for connections in self.clients.values():
            for client in connections:
                if client.heard.pop(key, 0) is None:
                    client.deliver(frame(FrameType.PEER_GONE, key.raw, bytes([GoneReason.DISCONNECTED])))

    def _broadcast(self, data: bytes) -> None:
        for connections in self.clients.values():
            for client in connections:
                client.deliver(data)

    async def _send_keep_alives(self) -> None:
        while True:
            await asyncio.sleep(self.keep_alive_s)
            self._broadcast(frame(FrameType.KEEP_ALIVE))
