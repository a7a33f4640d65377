"""An engine in the hands of somebody else: python -m tests.netns.hijacked_engine, with the keeper's request on standard input.

The keeper is a real one, and the engine has given up what an engine gives up; then it speaks the keeper's protocol by hand. What it does is
named by the node's hostname. Its findings go to the node's log, as a line of JSON; the outcome for the client goes to standard output.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final, NoReturn

from tests.netns.nodes import Tsns
from tsns.config import NodeConfig
from tsns.netns import confinement, linux
from tsns.node import engine_life, files, keeper, messages
from tsns.node.engine import Given
from tsns.state import Identity

FINDINGS: Final = "findings: "
PATIENCE_S: Final = 5.0
FLOOD_S: Final = 3.0
READY: Final = {"say": "ready", "dns_name": "web.\x1b[31m\n", "addresses": ["100.64.0.9", "\x1b[2J\ud800", 7]}
_SEALS: Final = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK


class Hijacker:
    """Whoever has taken the engine over."""

    def __init__(self, given: Given, loot: dict[str, int]) -> None:
        self.given = given
        self.loot = loot  # descriptors of all kinds
        self.channel = given.channel
        self.channel.settimeout(PATIENCE_S)

    def say(self, message: Any, fds: Sequence[int] = ()) -> None:
        """Whatever one likes; no bounds are kept."""
        socket.send_fds(self.channel, [json.dumps(message).encode()], list(fds))

    def ask(self, message: dict[str, Any], fds: Sequence[int] = ()) -> str:
        """What the keeper says to it, "done" where it did it."""
        self.say(message, fds)
        while True:
            answer, _ = messages.receive(self.channel)
            if answer.get("done") == message["ask"]:
                return str(answer["error"]) or "done"

    def await_namespace(self) -> None:
        """Until the TUN is there."""
        while messages.receive(self.channel)[0].get("give") != "tun":
            pass

    def tell(self, findings: Any) -> None:
        """Into the log."""
        os.write(2, f"{FINDINGS}{json.dumps(findings)}\n".encode())


def _asks(hijacker: Hijacker) -> None:
    """For everything that is not an engine's."""
    hijacker.await_namespace()
    identity = hijacker.given.identity
    findings = {"done": hijacker.ask(_network("100.64.0.9/32"))}
    for address in ("8.8.8.8", "0.0.0.0/0", "10.0.0.0/8", "127.0.0.1", "100.64.0.0/10", "x" * 30_000, "\ud800"):
        findings[f"the address {address[:20]!a}"] = hijacker.ask(_network(address))
    findings["many addresses"] = hijacker.ask(_network(*["100.64.0.9"] * 500))
    for route in ("0.0.0.0/0", "::/0", "10.0.0.0/8", "8.8.8.8/32", "127.0.0.0/8", "x" * 30_000, "\ud800"):
        findings[f"the route {route[:20]!a}"] = hijacker.ask(_network("100.64.0.9/32", routes=[route]))
    others = {
        "somebody else": Identity.generate(),
        "another server": replace(identity, control_url="https://elsewhere.example"),
        "another machine key": replace(identity, machine_key=Identity.generate().machine_key),
    }
    for name, other in others.items():
        findings[name] = hijacker.ask({"ask": "save", "identity": other.dump().decode()})
    for text in ("", "{}", "\ud800", "[" * 20_000):
        findings[f"the identity {text[:9]!a}"] = hijacker.ask({"ask": "save", "identity": text})
    for name, fd in hijacker.loot.items():
        findings[name] = hijacker.ask({"ask": "cache"}, [fd])
    hijacker.say(
        {"ask": "dns", "search": ["a.example\nnameserver 192.0.2.1", "b.example", "\ud800", {"c": 1}, "x" * 300]}
    )
    for message in _WORDS_FOR_NOTHING:
        hijacker.say(message, [os.memfd_create("x")] * 3)
    findings["done"] = hijacker.ask({"ask": "inside"})
    hijacker.tell(findings)
    hijacker.say(READY)


def _network(*addresses: str, routes: Sequence[str] = ()) -> dict[str, Any]:
    return {"ask": "network", "addresses": addresses, "routes": routes}


_WORDS_FOR_NOTHING: Final[list[dict[str, Any]]] = [
    {"ask": "network", "namespace": "/proc/1/ns/net"},
    {"ask": "network", "addresses": "100.64.0.9"},
    {"ask": "enter", "pid": 1},
    {"ask": "open", "path": "/etc/shadow"},
    {"ask": "save", "path": "/etc/passwd", "identity": {}},
    {"ask": "cache", "path": "/etc/passwd"},
    {"ask": ["inside"]},
    {"say": "ready"},
    {"say": "progress", "text": 7},
    {},
]


