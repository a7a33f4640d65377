"""A flood of forged initiations at a running node, by UDP and by relay, while a flow goes through the tunnel.

What is asserted is counted: which messages of the flood got how far, and that the flow came through whole. How much of its throughput was
left is printed, compared with the same flood at somebody else: flood, lab and two nodes share the cores.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.netns.nodes import Tsns
from tests.netns.steered_lab import SteeredLab
from tests.netns.test_lab_derp import ABSENT, RawDerp
from tsns.keys import NodePrivate, NodePublic
from tsns.lab.lab import Lab
from tsns.wg.admission import COOKIES_BURST, COOKIES_PER_S, LIMIT_BURST, LIMIT_PER_S, LOAD_MESSAGES
from tsns.wg.cookie import CookieJar
from tsns.wg.drops import Drop
from tsns.wg.handshake import NO_PRESHARED_KEY, OwnKey, PeerKey, initiate

pytestmark = pytest.mark.netns

FLOOD_PER_S = 5000
FLOW_BYTES = 20 << 20
PIECE = 250  # messages of the flood at once

SINK = """
import socket
listener = socket.create_server(("", 9))
print("listens", flush=True)
while True:
    connection, _ = listener.accept()
    with connection:
        size = 0
        while data := connection.recv(1 << 16):
            size += len(data)
        connection.sendall(str(size).encode())
"""
SOURCE = """
import socket, sys, time
address, size = sys.argv[1], int(sys.argv[2])
begun = time.monotonic()
with socket.create_connection((address, 9), 20) as connection:
    connection.sendall(bytes(size))
    connection.shutdown(socket.SHUT_WR)
    arrived = int(connection.recv(100))
print(arrived, time.monotonic() - begun)
"""
# Sends what comes on its input, 148 bytes each, again and again until the input ends.
FLOODER = """
import socket, sys, time
port, per_s, piece = (int(word) for word in sys.argv[1:4])
message = bytes.fromhex(sys.argv[4])
sent, begun = 0, time.monotonic()
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
    print("floods", flush=True)
    while time.monotonic() - begun < float(sys.argv[5]):
        for _ in range(piece):
            sock.sendto(message, ("127.0.0.1", port))
        sent += piece
        time.sleep(max(0.0, begun + sent / per_s - time.monotonic()))
