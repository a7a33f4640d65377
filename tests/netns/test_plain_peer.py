"""A peer that speaks WireGuard only and knows us by another address, as the servers of a VPN provider do: as our exit node."""

from __future__ import annotations

import base64
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.interop.rig.internet import NAME_PREFIX, wait_for
from tests.interop.rig.namespace import Namespace
from tests.netns.nodes import Tsns
from tests.netns.steered_lab import SteeredLab
from tsns.keys import MachinePublic, NodePrivate, NodePublic

pytestmark = pytest.mark.netns

DEVICE: Final = "wgplain0"
WORN: Final = "10.5.0.2"  # by which the provider knows us
SERVER: Final = "100.64.77.7"
WORLD: Final = "198.51.100.7"
PORT: Final = 51_877
SEEN: Final = """
import socket
listener = socket.create_server(("0.0.0.0", 7))
print("serves", flush=True)
while True:
    connection, peer = listener.accept()
    connection.sendall(peer[0].encode()); connection.close()
"""
ASK: Final = "import socket, sys; print(socket.create_connection((sys.argv[1], 7), timeout=5).recv(100).decode())"


@contextmanager
def server(directory: Path, private: NodePrivate, peer: NodePublic) -> Iterator[Namespace]:
    """wireguard-go, with its datagrams on this machine's loopback and its packets in a namespace."""
    namespace = Namespace(f"{NAME_PREFIX}plain")
    namespace.add()
    key = directory / "key"
    key.write_text(base64.b64encode(private.raw).decode())
    with subprocess.Popen(["wireguard-go", "--foreground", DEVICE], stderr=subprocess.DEVNULL) as daemon:
        try:
            wait_for(lambda: os.path.exists(f"/sys/class/net/{DEVICE}"), "the device is there")
            told = base64.b64encode(peer.raw).decode()
            words = ("listen-port", str(PORT), "private-key", str(key), "peer", told, "allowed-ips", f"{WORN}/32")
            subprocess.run(["wg", "set", DEVICE, *words], check=True)
            subprocess.run(["ip", "link", "set", DEVICE, "netns", namespace.name], check=True)
            for address in (SERVER, WORLD):
                namespace.ip("address", "add", address, "dev", "lo")
            namespace.ip("link", "set", DEVICE, "mtu", "1280", "up")
            namespace.ip("route", "add", WORN, "dev", DEVICE)
            yield namespace
        finally:
            daemon.terminate()
            daemon.wait()
            namespace.delete()


def test_an_exit_node_that_speaks_wireguard_only(steered_tsns: Tsns, steered: SteeredLab, tmp_path: Path) -> None:
    tsns = steered_tsns
    tsns.up("web")
    private = NodePrivate.generate(os.urandom(32))
    wire: dict[str, Any] = {
        "addresses": [f"{SERVER}/32"],
        "allowed_ips": [f"{SERVER}/32", "0.0.0.0/0", "::/0"],
        "endpoints": [f"127.0.0.1:{PORT}"],
        "is_wireguard_only": True,
        "self_node_v4_masq_addr_for_this_peer": WORN,
        "online": None,
    }

    def add(lab: Any) -> NodePublic:
        attributes = {"hostname": "provider", "now": lab.control.now(), "wire": wire}
        lab.tailnet.add_node(MachinePublic(os.urandom(32)), private.public, **attributes)
        found: NodePublic = lab.tailnet.find("web").key
        return found

    with server(tmp_path, private, steered.do(add)) as namespace:
        listening = subprocess.Popen(
            namespace.command(sys.executable, "-c", SEEN), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        with listening:
            assert listening.stdout is not None
            assert listening.stdout.readline() == "serves\n"
            try:
                wait_for(lambda: "provider" in tsns("exit-node", "list", "web").stdout, "it is known")
                assert tsns("set", "web", "--exit-node", "provider").returncode == 0
                for address in (SERVER, WORLD):
                    done = tsns("exec", "web", "--", sys.executable, "-c", ASK, address)
                    assert done.stdout.strip() == WORN, done.stderr
                refused = tsns("ping", "web", "provider")
                assert "speaks WireGuard only" in refused.stderr
                assert tsns("ping", "web", "provider", "--icmp", "-c1").returncode == 0
            finally:
                listening.terminate()
