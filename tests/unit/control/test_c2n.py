"""Control's requests to the node."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.control.c2n import MAX_REQUEST_BYTES, respond
from tsns.error import ProtocolError


@pytest.mark.parametrize(
    ("request_bytes", "response"),
    [
        (
            b"POST /echo HTTP/1.1\r\nHost: node\r\nContent-Length: 5\r\n\r\nhello",
            b"HTTP/1.1 200 \r\ncontent-length: 5\r\n\r\nhello",
        ),
        (b"GET /echo?x=1 HTTP/1.1\r\nHost: node\r\n\r\n", b"HTTP/1.1 200 \r\ncontent-length: 0\r\n\r\n"),
        (
            b"GET /debug/goroutines HTTP/1.1\r\nHost: node\r\n\r\n",
            b"HTTP/1.1 400 \r\ncontent-length: 16\r\n\r\nunknown c2n path",
        ),
    ],
)
def test_requests(request_bytes: bytes, response: bytes) -> None:
    assert respond(request_bytes) == response


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"hello\r\n\r\n",
        b"POST /echo HTTP/1.1\r\nHost: node\r\nContent-Length: 5\r\n\r\nhel",
        b"GET /echo HTTP/1.1\r\nHost: node\r\n",
        b"GET /echo HTTP/1.1\r\nHost: node\r\n\r\n" + bytes(MAX_REQUEST_BYTES),
    ],
)
def test_what_is_no_request(payload: bytes) -> None:
    with pytest.raises(ProtocolError):
        respond(payload)


@given(st.binary(max_size=100))
def test_no_payload_raises_anything_else(data: bytes) -> None:
    for payload in (data, b"POST /echo HTTP/1.1\r\nHost: node\r\n" + data + b"\r\n\r\n"):
        try:
            respond(payload)
        except ProtocolError:
            continue
