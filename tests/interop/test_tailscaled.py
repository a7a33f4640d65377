"""tsns and the official client on one tailnet, by the relay: each reaches the other, whoever was there first."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.interop.rig import traffic
from tests.interop.rig.control import DOMAIN
from tests.interop.rig.internet import wait_for
from tests.interop.rig.tailnet import Tailnet
from tests.interop.rig.tailscaled import Tailscaled
from tests.interop.rig.tsns import Tsns, tsns_on

pytestmark = pytest.mark.interop

NODE = "web"
PORT = 7001
COUNT_BYTES = 1 << 20
PINGS = ("ping", "-c20", "-i0.2")
KNOWN_LATEST_S = 1.0  # the slowest of the first 20 packets to a peer that has us in its netmap
UNKNOWN_LATEST_S = 2.0  # to or from a peer that is only just told of us
VERSIONS = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


@dataclass(frozen=True)
class Meeting:
    """Both clients, up and known to each other."""

    tailnet: Tailnet
    old: Tailscaled
    tsns: Tsns

    @property
    def login(self) -> tuple[str, ...]:
        """The flags that lead a node to this tailnet."""
        return _login(self.tailnet)


def _login(tailnet: Tailnet) -> tuple[str, ...]:
    return ("--login-server", tailnet.control.url, "--auth-key", tailnet.control.auth_key())


@pytest.fixture(scope="module")
def old(tailnet: Tailnet) -> Iterator[Tailscaled]:
    """The official client, on the tailnet before any node of tsns."""
    with tailnet.tailscaled("old") as client:
        yield client


@pytest.fixture
def tsns(tailnet: Tailnet) -> Iterator[Tsns]:
    """tsns on a host of its own, without any node yet."""
    with tailnet.host("new") as host, tsns_on(host) as program:
        yield program


@pytest.fixture(scope="module")
def meeting(tailnet: Tailnet, old: Tailscaled) -> Iterator[Meeting]:
    """A lasting node beside the official client."""
    with tailnet.host("met") as host, tsns_on(host) as program:
        program.run("up", NODE, *_login(tailnet), "--hostname", "met")
        old.wait_for_peer("met")
        yield Meeting(tailnet, old, program)


def serve(address: str) -> tuple[str, ...]:
    return (sys.executable, traffic.__file__, "serve", address, str(PORT))


def send(address: str) -> tuple[str, ...]:
    return (sys.executable, traffic.__file__, "send", address, str(PORT), str(COUNT_BYTES))


# --- one command -----------------------------------------------------------------------------------------------------


@VERSIONS
def test_a_command_pings_an_old_node_without_loss(tailnet: Tailnet, old: Tailscaled, tsns: Tsns, version: int) -> None:
    result = tsns.run("run", *_login(tailnet), "--", "ping", "-c3", old.ip(version))

    assert "3 received, 0% packet loss" in result.stdout


def test_it_works_where_ip_netns_exec_has_made_mounts_of_its_own(tailnet: Tailnet, old: Tailscaled, tsns: Tsns) -> None:
    command = tsns.command("run", *_login(tailnet), "--", "ping", "-c3", old.ip())
    result = tsns.host.run("ip", "netns", "exec", tsns.host.namespace, *command, environment=tsns.environment)

    assert "3 received, 0% packet loss" in result.stdout


def test_the_node_of_a_command_ends_with_it(tailnet: Tailnet, tsns: Tsns) -> None:
    result = tsns.run("run", *_login(tailnet), "--hostname", "brief", "--", "sh", "-c", "exit 7", check=False)

    assert result.returncode == 7, result.stderr
    wait_for(lambda: not tsns.node_names(), "the node is gone")


def test_names_of_the_tailnet_resolve(tailnet: Tailnet, old: Tailscaled, tsns: Tsns) -> None:
    name = f"{old.host.name}.{DOMAIN}"
    result = tsns.run("run", *_login(tailnet), "--", "getent", "ahosts", name)

    assert set(result.stdout.split()) >= {old.ip(4), old.ip(6)}


# --- a lasting node --------------------------------------------------------------------------------------------------


@VERSIONS
def test_ping_from_tsns(meeting: Meeting, version: int) -> None:
    result = meeting.tsns.inside(NODE, "ping", "-c5", "-i0.2", meeting.old.ip(version))

    assert traffic.pings(result).received == 5
    assert meeting.tsns.path_kind(NODE, meeting.old.host.name) == "derp"


@VERSIONS
def test_ping_to_tsns(meeting: Meeting, version: int) -> None:
    result = meeting.old.host.run("ping", "-c5", "-i0.2", meeting.tsns.ip(NODE, version))

    assert traffic.pings(result).received == 5
    assert meeting.old.wait_for_peer("met")["Relay"] == meeting.tailnet.region_code


@VERSIONS
def test_tcp_from_tsns(meeting: Meeting, version: int) -> None:
    address = meeting.old.ip(version)
    with meeting.old.host.popen(*serve(address), log="serve") as server:
        server.wait_until_said("ready")

        assert meeting.tsns.inside(NODE, *send(address)).stdout.strip() == "same"


@VERSIONS
def test_tcp_to_tsns(meeting: Meeting, version: int) -> None:
    address = meeting.tsns.ip(NODE, version)
    with meeting.tsns.start_inside(NODE, *serve(address), log="serve") as server:
        server.wait_until_said("ready")

        assert meeting.old.host.run(*send(address)).stdout.strip() == "same"


def test_official_ping_through_the_tunnel(meeting: Meeting) -> None:
    """`tailscale ping --tsmp` asks the peer's tunnel, not its host."""
    said = meeting.old.command("ping", "--tsmp", "--c=1", "--timeout=10s", meeting.tsns.ip(NODE))

    assert said.startswith("pong from met"), said


