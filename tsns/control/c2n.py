"""Requests of control to this node, which come as HTTP/1.1 inside a PingRequest (ring 0).

Source: feature/c2n and tailcfg.PingRequest of Tailscale's module. Of all paths only /echo is known here, by which control finds out whether
a node is there; others are answered as Tailscale answers what it does not know.
"""

from __future__ import annotations

from typing import Final

import h11

from tsns.error import ProtocolError

MAX_REQUEST_BYTES: Final = 256 << 10


def respond(payload: bytes) -> bytes:
    """The HTTP/1.1 response to an HTTP/1.x request; ProtocolError where it is none."""
    if len(payload) > MAX_REQUEST_BYTES:
        raise ProtocolError(f"a c2n request of {len(payload)} bytes")
    http = h11.Connection(h11.SERVER)
    path = ""
    body = bytearray()
    try:
        http.receive_data(payload)
        http.receive_data(b"")
        while True:
            event = http.next_event()
            if isinstance(event, h11.Request):
                path = event.target.decode("latin-1").partition("?")[0]
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                break
            else:
                raise ProtocolError("a c2n request that is not whole")
        if path == "/echo":
            return _response(http, 200, bytes(body))
        return _response(http, 400, b"unknown c2n path")
    except h11.ProtocolError as error:
        raise ProtocolError(f"a c2n request that is not HTTP: {error}") from None


def _response(http: h11.Connection, status: int, body: bytes) -> bytes:
    head = h11.Response(status_code=status, headers=[("content-length", str(len(body)))])
    pieces = (http.send(head), http.send(h11.Data(data=body)), http.send(h11.EndOfMessage()))
    return b"".join(piece or b"" for piece in pieces)
