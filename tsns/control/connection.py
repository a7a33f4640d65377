"""One connection to control: Noise and HTTP/2 over a byte stream that has been upgraded (ring 1).

    open() --Noise response--> requests and streams, side by side --> failed: everything that waits is told why

A task reads, and nothing else does; whoever wants something of the connection waits for its own exchange. Silence is answered by an HTTP/2
PING, which also keeps address translators in mind of us while a login waits for a person, and more silence ends the connection.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass
from typing import Final

from tsns.control.http2 import Body, Ended, Head, Headers, Http2, Reset
from tsns.control.pace import Pace
from tsns.error import ProtocolError, RetryableError, TsnsError
from tsns.netns.underlay import Stream, is_from_elsewhere
from tsns.noise.stream import ClientStream

READ_BYTES: Final = 256 << 10
HANDSHAKE_TIMEOUT_S: Final = 10.0
SILENCE_S: Final = 60.0  # twice this without a byte, and the connection is dead
CHECK_S: Final = 5.0  # the same when the host's network has just changed
MAX_UNSENT_BYTES: Final = 4 << 20
MAX_REPLY_BYTES: Final = 1 << 20


class HandshakeError(RetryableError):
    """Control left during the Noise handshake, or is not who it said it was: its key may be another one by now."""


@dataclass(frozen=True, slots=True)
class Reply:
    """A response, complete."""

    status: int
    body: bytes
    retry_after: str | None = None


class Exchange:
    """One request and its response as it comes in."""

    def __init__(self, connection: Connection, stream: int) -> None:
        self.stream = stream
        self._connection = connection
        self._head: Head | None = None
        self._chunks: deque[Body] = deque()
        self.ended = False
        self._failure: TsnsError | None = None
        self._news = asyncio.Event()

    async def head(self) -> Head:
        """Status and the headers that count; RetryableError or ProtocolError where none came."""
        while self._head is None:
            await self._wait()
        return self._head

    async def read(self) -> bytes | None:
        """The next piece of the body, None at its end."""
        while not self._chunks:
            if self.ended:
                return None
            await self._wait()
        chunk = self._chunks.popleft()
        self._connection.consumed(chunk)
        return chunk.data

    def take(self, output: Head | Body | Ended | Reset) -> None:
        """What came for this exchange."""
        match output:
            case Head():
                self._head = output
            case Body():
                self._chunks.append(output)
            case Ended():
                self.ended = True
            case Reset():
                self.fail(RetryableError(f"control breaks off its response: {output.reason}"))
        self._news.set()

    def fail(self, failure: TsnsError) -> None:
        """Nothing more will come."""
        if not self.ended:
            self._failure = failure
        self._news.set()

    async def _wait(self) -> None:
        if self._failure is not None:
            raise self._failure
        if self.ended:
            raise ProtocolError("a response without a head")
        self._news.clear()
        await self._news.wait()


class Connection:
    """See the module. Made by `open`; to be closed."""

    def __init__(self, stream: Stream, noise: ClientStream, authority: str) -> None:
        self._reader, self._writer = stream
        self._noise = noise
        self._http = Http2(authority)
        self._exchanges: dict[int, Exchange] = {}
        self._failure: TsnsError | None = None
        self._task: asyncio.Task[None] | None = None
        self._times_heard = 0
        self._pace = Pace()

    @classmethod
    async def open(cls, stream: Stream, leftover: bytes, noise: ClientStream, authority: str) -> Connection:
        """Finish the handshake on an upgraded byte stream of which `leftover` has been read already. HandshakeError."""
        connection = cls(stream, noise, authority)
        try:
            async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
                await connection._handshake(leftover)
        except TimeoutError:
            connection._writer.close()
            raise HandshakeError(
                f"control does not answer the Noise handshake within {HANDSHAKE_TIMEOUT_S:.0f} s"
            ) from None
        except BaseException:
            connection._writer.close()
            raise
        connection._task = asyncio.create_task(connection._read(), name="control connection")
        return connection

    @property
    def usable(self) -> bool:
        """Whether requests still make sense."""
        return self._failure is None

    @contextlib.asynccontextmanager
    async def exchange(
        self, method: str, path: str, body: bytes = b"", headers: Headers = ()
    ) -> AsyncIterator[Exchange]:
        """Begin a request; what is left of its response at the end is cancelled."""
        if self._failure is not None:
            raise self._failure
        stream = self._http.request(method, path, body, headers)
        exchange = self._exchanges[stream] = Exchange(self, stream)
        self._flush()
        try:
            yield exchange
        finally:
            del self._exchanges[stream]
            if self._failure is None and not exchange.ended:
                self._http.cancel(stream)
                self._flush()

    async def request(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        headers: Headers = (),
        *,
        timeout_s: float | None,
        reads_success: bool = True,
    ) -> Reply:
        """A request and all of its response. A response that takes too long ends the connection with a RetryableError.

        Without `reads_success` what a 200 has to say is thrown away, however much it is.
        """
        try:
            async with asyncio.timeout(timeout_s), self.exchange(method, path, body, headers) as exchange:
                head = await exchange.head()
                received = bytearray()
                kept = reads_success or head.status != 200
                while (chunk := await exchange.read()) is not None:
                    if kept:
                        received += chunk
                    if len(received) > MAX_REPLY_BYTES:
                        raise ProtocolError(f"control answers {path} with more than {MAX_REPLY_BYTES} bytes")
        except TimeoutError:
            failure = RetryableError(f"control does not answer {path} within {timeout_s:.0f} s")
            self._fail(failure)
            raise failure from None
        return Reply(head.status, bytes(received), head.retry_after)

    def check(self, addresses: Collection[str]) -> None:
        """The host has these addresses now: a connection from another one is dead, any other one has CHECK_S to show that it is not."""
        if self._failure is not None:
            return
        if is_from_elsewhere(self._writer, addresses):
            self._fail(RetryableError("the address that control was connected from is gone"))
        else:
            self._http.ping()
            self._flush()
            asyncio.get_running_loop().call_later(CHECK_S, self._judge, self._times_heard)

    def _judge(self, times_heard: int) -> None:
        if times_heard == self._times_heard:
            self._fail(RetryableError("the connection to control did not survive a change of the network"))

    def consumed(self, chunk: Body) -> None:
        """An exchange's owner has taken this."""
        if self._failure is None:
            self._http.consumed(chunk.stream, chunk.size)
            self._flush()

    async def close(self) -> None:
        """Drop the connection."""
        self._fail(RetryableError("the connection to control is closed"))
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def _handshake(self, data: bytes) -> None:
        while True:
            try:
                plaintext = self._noise.receive(data)
            except ProtocolError as error:
                raise HandshakeError(str(error)) from None
            if self._noise.established:
                break
            try:
                data = await self._reader.read(READ_BYTES)
            except OSError as error:
                raise HandshakeError(f"control hangs up in the Noise handshake: {error.strerror or error}") from None
            if not data:
                raise HandshakeError("control hangs up in the Noise handshake: it may not speak our capability version")
        self._take(plaintext)

    async def _read(self) -> None:
        try:
            while True:
                data = await self._hear()
                self._times_heard += 1
                if not data:
                    raise RetryableError("control closed the connection")
                self._take(self._noise.receive(data))
                pause_s = self._pace.heard(len(data), asyncio.get_running_loop().time())
                if pause_s:
                    await asyncio.sleep(pause_s)
        except (ProtocolError, RetryableError) as error:
            self._fail(error)
        except OSError as error:
            self._fail(RetryableError(f"the connection to control broke: {error.strerror or error}"))

    async def _hear(self) -> bytes:
        for last in (False, True):
            try:
                async with asyncio.timeout(SILENCE_S):
                    return await self._reader.read(READ_BYTES)
            except TimeoutError:
                if not last:
                    self._http.ping()
                    self._flush()
        raise RetryableError(f"control has been silent for {2 * SILENCE_S:.0f} s")

    def _take(self, plaintext: list[bytes]) -> None:
        for piece in plaintext:
            for output in self._http.receive(piece):
                exchange = self._exchanges.get(output.stream)
                if exchange is not None:
                    exchange.take(output)
                elif isinstance(output, Body):
                    self._http.consumed(output.stream, output.size)
        self._flush()

    def _flush(self) -> None:
        data = self._http.outgoing()
        if data:
            self._writer.write(self._noise.send(data))
            if self._writer.transport.get_write_buffer_size() > MAX_UNSENT_BYTES:
                self._fail(RetryableError("control takes nothing in"))

    def _fail(self, failure: TsnsError) -> None:
        if self._failure is None:
            self._failure = failure
            self._writer.transport.abort()
            for exchange in self._exchanges.values():
                exchange.fail(failure)
