"""Whoever might be asked from inside, and must not be: resolvers, services, sockets. They answer everybody, and tell of each contact.

`fakes.py host ADDRESS...` serves what a host has besides its network: a stub resolver on 127.0.0.53, sockets of nscd, systemd-resolved, Avahi and
D-Bus, a path socket and an abstract one, and a service on every address. `fakes.py neighbour` serves names and that service,
`fakes.py server` that service alone. It prints `ready`, then a line for each contact: a JSON list of where it was, and what was said in hexadecimal.
"""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import socket
import struct
import sys
from collections.abc import Callable
from typing import Final

from tests.leak.attempts import ABSTRACT, ANSWER, BAIT_PORT, HELLO, OPEN_PATHS, PATHS

MAX_SAID_BYTES: Final = 4096


class Fakes:
    """All listeners of one place, in one thread."""

    def __init__(self) -> None:
        self._waiting = selectors.DefaultSelector()

    def serve_forever(self) -> None:
        """Answer."""
        print("ready", flush=True)  # noqa: T201
        while True:
            for key, _ in self._waiting.select():
                with contextlib.suppress(OSError):
                    key.data()

    def dns(self, address: str) -> None:
        """A resolver that knows every name, by UDP and TCP."""
        where = f"DNS {address}"
        self._udp(where, address, 53, _dns_answer)
        self._tcp(where, address, 53, lambda asked: struct.pack(">H", len(asked) + 14) + _dns_answer(asked[2:]))

    def bait(self, address: str) -> None:
        """A service that says hello."""
        self._udp(f"UDP {address}", address, BAIT_PORT, lambda _: HELLO)
        self._tcp(f"TCP {address}", address, BAIT_PORT, lambda _: HELLO)

    def unix(self, path: str) -> None:
        """A socket of this name that says hello."""
        if not path.startswith("\0"):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.bind(path)
        sock.listen()
        if not path.startswith("\0"):
            os.chmod(path, 0o666)
        self._listen(f"socket {path!r}", sock, lambda _: HELLO)

    def _udp(self, where: str, address: str, port: int, answer: Callable[[bytes], bytes]) -> None:
        sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind((address, port))

        def hear() -> None:
            said, sender = sock.recvfrom(MAX_SAID_BYTES)
            _tell(where, said)
            sock.sendto(answer(said), sender)

        self._waiting.register(sock, selectors.EVENT_READ, hear)

    def _tcp(self, where: str, address: str, port: int, answer: Callable[[bytes], bytes]) -> None:
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        self._listen(where, socket.create_server((address, port), family=family), answer)

    def _listen(self, where: str, sock: socket.socket, answer: Callable[[bytes], bytes]) -> None:
        def greet() -> None:
            connection, _ = sock.accept()
            _tell(where, b"")

            def hear() -> None:
                said = b""
                try:
                    said = connection.recv(MAX_SAID_BYTES)
                    if said:
                        _tell(where, said)
                        connection.sendall(answer(said))
                finally:
                    if not said:
                        self._waiting.unregister(connection)
                        connection.close()

            self._waiting.register(connection, selectors.EVENT_READ, hear)

        self._waiting.register(sock, selectors.EVENT_READ, greet)


def _tell(where: str, said: bytes) -> None:
    print(json.dumps([where, said.hex()]), flush=True)  # noqa: T201


def _dns_answer(asked: bytes) -> bytes:
    """The question with one address behind it."""
    header = asked[:2] + struct.pack(">HHHHH", 0x8580, 1, 1, 0, 0)
    return header + asked[12:] + struct.pack(">HHHIH4s", 0xC00C, 1, 1, 5, 4, socket.inet_aton(ANSWER))


def main() -> None:
    """Serve one place: see the module."""
    fakes = Fakes()
    place, *addresses = sys.argv[1:]
    for address in addresses:
        fakes.bait(address)
    if place == "host":
        fakes.dns("127.0.0.53")
        for path in (*PATHS.values(), *OPEN_PATHS.values(), f"\0{ABSTRACT}"):
            fakes.unix(path)
    elif place == "neighbour":
        for address in addresses:
            fakes.dns(address)
    fakes.serve_forever()


if __name__ == "__main__":
    main()
