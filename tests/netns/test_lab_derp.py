"""The lab's DERP relays and STUN servers on loopback, spoken to frame by frame."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import Any, Self

import pytest

from tests.netns.raw_control import run
from tsns.derp.certificate import fault_of_pin
from tsns.derp.framing import FrameReader, FrameType, ServerInfo, frame
from tsns.derp.session import (
    Closed,
    Health,
    Output,
    PeerGone,
    Ready,
    Received,
    Restarting,
    Send,
    Session,
)
from tsns.keys import KEY_BYTES, NodePrivate, NodePublic
from tsns.lab.derp import MAX_QUEUED_FRAMES, DerpServer
from tsns.lab.lab import Lab
from tsns.paths import stun
from tsns.proto.types import DERPNode

DISCO_PACKET = b"TS\xf0\x9f\x92\xac" + bytes(60)
ABSENT = NodePublic(bytes([5] * 32))


class RawDerp:
    """One connection to a relay: `async with RawDerp(server) as client` logs in."""

    def __init__(self, server: DerpServer, key: NodePrivate | None = None) -> None:
        self.server = server
        self.private = key or NodePrivate.generate(os.urandom(KEY_BYTES))
        self.key = self.private.public
        self.outputs: list[Output] = []

    async def __aenter__(self) -> Self:
        self._session = Session(self.private, os.urandom, time.monotonic())
        self._reader, self._writer = await connect(self.server)
        self._writer.write(b"GET /derp HTTP/1.1\r\nHost: derp\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")
        self.head = await self._reader.readuntil(b"\r\n\r\n")
        if b" 101 " in self.head.split(b"\r\n")[0]:
            await self.until(Ready, Closed)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._writer.close()
        await asyncio.gather(self._writer.wait_closed(), return_exceptions=True)

    def send(self, destination: NodePublic, *packets: bytes) -> None:
        for packet in packets:
            self.write(frame(FrameType.SEND_PACKET, destination.raw, packet))

    def write(self, data: bytes) -> None:
        self._writer.write(data)

    async def until(self, *kinds: type[Output]) -> Output:
        """The next output of one of these kinds."""
        async with asyncio.timeout(5):
            while True:
                for index, output in enumerate(self.outputs):
                    if isinstance(output, kinds):
                        del self.outputs[: index + 1]
                        return output
                data = await self._reader.read(1 << 16)
                if not data:
                    return Closed("the end")
                for output in self._session.receive(data, time.monotonic()):
                    if isinstance(output, Send):
                        self._writer.write(output.data)
                    else:
                        self.outputs.append(output)

    async def packets(self, count: int) -> list[bytes]:
        """The next packets, at least `count` of them."""
        found: list[bytes] = []
        while len(found) < count:
            received = await self.until(Received)
            assert isinstance(received, Received), received
            found += [packet for _, packet in received.packets]
        return found


async def connect(server: DerpServer) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    reader, writer = await asyncio.open_connection(
        "127.0.0.1", server.port, ssl=context, server_hostname=server.host_name
    )
    return reader, writer


def test_packets_pass_between_clients_in_order() -> None:
    async def scenario(lab: Lab) -> None:
        async with RawDerp(lab.derp) as a, RawDerp(lab.derp) as b:
            sent = [f"packet {number}".encode() for number in range(200)]
            a.send(b.key, *sent)
            assert await b.packets(200) == sent
            b.send(a.key, b"back")
            assert await a.packets(1) == [b"back"]
            assert lab.derp.relayed[a.key, b.key] == 200

    run(scenario)


def test_the_relay_is_who_the_derp_map_says() -> None:
    async def scenario(lab: Lab) -> None:
        regions = lab.tailnet.derp_map.regions or {}
        node = (regions[2].nodes or [])[0] if regions[2] else DERPNode()
        _, writer = await connect(lab.derps[2])
        der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        writer.close()
        await writer.wait_closed()
        assert (node.ipv4, node.derp_port, node.stun_port) == ("127.0.0.1", lab.derps[2].port, lab.derps[2].stun.port)
        assert fault_of_pin(der, node.cert_name or "", node.host_name or "", datetime.now(UTC)) is None

    run(scenario, regions=2)


def test_who_is_absent_is_told_for_disco_only_and_who_leaves_to_those_who_heard_it() -> None:
    async def scenario(lab: Lab) -> None:
        async with RawDerp(lab.derp) as a:
            a.send(ABSENT, b"WireGuard", DISCO_PACKET)
            assert await a.until(PeerGone) == PeerGone(ABSENT)
            assert a.outputs == []
            async with RawDerp(lab.derp) as b:
                b.send(a.key, b"hello")
                await a.packets(1)
            assert await a.until(PeerGone) == PeerGone(b.key)

    run(scenario)


def test_of_two_connections_with_one_key_the_last_writer_is_served() -> None:
    async def scenario(lab: Lab) -> None:
        async with RawDerp(lab.derp) as sender, RawDerp(lab.derp) as old:
            async with RawDerp(lab.derp, old.private) as new:
                sender.send(new.key, b"to the newer one")
                assert await new.packets(1) == [b"to the newer one"]
                old.send(sender.key, b"I am still here")
                await sender.packets(1)
                sender.send(new.key, b"to the older one")
                assert await old.packets(1) == [b"to the older one"]
            sender.send(old.key, b"and now")
            assert await old.packets(1) == [b"and now"]

    run(scenario)


def test_a_client_that_does_not_read_loses_its_oldest_packets() -> None:
    async def scenario(lab: Lab) -> None:
        async with RawDerp(lab.derp) as a, RawDerp(lab.derp) as b:
            lab.derp.stall(b.key)
            a.send(b.key, *[bytes([number]) for number in range(100)])
            await round_trip(a)
            assert lab.derp.client(b.key).dropped == 100 - MAX_QUEUED_FRAMES
            lab.derp.resume(b.key)
            assert await b.packets(MAX_QUEUED_FRAMES) == [bytes([number]) for number in range(68, 100)]

    run(scenario)


def test_a_client_that_never_reads_loses_its_connection() -> None:
    async def scenario(lab: Lab) -> None:
        lab.derp.write_stall_s = 1.0  # long enough for the queue to overflow first, on a busy machine too
        async with RawDerp(lab.derp) as a, RawDerp(lab.derp) as b:
            b._reader._transport.pause_reading()  # type: ignore[attr-defined]
            client = lab.derp.client(b.key)
            async with asyncio.timeout(10):
                while b.key in lab.derp.clients:
                    a.send(b.key, *[bytes(60_000)] * 20)
                    await round_trip(a)
            assert client.dropped > 0

    run(scenario)


async def round_trip(client: RawDerp) -> None:
    """Everything that this client wrote has been read."""
    marker = RawDerp(client.server)
    async with marker:
        client.send(marker.key, b"mark")
        await marker.packets(1)


def test_what_a_relay_can_say() -> None:
    async def scenario(lab: Lab) -> None:
        async with RawDerp(lab.derp) as a:
            lab.derp.send_health(a.key, "you are slow")
            assert await a.until(Health) == Health("you are slow")
            lab.derp.send_restarting(1.5, 60)
            assert await a.until(Restarting) == Restarting(1.5, 60.0)
            answered = asyncio.create_task(lab.derp.ping(a.key))
            reading = asyncio.create_task(a.until(Closed))
            await answered
            lab.derp.drop(a.key)
            assert isinstance(await reading, Closed)

    run(scenario)


def test_keep_alives_come() -> None:
    async def scenario(lab: Lab) -> None:
        await lab.derp.stop()
        lab.derp.keep_alive_s = 0.02
        await lab.derp.start()
        reader, writer = await connect(lab.derp)
        private = NodePrivate.generate(os.urandom(KEY_BYTES))
        session = Session(private, os.urandom, time.monotonic())
        frames = FrameReader()
        writer.write(b"GET /derp HTTP/1.1\r\nHost: derp\r\nUpgrade: DERP\r\nConnection: Upgrade\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        seen: list[int] = []
        async with asyncio.timeout(5):
            while FrameType.KEEP_ALIVE not in seen:
                data = await reader.read(1 << 16)
                seen += [kind for kind, _ in frames.feed(data)]
                writer.writelines(out.data for out in session.receive(data, 0.0) if isinstance(out, Send))
        assert seen == [FrameType.SERVER_KEY, FrameType.SERVER_INFO, FrameType.KEEP_ALIVE]
        writer.close()
        await writer.wait_closed()

    run(scenario)


def test_home_is_noted() -> None:
    async def scenario(lab: Lab) -> None:
        async with RawDerp(lab.derp) as a:
            for home in (True, False):
                a.write(frame(FrameType.NOTE_PREFERRED, bytes([home])))
                await round_trip(a)
                assert lab.derp.client(a.key).preferred is home

    run(scenario)


@pytest.mark.parametrize(
    "data",
    [
        frame(FrameType.WATCH_CONNS),
        frame(FrameType.NOTE_PREFERRED, b"\x01\x01"),
        frame(FrameType.SEND_PACKET, bytes(31)),
        frame(FrameType.SEND_PACKET, bytes(32 + 65_537)),
    ],
    ids=["mesh", "preferred", "no key", "too large"],
)
def test_a_client_that_breaks_the_rules_is_left(data: bytes) -> None:
    async def scenario(lab: Lab) -> None:
        async with RawDerp(lab.derp) as a:
            a.write(data)
            assert isinstance(await a.until(Closed), Closed)

    run(scenario)


def test_whom_a_relay_does_not_want() -> None:
    async def scenario(lab: Lab) -> None:
        lab.derp.admit = lambda _: False
        async with RawDerp(lab.derp) as a:
            assert lab.derp.clients == {}
            assert isinstance(await a.until(Closed), Closed)
        lab.derp.refuse_status = 503
        async with RawDerp(lab.derp) as a:
            assert a.head.startswith(b"HTTP/1.1 503 ")

    run(scenario)


def test_token_bucket_in_the_server_info() -> None:
    async def scenario(lab: Lab) -> None:
        lab.derp.server_info = ServerInfo(version=2, bytes_per_second=1, bytes_burst=1)
        async with RawDerp(lab.derp) as a:
            packet = a._session.forward(ABSENT, [b"too much"], time.monotonic())
            assert (packet, a._session.rate_limited) == (b"", 1)

    run(scenario)


def test_packets_can_be_lost_and_late() -> None:
    async def scenario(lab: Lab) -> None:
        lab.derp.loses = lambda _source, _destination, packet: packet == b"lost"
        async with RawDerp(lab.derp) as a, RawDerp(lab.derp) as b:
            lab.derp.set_latency(0.05)
            started = time.monotonic()
            a.send(b.key, b"lost", b"late")
            assert await b.packets(1) == [b"late"]
            assert time.monotonic() - started >= 0.05

    run(scenario)


def test_a_relay_can_be_stopped_and_started_again() -> None:
    async def scenario(lab: Lab) -> None:
        port = lab.derp.port
        async with RawDerp(lab.derp) as a:
            await lab.derp.stop()
            assert isinstance(await a.until(Closed), Closed)
        await lab.derp.start()
        assert lab.derp.port == port
        async with RawDerp(lab.derp):
            assert lab.derp.logins == 2

    run(scenario)


@pytest.mark.parametrize(
    ("path", "status"),
    [("/derp/latency-check", 200), ("/derp/probe", 200), ("/generate_204", 204), ("/derp", 426), ("/", 404)],
)
def test_plain_requests(path: str, status: int) -> None:
    async def scenario(lab: Lab) -> None:
        reader, writer = await connect(lab.derp)
        for method in ("HEAD", "GET"):
            writer.write(f"{method} {path} HTTP/1.1\r\nHost: derp\r\n\r\n".encode())
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            assert head.startswith(f"HTTP/1.1 {status} ")
            if method == "GET" and "Content-Length: " in head:
                await reader.readexactly(int(head.partition("Content-Length: ")[2].partition("\r\n")[0]))
        writer.close()
        await writer.wait_closed()

    run(scenario)


def test_stun_answers_requests_and_nothing_else() -> None:
    async def scenario(lab: Lab) -> None:
        loop = asyncio.get_running_loop()
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.setblocking(False)
            sock.bind(("127.0.0.1", 0))
            for data in (b"noise", stun.request(bytes(12))):
                await loop.sock_sendto(sock, data, ("127.0.0.1", lab.stun.port))
            async with asyncio.timeout(5):
                answer = stun.parse_response(await loop.sock_recv(sock, 1500))
            assert answer == stun.Response(bytes(12), sock.getsockname())
        assert (lab.stun.answered, lab.stun.ignored) == (1, 1)

    run(scenario)


def test_the_lab_as_a_process() -> None:
    def started(*arguments: str) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
        process = subprocess.Popen(
            [sys.executable, "-m", "tsns.lab", *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())

    def ended(stop: Callable[[subprocess.Popen[bytes]], None], *arguments: str) -> None:
        process, ready = started(*arguments)
        with process:
            with urllib.request.urlopen(f"{ready['url']}/key?v=131", timeout=5) as answer:
                assert b"publicKey" in answer.read()
            assert ready["auth_key"] != ready["ephemeral_auth_key"]
            stop(process)
            assert process.wait(timeout=5) == 0

    ended(lambda process: process.send_signal(signal.SIGTERM))
    ended(lambda process: process.stdin.close() if process.stdin else None, "--stdin")


def test_a_lab_without_an_address_to_serve_at_says_so() -> None:
    outcome = subprocess.run(
        [sys.executable, "-m", "tsns.lab", "--address", "192.0.2.1"], capture_output=True, check=False, text=True
    )
    assert outcome.returncode == 1
    assert outcome.stderr.startswith("error: cannot serve at 192.0.2.1: ")
