"""WireGuard alone, against two implementations that nobody here wrote: wireguard-go, and the one inside mitmproxy.

First that the two understand each other, whoever begins; then where it gets harder: new keys under traffic, a lost session, load.
"""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import struct
import subprocess
import threading
import time
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
from tsns.wg.admission import LOAD_LASTS_S
from tsns.wg.cookie import CookieJar
from tsns.wg.drops import Drop
from tsns.wg.handshake import OwnKey, PeerKey, initiate
from tsns.wg.session import REKEY_AFTER_TIME_S
from tsns.wg.tunnel import Tunnel

pytestmark = pytest.mark.interop

PORT = 51820
OURS = {4: "100.64.0.1", 6: "fd7a:115c:a1e0::1"}
THEIRS = {4: "100.64.0.2", 6: "fd7a:115c:a1e0::2"}
TAILNET = "100.64.0.0/10,fd7a:115c:a1e0::/48"
PINGS = 5
FLOOD = 3000  # wireguard-go is under load once 128 handshake messages wait

with_and_without_preshared_key = pytest.mark.parametrize(
    "wireguard_go", [NO_KEY, bytes(range(32))], ids=["plain", "preshared key"], indirect=True
)


def text_of(key: bytes) -> str:
    return base64.b64encode(key).decode()


@dataclass
class WireguardGo:
    """Debian's wireguard-go on a host, and our end on another one."""

    host: Host
    here: Host
    interface: str
    key: NodePrivate
    device: DrivenDevice
    preshared_file: Path | None

    def know_us(self) -> None:
        """Make us its peer, one that was never heard of."""
        us = text_of(self.device.private.public.raw)
        preshared = ("preshared-key", str(self.preshared_file)) if self.preshared_file else ()
        endpoint = ("endpoint", f"{self.here.address}:{PORT}")
        self.host.run("wg", "set", self.interface, "peer", us, "remove")
        self.host.run("wg", "set", self.interface, "peer", us, *endpoint, "allowed-ips", TAILNET, *preshared)

    def ping_us(self, version: int = 4, count: int = 1) -> traffic.Pings:
        """Its kernel pings us, with 8 s of patience; the device works meanwhile."""
        found: list[subprocess.CompletedProcess[str]] = []
        ping = ("ping", f"-c{count}", "-i0.2", "-W8", OURS[version])
        pinging = threading.Thread(target=lambda: found.append(self.host.run(*ping, check=False)))
        pinging.start()
        self.device.run_until(lambda: found)
        pinging.join()
        return traffic.pings(found[0])

    def ask(self, number: int, version: int = 4) -> None:
        """We ask it for an echo with this number in it."""
        payload = number.to_bytes(4, "big")
        self.device.send(echo_request(pack(OURS[version]), pack(THEIRS[version]), 1, number, payload))

    def answered(self) -> list[int]:
        """The numbers of the echoes that came back."""
        return [int.from_bytes(packet[-4:], "big") for packet in self.device.delivered]

    @property
    def tunnel(self) -> Tunnel:
        """Our side of the tunnel."""
        tunnel = self.device.device._peers[self.device.peer].tunnel
        assert tunnel is not None
        return tunnel


