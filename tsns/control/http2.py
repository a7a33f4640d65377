"""HTTP/2 inside Noise: requests out, responses in, as a pure machine around the `h2` library (ring 0).

Source: RFC 9113, with prior knowledge (3.3): neither TLS nor ALPN is involved. What to write is in `outgoing()` after any other call.

Flow control is the owner's: a stream's window opens again only as far as `consumed` was told. The windows are large enough that a server
need not pause within a netmap of ordinary size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.exceptions
import h2.settings

from tsns.error import ProtocolError, RetryableError

STREAM_WINDOW_BYTES: Final = 4 << 20
CONNECTION_WINDOW_BYTES: Final = 16 << 20
MAX_HEADER_LIST_BYTES: Final = 64 << 10

_DEFAULT_WINDOW_BYTES: Final = 65535
_PING: Final = b"tsns ..."

Headers = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Head:
    """A response has begun."""

    stream: int
    status: int
    retry_after: str | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """A piece of a response; `size` is what to tell `consumed`."""

    stream: int
    data: bytes
    size: int


@dataclass(frozen=True, slots=True)
class Ended:
    """A response is complete."""

    stream: int


@dataclass(frozen=True, slots=True)
class Reset:
    """The server will not go on with a response."""

    stream: int
    reason: str


Output = Head | Body | Ended | Reset


class Http2:
    """The client's end of one connection to `authority` (host, and port where it is not the scheme's own)."""

    def __init__(self, authority: str) -> None:
        self._authority = authority
        self._pending: dict[int, memoryview] = {}  # request bodies that wait for the server's windows
        self._connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        # Assigned, since update_settings() before initiate_connection() would write SETTINGS ahead of the preface.
        self._connection.local_settings = h2.settings.Settings(
            client=True,
            initial_values={
                h2.settings.SettingCodes.ENABLE_PUSH: 0,
                h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: STREAM_WINDOW_BYTES,
                h2.settings.SettingCodes.MAX_HEADER_LIST_SIZE: MAX_HEADER_LIST_BYTES,
            },
        )
        self._connection.initiate_connection()
        self._connection.increment_flow_control_window(CONNECTION_WINDOW_BYTES - _DEFAULT_WINDOW_BYTES)

    def request(self, method: str, path: str, body: bytes = b"", headers: Headers = ()) -> int:
        """Begin a request; its stream's number. RetryableError where the server permits no more of them."""
        connection = self._connection
        lines = [
            (":method", method),
            (":scheme", "https"),
            (":authority", self._authority),
            (":path", path),
            *headers,
        ]
        try:
            stream = connection.get_next_available_stream_id()
            connection.send_headers(stream, lines, end_stream=not body)
        except h2.exceptions.ProtocolError as error:
            raise RetryableError(f"control takes no more requests here: {error}") from None
        if body:
            self._pending[stream] = memoryview(body)
            self._send_pending(stream)
        return stream

    def receive(self, data: bytes) -> list[Output]:
        """Take plaintext of the Noise connection; ProtocolError and RetryableError end it."""
        try:
            events = self._connection.receive_data(data)
        except (h2.exceptions.H2Error, ValueError) as error:
            raise ProtocolError(f"control broke HTTP/2: {error}") from None
        outputs: list[Output] = []
        for event in events:
            match event:
                case h2.events.ResponseReceived():
                    outputs.append(_head(event))
                case h2.events.DataReceived():
                    outputs.append(Body(event.stream_id, event.data, event.flow_controlled_length))
                case h2.events.StreamEnded():
                    outputs.append(Ended(event.stream_id))
                case h2.events.StreamReset():
                    self._pending.pop(event.stream_id, None)
                    outputs.append(Reset(event.stream_id, _name(event.error_code)))
                case h2.events.WindowUpdated() | h2.events.RemoteSettingsChanged():
                    for stream in list(self._pending):
                        self._send_pending(stream)
                case h2.events.ConnectionTerminated():
                    raise RetryableError(f"control closes the connection: {_name(event.error_code)}")
        return outputs

    def consumed(self, stream: int, size: int) -> None:
        """Let the server send as much again."""
        if size:
            self._connection.acknowledge_received_data(size, stream)

    def cancel(self, stream: int) -> None:
        """Take no more interest in a response."""
        self._pending.pop(stream, None)
        try:
            self._connection.reset_stream(stream, h2.errors.ErrorCodes.CANCEL)
        except h2.exceptions.ProtocolError:  # it is over already
            pass

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._connection.ping(_PING)

    def outgoing(self) -> bytes:
        """What to write."""
        return self._connection.data_to_send()

    def _send_pending(self, stream: int) -> None:
        connection = self._connection
        body = self._pending[stream]
        try:
            while body:
                size = min(connection.local_flow_control_window(stream), connection.max_outbound_frame_size, len(body))
                if size <= 0:
                    self._pending[stream] = body
                    return
                connection.send_data(stream, body[:size].tobytes(), end_stream=size == len(body))
                body = body[size:]
        except h2.exceptions.ProtocolError:  # the server ended the stream before it had all of the request
            pass
        self._pending.pop(stream, None)


def _head(event: h2.events.ResponseReceived) -> Head:
    headers = {bytes(name): bytes(value) for name, value in event.headers}
    status = headers.get(b":status", b"")
    if not (status.isdigit() and len(status) == 3):
        raise ProtocolError("an HTTP/2 response without a status")
    retry_after = headers.get(b"retry-after")
    return Head(event.stream_id, int(status), retry_after.decode(errors="replace") if retry_after else None)


def _name(code: h2.errors.ErrorCodes | int | None) -> str:
    return code.name if isinstance(code, h2.errors.ErrorCodes) else f"error {code}"
