"""What `tsns demo` runs inside a node to try out another: `python demo_probe.py HOST PORT SECONDS` (ring 2, standard library only).

Looks the name up, fetches the page, and, if SECONDS is more than 0, takes from the stream for so long. Prints a JSON object a line for
each: {"step", "seconds", ...}; where one fails, {"step", "error"} and exit status 1.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Callable
from typing import Any, Final

TIMEOUT_S: Final = 10.0
MAX_PAGE_BYTES: Final = 64 << 10
READ_BYTES: Final = 1 << 20


def look_up(host: str, port: int) -> dict[str, Any]:
    """By the resolver of the system, as every program does it."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return {"addresses": sorted({str(address[0]) for *_, address in found})}


def _request(host: str, port: int, path: str, timeout_s: float) -> socket.socket:
    connection = socket.create_connection((host, port), timeout_s)
    connection.sendall(f"GET {path} HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
    return connection


def fetch(host: str, port: int, timeout_s: float = TIMEOUT_S) -> dict[str, Any]:
    """The page."""
    page = b""
    with _request(host, port, "/", timeout_s) as connection:
        while len(page) < MAX_PAGE_BYTES and (data := connection.recv(READ_BYTES)):
            page += data
    return {"page": page.partition(b"\r\n\r\n")[2].decode(errors="replace").strip()}


def stream(host: str, port: int, seconds: float) -> dict[str, Any]:
    """How fast bytes come."""
    buffer = bytearray(READ_BYTES)
    count = 0
    with _request(host, port, "/stream", TIMEOUT_S) as connection:
        began = time.monotonic()
        while (passed := time.monotonic() - began) < seconds:
            size = connection.recv_into(buffer)
            if not size:
                break
            count += size
    return {"bytes": count, "mbit_s": round(8e-6 * count / max(passed, 1e-3), 1)}


def main() -> int:
    """All steps, as far as they go."""
    host, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
    steps: list[tuple[str, Callable[[], dict[str, Any]]]] = [
        ("look-up", lambda: look_up(host, port)),
        ("page", lambda: fetch(host, port)),
        ("throughput", lambda: stream(host, port, seconds)),
    ]
    for name, step in steps[: 3 if seconds > 0 else 2]:
        began = time.monotonic()
        try:
            outcome = step()
        except OSError as error:
            print(json.dumps({"step": name, "error": str(error)}), flush=True)
            return 1
        print(json.dumps({"step": name, "seconds": round(time.monotonic() - began, 4), **outcome}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
