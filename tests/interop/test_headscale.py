"""What only a real Headscale does: it removes nodes, remembers them over a restart, and tells about it."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.interop.rig.control import Headscale
from tests.interop.rig.internet import wait_for
from tests.interop.rig.tailnet import Tailnet
from tests.interop.rig.tailnet import tailnet as new_tailnet
from tests.interop.rig.tsns import Tsns, tsns_on

pytestmark = pytest.mark.interop

NODE = "web"
BACK_WITHIN_S = 30.0  # a node has found its server again


@pytest.fixture(scope="module")
def tailnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tailnet]:
    """A tailnet of Headscale's."""
    with new_tailnet("headscale", tmp_path_factory.mktemp("headscale")) as found:
        yield found


@pytest.fixture
def headscale(tailnet: Tailnet) -> Headscale:
    """The server, which can be asked for its nodes."""
    assert isinstance(tailnet.control, Headscale)
    return tailnet.control


@pytest.fixture
def tsns(tailnet: Tailnet) -> Iterator[Tsns]:
    """tsns on a host of its own, without any node yet."""
    with tailnet.host("new") as host, tsns_on(host) as program:
        yield program


def login(tailnet: Tailnet, *, ephemeral: bool = False) -> tuple[str, ...]:
    return ("--login-server", tailnet.control.url, "--auth-key", tailnet.control.auth_key(ephemeral=ephemeral))


def test_the_node_of_a_command_logs_out(tailnet: Tailnet, headscale: Headscale, tsns: Tsns) -> None:
    """Whether the server then forgets the node is a property of the auth key there."""
    tsns.run("run", *login(tailnet, ephemeral=True), "--hostname", "brief", "--", "true")

    wait_for(lambda: "brief" not in headscale.node_names(), "the server has forgotten the node")


def test_a_lasting_node_stays_the_same(tailnet: Tailnet, headscale: Headscale, tsns: Tsns) -> None:
    tsns.run("up", NODE, *login(tailnet), "--hostname", "lasting")
    before = tsns.ip(NODE)
    tsns.run("down", NODE)
    assert "lasting" in headscale.node_names()

    tsns.run("up", NODE, "--login-server", tailnet.control.url)

    assert tsns.ip(NODE) == before
    assert headscale.node_names().count("lasting") == 1


def test_removing_a_node_logs_it_out(tailnet: Tailnet, headscale: Headscale, tsns: Tsns) -> None:
    tsns.run("up", NODE, *login(tailnet), "--hostname", "removed")

    tsns.run("rm", NODE)

    wait_for(lambda: headscale.is_expired("removed"), "the server has ended the node's key")


def test_flows_outlive_a_restart_of_the_server(tailnet: Tailnet, headscale: Headscale, tsns: Tsns) -> None:
    with tailnet.tailscaled("old") as old:
        tsns.run("up", NODE, *login(tailnet), "--hostname", "steady")
        old.wait_for_peer("steady")
        pings = ("ping", "-c20", "-i0.2", old.ip())
        tsns.inside(NODE, "ping", "-c1", old.ip())

        tailnet.control.stop()
        without = tsns.inside(NODE, *pings)
        tailnet.control.start()

        assert "20 received" in without.stdout
        with tailnet.tailscaled("later") as later:

            def knows_later() -> bool:
                peers = tsns.answer("status", NODE)["peers"]
                return any(peer["name"] == later.host.name for peer in peers)

            wait_for(knows_later, "the node learns of a new peer", BACK_WITHIN_S)
