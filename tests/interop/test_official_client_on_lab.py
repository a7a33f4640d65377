"""The official client on the lab of tsns: its control server, its relay and its STUN server do what that client expects."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator

import pytest

from tests.interop.rig import traffic
from tests.interop.rig.control import OwnLab
from tests.interop.rig.internet import wait_for
from tests.interop.rig.tailnet import Tailnet
from tests.interop.rig.tailnet import tailnet as new_tailnet
from tests.interop.rig.tailscaled import Tailscaled

pytestmark = pytest.mark.interop

PORT = 7001
COUNT_BYTES = 1 << 20
FETCH = "import sys, urllib.request; urllib.request.urlopen(sys.argv[1], timeout=10).read()"


@pytest.fixture(scope="module")
def tailnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tailnet]:
    """A tailnet whose servers are the lab's."""
    with new_tailnet("lab", tmp_path_factory.mktemp("lab")) as found:
        yield found


@pytest.mark.parametrize("version", [4, 6])
def test_two_clients_reach_each_other_by_the_labs_relay(tailnet: Tailnet, version: int) -> None:
    with tailnet.tailscaled("one") as one, tailnet.tailscaled("two") as two:
        one.wait_for_peer(two.host.name)
        two.wait_for_peer(one.host.name)

        result = traffic.pings(one.host.run("ping", "-c5", "-i0.2", two.ip(version)))

        assert (result.sent, result.received) == (5, 5)
        peer = one.wait_for_peer(two.host.name)
        assert (peer["CurAddr"], peer["Relay"]) == ("", tailnet.region_code)
        serving = (sys.executable, traffic.__file__, "serve", two.ip(version), str(PORT))
        with two.host.popen(*serving, log="serve") as server:
            server.wait_until_said("ready")
            sent = one.host.run(sys.executable, traffic.__file__, "send", two.ip(version), str(PORT), str(COUNT_BYTES))
        assert sent.stdout.strip() == "same"


def test_two_clients_find_a_direct_path(tailnet: Tailnet) -> None:
    """So the lab passes their endpoints and disco keys on, and its STUN server and relay carry what they say."""
    with tailnet.tailscaled("one", only_relays=False) as one, tailnet.tailscaled("two", only_relays=False) as two:
        one.wait_for_peer(two.host.name)

        one.command("ping", "--c=10", "--until-direct", two.host.name)

        assert one.wait_for_peer(two.host.name)["CurAddr"].startswith(two.host.address)


def test_netcheck_measures_the_labs_region(tailnet: Tailnet) -> None:
    with tailnet.tailscaled("one") as one:
        report = json.loads(one.command("netcheck", "--format=json"))

    assert report["UDP"]
    assert report["PreferredDERP"] == 1
    assert report["GlobalV4"].startswith(one.host.address)


def test_a_wrong_key_is_refused_in_the_labs_words(tailnet: Tailnet) -> None:
    with tailnet.host("stranger") as host, Tailscaled(host) as client:
        flags = (f"--login-server={tailnet.control.url}", "--authkey=hskey-auth-wrong", "--timeout=10s")
        result = client.attempt("up", *flags, "--accept-dns=false")

    assert result.returncode != 0
    assert re.search(r"key", result.stderr), result.stderr


def test_a_login_by_url(tailnet: Tailnet) -> None:
    with tailnet.host("visitor") as host, Tailscaled(host) as client:
        flags = (f"--login-server={tailnet.control.url}", f"--hostname={host.name}", "--accept-dns=false")
        with host.popen(*client.command_line("up", *flags), log="up") as up:
            url = wait_for(lambda: re.search(r"http://\S+/register/\S+", up.said()), "the client shows a login URL")[0]
            host.run(sys.executable, "-c", FETCH, url)

            assert up.process.wait(20) == 0, up.said()
        assert client.status()["BackendState"] == "Running"


def test_a_node_that_logs_out_is_gone(tailnet: Tailnet) -> None:
    with tailnet.tailscaled("stays") as stays, tailnet.tailscaled("goes") as goes:
        stays.wait_for_peer(goes.host.name)

        goes.command("logout")

        def is_gone_or_expired() -> bool:
            peer = stays.peer(goes.host.name)
            return peer is None or bool(peer.get("Expired"))

        wait_for(is_gone_or_expired, "the other client has heard of it")


def test_names_resolve_in_the_client(tailnet: Tailnet) -> None:
    with tailnet.tailscaled("asks") as asks, tailnet.tailscaled("named") as named:
        peer = asks.wait_for_peer(named.host.name)

        said = asks.command("dns", "query", peer["DNSName"])

        assert named.ip() in said


def test_the_labs_log_has_no_complaint(tailnet: Tailnet) -> None:
    """After all of the above. Whatever is not as the client expects, the lab would have said."""
    assert isinstance(tailnet.control, OwnLab)
    assert "Traceback" not in tailnet.control.said()
