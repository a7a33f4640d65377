"""The rig itself: its NATs and lines are what they say, and official clients meet on it. What fails here says nothing about tsns."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import socket
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.interop.rig import traffic
from tests.interop.rig.bad_line import Faults
from tests.interop.rig.internet import Host, Internet
from tests.interop.rig.router import Nat
from tests.interop.rig.tailnet import Tailnet
from tests.interop.rig.tailnet import tailnet as new_tailnet
from tests.machine import ours

pytestmark = pytest.mark.interop

PORT = 7001
COUNT_BYTES = 1 << 20
OWN_PORT = 5000  # of a UDP socket behind a NAT
PATIENCE_S = 1.0
SILENCE_S = 0.2  # after which nothing will come
ON_ALL_KINDS = pytest.mark.parametrize("home", Nat, indirect=True, ids=lambda kind: kind.value)
BEHIND_ROUTERS = pytest.mark.parametrize(
    "home", [kind for kind in Nat if kind is not Nat.NONE], indirect=True, ids=lambda kind: kind.value
)

Address = tuple[str, int]


# --- kinds of ways to the internet -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Home:
    """A host behind a router of some kind with a UDP socket, and two hosts out there with one each."""

    kind: Nat
    host: Host
    sock: socket.socket
    out_there: tuple[Host, Host]
    servers: tuple[socket.socket, socket.socket]

    def send(self, server: int = 0) -> Address:
        """Sends to a server out there; from where it comes."""
        address = self.servers[server].getsockname()
        self.sock.sendto(b"out", address)
        found = heard(self.servers[server])
        assert found, f"nothing arrived at {address}"
        return found

    def reached_by(self, server: int, address: Address) -> bool:
        """Whether what a server sends to this address comes in."""
        self.servers[server].sendto(b"in", address)
        return heard(self.sock, SILENCE_S) is not None


def heard(sock: socket.socket, timeout_s: float = PATIENCE_S) -> Address | None:
    """Who sent the next datagram; None when there is none in time."""
    sock.settimeout(timeout_s)
    try:
        source = sock.recvfrom(2048)[1]
    except TimeoutError:
        return None
    return str(source[0]), int(source[1])


@contextlib.contextmanager
def new_home(internet: Internet, kind: Nat) -> Iterator[Home]:
    with contextlib.ExitStack() as sockets:
        one, two, host = internet.host("one"), internet.host("two"), internet.host("inside", kind)
        servers = (sockets.enter_context(one.udp_socket(PORT)), sockets.enter_context(two.udp_socket(PORT)))
        yield Home(kind, host, sockets.enter_context(host.udp_socket(OWN_PORT)), (one, two), servers)


@pytest.fixture
def internet(tmp_path: Path) -> Iterator[Internet]:
    with Internet(tmp_path) as found:
        yield found


@pytest.fixture
def home(request: pytest.FixtureRequest, internet: Internet) -> Iterator[Home]:
    with new_home(internet, request.param) as found:
        yield found


@ON_ALL_KINDS
def test_a_kind_maps_addresses_and_ports_as_it_says(home: Home) -> None:
    first, second, again = home.send(0), home.send(1), home.send(0)

    assert {first[0], second[0]} == {home.host.public_address}
    assert (home.host.public_address != home.host.address) == home.kind.translates
    assert first == again
    if home.kind is Nat.HARD:
        assert len({first[1], second[1], OWN_PORT}) == 3
    else:
        assert {first[1], second[1]} == {OWN_PORT}


@ON_ALL_KINDS
def test_who_is_answered_and_who_comes_unasked(home: Home) -> None:
    seen = home.send(0)

    assert home.reached_by(0, seen)
    assert home.reached_by(1, seen) == (home.kind is Nat.NONE)


@BEHIND_ROUTERS
def test_an_early_probe_changes_nothing(home: Home) -> None:
    """Where a router takes what comes unasked for a flow of its own, the host's flow to that peer gets another port."""
    assert not home.reached_by(0, (home.host.public_address, OWN_PORT))

    assert (home.send(0)[1] == OWN_PORT) == (home.kind is not Nat.HARD)


@BEHIND_ROUTERS
def test_a_router_that_forgets(home: Home) -> None:
    before = home.send(0)
    with tcp_connection(home) as (inside, outside):
        assert home.host.router is not None
        home.host.router.rebind()

        assert not home.reached_by(0, before)
        after = home.send(0)
        assert home.reached_by(0, after)
        assert (after != before) == home.kind.translates
        assert (home.send(1) == after) == (home.kind is not Nat.HARD), "all destinations have one mapping still"
        inside.sendall(b"still there")
        assert outside.recv(100) == b"still there"