def _descriptors() -> dict[str, int]:
    large = os.memfd_create("large", os.MFD_ALLOW_SEALING)
    os.ftruncate(large, files.MAX_CACHE_BYTES + 1)
    fcntl.fcntl(large, fcntl.F_ADD_SEALS, _SEALS)
    return {
        "a socket": socket.socket(socket.AF_INET, socket.SOCK_STREAM).detach(),
        "a pipe": os.pipe2(os.O_CLOEXEC)[0],
        "a device": os.open("/dev/zero", os.O_RDONLY),
        "a directory": os.open("/etc", os.O_RDONLY),
        "a file": os.open("/etc/passwd", os.O_RDONLY),
        "memory that may change": os.memfd_create("soft", os.MFD_ALLOW_SEALING),
        "memory without end": large,
    }


def _flood(hijacker: Hijacker) -> None:
    """Questions that cost the keeper most, as fast as it takes them."""
    hijacker.await_namespace()
    hijacker.say(READY)
    hijacker.channel.setblocking(False)
    over = time.monotonic() + FLOOD_S
    deeds: list[Callable[[], object]] = [
        lambda: hijacker.say({"ask": "inside"}),
        lambda: hijacker.say(_network("100.64.0.9/32")),
        lambda: os.write(2, b"x" * 1000 + b"\n"),
        lambda: messages.receive(hijacker.channel),
        lambda: messages.receive(hijacker.channel),
    ]
    while time.monotonic() < over:
        for deed in deeds:
            with contextlib.suppress(BlockingIOError):
                deed()


def _deaf(hijacker: Hijacker) -> None:
    """Questions whose answers nobody reads."""
    memory = hijacker.loot["memory that may change"]
    while True:
        hijacker.say({"ask": "cache"}, [memory])


def _early(hijacker: Hijacker) -> None:
    """Ready before there is anything."""
    hijacker.say(READY)
    hijacker.await_namespace()
    hijacker.say(READY)


def _huge(hijacker: Hijacker) -> None:
    hijacker.say({"say": "progress", "text": "x" * messages.MAX_ENGINE_MESSAGE_BYTES})


def _nonsense(hijacker: Hijacker) -> None:
    hijacker.channel.send(b"\xff\x00 this is no JSON")


def _deep(hijacker: Hijacker) -> None:
    hijacker.channel.send(b"[" * 60_000)


def _many_descriptors(hijacker: Hijacker) -> None:
    hijacker.say({"ask": "cache"}, [os.memfd_create("x")] * 100)


DEEDS: Final[dict[str, Callable[[Hijacker], None]]] = {
    "asks": _asks,
    "flood": _flood,
    "deaf": _deaf,
    "early": _early,
    "huge": _huge,
    "nonsense": _nonsense,
    "deep": _deep,
    "many-descriptors": _many_descriptors,
}


def _live(given: Given, cache_fd: int, parent: int) -> NoReturn:
    """In an engine's place."""
    del cache_fd
    try:
        linux.close_all_but(*(sock.fileno() for sock in (given.channel, given.api, *given.udp)))
        loot = _descriptors()  # more than an engine could open
        confinement.confine(engine_life.UID_BASE + parent, parent)
        hijacker = Hijacker(given, loot)
        DEEDS[given.config.hostname](hijacker)
        hijacker.channel.settimeout(None)
        while True:
            if messages.receive(hijacker.channel)[0].get("stop"):
                os._exit(0)
    except EOFError:
        os._exit(0)
    except BaseException as error:  # noqa: BLE001 (the last frame of a process)
        os.write(2, f"the hijacker failed: {error!r}\n".encode())
        os._exit(1)


def hijack(tsns: Tsns, deed: str) -> subprocess.Popen[str]:
    """For tests: a node web whose engine does this. It prints "ready", or the error that its client got, and ends with its input."""
    config = NodeConfig(name="web", login_server=tsns.lab.url, hostname=deed)
    places = {"run": str(tsns.directories.run), "state": str(tsns.directories.state)}
    request = {"ask": "run", "config": config.to_message(), "lasting": True, **places}
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.netns.hijacked_engine"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=tsns.environ,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(request) + "\n")
    process.stdin.flush()
    return process


def main() -> None:
    """One node, until standard input ends."""
    request = json.loads(sys.stdin.readline())
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        engine_life.live = _live
        keeper.run(theirs)
    theirs.close()
    with ours:
        messages.send(ours, request)
        print(_outcome(ours), flush=True)  # noqa: T201
        sys.stdin.read()
        try:
            messages.send(ours, {"ask": "stop"})
        except OSError:
            pass  # it has ended
        os.waitpid(pid, 0)


def _outcome(connection: socket.socket) -> str:
    try:
        while True:
            message, fds = messages.receive(connection)
            for fd in fds:
                os.close(fd)
            if "ready" in message:
                return f"ready {message['dns_name']} {message['addresses']}"
            if "error" in message:
                return str(message["error"])
    except (EOFError, OSError):
        return "the keeper is gone"


if __name__ == "__main__":
    main()
