"""An attachment as tests make one, and what programs in its namespace are asked to try."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from tests.interop.rig.namespace import socket_in
from tests.leak.sniffer import Seen
from tests.netns.container import NOBODY, Container
from tsns.netns import attachment, port_range
from tsns.netns.attachment import Made
from tsns.proto.addresses import Prefix

ADDRESSES: Final = [Prefix.parse("100.64.0.9"), Prefix.parse("fd7a:115c:a1e0::9")]
SUBNETS: Final = [Prefix.parse("10.55.0.0/24"), Prefix.parse("fd55::/64")]
EVERYTHING: Final = [Prefix.parse("0.0.0.0/0"), Prefix.parse("::/0")]
TAILNET: Final = ("100.70.1.1", "fd7a:115c:a1e0::7001")
BEHIND: Final = ("10.55.0.1", "fd55::1")
PORT: Final = 8080
PATIENCE_S: Final = 5.0
SERVE: Final = """
import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(self.request.recv(100))
class Server(socketserver.ThreadingTCPServer):
    address_family = 10
Server(("::", int(sys.argv[1])), Echo).serve_forever()
"""


def make(target: Container, *, ports: range | None = None, **manner: Any) -> Made:
    made = attachment.make(target.fd, **{"exclusive": False, "docker_names": False, **manner})
    if ports is not None:
        port_range.set_range(target.fd, ports)
    return made


@contextlib.contextmanager
def attached(target: Container, **manner: Any) -> Iterator[Made]:
    """An attachment whose descriptors the test may close; given back at the end."""
    with held(make(target, **manner)) as made:
        yield made
    attachment.remove(target.fd, made.before)


@contextlib.contextmanager
def held(made: Made) -> Iterator[Made]:
    """Descriptors, until the end of the block or until `let_go`."""
    try:
        yield made
    finally:
        let_go(made)


def let_go(made: Made) -> None:
    """As when keeper and engine are killed; once only, for then these numbers are others'."""
    if not any(each is made for each in _gone):
        _gone.append(made)
        for fd in (made.tun, made.diag, *made.dns, *([made.names] if made.names >= 0 else [])):
            os.close(fd)


_gone: Final[list[Made]] = []


def lead(target: Container, *, exit_node: bool = False, exclusive: bool = False) -> None:
    routes = [*SUBNETS, *(EVERYTHING if exit_node else ())]
    attachment.lead(target.fd, ADDRESSES, routes, exit_node=exit_node, exclusive=exclusive)


def try_to_reach(target: Container, addresses: tuple[str, ...], how: str = "", uid: int = NOBODY) -> dict[str, str]:
    """What comes of a datagram and a connection to each address, after `how` was done with the socket `s`."""
    code = f"""
told, connecting = {{}}, {{}}
for address in {addresses!r}:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        s = socket.socket(family, kind)
        s.setblocking(False)
        try:
            {how or "pass"}
            s.connect((address, 9))
            s.send(b"leak")
            told[f"{{address}} {{kind.name}}"] = "sent"
        except BlockingIOError:
            connecting[f"{{address}} {{kind.name}}"] = s
        except OSError as error:
            told[f"{{address}} {{kind.name}}"] = errno.errorcode[error.errno]
time.sleep(0.2 if connecting else 0)
for name, s in connecting.items():
    told[name] = errno.errorcode.get(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "nothing came")
print(json.dumps(told))
"""
    found: dict[str, str] = json.loads(target.run(code, uid))
    return found


def addressed_to(frames: list[Seen], *addresses: str) -> list[str]:
    return [str(frame) for frame in frames if frame.destination in addresses]


def tun_reads(made: Made, *, timeout_s: float = 0.5) -> list[bytes]:
    found = []
    while select.select([made.tun], [], [], timeout_s)[0]:
        found.append(os.read(made.tun, 1 << 16))
        timeout_s = 0.0
    return found


@contextlib.contextmanager
def serving(target: Container, port: int = PORT) -> Iterator[None]:
    """A published port: whoever is inside answers on all addresses."""
    words = target.network.command(sys.executable, "-c", SERVE, str(port))
    with subprocess.Popen(words) as process:
        try:
            wait_until(lambda: f":{port} " in target.output("ss", "-Hltn"))
            yield
        finally:
            process.kill()


def wait_until(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_served(target: Container, address: str, *, source: str) -> bool:
    """Whether somebody far away, whom the default route leads to, reaches the published port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket_in(target.bridge.path, family, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        client.bind((source, 0))
        try:
            client.connect((address, PORT))
            client.sendall(b"hello")
            return client.recv(100) == b"hello"
        except OSError:
            return False