@pytest.mark.parametrize("home", [Nat.EASY, Nat.HARD], indirect=True, ids=lambda kind: kind.value)
def test_a_router_with_another_address(home: Home) -> None:
    before = home.send(0)
    assert home.host.router is not None
    home.host.router.renumber()

    after = home.send(0)
    assert after[0] == home.host.public_address != before[0]
    assert not home.reached_by(0, before)
    assert home.reached_by(0, after)


@ON_ALL_KINDS
def test_a_host_with_another_address(home: Home) -> None:
    before, public = home.host.address, home.host.public_address
    home.host.renumber()

    assert home.host.address != before
    assert (home.host.public_address == public) == home.kind.translates
    with home.host.udp_socket(OWN_PORT) as sock:
        moved = dataclasses.replace(home, sock=sock)
        seen = moved.send(0)
        assert seen[0] == home.host.public_address
        assert moved.reached_by(0, seen)


def test_two_homes_may_have_the_same_addresses_inside(internet: Internet) -> None:
    one, two = internet.host("one", Nat.EASY), internet.host("two", Nat.EASY)
    assert one.address == two.address
    assert one.public_address != two.public_address
    with one.udp_socket(OWN_PORT) as here, two.udp_socket(OWN_PORT) as there:
        for _ in range(2):  # the first one of the first only opens its own NAT
            here.sendto(b"punch", (two.public_address, OWN_PORT))
            there.sendto(b"punch", (one.public_address, OWN_PORT))

        assert heard(here) == (two.public_address, OWN_PORT)
        assert heard(there) == (one.public_address, OWN_PORT)


@pytest.mark.parametrize("kind", [Nat.NONE, Nat.FIREWALL], ids=lambda kind: kind.value)
def test_an_internet_of_ipv6(tmp_path: Path, kind: Nat) -> None:
    with Internet(tmp_path, version=6) as internet, new_home(internet, kind) as home:
        seen = home.send(0)

        assert seen == (home.host.address, OWN_PORT)
        assert home.reached_by(0, seen)
        assert home.reached_by(1, seen) == (kind is Nat.NONE)
        home.host.run("ping", "-c1", "-W2", home.servers[1].getsockname()[0])
        addresses = home.host.run("ip", "-4", "address", "show", "dev", "eth0").stdout
        assert not addresses, "there is IPv4, too"


@contextlib.contextmanager
def tcp_connection(home: Home) -> Iterator[tuple[socket.socket, socket.socket]]:
    """From the home to the first host out there: both its ends."""
    with home.host.tcp_socket() as inside, home.out_there[0].tcp_socket() as listener:
        listener.bind((home.out_there[0].address, PORT))
        listener.listen()
        inside.connect(listener.getsockname())
        outside, _ = listener.accept()
        with outside:
            inside.settimeout(PATIENCE_S)
            outside.settimeout(PATIENCE_S)
            yield inside, outside


def test_nothing_is_left_of_an_internet_in_which_something_failed(tmp_path: Path) -> None:
    before = ours()
    with contextlib.suppress(ZeroDivisionError), Internet(tmp_path) as internet:
        internet.host("inside", Nat.HARD)
        assert len(ours() - before) == 3, "bridge, router and host"
        _ = 1 / 0

    assert ours() == before


# --- bad lines -------------------------------------------------------------------------------------------------------

FAULTS = Faults(loss=0.2, delay_s=0.1, reorder=0.25, duplicate=0.1)
SENT = 400
FEW = 0.08  # how far from its share a fault may be in so many packets: three standard deviations


def test_a_line_without_udp_says_nothing_about_it(internet: Internet) -> None:
    with new_home(internet, Nat.NONE) as home:
        home.host.uplink.block_udp()
        address = home.servers[0].getsockname()
        home.sock.sendto(b"out", address)

        assert heard(home.servers[0], SILENCE_S) is None
        assert not home.reached_by(0, home.sock.getsockname())
        home.host.run("ping", "-c1", "-W2", address[0])
        home.host.uplink.unblock_udp()
        assert home.reached_by(0, home.send(0))