@pytest.fixture
def wireguard_go(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[WireguardGo]:
    """Both ends, with no word between them yet."""
    preshared: bytes = getattr(request, "param", NO_KEY)
    with Internet(tmp_path) as internet:
        host, here = internet.host("wireguard-go"), internet.host("tsns")
        interface = f"rig{os.getpid()}"  # its control socket is the machine's, not the namespace's
        ours, theirs = NodePrivate.generate(os.urandom(32)), NodePrivate.generate(os.urandom(32))
        with host.popen("wireguard-go", "--foreground", interface), here.udp_socket(PORT) as sock:
            wait_for(lambda: host.run("wg", "show", interface, check=False).returncode == 0, "wireguard-go answers")
            key_file, preshared_file = tmp_path / "key", tmp_path / "preshared"
            key_file.write_text(text_of(theirs.raw))
            preshared_file.write_text(text_of(preshared))
            host.run("wg", "set", interface, "listen-port", str(PORT), "private-key", str(key_file))
            for address in (f"{THEIRS[4]}/10", f"{THEIRS[6]}/48"):
                host.run("ip", "address", "add", address, "dev", interface, "nodad")
            host.run("ip", "link", "set", interface, "mtu", "1280", "up")
            device = DrivenDevice(ours, theirs.public, (host.address, PORT), sock, preshared)
            file = preshared_file if preshared != NO_KEY else None
            found = WireguardGo(host, here, interface, theirs, device, file)
            found.know_us()
            yield found


# --- they understand each other ------------------------------------------------------------------------------------


@with_and_without_preshared_key
def test_we_begin_the_handshake_with_wireguard_go(wireguard_go: WireguardGo) -> None:
    device = wireguard_go.device
    for version in (4, 6):
        device.delivered.clear()
        wireguard_go.ask(version, version)
        device.run_until(lambda: device.delivered)
        reply = parse(device.delivered[0])
        assert reply is not None
        assert (reply.source, reply.destination) == (pack(THEIRS[version]), pack(OURS[version]))
        assert wireguard_go.answered() == [version]
    assert device.sessions == 1


@with_and_without_preshared_key
def test_wireguard_go_begins_the_handshake_with_us(wireguard_go: WireguardGo) -> None:
    for version in (4, 6):
        assert wireguard_go.ping_us(version, PINGS).received == PINGS
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

    server = await mitmproxy_rs.wireguard.start_wireguard_server(
        "127.0.0.1", 0, text_of(server_private.raw), [text_of(private.public.raw)], refuse, answer
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


# --- where it gets harder ------------------------------------------------------------------------------------------


def test_new_keys_under_traffic_lose_nothing(wireguard_go: WireguardGo) -> None:
    device = wireguard_go.device
    for number in range(120):
        wireguard_go.ask(number)
        if number and number % 40 == 0:  # the session is as old as a session may get
            for session in device.device.indices.sessions.values():
                session.created_at -= REKEY_AFTER_TIME_S + 10
        if number % 40 == 20:
            wireguard_go.tunnel._last_initiation_at -= 10
        until = time.monotonic() + 0.01
        device.run_until(lambda until=until: time.monotonic() >= until)  # type: ignore[misc]
    device.run_until(lambda: len(device.delivered) == 120, timeout_s=5)
    assert sorted(wireguard_go.answered()) == list(range(120))
    assert device.sessions == 3
    assert device.device.counters.snapshot() == {}


def test_a_peer_that_forgot_us_begins_anew(wireguard_go: WireguardGo) -> None:
    device = wireguard_go.device
    wireguard_go.ask(1)
    device.run_until(lambda: device.delivered, timeout_s=5)
    wireguard_go.know_us()
    assert wireguard_go.ping_us().received == 1
    wireguard_go.ask(2)
    device.run_until(lambda: len(device.delivered) == 2, timeout_s=5)
    assert wireguard_go.answered() == [1, 2]
    assert device.sessions == 2


def test_the_cookie_of_a_loaded_wireguard_go_is_eaten(wireguard_go: WireguardGo) -> None:
    device = wireguard_go.device
    own = OwnKey(NodePrivate.generate(os.urandom(32)))
    key = PeerKey(own, wireguard_go.key.public, NO_KEY)
    body, _ = initiate(own, key, ephemeral=os.urandom(32), index=b"junk", timestamp=bytes(12), now=0.0)
    junk = CookieJar(wireguard_go.key.public.raw).stamp(body, 0.0)
    with wireguard_go.here.udp_socket(PORT + 1) as stranger:
        for _ in range(FLOOD):
            stranger.sendto(junk, (wireguard_go.host.address, PORT))
        wireguard_go.ask(1)
        device.run_until(lambda: device.delivered, timeout_s=8)
    assert wireguard_go.tunnel._jar._cookie, "wireguard-go was not under load"
    assert device.device.counters[Drop.BAD_COOKIE_REPLY] == 0


def test_wireguard_go_eats_our_cookie(wireguard_go: WireguardGo) -> None:
    device = wireguard_go.device
    by_udp = device.device._admission._loads[False]
    by_udp._loaded_until = time.monotonic() + 30 * LOAD_LASTS_S
    assert wireguard_go.ping_us().received == 1  # after 5 s, when it tries again
    assert device.device.counters[Drop.UNDER_LOAD] == 1
    assert device.sessions == 1
