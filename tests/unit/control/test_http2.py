"""HTTP/2 told as transcripts against a server's half of the same library."""

from __future__ import annotations

import h2.config
import h2.connection
import h2.errors
import h2.events
import h2.settings
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.control.http2 import CONNECTION_WINDOW_BYTES, STREAM_WINDOW_BYTES, Body, Ended, Head, Http2, Output, Reset
from tsns.error import ProtocolError, RetryableError

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"


class Server:
    """A server that is driven by hand."""

    def __init__(self, **settings: int) -> None:
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.client = Http2("control.example:8080")
        self.h2.initiate_connection()
        values: dict[h2.settings.SettingCodes | int, int] = {
            h2.settings.SettingCodes[name]: value for name, value in settings.items()
        }
        if values:
            self.h2.update_settings(values)
        self.heard: list[h2.events.Event] = []

    def hear(self) -> list[h2.events.Event]:
        """What the client has written since."""
        events = self.h2.receive_data(self.client.outgoing())
        self.heard += events
        return events

    def say(self) -> list[Output]:
        """Let the client take what the server has written since."""
        return self.client.receive(self.h2.data_to_send())

    def exchange(self) -> list[Output]:
        """Until both have said all."""
        outputs: list[Output] = []
        for _ in range(50):
            self.hear()
            outputs += self.say()
        return outputs

    def answer(self, stream: int, data: bytes, **headers: str) -> None:
        lines = [(":status", "200"), *((name.replace("_", "-"), value) for name, value in headers.items())]
        self.h2.send_headers(stream, lines)
        self.h2.send_data(stream, data, end_stream=True)


def test_a_request_goes_out_before_the_server_has_spoken() -> None:
    server = Server()
    stream = server.client.request("POST", "/machine/map", b"{}", (("ts-lb", "nodekey:1"), ("ts-lb", "nodekey:2")))
    wire = server.client.outgoing()
    assert wire.startswith(PREFACE)
    events = server.h2.receive_data(wire)
    [request] = [event for event in events if isinstance(event, h2.events.RequestReceived)]
    assert [(bytes(name), bytes(value)) for name, value in request.headers] == [
        (b":method", b"POST"),
        (b":scheme", b"https"),
        (b":authority", b"control.example:8080"),
        (b":path", b"/machine/map"),
        (b"ts-lb", b"nodekey:1"),
        (b"ts-lb", b"nodekey:2"),
    ]
    [data] = [event for event in events if isinstance(event, h2.events.DataReceived)]
    assert (data.stream_id, data.data) == (stream, b"{}")
    assert any(isinstance(event, h2.events.StreamEnded) for event in events)
    assert server.h2.remote_settings.enable_push == 0
    assert server.h2.remote_settings.initial_window_size == STREAM_WINDOW_BYTES
    assert server.h2.outbound_flow_control_window == CONNECTION_WINDOW_BYTES


def test_responses_side_by_side() -> None:
    server = Server()
    first, second = server.client.request("GET", "/a"), server.client.request("GET", "/b")
    server.exchange()
    server.answer(second, b"b", retry_after="5")
    server.answer(first, b"a")
    assert server.exchange() == [
        Head(second, 200, "5"),
        Body(second, b"b", 1),
        Ended(second),
        Head(first, 200),
        Body(first, b"a", 1),
        Ended(first),
    ]


def test_a_large_request_waits_for_the_servers_window() -> None:
    server = Server(INITIAL_WINDOW_SIZE=1000)
    body = bytes(range(256)) * 400
    server.client.request("POST", "/machine/register", body)
    server.exchange()
    received = b""
    for _ in range(300):
        for event in [event for event in server.heard if isinstance(event, h2.events.DataReceived)]:
            received += event.data
            server.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
        server.heard.clear()
        server.exchange()
    assert received == body


def test_the_window_opens_as_far_as_was_consumed() -> None:
    server = Server()
    stream = server.client.request("GET", "/map")
    server.exchange()
    server.h2.send_headers(stream, [(":status", "200")])
    sent = 0
    while (window := server.h2.local_flow_control_window(stream)) > 0:
        server.h2.send_data(stream, bytes(min(window, 16384)))
        sent += min(window, 16384)
    assert sent == STREAM_WINDOW_BYTES
    bodies = [output for output in server.exchange() if isinstance(output, Body)]
    assert server.h2.local_flow_control_window(stream) == 0, "nothing was consumed yet"
    for body in bodies:
        server.client.consumed(body.stream, body.size)
    server.exchange()
    assert server.h2.local_flow_control_window(stream) > STREAM_WINDOW_BYTES // 2


def test_a_stream_that_the_server_breaks_off() -> None:
    server = Server(INITIAL_WINDOW_SIZE=10)
    stream = server.client.request("POST", "/a", bytes(100_000))
    server.exchange()
    server.h2.reset_stream(stream, h2.errors.ErrorCodes.REFUSED_STREAM)
    assert server.exchange() == [Reset(stream, "REFUSED_STREAM")]


def test_a_response_that_nobody_wants_any_more() -> None:
    server = Server()
    stream = server.client.request("GET", "/map")
    server.exchange()
    server.client.cancel(stream)
    server.client.cancel(stream)
    [reset] = [event for event in server.hear() if isinstance(event, h2.events.StreamReset)]
    assert reset.error_code == h2.errors.ErrorCodes.CANCEL


def test_pings_go_both_ways() -> None:
    server = Server()
    server.exchange()
    server.client.ping()
    server.h2.ping(b"12345678")
    server.exchange()
    assert any(isinstance(event, h2.events.PingReceived) for event in server.heard)
    assert any(isinstance(event, h2.events.PingAckReceived) for event in server.heard)


def test_a_server_that_goes_away() -> None:
    server = Server()
    server.exchange()
    server.h2.close_connection(h2.errors.ErrorCodes.ENHANCE_YOUR_CALM)
    with pytest.raises(RetryableError, match="ENHANCE_YOUR_CALM"):
        server.say()


def test_a_server_that_takes_no_more_requests() -> None:
    server = Server(MAX_CONCURRENT_STREAMS=1)
    server.exchange()
    server.client.request("GET", "/a")
    with pytest.raises(RetryableError, match="no more requests"):
        server.client.request("GET", "/b")


@pytest.mark.parametrize(
    "wire",
    [
        bytes.fromhex("004001000000000001") + bytes(16385),
        bytes.fromhex("000000040000000001"),
        bytes.fromhex("000001040000000000") + b"x",
        bytes.fromhex("000001010400000001") + b"\xff",
    ],
    ids=["too large", "settings of a stream", "settings cut off", "headers of another making"],
)
def test_what_is_not_http2(wire: bytes) -> None:
    client = Http2("x")
    client.request("GET", "/a")
    with pytest.raises(ProtocolError):
        client.receive(wire)


@given(st.binary(max_size=120), st.binary(max_size=60), st.integers(0, 12))
def test_no_bytes_of_a_server_raise_anything_else(data: bytes, payload: bytes, kind: int) -> None:
    frame = len(payload).to_bytes(3, "big") + bytes([kind]) + data[:1].ljust(1, b"\0") + b"\0\0\0\1" + payload
    for wire in (data, frame):
        client = Http2("x")
        client.request("GET", "/a")
        try:
            client.receive(bytes.fromhex("000000040000000000") + wire)
            client.receive(wire)
        except (ProtocolError, RetryableError):
            continue
