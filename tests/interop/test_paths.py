"""Direct paths between tsns and tsns, and between tsns and the official client, on a rig of NATs and bad lines.

Where both ends only have to find each other, clients are shared by all tests: two of each make behind each kind of NAT. Where a test
does something to a host, to its router or to its line, it has clients of its own.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import pytest

from tests.interop.rig import traffic
from tests.interop.rig.bad_line import Faults
from tests.interop.rig.clients import NODE, TAILSCALED, TSNS, Client, OurClient, introduce, new_client
from tests.interop.rig.internet import Daemon, Host, wait_for
from tests.interop.rig.pinger import Pinger
from tests.interop.rig.router import Nat
from tests.interop.rig.tailnet import Tailnet
from tests.interop.rig.tailnet import tailnet as new_tailnet

pytestmark = pytest.mark.interop

PORT = 7001
PING_S = 0.05
FIRST_PONG_S = 6.0  # the official client sends its first message again after 5 s when the other one was not ready
DIRECT_S = 10.0  # from the first packet between two that know each other
SWITCH_S = 1.0  # the longest silence while packets change from the relay to a direct path
RELAYED_FOR_S = 4.0  # of traffic, after which a pair that has to be relayed still is
FIRST_BYTE_S = 5.0
# The official client goes on sending to an address for up to 6.5 s after its last answer, whatever the other end does.
TO_RELAY_S = {TSNS: 6.0, TAILSCALED: 7.0}  # R4, by the peer's make
GAP_S = {TSNS: 5.0, TAILSCALED: 7.0}  # R5, by the peer's make
BACK_S = 30.0  # R4
WATCHED_S = 8.0  # after a change of addresses
LOOK_S = 0.5
OTHER_REGION_S = 10.0  # R3
FAR_S = 0.03  # how far the other region is, so that nobody has it as home
BAD_S = 15.0  # R6, which asks for ten minutes
BAD_LINE = Faults(loss=0.3, delay_s=0.05, reorder=0.25, duplicate=0.05)
BAD_SILENCE_S = 2.0
BAD_SHARE = 0.4  # of pings answered, where 0.49 or a little more would be if only the line lost them

DIRECT_PAIRS = [
    (Nat.NONE, Nat.NONE),
    (Nat.NONE, Nat.EASY),
    (Nat.NONE, Nat.HARD),
    (Nat.NONE, Nat.FIREWALL),
    (Nat.EASY, Nat.EASY),
    (Nat.EASY, Nat.FIREWALL),
    (Nat.FIREWALL, Nat.FIREWALL),
]
ROLES = [(TSNS, TSNS), (TSNS, TAILSCALED), (TAILSCALED, TSNS)]  # who sends first, and to whom
PEERS = [TSNS, TAILSCALED]  # of a node of tsns

in_all_roles = pytest.mark.parametrize("roles", ROLES, ids=" to ".join)
with_each_peer = pytest.mark.parametrize("make", PEERS)


@dataclass
class Crowd:
    """Clients that live as long as the module's tests, each made when it is first asked for."""

    tailnet: Tailnet
    stack: contextlib.ExitStack
    clients: dict[tuple[str, Nat, int], Client] = field(default_factory=dict)

    def pair(self, roles: tuple[str, str], kinds: tuple[Nat, Nat]) -> tuple[Client, Client]:
        """Two clients that know each other, and that no other test has as a pair."""
        second = 0 if roles == (TSNS, TAILSCALED) else 1
        pair = self.client(roles[0], kinds[0]), self.client(roles[1], kinds[1], second)
        introduce(*pair)
        return pair

    def client(self, make: str, kind: Nat = Nat.NONE, number: int = 0) -> Client:
        """One of the clients of this make behind this kind."""
        found = self.clients.get((make, kind, number))
        if found is None:
            found = self.stack.enter_context(new_client(self.tailnet, make, behind=kind))
            self.clients[make, kind, number] = found
        return found


@pytest.fixture(scope="module")
def tailnet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tailnet]:
    """What control server it is makes no difference to paths, so there is one kind only."""
    with new_tailnet("testcontrol", tmp_path_factory.mktemp("paths")) as found:
        yield found


@pytest.fixture(scope="module")
def crowd(tailnet: Tailnet) -> Iterator[Crowd]:
    with contextlib.ExitStack() as stack:
        yield Crowd(tailnet, stack)


