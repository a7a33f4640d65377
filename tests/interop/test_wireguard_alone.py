"""WireGuard against Debian's wireguard-go where it gets harder: new keys under traffic, a lost session, cookies."""

from __future__ import annotations

import base64
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.rig.driven_device import DrivenDevice
from tests.interop.rig.internet import Host, Internet, wait_for
from tsns.keys import NodePrivate
from tsns.proto.addresses import pack
from tsns.proto.packets import echo_request
from tsns.wg.cookie import LOAD_LASTS_S, CookieJar
from tsns.wg.counters import Drop
from tsns.wg.device import Output, Reply
from tsns.wg.endpoints import UdpSource
from tsns.wg.handshake import OwnKey, PeerKey, initiate
from tsns.wg.session import REKEY_AFTER_TIME_S

pytestmark = pytest.mark.interop

PORT = 51820
OURS, THEIRS = "100.64.0.1", "100.64.0.2"
FLOOD = 3000  # wireguard-go is under load once 128 handshake messages wait


class LoadableDevice(DrivenDevice):
    """A device that may come under load: its cookies go back to where the message came from."""

    def _carry_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            if isinstance(output, Reply):
                assert isinstance(output.source, UdpSource)
                self.sock.sendto(output.datagram, output.source.address)
            else:
                super()._carry_out([output])

    def ping(self, number: int) -> None:
        """Ask the other side for an echo."""
        self.send(echo_request(pack(OURS), pack(THEIRS), 1, number, number.to_bytes(4, "big")))

    def answered(self) -> list[int]:
        """The numbers of the pings that were answered."""
        return [int.from_bytes(packet[-4:], "big") for packet in self.delivered]


def text_of(key: bytes) -> str:
    return base64.b64encode(key).decode()


@dataclass
class WireguardGo:
    """wireguard-go on a host, knowing us, and our end on another host."""

    host: Host
    here: Host
    interface: str
    key: NodePrivate
    device: LoadableDevice

    def know_us(self) -> None:
        """Make us a peer, one that was never heard of."""
        us = text_of(self.device.private.public.raw)
        self.host.run("wg", "set", self.interface, "peer", us, "remove")
        endpoint = ("endpoint", f"{self.here.address}:{PORT}")
        self.host.run("wg", "set", self.interface, "peer", us, *endpoint, "allowed-ips", "100.64.0.0/10")

    def ping_us(self) -> bool:
        """Whether its kernel's ping is answered within 8 s; the device works meanwhile."""
        found: list[bool] = []
        ping = ("ping", "-c1", "-W8", OURS)
        pinging = threading.Thread(target=lambda: found.append(self.host.run(*ping, check=False).returncode == 0))
        pinging.start()
        self.device.run_until(lambda: found, timeout_s=9)
        pinging.join()
        return found[0]


@pytest.fixture
def wireguard_go(tmp_path: Path) -> Iterator[WireguardGo]:
    with Internet(tmp_path) as internet:
        host, here = internet.host("wireguard-go"), internet.host("tsns")
        interface = f"rig{os.getpid()}"  # its control socket is the machine's, not the namespace's
        ours, theirs = NodePrivate.generate(os.urandom(32)), NodePrivate.generate(os.urandom(32))
        with host.popen("wireguard-go", "--foreground", interface), here.udp_socket(PORT) as sock:
            wait_for(lambda: host.run("wg", "show", interface, check=False).returncode == 0, "wireguard-go answers")
            key_file = tmp_path / "key"
            key_file.write_text(text_of(theirs.raw))
            host.run("wg", "set", interface, "listen-port", str(PORT), "private-key", str(key_file))
            host.run("ip", "address", "add", f"{THEIRS}/10", "dev", interface)
            host.run("ip", "link", "set", interface, "mtu", "1280", "up")
            device = LoadableDevice(ours, theirs.public, (host.address, PORT), sock)
            found = WireguardGo(host, here, interface, theirs, device)
            found.know_us()
            yield found


def test_new_keys_under_traffic_lose_nothing(wireguard_go: WireguardGo) -> None:
    device = wireguard_go.device
    for number in range(120):
        device.ping(number)
        if number and number % 40 == 0:  # the session is as old as a session may get
            for session in device.device.indices.sessions.values():
                session.created_at -= REKEY_AFTER_TIME_S + 10
        if number % 40 == 20:
            device.device._peers[device.peer].tunnel._last_initiation_at -= 10  # type: ignore[union-attr]
        until = time.monotonic() + 0.01
        device.run_until(lambda until=until: time.monotonic() >= until)  # type: ignore[misc]
    device.run_until(lambda: len(device.delivered) == 120, timeout_s=5)
    assert sorted(device.answered()) == list(range(120))
    assert device.sessions == 3
    assert device.device.counters.snapshot() == {}


def test_a_peer_that_forgot_us_begins_anew(wireguard_go: WireguardGo) -> None:
    device = wireguard_go.device
    device.ping(1)
    device.run_until(lambda: device.delivered, timeout_s=5)
    wireguard_go.know_us()
    assert wireguard_go.ping_us()
    device.ping(2)
    device.run_until(lambda: len(device.delivered) == 2, timeout_s=5)
    assert device.answered() == [1, 2]
    assert device.sessions == 2


def test_the_cookie_of_a_loaded_wireguard_go_is_eaten(wireguard_go: WireguardGo) -> None:
    device = wireguard_go.device
    own = OwnKey(NodePrivate.generate(os.urandom(32)))
    body, _ = initiate(
        own,
        PeerKey(own, wireguard_go.key.public, bytes(32)),
        ephemeral=os.urandom(32),
        index=b"junk",
        timestamp=bytes(12),
        now=0.0,
    )
    junk = CookieJar(wireguard_go.key.public.raw).stamp(body, 0.0)
    with wireguard_go.here.udp_socket(PORT + 1) as stranger:
        assert stranger.family == socket.AF_INET
        for _ in range(FLOOD):
            stranger.sendto(junk, (wireguard_go.host.address, PORT))
        device.ping(1)
        device.run_until(lambda: device.delivered, timeout_s=8)
    jar = device.device._peers[device.peer].tunnel._jar  # type: ignore[union-attr]
    assert jar._cookie, "wireguard-go was not under load"
    assert device.device.counters[Drop.BAD_COOKIE_REPLY] == 0


def test_wireguard_go_eats_our_cookie(wireguard_go: WireguardGo) -> None:
    device = wireguard_go.device
    gauge = device.device._load
    gauge._loaded_until = time.monotonic() + 30 * LOAD_LASTS_S
    assert wireguard_go.ping_us()  # after 5 s, when it tries again
    assert device.device.counters[Drop.UNDER_LOAD] == 1
    assert device.sessions == 1
