"""Traffic between two ends, and what became of it.

Also a program: `traffic.py serve ADDRESS PORT`, `send ADDRESS PORT BYTES`, `talk ADDRESS PORT`.
"""

from __future__ import annotations

import hashlib
import itertools
import re
import socket
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from typing import Final

CHUNK_BYTES: Final = 64 << 10
IO_TIMEOUT_S: Final = 30.0
TALK_EVERY_S: Final = 0.1


@dataclass(frozen=True)
class Pings:
    """What `ping` counted."""

    sent: int
    received: int
    slowest_s: float
    fastest_s: float = float("inf")
    average_s: float = float("inf")


def pings(result: subprocess.CompletedProcess[str]) -> Pings:
    """Reads ping's own summary; AssertionError when there is none."""
    counts = re.search(r"(\d+) packets transmitted, (\d+) received", result.stdout)
    assert counts, f"not ping's output:\n{result.stdout}\n{result.stderr}"
    times = re.search(r"= ([\d.]+)/([\d.]+)/([\d.]+)/", result.stdout)
    fastest_s, average_s, slowest_s = (float(ms) / 1000 for ms in times.groups()) if times else (float("inf"),) * 3
    return Pings(int(counts[1]), int(counts[2]), slowest_s, fastest_s, average_s)


def content(count: int) -> bytes:
    """Bytes in which every position differs from its neighbours."""
    block = b"".join(hashlib.sha256(bytes([number])).digest() for number in range(256))
    return (block * (count // len(block) + 1))[:count]


def serve(address: str, port: int) -> None:
    """Sends back whatever a connection brings, for ever; says "ready" once it listens."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.create_server((address, port), family=family) as listener:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_echo, args=(connection,), daemon=True).start()


def _echo(connection: socket.socket) -> None:
    with connection:
        while data := connection.recv(CHUNK_BYTES):
            connection.sendall(data)


def send(address: str, port: int, count: int) -> str:
    """Sends `count` bytes to an echoing server and says "same" when just those came back."""
    data = content(count)
    with socket.create_connection((address, port), IO_TIMEOUT_S) as connection:
        sender = threading.Thread(target=_send_all, args=(connection, data), daemon=True)
        sender.start()
        back = bytearray()
        while chunk := connection.recv(CHUNK_BYTES):
            back += chunk
        sender.join()
    return "same" if back == data else f"{len(back)} of {count} bytes, or other ones"


def talk(address: str, port: int) -> None:
    """Sends a number every now and then by one connection to an echoing server and says it when it is back, for ever; OSError."""
    with socket.create_connection((address, port), IO_TIMEOUT_S) as connection, connection.makefile("rw") as stream:
        for number in itertools.count():
            stream.write(f"{number}\n")
            stream.flush()
            if (back := stream.readline()) != f"{number}\n":
                sys.exit(f"{back!r} came back for {number}")
            sys.stdout.write(back)
            sys.stdout.flush()
            time.sleep(TALK_EVERY_S)


def _send_all(connection: socket.socket, data: bytes) -> None:
    connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["serve", address, port]:
            serve(address, int(port))
        case ["send", address, port, count]:
            sys.stdout.write(send(address, int(port), int(count)) + "\n")
        case ["talk", address, port]:
            talk(address, int(port))
        case _:
            sys.exit(__doc__)
