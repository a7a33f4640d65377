"""A large tailnet in motion. How fast it all is, scripts/bench tells."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.interop.rig import traffic
from tests.interop.rig.control import UpstreamControl
from tests.interop.rig.internet import wait_for
from tests.interop.rig.tailnet import tailnet as new_tailnet
from tests.interop.rig.tsns import Tsns, tsns_on

pytestmark = pytest.mark.interop

NODE = "large"
FAKES = 1000
RATE = 1000  # changes a second
SECONDS = 3
CHANGES = RATE * SECONDS
ROUNDS = CHANGES // FAKES  # each fake goes off line in the first, comes back in the second, and so on
PING_S = 0.02


def test_a_thousand_changes_a_second_lose_no_ping(tmp_path: Path) -> None:
    with new_tailnet("testcontrol", tmp_path) as tailnet:
        control = tailnet.control
        assert isinstance(control, UpstreamControl)
        control.tell(f"fake {FAKES}")
        with tailnet.tailscaled("peer") as peer, tailnet.host("new") as host, tsns_on(host) as tsns:
            tsns.run("up", NODE, "--login-server", control.url, "--auth-key", control.auth_key(), "--hostname", "new")
            tsns.inside(NODE, "ping", "-c1", "-w10", peer.ip())
            assert sum(_online(tsns)) == FAKES

            storm = threading.Thread(target=control.tell, args=(f"storm new {CHANGES} {RATE}",))
            storm.start()
            count = int(SECONDS / PING_S)
            result = traffic.pings(tsns.inside(NODE, "ping", "-q", f"-i{PING_S}", f"-c{count}", peer.ip()))
            storm.join()

            assert (result.sent, result.received) == (count, count)
            wait_for(lambda: sum(_online(tsns)) == (0 if ROUNDS % 2 else FAKES), "all changes have arrived")


def _online(tsns: Tsns) -> list[bool]:
    """Of each peer that nobody runs, whether the node believes it to be there."""
    peers = tsns.answer("status", NODE)["peers"]
    return [bool(peer["online"]) for peer in peers if peer["name"].startswith("fake")]