def assert_direct(one: Client, other: Client) -> None:
    """Traffic from one to the other goes directly in time, both ways, and does not stumble on its way there."""
    began = time.monotonic()
    with Pinger(one.netns, other.address, PING_S) as pinger:
        first = pinger.wait_for_answer(began, FIRST_PONG_S)
        assert one.until_direct(other.address, DIRECT_S), f"{one.host.name} has no direct path to {other.host.name}"
        wait_for(lambda: other.is_direct(one.address), f"{other.host.name} answers directly", DIRECT_S)
        assert pinger.longest_silence_s(first, time.monotonic()) < SWITCH_S


def assert_relayed(one: Client, other: Client) -> None:
    """Traffic from one to the other comes and goes, and not directly."""
    began = time.monotonic()
    with Pinger(one.netns, other.address, PING_S) as pinger:
        first = pinger.wait_for_answer(began, FIRST_PONG_S)
        time.sleep(RELAYED_FOR_S)
        assert pinger.longest_silence_s(first, time.monotonic()) < SWITCH_S
        assert not one.is_direct(other.address)
        assert not other.is_direct(one.address)


# --- NATs ------------------------------------------------------------------------------------------------------------


@in_all_roles
@pytest.mark.parametrize("kinds", DIRECT_PAIRS, ids=lambda kinds: f"{kinds[0].value}-{kinds[1].value}")
def test_a_pair_that_can_be_direct_is(crowd: Crowd, roles: tuple[str, str], kinds: tuple[Nat, Nat]) -> None:
    assert_direct(*crowd.pair(roles, kinds))


@in_all_roles
def test_two_hard_nats_are_relayed(crowd: Crowd, roles: tuple[str, str]) -> None:
    assert_relayed(*crowd.pair(roles, (Nat.HARD, Nat.HARD)))


@pytest.fixture(scope="module")
def ipv6_crowd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Crowd]:
    with (
        new_tailnet("testcontrol", tmp_path_factory.mktemp("ipv6"), version=6) as tailnet,
        contextlib.ExitStack() as stack,
    ):
        yield Crowd(tailnet, stack)


@in_all_roles
def test_a_pair_with_ipv6_alone_is_direct(ipv6_crowd: Crowd, roles: tuple[str, str]) -> None:
    assert_direct(*ipv6_crowd.pair(roles, (Nat.NONE, Nat.FIREWALL)))


# --- UDP blocked -----------------------------------------------------------------------------------------------------


@with_each_peer
def test_without_udp_from_the_beginning_the_first_byte_comes_by_the_relay(
    tailnet: Tailnet, crowd: Crowd, make: str
) -> None:
    peer = crowd.client(make)
    with new_client(tailnet, TSNS, without_udp=True) as one:
        introduce(one, peer)
        began = time.monotonic()
        with Pinger(one.netns, peer.address, PING_S) as pinger:
            assert pinger.wait_for_answer(began, FIRST_BYTE_S) - began < FIRST_BYTE_S
        assert not one.is_direct(peer.address)


@with_each_peer
def test_udp_cut_in_mid_flow_and_let_through_again(tailnet: Tailnet, crowd: Crowd, make: str) -> None:
    other = crowd.client(make)
    with new_client(tailnet, TSNS) as one, conversation(one, other) as talk:
        with Pinger(one.netns, other.address, PING_S) as pinger:
            assert one.until_direct(other.address, DIRECT_S)
            wait_for(lambda: other.is_direct(one.address), "both ways are direct", DIRECT_S)

            cut = time.monotonic()
            one.host.uplink.block_udp()
            assert pinger.wait_for_answer(cut, TO_RELAY_S[make]) - cut < TO_RELAY_S[make]
            wait_for(lambda: not one.is_direct(other.address), "it goes by the relay", TO_RELAY_S[make])

            back = time.monotonic()
            one.host.uplink.unblock_udp()
            wait_for(lambda: one.is_direct(other.address), "it is direct again", BACK_S)
            assert pinger.longest_silence_s(back, time.monotonic()) < SWITCH_S

        said = len(talk.said())
        wait_for(lambda: len(talk.said()) > said, "the connection still speaks")
        assert talk.process.poll() is None