def test_a_host_without_udp_says_so(internet: Internet) -> None:
    with new_home(internet, Nat.NONE) as home:
        home.host.block_udp(home.out_there[0].address)

        assert home.reached_by(0, home.send(0))
        with pytest.raises(PermissionError):
            home.sock.sendto(b"out", home.servers[1].getsockname())
        assert not home.reached_by(1, home.sock.getsockname())


@pytest.mark.parametrize("version", [4, 6])
def test_a_bad_line_has_all_its_faults_both_ways_and_is_repaired(tmp_path: Path, version: int) -> None:
    with Internet(tmp_path, version) as internet, new_home(internet, Nat.NONE) as home:
        ends = home.sock.getsockname(), home.servers[0].getsockname()
        with home.host.uplink.bad(FAULTS):
            assert_bad(sent_and_heard(home.sock, home.servers[0], ends[1]))
            assert_bad(sent_and_heard(home.servers[0], home.sock, ends[0]))

        assert [number for number, _ in sent_and_heard(home.sock, home.servers[0], ends[1])] == list(range(SENT))


def sent_and_heard(sender: socket.socket, hearer: socket.socket, address: Address) -> list[tuple[int, float]]:
    """The numbers of what arrived, each with how long it was under way."""
    hearer.settimeout(FAULTS.delay_s + SILENCE_S)
    arrived: list[tuple[int, float]] = []
    left: list[float] = []

    def hear() -> None:
        with contextlib.suppress(TimeoutError):
            while True:
                number = int(hearer.recv(100))
                arrived.append((number, time.monotonic() - left[number]))

    thread = threading.Thread(target=hear)
    thread.start()
    for number in range(SENT):
        left.append(time.monotonic())
        sender.sendto(b"%d" % number, address)
        time.sleep(0.001)
    thread.join()
    return arrived


def assert_bad(arrived: list[tuple[int, float]]) -> None:
    numbers = [number for number, _ in arrived]
    quick = sum(took < FAULTS.delay_s for _, took in arrived)
    assert abs(len(set(numbers)) / SENT - (1 - FAULTS.loss)) < FEW
    assert abs(len(numbers) / len(set(numbers)) - 1 - FAULTS.duplicate) < FEW
    assert abs(quick / len(numbers) - FAULTS.reorder) < FEW
    assert any(later < earlier for earlier, later in itertools.pairwise(numbers))


def test_a_slow_line_carries_trains_of_segments_whole(internet: Internet) -> None:
    """Segmentation and checksums are left to the device on both hosts, so what passes is not what is on a wire."""
    with new_home(internet, Nat.EASY) as home, home.host.uplink.bad(Faults(delay_s=0.002)):
        address = home.out_there[0].address
        serve = (sys.executable, traffic.__file__, "serve", address, str(PORT))
        with home.out_there[0].popen(*serve, log="serve") as server:
            server.wait_until_said("ready")
            sent = home.host.run(sys.executable, traffic.__file__, "send", address, str(PORT), str(COUNT_BYTES))
        assert sent.stdout.strip() == "same"


# --- official clients ------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("kind", [Nat.EASY, Nat.HARD], ids=lambda kind: kind.value)
def test_official_clients_reach_each_other_through_two_nats(tailnet: Tailnet, kind: Nat) -> None:
    with (
        tailnet.tailscaled("one", only_relays=False, behind=kind) as one,
        tailnet.tailscaled("two", only_relays=False, behind=kind) as two,
    ):
        one.wait_for_peer(two.host.name)

        found = one.attempt("ping", "--c=5", "--until-direct", two.ip()).stdout

        assert (f"via {two.host.public_address}:" in found) == (kind is Nat.EASY), found
        assert "via DERP" in found or kind is Nat.EASY


def test_official_clients_reach_each_other_by_ipv6_alone(tmp_path: Path) -> None:
    with (
        new_tailnet("testcontrol", tmp_path, version=6, regions=2) as tailnet,
        tailnet.tailscaled("one", only_relays=False) as one,
        tailnet.tailscaled("two", only_relays=False, behind=Nat.FIREWALL) as two,
    ):
        one.wait_for_peer(two.host.name)

        found = one.command("ping", "--c=10", "--until-direct", two.ip())

        assert f"via [{two.host.address}]:" in found
        netcheck = json.loads(one.command("netcheck", "--format=json"))
        assert set(netcheck["RegionV6Latency"]) == {str(relay.region) for relay in tailnet.relays}