def test_own_ping_through_the_tunnel(meeting: Meeting) -> None:
    printed = meeting.tsns.run("ping", NODE, meeting.old.host.name, "--json").stdout
    answers = [json.loads(line) for line in printed.splitlines()]

    assert answers
    assert all(answer["ok"] and answer["path"]["kind"] == "derp" for answer in answers)


def test_status_knows_both_ends(meeting: Meeting) -> None:
    status = meeting.tsns.answer("status", NODE)

    assert status["state"] == "running"
    assert status["self"]["addresses"] == [meeting.tsns.ip(NODE, 4), meeting.tsns.ip(NODE, 6)]
    peer = next(peer for peer in status["peers"] if peer["name"] == meeting.old.host.name)
    assert set(peer["addresses"]) == {meeting.old.ip(4), meeting.old.ip(6)}


# --- the first packets -----------------------------------------------------------------------------------------------


def test_first_packets_to_an_old_node(tailnet: Tailnet, old: Tailscaled, tsns: Tsns) -> None:
    """The old node may still be without us in its netmap when they are sent."""
    counted = traffic.pings(tsns.run("run", *_login(tailnet), "--", *PINGS, old.ip(), check=False))

    assert (counted.sent, counted.received) == (20, 20)
    assert counted.slowest_s < UNKNOWN_LATEST_S


def test_first_packets_to_a_node_that_knows_us(tailnet: Tailnet, old: Tailscaled, tsns: Tsns) -> None:
    tsns.run("up", NODE, *_login(tailnet), "--hostname", "known")
    old.wait_for_peer("known")

    counted = traffic.pings(tsns.inside(NODE, *PINGS, old.ip(), check=False))

    assert (counted.sent, counted.received) == (20, 20)
    assert counted.slowest_s < KNOWN_LATEST_S


def test_first_packets_from_an_old_node(tailnet: Tailnet, old: Tailscaled, tsns: Tsns) -> None:
    tsns.run("up", NODE, *_login(tailnet), "--hostname", "unknown")
    old.wait_for_peer("unknown")

    counted = traffic.pings(old.host.run(*PINGS, tsns.ip(NODE), check=False))

    assert (counted.sent, counted.received) == (20, 20)
    assert counted.slowest_s < UNKNOWN_LATEST_S


# --- what a person did wrong -----------------------------------------------------------------------------------------


def assert_one_error(stderr: str, *texts: str) -> None:
    errors = re.findall(r"^error: (.+)$", stderr, re.MULTILINE)
    assert len(errors) == 1, stderr
    assert len(re.findall(r"^hint: .+$", stderr, re.MULTILINE)) == 1, stderr
    assert "Traceback" not in stderr
    for text in texts:
        assert text in errors[0]


@pytest.mark.parametrize(("command", "status"), [(["run"], 125), (["up", NODE], 1)], ids=["run", "up"])
def test_a_wrong_auth_key(tailnet: Tailnet, tsns: Tsns, command: list[str], status: int) -> None:
    child = ["--", "true"] if command[0] == "run" else []
    flags = ["--login-server", tailnet.control.url, "--auth-key", "tskey-auth-wrong"]
    result = tsns.run(*command, *flags, *child, check=False)

    assert result.returncode == status, result.stderr
    assert_one_error(result.stderr)
    assert "tskey-auth-wrong" not in result.stderr + tsns.logs()
    wait_for(lambda: not tsns.node_names(), "nothing was left running")


def test_an_unreachable_server(tsns: Tsns) -> None:
    nobody = f"http://{tsns.host.address}:9"
    flags = ["--login-server", nobody, "--auth-key", "x", "--timeout", "3"]
    result = tsns.run("run", *flags, "--", "true", check=False)

    assert result.returncode == 125, result.stderr
    assert_one_error(result.stderr)
    assert tsns.host.address in result.stderr


def test_a_server_that_is_no_control_server(tailnet: Tailnet, tsns: Tsns) -> None:
    """A web server answers, but not as a control server does."""
    with tsns.host.popen(sys.executable, "-u", "-m", "http.server", "8000", log="web") as web:
        web.wait_until_said("Serving HTTP")
        flags = ["--login-server", f"http://{tsns.host.address}:8000", "--auth-key", "x", "--timeout", "3"]
        result = tsns.run("run", *flags, "--", "true", check=False)
        assert web.process.poll() is None

    assert result.returncode == 125, result.stderr
    assert_one_error(result.stderr)
