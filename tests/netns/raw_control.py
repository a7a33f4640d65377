"""A bare client of control servers: Noise and HTTP/2 without any of the real client's judgement, for what servers do byte by byte."""

from __future__ import annotations

import asyncio
import base64
import os
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import h2.config
import h2.connection
import h2.events
import msgspec
import zstandard

from tsns.keys import KEY_BYTES, MachinePrivate, MachinePublic, NodePrivate
from tsns.lab.lab import Lab
from tsns.noise.handshake import Initiator
from tsns.noise.stream import ClientStream
from tsns.proto.types import Hostinfo, MapRequest, RegisterAuth, RegisterRequest, RegisterResponse, Wire, decode, encode


@dataclass(slots=True)
class Answer:
    """What came on one HTTP/2 stream so far."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytearray = field(default_factory=bytearray)
    ended: bool = False


class RawControl:
    """One connection, of one device with one node key: `async with RawControl(lab) as client`."""

    def __init__(
        self,
        lab: Lab,
        *,
        machine: MachinePrivate | None = None,
        control: MachinePublic | None = None,
        version: int = 131,
    ) -> None:
        self.lab = lab
        self.machine = machine or MachinePrivate.generate(os.urandom(KEY_BYTES))
        self.node = NodePrivate.generate(os.urandom(KEY_BYTES))
        self.version = version
        self.reads: list[bytes] = []  # what came, read by read
        self.closed = False
        self.noise = ClientStream(Initiator(self.machine, control or lab.control.key.public, version, os.urandom))
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
        self._answers: dict[int, Answer] = {}
        self._news = asyncio.Condition()

    async def __aenter__(self) -> Self:
        host, port = self.lab.url.removeprefix("http://").split(":")
        self._reader, self._writer = await asyncio.open_connection(host, int(port))
        handshake = base64.b64encode(self.noise.initiation).decode()
        lines = ("POST /ts2021 HTTP/1.1", f"Host: {host}", "Connection: upgrade", "Upgrade: tailscale-control-protocol")
        head = "\r\n".join([*lines, f"X-Tailscale-Handshake: {handshake}", "Content-Length: 0", "", ""])
        self._writer.write(head.encode())
        self.head = await self._reader.readuntil(b"\r\n\r\n")
        self._task = asyncio.create_task(self._read())
        await self._until(lambda: self.noise.established or self.closed)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)

    async def register(self, auth_key: str | None = None, **members: Any) -> RegisterResponse:
        """POST /machine/register with our keys."""
        request = RegisterRequest(
            version=self.version,
            node_key=str(self.node.public),
            auth=RegisterAuth(auth_key=auth_key) if auth_key else None,
            hostinfo=Hostinfo(hostname="raw"),
            **members,
        )
        answer = await self.post("/machine/register", request)
        assert answer.status == 200, bytes(answer.body)
        return decode(bytes(answer.body), RegisterResponse)

    def map_request(self, **members: Any) -> MapRequest:
        """A streaming map request with our keys."""
        request = MapRequest(version=self.version, compress="zstd", node_key=str(self.node.public), stream=True)
        return msgspec.structs.replace(request, **members)

    async def post(self, path: str, request: Wire | bytes, *, whole: bool = True) -> Answer:
        """Send a request; returns at the answer's end, or with `whole` off at its head."""
        number = self._h2.get_next_available_stream_id()
        answer = self._answers[number] = Answer()
        names = [(":method", "POST"), (":scheme", "https"), (":authority", "lab"), (":path", path)]
        self._h2.send_headers(number, names)
        body = encode(request) if isinstance(request, Wire) else request
        for start in range(0, len(body), 16_000):
            await self._until(lambda: self._h2.local_flow_control_window(number) >= 16_000)
            self._h2.send_data(number, body[start : start + 16_000])
            self._flush()
        self._h2.end_stream(number)
        self._flush()
        await self._until(lambda: answer.ended or (bool(answer.status) and not whole))
        return answer

    async def stream(self, **members: Any) -> Answer:
        """Open a netmap stream."""
        return await self.post("/machine/map", self.map_request(**members), whole=False)

    async def message(self, answer: Answer) -> dict[str, Any]:
        """The next message of a netmap stream as JSON; EOFError at its end."""
        await self._until(lambda: self._frame(answer) is not None or answer.ended)
        frame = self._frame(answer)
        if frame is None:
            raise EOFError
        del answer.body[: 4 + len(frame)]
        if not frame.startswith(b"{"):
            frame = zstandard.ZstdDecompressor().stream_reader(frame, read_across_frames=True).read()
        message: dict[str, Any] = msgspec.json.decode(frame)
        return message

    @staticmethod
    def _frame(answer: Answer) -> bytes | None:
        if len(answer.body) < 4:
            return None
        (length,) = struct.unpack_from("<I", answer.body)
        return bytes(answer.body[4 : 4 + length]) if len(answer.body) >= 4 + length else None

    async def until(self, done: Callable[[], bool]) -> None:
        """Wait until what came makes this true."""
        await self._until(done)

    async def until_closed(self) -> None:
        """Wait for the server to hang up."""
        await self._until(lambda: self.closed)

    async def _until(self, done: Callable[[], bool]) -> None:
        async with asyncio.timeout(10), self._news:
            await self._news.wait_for(done)

    async def _read(self) -> None:
        try:
            while data := await self._reader.read(1 << 16):
                self.reads.append(data)
                established = self.noise.established
                pieces = self.noise.receive(data)
                if self.noise.established and not established:
                    self._h2.initiate_connection()
                for plaintext in pieces:
                    for event in self._h2.receive_data(plaintext):
                        self._on_event(event)
                if self.noise.established:
                    self._flush()
                await self._tell()
        except ConnectionError:
            pass
        finally:
            self.closed = True
            for answer in self._answers.values():
                answer.ended = True
            await asyncio.shield(self._tell())

    def _on_event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.ResponseReceived(stream_id=number, headers=headers):
                answer = self._answers[number]
                answer.headers = {str(name): str(value) for name, value in headers}
                answer.status = int(answer.headers[":status"])
            case h2.events.DataReceived(stream_id=number, data=data, flow_controlled_length=length):
                self._h2.acknowledge_received_data(length, number)
                self._answers[number].body += data
            case h2.events.StreamEnded(stream_id=number):
                self._answers[number].ended = True

    async def _tell(self) -> None:
        async with self._news:
            self._news.notify_all()

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._writer.write(self.noise.send(data))


def run(scenario: Callable[[Lab], Awaitable[None]], **options: Any) -> None:
    """Play a scenario in a lab of its own; nothing of it may be left when it ends."""

    async def play() -> None:
        async with Lab(**options) as lab:
            await scenario(lab)
        left = asyncio.all_tasks() - {asyncio.current_task()}
        assert not left, f"tasks are left: {left}"

    asyncio.run(play(), debug=True)
