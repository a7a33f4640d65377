"""The HTTP/2 server inside the lab's Noise connections (ring 1).

Source: RFC 9113 by way of the h2 package; control/ts2021 and control/controlhttp of Tailscale's module. Each request is handled in a task of
its own, so that a long poll holds nobody up; flow control is per stream, and a client that does not read holds up only itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Final

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import h2.settings
from h2.settings import SettingCodes

from tsns.error import ProtocolError
from tsns.keys import MachinePublic
from tsns.lab.faults import Faults
from tsns.noise.stream import ServerStream

MAX_BODY_BYTES: Final = 1 << 20
MAX_STREAMS: Final = 250
MAX_FRAME_BYTES: Final = 1 << 20
WINDOW_BYTES: Final = 1 << 20
READ_BYTES: Final = 64 << 10
SEGMENT_GAP_S: Final = 0.005  # between writes that are to arrive one by one

log = logging.getLogger(__name__)


class Exchange:
    """One request, complete, and the way to answer it."""

    def __init__(self, connection: Http2Connection, stream: int, headers: dict[str, str]) -> None:
        self.method = headers.get(":method", "")
        self.target = headers.get(":path", "")
        self.path, _, self.query = self.target.partition("?")
        self.headers = headers
        self.body = bytearray()
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._stream = stream

    @property
    def machine(self) -> MachinePublic:
        """Who asks."""
        return self._connection.machine

    @property
    def too_large(self) -> bool:
        """Whether the body was cut off."""
        return len(self.body) > MAX_BODY_BYTES

    def start(self, status: int, headers: dict[str, str] | None = None) -> None:
        """Begin an answer whose body comes by `write`."""
        named = {name.lower(): value for name, value in (headers or {}).items()}
        self._connection.send_headers(self._stream, [(":status", str(status)), *named.items()])

    async def write(self, data: bytes) -> None:
        """More of the body; waits as long as the client does not take it."""
        await self._connection.send_body(self._stream, data)

    def end(self) -> None:
        """The answer is complete."""
        self._connection.end_stream(self._stream)

    def abort(self) -> None:
        """Reset the whole connection."""
        self._connection.abort()

    async def respond(self, status: int, body: bytes | str = b"", headers: dict[str, str] | None = None) -> None:
        """A whole answer."""
        content = body.encode() if isinstance(body, str) else body
        self.start(status, {"Content-Length": str(len(content)), **(headers or {})})
        if content and self.method != "HEAD":
            await self.write(content)
        self.end()


class Http2Connection:
    """The server's side of one Noise connection, after the upgrade. `handle` answers one exchange."""

    def __init__(
        self,
        noise: ServerStream,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        faults: Faults,
        handle: Callable[[Exchange], Awaitable[None]],
    ) -> None:
        self.machine = noise.machine
        self._noise = noise
        self._reader = reader
        self._writer = writer
        self._faults = faults
        self._handle = handle
        self._exchanges: dict[int, Exchange] = {}
        self._window_opened = asyncio.Event()
        self._h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
        self._h2.local_settings = h2.settings.Settings(
            client=False,
            initial_values={
                SettingCodes.MAX_CONCURRENT_STREAMS: MAX_STREAMS,
                SettingCodes.INITIAL_WINDOW_SIZE: WINDOW_BYTES,
                SettingCodes.MAX_FRAME_SIZE: MAX_FRAME_BYTES,
            },
        )
        self._h2.max_inbound_frame_size = MAX_FRAME_BYTES

    async def run(self, opening: bytes, early: Iterable[bytes]) -> None:
        """Serve until the client goes. Before HTTP/2 go `opening`, as it is, and `early`: plaintext, a piece for each record."""
        self._h2.initiate_connection()
        self._h2.increment_flow_control_window(WINDOW_BYTES)
        pieces = [
            opening,
            self._noise.response,
            *map(self._noise.send, early),
            self._noise.send(self._h2.data_to_send()),
        ]
        for piece in [b"".join(pieces)] if self._faults.glued else pieces:
            self._write(piece)
            await asyncio.sleep(0 if self._faults.glued else SEGMENT_GAP_S)
        try:
            while data := await self._reader.read(READ_BYTES):
                for plaintext in self._noise.receive(data):
                    for event in self._h2.receive_data(plaintext):
                        self._on_event(event)
                self._flush()
        except h2.exceptions.ProtocolError as error:
            raise ProtocolError(f"HTTP/2: {error}") from error
        finally:
            await self._cancel_all()

    def abort(self) -> None:
        """Reset the connection."""
        self._writer.transport.abort()

    # --- for exchanges

    def send_headers(self, stream: int, headers: list[tuple[str, str]]) -> None:
        """The head of an answer."""
        self._h2.send_headers(stream, headers)
        self._flush()

    async def send_body(self, stream: int, data: bytes) -> None:
        """A part of an answer, as fast as the client's windows allow."""
        view = memoryview(data)
        while view:
            size = min(self._h2.local_flow_control_window(stream), self._h2.max_outbound_frame_size, len(view))
            if size <= 0:
                self._window_opened.clear()
                await self._window_opened.wait()
                continue
            self._h2.send_data(stream, bytes(view[:size]))
            view = view[size:]
            self._flush()
            await self._writer.drain()

    def end_stream(self, stream: int) -> None:
        """The end of an answer."""
        self._h2.end_stream(stream)
        self._flush()

    # --- events

    def _on_event(self, event: h2.events.Event) -> None:
        match event:
            case h2.events.RequestReceived(stream_id=stream, headers=headers):
                self._exchanges[stream] = Exchange(self, stream, {str(name): str(value) for name, value in headers})
            case h2.events.DataReceived(stream_id=stream, data=data, flow_controlled_length=length):
                self._h2.acknowledge_received_data(length, stream)
                exchange = self._exchanges.get(stream)
                if exchange is not None and not exchange.too_large:
                    exchange.body += data
            case h2.events.StreamEnded(stream_id=stream) if stream in self._exchanges:
                exchange = self._exchanges[stream]
                exchange.task = asyncio.create_task(self._answer(stream, exchange), name=f"lab {exchange.path}")
            case h2.events.StreamReset(stream_id=stream) if stream in self._exchanges:
                exchange = self._exchanges.pop(stream)
                if exchange.task is not None:
                    exchange.task.cancel()
            case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                self._window_opened.set()

    async def _answer(self, stream: int, exchange: Exchange) -> None:
        try:
            await self._handle(exchange)
        except (ConnectionError, h2.exceptions.ProtocolError) as error:
            log.debug("the answer to %s was not wanted: %s", exchange.path, error)
        except Exception:
            log.exception("%s failed", exchange.path)
            self.abort()
        finally:
            if self._exchanges.get(stream) is exchange:
                del self._exchanges[stream]

    async def _cancel_all(self) -> None:
        tasks = [exchange.task for exchange in self._exchanges.values() if exchange.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- bytes

    def _flush(self) -> None:
        data = self._h2.data_to_send()
        if data:
            self._write((self._noise.send(b"") if self._faults.empty_records else b"") + self._noise.send(data))

    def _write(self, data: bytes) -> None:
        if self._writer.transport.is_closing():
            return
        if not self._faults.bytewise:
            self._writer.write(data)
            return
        for index in range(len(data)):
            self._writer.write(data[index : index + 1])
