"""Garbage on a node's sockets: the node goes on as if nothing had come."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.machine import patiently
from tests.netns.anatomy import Processes, descriptors, engine_of, processes
from tests.netns.nodes import Tsns

pytestmark = pytest.mark.netns

SEED: Final = 12
RANDOM_MESSAGES: Final = 150
CROWD: Final = 100
DEEP: Final = b"[" * 60_000
WORDS: Final[list[Any]] = [
    {},
    {"ask": None},
    {"ask": "unheard of"},
    {"ask": ["stop"]},
    {"ask": {"stop": True}},
    {"ask": "run"},
    {"ask": "run", "config": None},
    {"ask": "run", "config": "web"},
    {"ask": "run", "config": [["name", "web"]]},
    {"ask": "run", "config": {}},
    {"ask": "run", "config": {"name": 7}},
    {"ask": "run", "config": {"name": "web", "unheard": 1}},
    {"ask": "run", "config": {"name": "web", "advertise_tags": 7}},
    {"ask": "run", "config": {"name": "web", "auth_key": ["k"]}},
    {"ask": "x" * 60_000},
    {"ask": "join", "unheard": [1, {"of": None}]},
    [],
    "stop",
    7,
    None,
]
WRONG_SETTINGS: Final[dict[str, Any]] = {
    "hostname": 7,
    "ephemeral": "no",
    "advertise_tags": [None],
    "timeout_s": "x",
    "capability_version": None,
    "tls_roots": ["/etc/shadow"],
    "owner_uid": "root",
    "no_proxy": {},
    "auth_key": 7,
}


@contextmanager
def connected(path: Path, kind: int) -> Iterator[socket.socket]:
    """A connection to a socket of the node."""
    with socket.socket(socket.AF_UNIX, kind) as sock:
        sock.connect(str(path))  # blocking: the queue of those who knock may be full for a moment
        sock.settimeout(3)
        yield sock


def tell(path: Path, data: bytes, fds: tuple[int, ...] = (), *, listens: bool = True) -> None:
    """Say this to the keeper, and perhaps wait for an answer or the end."""
    try:
        with connected(path, socket.SOCK_SEQPACKET) as sock:
            socket.send_fds(sock, [data], fds)
            if listens:
                sock.settimeout(0.05)
                sock.recv(1 << 16)
    except OSError:
        pass  # turned away, or not answered


LOOKS: Final = 5
BETWEEN_LOOKS_S: Final = 0.05


def of_these(now: Processes) -> tuple[dict[str, int], list[int]]:
    """The processes of nodes, which are to be the same afterwards."""
    return now.keepers, now.engines


def counted(tsns: Tsns) -> list[int]:
    """The descriptors of keeper and engine: those that are open all the while, and not for a client that is just leaving."""
    keeper = processes(tsns.directories).keepers["web"]
    pids = keeper, engine_of(keeper) or 0
    looks = []
    for _ in range(LOOKS):
        looks.append([descriptors(pid) for pid in pids])
        time.sleep(BETWEEN_LOOKS_S)
    return [min(counts) for counts in zip(*looks, strict=True)]


def assert_unharmed(tsns: Tsns, before: tuple[dict[str, int], list[int]], held: list[int]) -> None:
    """The same processes, at work, without a descriptor more."""
    assert of_these(processes(tsns.directories)) == before
    assert tsns.json("status", "web")["state"] == "running"
    assert tsns("exec", "web", "--", "true").returncode == 0
    patiently(lambda: [] if counted(tsns) == held else ["some are open still"])
    assert counted(tsns) == held


def test_garbage_on_the_control_socket(tsns: Tsns) -> None:
    tsns.up("web")
    control = tsns.directories.run / "web.ctl"
    assert tsns("exec", "web", "--", "true").returncode == 0
    before, held = of_these(processes(tsns.directories)), counted(tsns)
    choice = random.Random(SEED)
    ours = {"name": "web", "login_server": tsns.lab.url}
    wrong = [{"ask": "run", "config": {**ours, name: value}} for name, value in WRONG_SETTINGS.items()]
    for word in (*WORDS, *wrong):
        tell(control, json.dumps(word).encode())
    for data in (b"", b"\0", b"{", b'{"ask": "stop"', DEEP, b'{"ask":' + DEEP, b'{"a":1}' * 9000, b"\xff" * 200_000):
        tell(control, data)
    for _ in range(RANDOM_MESSAGES):
        tell(control, choice.randbytes(choice.randrange(1, 2000)), listens=False)
    null = os.open("/dev/null", os.O_RDONLY)
    for data in (b'{"ask": "unheard of"}', b'{"ask": "join"}', b"nonsense", b"x"):
        tell(control, data, (null,) * 16)
        tell(control, data, (null,) * 40)
    os.close(null)
    assert_unharmed(tsns, before, held)


def test_a_crowd_on_the_control_socket(tsns: Tsns) -> None:
    """All that it can hold, saying nothing; who leaves makes room."""
    tsns.up("web")
    assert tsns("exec", "web", "--", "true").returncode == 0
    before, held = of_these(processes(tsns.directories)), counted(tsns)
    crowd = []
    for _ in range(CROWD):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        sock.connect(
            str(tsns.directories.run / "web.ctl")
        )  # blocking: the queue of those who knock may be full for a moment
        crowd.append(sock)
    assert tsns.json("status", "web")["state"] == "running"
    for sock in crowd:
        sock.close()
    assert_unharmed(tsns, before, held)


def test_one_who_asks_and_does_not_read(tsns: Tsns) -> None:
    tsns.up("web")
    assert tsns("exec", "web", "--", "true").returncode == 0
    before, held = of_these(processes(tsns.directories)), counted(tsns)
    with connected(tsns.directories.run / "web.ctl", socket.SOCK_SEQPACKET) as sock:
        sock.settimeout(0.5)
        for _ in range(2000):
            try:
                sock.send(b'{"ask": "join"}')
            except OSError:
                break
        assert tsns("exec", "web", "--", "true").returncode == 0
    assert_unharmed(tsns, before, held)


REQUESTS: Final = [
    b"",
    b"\r\n\r\n",
    b"\0" * 5000,
    b"GET",
    b"GET / HTTP/1.1\r\n\r\n",
    b"GET /tsns/v1/status HTTP/9.9\r\nHost: t\r\n\r\n",
    b"GET /../../etc/passwd HTTP/1.1\r\nHost: t\r\n\r\n",
    b"DELETE /tsns/v1/status HTTP/1.1\r\nHost: t\r\n\r\n",
    b"GET /tsns/v1/status HTTP/1.1\r\nHost: t\r\n" + b"X: y\r\n" * 20_000,
    b"POST /tsns/v1/ping HTTP/1.1\r\nHost: t\r\nContent-Length: 99999999999\r\n\r\n{",
    b"POST /tsns/v1/ping HTTP/1.1\r\nHost: t\r\nContent-Length: -1\r\n\r\n",
    b"POST /tsns/v1/ping HTTP/1.1\r\nHost: t\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\n",
    *(
        b"POST /tsns/v1/ping HTTP/1.1\r\nHost: t\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
        for body in (
            b"",
            b"[]",
            b"{}",
            b"nonsense",
            DEEP,
            b'{"peer": 7}',
            b'{"peer": ["web"], "timeout_s": "x"}',
            b'{"peer": "nobody", "timeout_s": 1e308}',
            b'{"peer": "100.64.0.1", "timeout_s": NaN}',
            b'{"peer": "web", "timeout_s": -1}',
        )
    ),
]


def test_garbage_on_the_api_socket(tsns: Tsns) -> None:
    tsns.up("web")
    api = tsns.directories.run / "web.sock"
    assert tsns("exec", "web", "--", "true").returncode == 0
    before, held = of_these(processes(tsns.directories)), counted(tsns)
    choice = random.Random(SEED)
    garbage = [choice.randbytes(choice.randrange(1, 3000)) for _ in range(RANDOM_MESSAGES)]
    for request in (*REQUESTS, *garbage):
        with connected(api, socket.SOCK_STREAM) as sock:
            try:
                sock.sendall(request)
                sock.shutdown(socket.SHUT_WR)
                answer = sock.recv(1 << 16)
            except OSError:
                continue  # it hung up early
            assert answer == b"" or answer.startswith(b"HTTP/1.1 "), request[:80]
            assert not answer.startswith(b"HTTP/1.1 500"), request[:80]
    log = (tsns.directories.state / "web" / "log").read_text()
    assert "Traceback" not in log
    assert_unharmed(tsns, before, held)


def test_slow_and_many_on_the_api_socket(tsns: Tsns) -> None:
    tsns.up("web")
    api = tsns.directories.run / "web.sock"
    assert tsns("exec", "web", "--", "true").returncode == 0
    before, held = of_these(processes(tsns.directories)), counted(tsns)
    crowd = []
    for _ in range(CROWD):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.connect(str(api))
        with contextlib.suppress(ConnectionError):  # one too many is sent away at once
            sock.send(b"GET /tsns/v1/status HTTP/1.1\r\n")  # and no more
        crowd.append(sock)
    assert tsns("exec", "web", "--", "true").returncode == 0
    for sock in crowd:
        sock.close()
    assert_unharmed(tsns, before, held)