@contextlib.contextmanager
def conversation(one: Client, other: Client) -> Iterator[Daemon]:
    """A TCP connection from one to the other on which there is always something to say; it ends when the connection is lost."""
    words = (other.address, str(PORT))
    with other.start(sys.executable, traffic.__file__, "serve", *words, log="serve") as server:
        server.wait_until_said("ready")
        with one.start(sys.executable, traffic.__file__, "talk", *words, log="talk") as talk:
            talk.wait_until_said("\n")
            yield talk


# --- addresses that change -------------------------------------------------------------------------------------------


class Handshakes:
    """Counts the handshakes of a node with a peer, which are at least some seconds apart, as long as the context lasts."""

    def __init__(self, client: Client, peer: str) -> None:
        assert isinstance(client, OurClient)
        self._look = functools.partial(client.last_handshake, peer)
        self._seen = [self._look()]
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch)

    @property
    def count(self) -> int:
        """Since the beginning."""
        return sum(earlier != later for earlier, later in itertools.pairwise(self._seen))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(LOOK_S):
            self._seen.append(self._look())


def rebind(host: Host) -> None:
    """Its router forgets all UDP flows, and gives it other ports."""
    assert host.router is not None
    host.router.rebind()


@with_each_peer
@pytest.mark.parametrize(("behind", "change"), [(Nat.EASY, rebind), (Nat.NONE, Host.renumber)], ids=["NAT", "host"])
def test_addresses_that_change(
    tailnet: Tailnet, crowd: Crowd, make: str, behind: Nat, change: Callable[[Host], None]
) -> None:
    other = crowd.client(make)
    with new_client(tailnet, TSNS, behind=behind) as one, Pinger(one.netns, other.address, PING_S) as pinger:
        introduce(one, other)
        assert one.until_direct(other.address, DIRECT_S)
        wait_for(lambda: other.is_direct(one.address), "both ways are direct", DIRECT_S)

        with Handshakes(one, other.address) as handshakes:
            changed = time.monotonic()
            change(one.host)
            time.sleep(WATCHED_S)

        assert pinger.longest_silence_s(changed, time.monotonic()) < GAP_S[make]
        assert handshakes.count <= 1
        wait_for(lambda: one.is_direct(other.address), "it is direct again", DIRECT_S)
        wait_for(lambda: other.is_direct(one.address), "both ways are direct again", DIRECT_S)


# --- relays and lines that fail --------------------------------------------------------------------------------------


def test_without_its_home_relay_traffic_goes_by_another_region(tmp_path: Path) -> None:
    """That it comes home again within two minutes of the relay's return is for scripts/soak to see."""
    with (
        new_tailnet("testcontrol", tmp_path, regions=2) as tailnet,
        tailnet.relays[1].host.uplink.bad(Faults(delay_s=FAR_S)),
        new_client(tailnet, TSNS, only_relays=True) as one,
        new_client(tailnet, TSNS, only_relays=True) as other,
        Pinger(one.netns, other.address, PING_S) as pinger,
    ):
        home, away = tailnet.relays
        assert {home_of(one), home_of(other)} == {home.region_code}
        pinger.wait_for_answer(time.monotonic(), FIRST_PONG_S)

        stopped = time.monotonic()
        home.stop()

        assert pinger.wait_for_answer(stopped, OTHER_REGION_S) - stopped < OTHER_REGION_S
        wait_for(lambda: {home_of(one), home_of(other)} == {away.region_code}, "both have another home", OTHER_REGION_S)


def home_of(client: Client) -> str:
    assert isinstance(client, OurClient)
    return str(client.tsns.status(NODE)["home_region"])


@with_each_peer
def test_a_bad_line_breaks_no_tunnel(tailnet: Tailnet, crowd: Crowd, make: str) -> None:
    """Loss, delay and packets out of order are no reason to give a path up, or to take a packet for a replayed one."""
    other = crowd.client(make)
    with new_client(tailnet, TSNS) as one, Pinger(one.netns, other.address, PING_S) as pinger:
        introduce(one, other)
        assert one.until_direct(other.address, DIRECT_S)
        with one.host.uplink.bad(BAD_LINE):
            began = time.monotonic()
            time.sleep(BAD_S)
            ended = time.monotonic()
            time.sleep(LOOK_S)  # the last ones are still under way

        assert pinger.longest_silence_s(began, ended) < BAD_SILENCE_S
        assert pinger.answered_share(began, ended) > BAD_SHARE
