"""The packet filter from outside: what a peer can reach before the first rules, without access, when jailed, when expired."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from typing import Final

import msgspec
import pytest

from tests.machine import patiently
from tests.netns.nodes import Tsns
from tests.netns.steered_lab import SteeredLab
from tsns.lab.tailnet import LabNode, allow_all
from tsns.proto.types import CapGrant, FilterRule, MapResponse, NetPortRange, PortRange

pytestmark = pytest.mark.netns

PORT: Final = 7
OTHER_PORT: Final = 9
SERVER: Final = f"""
import selectors, socket
waiting = selectors.DefaultSelector()
for port in ({PORT}, {OTHER_PORT}):
    waiting.register(socket.create_server(("::", port), family=socket.AF_INET6, dualstack_ipv6=True), selectors.EVENT_READ)
print("serves", flush=True)
while True:
    for key, _ in waiting.select():
        connection, _ = key.fileobj.accept()
        connection.sendall(b"hello"); connection.close()
"""
REACH: Final = """
import socket, sys
reached = []
for word in sys.argv[1:]:
    host, _, port = word.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 0.4) as connection: reached.append(word if connection.recv(5) == b"hello" else "?")
    except OSError: pass
print(" ".join(reached))
"""


def reached(tsns: Tsns, source: str, *targets: str) -> list[str]:
    """Which of these ("host:port") the node `source` can reach."""
    done = tsns("exec", source, "--", sys.executable, "-c", REACH, *targets)
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


def becomes(tsns: Tsns, source: str, wanted: Sequence[str], *targets: str) -> bool:
    """Whether just these can be reached, soon and then still."""
    patiently(lambda: [] if reached(tsns, source, *targets) == list(wanted) else ["not yet"])
    return reached(tsns, source, *targets) == list(wanted)


def rule(source: str, target: str, port: int) -> FilterRule:
    """One may reach one port of one."""
    return FilterRule(src_ips=[source], dst_ports=[NetPortRange(ip=target, ports=PortRange(first=port, last=port))])


def address(tsns: Tsns, name: str) -> str:
    """The IPv4 address of a node."""
    return str(tsns.json("ip", name)["addresses"][0])


def configure(steered: SteeredLab, rules: Sequence[FilterRule]) -> None:
    """Give the tailnet these rules."""
    steered.do(lambda lab: lab.tailnet.configure(rules=rules))


def test_nothing_is_let_in_before_the_first_rules(steered_tsns: Tsns, steered: SteeredLab) -> None:
    """A netmap with peers, addresses and all, only without rules: the peers' packets arrive and go no further."""
    tsns = steered_tsns

    def without_rules(node: LabNode, message: MapResponse, first: bool) -> MapResponse | bytes:
        if node.name != "web":
            return message
        return msgspec.structs.replace(message, packet_filter=None, packet_filters=None)

    steered.do(lambda lab: setattr(lab.control.faults, "rewrite", without_rules))
    tsns.up("web")
    tsns.up("app")
    with tsns.serving("web", SERVER), tsns.serving("app", SERVER):
        assert reached(tsns, "app", f"web:{PORT}", f"web:{OTHER_PORT}") == []
        assert reached(tsns, "web", f"app:{PORT}") == [f"app:{PORT}"]  # outwards, and back in the same flow
        assert tsns.json("status", "web")["drops"] != {}
        steered.do(lambda lab: setattr(lab.control.faults, "rewrite", None))
        configure(steered, [*allow_all(), rule("100.64.0.1", "100.64.0.2", 1)])
        assert becomes(tsns, "app", [f"web:{PORT}"], f"web:{PORT}")


def test_an_engine_that_starts_anew_lets_nothing_in_before_its_netmap(steered_tsns: Tsns, steered: SteeredLab) -> None:
    """The TUN and the addresses are still there from the engine before, and so is the server that would answer."""
    tsns = steered_tsns
    tsns.up("web")
    tsns.up("app")
    web = address(tsns, "web")

    def nothing(node: LabNode, message: MapResponse, first: bool) -> MapResponse | bytes:
        return MapResponse(keep_alive=True) if node.name == "web" else message

    with tsns.serving("web", SERVER):
        assert reached(tsns, "app", f"{web}:{PORT}") == [f"{web}:{PORT}"]
        tsns("down", "web")
        (tsns.directories.state / "web" / "netmap.cache").unlink(missing_ok=True)
        steered.do(lambda lab: setattr(lab.control.faults, "rewrite", nothing))
        with tsns.popen("run", "--name", "web", *tsns.lab.login, "--", "true") as starting:
            time.sleep(1.5)
            assert reached(tsns, "app", f"{web}:{PORT}") == []
            assert starting.poll() is None  # it is not ready, and says nothing else
            steered.do(lambda lab: setattr(lab.control.faults, "rewrite", None))
            starting.terminate()
            starting.communicate(timeout=20)


