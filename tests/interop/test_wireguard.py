"""WireGuard alone, against two implementations that nobody here wrote: wireguard-go, and the one inside mitmproxy."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import struct
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mitmproxy_rs
import pytest

from tests.interop.rig import traffic
from tests.interop.rig.driven_device import NO_KEY, DrivenDevice
from tests.interop.rig.internet import Host, Internet, wait_for
from tsns.keys import NodePrivate
from tsns.proto.addresses import pack
from tsns.proto.packets import Protocol, build, echo_request, parse

pytestmark = pytest.mark.interop

PORT = 51820
OURS = {4: "100.64.0.1", 6: "fd7a:115c:a1e0::1"}
THEIRS = {4: "100.64.0.2", 6: "fd7a:115c:a1e0::2"}
PINGS = 5


def base64_key(key: NodePrivate) -> str:
    return base64.b64encode(bytes.fromhex(key.reveal().partition(":")[2])).decode()


@dataclass
class WireguardGo:
    """Debian's wireguard-go on a host, with one peer: us."""

    host: Host
    device: DrivenDevice


@pytest.fixture(params=[NO_KEY, bytes(range(32))], ids=["plain", "preshared key"])
def wireguard_go(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WireguardGo]:
    """Both ends, with no word between them yet."""
    with Internet(tmp_path) as internet:
        host, here = internet.host("wireguard-go"), internet.host("tsns")
        interface = f"rig{os.getpid()}"  # its control socket is the machine's, not the namespace's
        private, peer_private = NodePrivate.generate(os.urandom(32)), NodePrivate.generate(os.urandom(32))
        with host.popen("wireguard-go", "--foreground", interface), here.udp_socket(PORT) as sock:
            wait_for(lambda: host.run("wg", "show", interface, check=False).returncode == 0, "wireguard-go answers")
            preshared: bytes = request.param
            for name, text in (("key", base64_key(peer_private)), ("preshared", base64.b64encode(preshared).decode())):
                (tmp_path / name).write_text(text)
            peer = base64.b64encode(private.public.raw).decode()
            host.run(
                *("wg", "set", interface, "listen-port", str(PORT), "private-key", str(tmp_path / "key")),
                *(
                    "peer",
                    peer,
                    "endpoint",
                    f"{here.address}:{PORT}",
                    "allowed-ips",
                    "100.64.0.0/10,fd7a:115c:a1e0::/48",
                ),
                *(["preshared-key", str(tmp_path / "preshared")] if preshared != NO_KEY else []),
            )
            for address in (f"{THEIRS[4]}/10", f"{THEIRS[6]}/48"):
                host.run("ip", "address", "add", address, "dev", interface, "nodad")
            host.run("ip", "link", "set", interface, "mtu", "1280", "up")
            device = DrivenDevice(private, peer_private.public, (host.address, PORT), sock, preshared)
            yield WireguardGo(host, device)


@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
def test_we_begin_the_handshake_with_wireguard_go(wireguard_go: WireguardGo, version: int) -> None:
    device = wireguard_go.device
    ours, theirs = pack(OURS[version]), pack(THEIRS[version])

    device.send(echo_request(ours, theirs, 1, 7, b"first"))
    device.run_until(lambda: device.delivered)

    reply = parse(device.delivered[0])
    assert reply is not None
    assert (reply.source, reply.destination) == (theirs, ours)
    assert device.delivered[0].endswith(b"first")
    assert device.sessions == 1


@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
def test_wireguard_go_begins_the_handshake_with_us(wireguard_go: WireguardGo, version: int) -> None:
    found: list[subprocess.CompletedProcess[str]] = []
    ping = ("ping", f"-c{PINGS}", "-i0.2", OURS[version])
    pinging = threading.Thread(target=lambda: found.append(wireguard_go.host.run(*ping, check=False)))
    pinging.start()

    wireguard_go.device.run_until(lambda: found)
    pinging.join()

    assert traffic.pings(found[0]).received == PINGS
    assert wireguard_go.device.sessions == 1


def test_mitmproxy_answers_our_handshake() -> None:
    """Its server ends UDP and TCP flows itself, and hands their bytes to the test."""
    reply, name = asyncio.run(_exchange_with_mitmproxy(b"question"))

    assert reply == b"QUESTION"
    assert name == "192.0.2.9"


async def _exchange_with_mitmproxy(question: bytes) -> tuple[bytes, str]:
    """Sends a UDP datagram through the tunnel; returns what came back through it and where the server saw it going."""
    private, server_private = NodePrivate.generate(os.urandom(32)), NodePrivate.generate(os.urandom(32))
    seen: list[str] = []

    async def answer(stream: mitmproxy_rs.Stream) -> None:
        seen.append(stream.get_extra_info("sockname")[0])
        stream.write((await stream.read(1500)).upper())
        await stream.drain()

    async def refuse(stream: mitmproxy_rs.Stream) -> None:
        stream.close()  # type: ignore[no-untyped-call]

    peers = [base64.b64encode(private.public.raw).decode()]
    server = await mitmproxy_rs.wireguard.start_wireguard_server(
        "127.0.0.1", 0, base64_key(server_private), peers, refuse, answer
    )
    address: Any = server.getsockname()
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind(("127.0.0.1", 0))
            device = DrivenDevice(private, server_private.public, (address[0], address[1]), sock)
            udp = struct.pack(">HHHH", 40_000, 53, 8 + len(question), 0) + question
            device.send(build(Protocol.UDP, pack(OURS[4]), pack("192.0.2.9"), udp))
            await asyncio.to_thread(device.run_until, lambda: device.delivered)
    finally:
        server.close()
        await server.wait_closed()
    packet = parse(device.delivered[0])
    assert packet is not None
    return device.delivered[0][packet.header_bytes + 8 : packet.length], seen[0]
