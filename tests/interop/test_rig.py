"""The rig itself: official clients meet on it, by the relay alone. What fails here says nothing about tsns."""

from __future__ import annotations

import sys

import pytest

from tests.interop.rig import traffic
from tests.interop.rig.tailnet import Tailnet

pytestmark = pytest.mark.interop

PORT = 7001
COUNT_BYTES = 1 << 20


@pytest.mark.parametrize("version", [4, 6])
def test_official_clients_reach_each_other_by_the_relay(tailnet: Tailnet, version: int) -> None:
    with tailnet.tailscaled("one") as one, tailnet.tailscaled("two") as two:
        one.wait_for_peer(two.host.name)
        two.wait_for_peer(one.host.name)

        result = traffic.pings(one.host.run("ping", "-c5", "-i0.2", two.ip(version)))

        assert (result.sent, result.received) == (5, 5)
        peer = one.wait_for_peer(two.host.name)
        assert peer["CurAddr"] == "", "they found a direct path although UDP is blocked"
        assert peer["Relay"] == tailnet.region_code
        with two.host.popen(
            sys.executable, traffic.__file__, "serve", two.ip(version), str(PORT), log="serve"
        ) as server:
            server.wait_until_said("ready")
            sent = one.host.run(sys.executable, traffic.__file__, "send", two.ip(version), str(PORT), str(COUNT_BYTES))
        assert sent.stdout.strip() == "same"


def test_official_clients_reach_each_other_directly_where_they_may(tailnet: Tailnet) -> None:
    """So the blocked UDP, and nothing else, is why the other tests go by the relay."""
    with tailnet.tailscaled("one", only_relays=False) as one, tailnet.tailscaled("two", only_relays=False) as two:
        one.wait_for_peer(two.host.name)

        one.command("ping", "--c=10", "--until-direct", two.host.name)

        assert one.wait_for_peer(two.host.name)["CurAddr"].startswith(two.host.address)
