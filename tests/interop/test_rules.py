"""The tailnet's rules between tsns and the official client: what they allow passes, and what they refuse is refused, and how it is told."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

import pytest

from tests.interop.rig.control import UpstreamControl
from tests.interop.rig.internet import Host, wait_for
from tests.interop.rig.tailnet import Tailnet
from tests.interop.rig.tailnet import tailnet as new_tailnet
from tests.interop.rig.tailscaled import Tailscaled
from tests.interop.rig.tsns import Tsns, tsns_on

pytestmark = pytest.mark.interop

NODE: Final = "ruled"
OPEN_PORT: Final = 7001
SHUT_PORT: Final = 7002
PATIENCE_S: Final = 3.0
AT_ONCE_S: Final = 1.0
SERVER: Final = f"""
import socket, threading
def serve(port):
    with socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True) as server:
        while True: server.accept()[0].close()
for port in ({OPEN_PORT}, {SHUT_PORT}): threading.Thread(target=serve, args=(port,)).start()
print("serves", flush=True)
"""
CLIENT: Final = f"""
import json, socket, sys, time
began = time.monotonic()
try:
    socket.create_connection((sys.argv[1], int(sys.argv[2])), {PATIENCE_S}).close()
    outcome = "connected"
except OSError as error: outcome = type(error).__name__
print(json.dumps([outcome, time.monotonic() - began]))
"""


@dataclass(frozen=True)
class Meeting:
    """Both clients with a server on each, and the control server that makes the rules."""

    control: UpstreamControl
    old: Tailscaled
    tsns: Tsns

    def rule(self, node: Host, source: str, destination: str) -> None:
        """One node's only rule: this source may open connections to one port of this destination."""
        ports = {"First": OPEN_PORT, "Last": OPEN_PORT}
        rules = [{"SrcIPs": [source], "DstPorts": [{"IP": destination, "Ports": ports}], "IPProto": [6]}]
        self.control.tell(f"rules {node.name} {json.dumps(rules, separators=(',', ':'))}")

    def from_tsns(self, address: str, port: int) -> Any:
        """What becomes of a connection, and after how many seconds."""
        return json.loads(self.tsns.inside(NODE, sys.executable, "-c", CLIENT, address, str(port)).stdout)

    def from_old(self, address: str, port: int) -> Any:
        """The same the other way."""
        return json.loads(self.old.host.run(sys.executable, "-c", CLIENT, address, str(port)).stdout)


@pytest.fixture(scope="module")
def tailnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tailnet]:
    """A tailnet on the one server that makes rules for a single node."""
    with new_tailnet("testcontrol", tmp_path_factory.mktemp("rules")) as found:
        yield found


@pytest.fixture(scope="module")
def meeting(tailnet: Tailnet) -> Iterator[Meeting]:
    """Nothing is forbidden yet."""
    assert isinstance(tailnet.control, UpstreamControl)
    with tailnet.tailscaled("old") as old, tailnet.host("new") as host, tsns_on(host) as program:
        login = ("--login-server", tailnet.control.url, "--auth-key", tailnet.control.auth_key())
        program.run("up", NODE, *login, "--hostname", host.name)
        old.wait_for_peer(host.name)
        serve = (sys.executable, "-c", SERVER)
        with old.host.popen(*serve, log="serve") as theirs, program.start_inside(NODE, *serve, log="serve") as ours:
            theirs.wait_until_said("serves")
            ours.wait_until_said("serves")
            yield Meeting(tailnet.control, old, program)


def test_acls_of_the_tailnet_hold_with_tailscaled(meeting: Meeting) -> None:
    """What tailscaled refuses fails at once inside; what we refuse tailscaled writes to its log, and its program waits."""
    ours, theirs = meeting.tsns.ip(NODE), meeting.old.ip()
    for port in (OPEN_PORT, SHUT_PORT):
        assert meeting.from_tsns(theirs, port)[0] == "connected"
        assert meeting.from_old(ours, port)[0] == "connected"

    meeting.rule(meeting.old.host, ours, theirs)
    wait_for(lambda: meeting.from_tsns(theirs, SHUT_PORT)[0] != "connected", "the rules have come to tailscaled")
    outcome, seconds = meeting.from_tsns(theirs, SHUT_PORT)
    assert outcome == "ConnectionRefusedError"
    assert seconds < AT_ONCE_S
    assert meeting.from_tsns(theirs, OPEN_PORT)[0] == "connected"
    drops = meeting.tsns.status(NODE)["drops"]
    assert drops["TCP connection refused by the peer: its rules"] >= 1

    meeting.rule(meeting.tsns.host, theirs, ours)
    wait_for(lambda: meeting.from_old(ours, SHUT_PORT)[0] != "connected", "the rules have come to tsns")
    outcome, _ = meeting.from_old(ours, SHUT_PORT)
    assert outcome == "TimeoutError"
    assert "rejected due to" in meeting.old.said()
    assert meeting.from_old(ours, OPEN_PORT)[0] == "connected"
    assert meeting.tsns.status(NODE)["drops"]["refused from the tunnel: no rule allows this TCP connection"] >= 2


def test_tailscaled_tells_nothing_of_ipv6(meeting: Meeting) -> None:
    ours, theirs = meeting.tsns.ip(NODE, 6), meeting.old.ip(6)
    meeting.rule(meeting.old.host, ours, theirs)
    wait_for(lambda: meeting.from_tsns(theirs, SHUT_PORT)[0] == "TimeoutError", "the rules have come to tailscaled")
    wait_for(lambda: meeting.from_tsns(theirs, OPEN_PORT)[0] == "connected", "and let this port alone")