def test_rules_without_access_let_nothing_in(steered_tsns: Tsns, steered: SteeredLab) -> None:
    tsns = steered_tsns
    tsns.up("web")
    tsns.up("app")
    web, app = address(tsns, "web"), address(tsns, "app")
    both = (f"{web}:{PORT}", f"{web}:{OTHER_PORT}")
    with tsns.serving("web", SERVER), tsns.serving("app", SERVER):
        assert reached(tsns, "app", *both) == list(both)
        configure(steered, [])
        assert becomes(tsns, "app", [], *both)
        configure(steered, [rule(app, web, PORT)])
        assert becomes(tsns, "app", [f"{web}:{PORT}"], *both)
        assert reached(tsns, "web", f"{app}:{PORT}") == []  # only one way
        configure(steered, [rule("100.64.99.99", web, PORT)])
        assert becomes(tsns, "app", [], *both)
        assert tsns("exec", "app", "--", "ping", "-c1", "-W1", web).returncode != 0


def test_a_refused_connection_fails_at_once_and_is_counted_at_both_ends(
    steered_tsns: Tsns, steered: SteeredLab
) -> None:
    """By the refusal that the other end's engine sends, not by waiting for an answer that never comes."""
    tsns = steered_tsns
    tsns.up("web")
    tsns.up("app")
    web, app = address(tsns, "web"), address(tsns, "app")
    with tsns.serving("web", SERVER):
        configure(steered, [rule(app, web, PORT)])
        assert becomes(tsns, "app", [f"{web}:{PORT}"], f"{web}:{PORT}", f"{web}:{OTHER_PORT}")
        script = f"import socket; socket.create_connection(('{web}', {OTHER_PORT}), 10)"
        began = time.monotonic()
        done = tsns("exec", "app", "--", sys.executable, "-c", script)
    assert "ConnectionRefusedError" in done.stderr
    assert time.monotonic() - began < 5
    assert tsns.json("status", "app")["drops"]["TCP connection refused by the peer: its rules"] >= 1
    assert tsns.json("status", "web")["drops"]["refused from the tunnel: no rule allows this TCP connection"] >= 1
    assert "no rule allows this TCP connection" in tsns("status", "web", "-v").stdout


def test_whois_tells_who_it_is_and_what_they_may_do_here(steered_tsns: Tsns, steered: SteeredLab) -> None:
    tsns = steered_tsns
    tsns.up("web")
    tsns.up("app")
    web, app = address(tsns, "web"), address(tsns, "app")
    grant = CapGrant(dsts=[f"{web}/32"], cap_map={"example.com/cap/pages": msgspec.Raw(b'[{"edit":true}]')})
    configure(steered, [*allow_all(), FilterRule(src_ips=[app], cap_grant=[grant])])

    def known() -> bool:
        return bool(tsns.json("whois", "web", f"{app}:4711")["capabilities"])

    patiently(lambda: [] if known() else ["not yet"])
    found = tsns.json("whois", "web", "app")
    assert (found["name"], found["capabilities"]) == ("app", {"example.com/cap/pages": [{"edit": True}]})
    assert "example.com/cap/pages" in tsns("whois", "web", app).stdout
    assert tsns.json("whois", "app", web)["capabilities"] == {}
    nobody = tsns("whois", "web", "100.64.99.99")
    assert nobody.returncode == 1
    assert "nobody on the tailnet" in nobody.stderr


def test_a_node_with_its_shields_up_lets_nobody_in(steered_tsns: Tsns) -> None:
    tsns = steered_tsns
    tsns.up("web", "--shields-up")
    tsns.up("app")
    with tsns.serving("web", SERVER), tsns.serving("app", SERVER):
        assert reached(tsns, "app", f"web:{PORT}") == []
        assert reached(tsns, "web", f"app:{PORT}") == [f"app:{PORT}"]


def test_a_jailed_peer_is_answered_and_lets_itself_in_nowhere(steered_tsns: Tsns, steered: SteeredLab) -> None:
    tsns = steered_tsns
    tsns.up("web")
    tsns.up("app")
    web = f"{address(tsns, 'web')}:{PORT}"
    with tsns.serving("web", SERVER), tsns.serving("app", SERVER):
        assert reached(tsns, "app", web) == [web]
        steered.do(lambda lab: lab.tailnet.change(lab.tailnet.find("app"), wire={"is_jailed": True}))
        assert becomes(tsns, "app", [], web)
        assert reached(tsns, "web", f"app:{PORT}") == [f"app:{PORT}"]
        steered.do(lambda lab: lab.tailnet.change(lab.tailnet.find("app"), wire={}))
        assert becomes(tsns, "app", [web], web)


def test_an_expired_peer_is_talked_to_no_more(steered_tsns: Tsns, steered: SteeredLab) -> None:
    """Also in flows that it had: its session goes with its key."""
    tsns = steered_tsns
    tsns.up("web")
    tsns.up("app")
    app, web = f"{address(tsns, 'app')}:{PORT}", f"{address(tsns, 'web')}:{PORT}"
    with tsns.serving("web", SERVER), tsns.serving("app", SERVER):
        assert reached(tsns, "app", web) == [web]
        # Only in the eyes of web: app itself would log in again.
        steered.do(lambda lab: lab.control.send("web", expired_message(lab.tailnet.find("app").id)))
        assert becomes(tsns, "app", [], web)
        assert reached(tsns, "web", app) == []
        [peer] = tsns.json("status", "web")["peers"]
        assert peer["expired"]


def expired_message(node: int) -> bytes:
    """A change of one peer: its key is no longer good."""
    return b'{"PeersChangedPatch":[{"NodeID":%d,"KeyExpiry":"2020-01-01T00:00:00Z"}]}' % node
