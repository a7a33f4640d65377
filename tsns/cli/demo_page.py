"""A small web server, which `tsns demo` runs inside a node: `python demo_page.py PORT TEXT` (ring 2, standard library only).

/ answers the text, /stream sends bytes for as long as somebody takes them. Prints one line when it serves.
"""

from __future__ import annotations

import socket
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final

STREAM_S: Final = 60.0
CHUNK: Final = bytes(256 << 10)


class Page(BaseHTTPRequestHandler):
    """Answers one request."""

    text = ""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.end_headers()
        if self.path != "/stream":
            self.wfile.write(f"{self.text}\n".encode())
            return
        end = time.monotonic() + STREAM_S
        try:
            while time.monotonic() < end:
                self.wfile.write(CHUNK)
        except OSError:
            pass  # it has enough

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name that http.server has
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """By IPv4 and IPv6: a program takes the first address that a name has."""

    address_family = socket.AF_INET6

    def server_bind(self) -> None:
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def main() -> None:
    """Serve until somebody ends the process."""
    Page.text = sys.argv[2]
    with Server(("::", int(sys.argv[1])), Page) as server:
        server.daemon_threads = True
        print("serving", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
