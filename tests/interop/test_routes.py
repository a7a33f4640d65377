"""Subnets, exit nodes and borrowed addresses with the official client at the other end."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.interop.rig import traffic
from tests.interop.rig.control import UpstreamControl
from tests.interop.rig.internet import Host, wait_for
from tests.interop.rig.tailnet import Tailnet
from tests.interop.rig.tailnet import tailnet as new_tailnet
from tests.interop.rig.tailscaled import Tailscaled
from tests.interop.rig.tsns import Tsns, tsns_on

pytestmark = pytest.mark.interop

NODE = "web"
PORT = 7003
COUNT_BYTES = 1 << 20
SUBNET, IN_SUBNET = "10.66.0.0/24", "10.66.0.7"  # behind whoever is a router
WORLD = "198.51.100.7"


@pytest.fixture(scope="module")
def tailnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tailnet]:
    """Its server's host has addresses of a subnet and of the world."""
    with new_tailnet("testcontrol", tmp_path_factory.mktemp("routes")) as found:
        for address in (IN_SUBNET, WORLD):
            found.server.run("ip", "address", "add", address, "dev", "lo")
        yield found


@pytest.fixture
def tsns(tailnet: Tailnet) -> Iterator[Tsns]:
    with tailnet.host("new") as host, tsns_on(host) as program:
        yield program


def up(tailnet: Tailnet, tsns: Tsns, *flags: str) -> None:
    login = ("--login-server", tailnet.control.url, "--auth-key", tailnet.control.auth_key())
    tsns.run("up", NODE, *login, "--hostname", tsns.host.name, *flags)


def may_carry(tailnet: Tailnet, host: Host, *routes: str) -> None:
    """An administrator approves a node's routes."""
    assert isinstance(tailnet.control, UpstreamControl)
    tailnet.control.tell(f"routes {host.name} {','.join(routes)}")


def leads_there(tailnet: Tailnet, host: Host) -> None:
    """The host itself has a way to the subnet and to the world."""
    for network in (SUBNET, f"{WORLD}/32"):
        host.run("ip", "route", "add", network, "via", tailnet.server.address)


@contextmanager
def serving(host: Host, address: str) -> Iterator[None]:
    with host.popen(sys.executable, traffic.__file__, "serve", address, str(PORT), log="serve") as server:
        server.wait_until_said("ready")
        yield


def send(address: str) -> tuple[str, ...]:
    return (sys.executable, traffic.__file__, "send", address, str(PORT), str(COUNT_BYTES))


@contextmanager
def router(tailnet: Tailnet) -> Iterator[Tailscaled]:
    """The official client as subnet router and exit node."""
    with tailnet.host("router") as host, Tailscaled(host) as client:
        leads_there(tailnet, host)
        host.run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
        flags = (f"--advertise-routes={SUBNET}", "--advertise-exit-node")
        client.up(tailnet.control.url, tailnet.control.auth_key(), *flags)
        try:
            yield client
        finally:
            may_carry(tailnet, host)  # this server goes on offering what is gone


def test_by_an_official_router_and_exit_node(tailnet: Tailnet, tsns: Tsns) -> None:
    with router(tailnet) as official:
        name = official.host.name
        may_carry(tailnet, official.host, SUBNET)
        up(tailnet, tsns, "--accept-routes")
        with serving(tailnet.server, IN_SUBNET):
            assert tsns.inside(NODE, *send(IN_SUBNET)).stdout.strip() == "same"
        wrong = tsns.run("set", NODE, "--exit-node", name, check=False)
        assert (wrong.returncode, f"{name}.tail.test offers no exit node" in wrong.stderr) == (1, True)

        may_carry(tailnet, official.host, SUBNET, "0.0.0.0/0", "::/0")
        wait_for(lambda: tsns.run("exit-node", "list", NODE, check=False).returncode == 0, "the offer is there")
        assert tsns.inside(NODE, "ping", "-c1", "-W1", WORLD, check=False).returncode != 0
        tsns.run("set", NODE, "--exit-node", name)
        with serving(tailnet.server, WORLD):
            assert tsns.inside(NODE, *send(WORLD)).stdout.strip() == "same"
        assert traffic.pings(tsns.inside(NODE, "ping", "-c3", "-i0.2", WORLD)).received == 3


def test_the_official_client_goes_by_our_router(tailnet: Tailnet, tsns: Tsns) -> None:
    tsns.host.run("ip", "route", "add", "default", "via", tailnet.server.address)
    up(tailnet, tsns, "--with-internet", f"--advertise-routes={SUBNET}")
    may_carry(tailnet, tsns.host, SUBNET)
    with tailnet.tailscaled("user") as official:
        official.command("set", "--accept-routes")
        wait_for(lambda: official.has_route(IN_SUBNET), "the official client has the route")
        # No `send`: the pasta of Debian 12 does not pass on that one side has said all that it had to say.
        talk = (sys.executable, traffic.__file__, "talk", IN_SUBNET, str(PORT))
        with serving(tailnet.server, IN_SUBNET), official.host.popen(*talk, log="talk") as conversation:
            conversation.wait_until_said("5\n")


@pytest.mark.parametrize("worn", ["100.99.0.9", "fd7a:115c:a1e0:9::9"])
def test_the_official_client_knows_us_by_another_address(tailnet: Tailnet, tsns: Tsns, worn: str) -> None:
    version = 6 if ":" in worn else 4
    up(tailnet, tsns)
    with tailnet.tailscaled("far") as official:
        official.wait_for_peer(tsns.host.name)
        assert isinstance(tailnet.control, UpstreamControl)
        tailnet.control.tell(f"masquerade {tsns.host.name} {official.host.name} {worn}")
        peer = wait_for(
            lambda: (found := official.peer(tsns.host.name)) and worn in found["TailscaleIPs"] and found, "it knows"
        )
        assert peer
        wait_for(lambda: official.has_route(worn), "it has a route")
        assert traffic.pings(official.host.run("ping", "-c3", "-i0.2", worn)).received == 3
        assert traffic.pings(tsns.inside(NODE, "ping", "-c3", "-i0.2", official.ip(version))).received == 3
        with serving(official.host, official.ip(version)):
            assert tsns.inside(NODE, *send(official.ip(version))).stdout.strip() == "same"
        server = (sys.executable, traffic.__file__, "serve", tsns.ip(NODE, version), str(PORT))
        with tsns.start_inside(NODE, *server, log="serve") as serve:
            serve.wait_until_said("ready")
            assert official.host.run(*send(worn)).stdout.strip() == "same"