print(sent)
"""
FLOOD_S = 2.5


def forged(to: NodePublic, static: NodePrivate) -> bytes:
    """An initiation that is good but for who sends it."""
    own = OwnKey(static)
    key = PeerKey(own, to, NO_PRESHARED_KEY)
    body, _ = initiate(own, key, ephemeral=os.urandom(32), index=b"junk", timestamp=b"\x50" * 12, now=0.0)
    return CookieJar(to.raw).stamp(body, 0.0)


def udp_port(pid: int) -> int:
    """Where an engine listens."""
    listening = subprocess.run(["ss", "-Huanp4"], capture_output=True, text=True, check=True).stdout
    for line in listening.splitlines():
        found = re.search(rf":(\d+)\s+\S+\s.*pid={pid},", line)
        if found:
            return int(found[1])
    raise AssertionError(f"no UDP socket of {pid} in:\n{listening}")


class Flow:
    """Two nodes with a session, and what passes between them."""

    def __init__(self, tsns: Tsns, lab: SteeredLab) -> None:
        self.tsns = tsns
        for name in ("a", "b"):
            tsns.up(name)
        self.key: NodePublic = lab.do(lambda it: next(n.key for n in it.tailnet.nodes.values() if n.name == "a"))
        self.address = tsns("ip", "a").stdout.split()[0]

    def status(self) -> Any:
        return self.tsns.json("status", "a")

    def mb_per_s(self) -> float:
        """Send a fixed amount through the tunnel; all of it must arrive."""
        done = self.tsns("exec", "b", "--", sys.executable, "-c", SOURCE, self.address, str(FLOW_BYTES))
        assert done.returncode == 0, done.stderr
        arrived, seconds = done.stdout.split()
        assert int(arrived) == FLOW_BYTES
        return FLOW_BYTES / float(seconds) / 1e6

    def under(self, begin: Callable[[bool], Callable[[], int]]) -> tuple[dict[str, int], int, float]:
        """What `a` dropped in a flood, how much was sent in it, and how long it took; the figures are printed.

        `begin(False)` floods somebody else, `begin(True)` floods `a`; what they return waits for the end and says how much was sent.
        """
        with self.tsns.popen("exec", "a", "--", sys.executable, "-c", SINK) as sink:
            try:
                assert sink.stdout is not None
                assert sink.stdout.readline() == "listens\n"
                end = begin(False)
                quiet = self.mb_per_s()
                end()
                before = self.status()["drops"]
                begun = time.monotonic()
                end = begin(True)
                flooded = self.mb_per_s()
                sent = end()
                lasted_s = time.monotonic() - begun
            finally:
                sink.terminate()
                sink.communicate()
        after = self.status()["drops"]
        dropped = {why: count - before.get(why, 0) for why, count in after.items() if count > before.get(why, 0)}
        print(  # noqa: T201
            f"{quiet:.1f} MB/s, with {sent / lasted_s:.0f} forged initiations/s {flooded:.1f} ({flooded / quiet:.0%}); {dropped}"
        )
        return dropped, sent, lasted_s


@pytest.fixture
def flow(steered_tsns: Tsns, steered: SteeredLab) -> Flow:
    return Flow(steered_tsns, steered)


def test_a_flood_by_udp_costs_a_node_a_bounded_amount_of_work(flow: Flow) -> None:
    message = forged(flow.key, NodePrivate.generate(os.urandom(32)))
    port = udp_port(flow.status()["pid"])
    decoy = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    decoy.bind(("127.0.0.1", 0))

    def begin(real: bool) -> Callable[[], int]:
        words = [
            str(port if real else decoy.getsockname()[1]),
            str(FLOOD_PER_S),
            str(PIECE),
            message.hex(),
            str(FLOOD_S),
        ]
        process = subprocess.Popen([sys.executable, "-c", FLOODER, *words], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "floods\n"
        return lambda: int(process.communicate()[0])

    with decoy:
        dropped, sent, lasted_s = flow.under(begin)
    windows = lasted_s + 2
    assert sent > FLOOD_PER_S
    assert 0 < dropped[str(Drop.UNKNOWN_SENDER)] <= LOAD_MESSAGES * windows  # as far as the arithmetic
    assert dropped[str(Drop.UNDER_LOAD)] <= min(
        LIMIT_BURST + LIMIT_PER_S * windows, COOKIES_BURST + COOKIES_PER_S * windows
    )
    assert dropped[str(Drop.NO_COOKIE_LEFT)] > sent / 4  # the rest cost a look, or not even that


def test_a_flood_by_relay_costs_a_node_a_look_at_each_message(flow: Flow, steered: SteeredLab) -> None:
    stranger = NodePrivate.generate(os.urandom(32))
    message = forged(flow.key, stranger)

    async def flood(lab: Lab, to: NodePublic) -> int:
        sent, begun = 0, time.monotonic()
        async with RawDerp(lab.derp, stranger) as client:
            while time.monotonic() - begun < FLOOD_S:
                client.send(to, *[message] * PIECE)
                await client._writer.drain()
                sent += PIECE
                await asyncio.sleep(max(0.0, begun + sent / FLOOD_PER_S - time.monotonic()))
        return sent

    def begin(real: bool) -> Callable[[], int]:
        running = asyncio.run_coroutine_threadsafe(flood(steered._lab, flow.key if real else ABSENT), steered._loop)
        return lambda: running.result(20)

    dropped, sent, _ = flow.under(begin)
    assert sent > FLOOD_PER_S
    assert set(dropped) == {str(Drop.UNKNOWN_SENDER)}
    assert sent / 4 < dropped[str(Drop.UNKNOWN_SENDER)] <= sent
