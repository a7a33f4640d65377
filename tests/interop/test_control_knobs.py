"""What Tailscale's own test control server can ask of a node, and tsns has to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop.rig import traffic
from tests.interop.rig.control import UpstreamControl
from tests.interop.rig.internet import wait_for
from tests.interop.rig.tailnet import Tailnet
from tests.interop.rig.tailnet import tailnet as new_tailnet
from tests.interop.rig.tsns import Tsns, tsns_on

pytestmark = pytest.mark.interop

NODE = "knob"
FAKES = 1000
FAKES_KNOWN_WITHIN_S = 5.0


@pytest.fixture(scope="module")
def tailnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tailnet]:
    """A tailnet on the one server that has these commands."""
    with new_tailnet("testcontrol", tmp_path_factory.mktemp("knobs")) as found:
        yield found


@pytest.fixture
def control(tailnet: Tailnet) -> UpstreamControl:
    """The server with its commands."""
    assert isinstance(tailnet.control, UpstreamControl)
    return tailnet.control


@pytest.fixture
def tsns(tailnet: Tailnet, tmp_path: Path) -> Iterator[Tsns]:
    """tsns with one node, which is up."""
    with tailnet.host("new") as host, tsns_on(host) as program:
        flags = ("--login-server", tailnet.control.url, "--auth-key", tailnet.control.auth_key())
        program.run("up", NODE, *flags, "--hostname", host.name)
        yield program


def test_the_server_can_talk_to_the_node(control: UpstreamControl, tsns: Tsns) -> None:
    answer = control.tell(f"c2n {tsns.host.name} /echo over-the-noise")

    assert answer == {"status": 200, "body": "over-the-noise"}


def test_a_jailed_peer_opens_no_flow(tailnet: Tailnet, control: UpstreamControl, tsns: Tsns) -> None:
    with tailnet.tailscaled("jailed") as peer:
        peer.wait_for_peer(tsns.host.name)
        address = tsns.ip(NODE)
        peer.host.run("ping", "-c2", "-i0.2", address)

        control.tell(f"jail {tsns.host.name} {peer.host.name} true")

        def is_shut_out() -> bool:
            return traffic.pings(peer.host.run("ping", "-c2", "-i0.2", "-W1", address, check=False)).received == 0

        wait_for(is_shut_out, "a jailed peer's pings are dropped")
        outwards = tsns.inside(NODE, "ping", "-c2", "-i0.2", peer.ip())
        assert traffic.pings(outwards).received == 2, "replies to our own pings pass"


def test_many_peers_at_once(control: UpstreamControl, tsns: Tsns) -> None:
    control.tell(f"fake {FAKES}")

    def knows_all() -> bool:
        return len(tsns.answer("status", NODE)["peers"]) >= FAKES

    wait_for(knows_all, f"{FAKES} peers are known", FAKES_KNOWN_WITHIN_S)
