"""The paths to all peers: whom messages are believed from, what they lead to, and what they must not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.wg.shuttle import entropy
from tsns.counters import Counters
from tsns.disco.messages import MAGIC, CallMeMaybe, Message, Ping, Pong, Sealer, sender
from tsns.error import ProtocolError
from tsns.keys import DiscoPrivate, DiscoPublic, NodePrivate, NodePublic
from tsns.paths.candidates import MAX_LEARNT, MAX_TOLD
from tsns.paths.peer_path import (
    ACTIVE_S,
    ASKED_PROBES_BURST,
    ASKED_PROBES_PER_S,
    PROBES_BURST,
    PROBES_PER_S,
    Kind,
    PeerPath,
)
from tsns.paths.peer_paths import (
    DISCO_NOT_AUTHENTIC,
    DISCO_STRANGER,
    DISCO_UNASKED,
    DISCO_UNKNOWN,
    FRESH_IN_DOUBT_S,
    FRESH_S,
    MAX_OWN_ENDPOINTS,
    RELAY_ADDRESS,
    Output,
    PathChanged,
    PathStatus,
    PeerPaths,
    Ponged,
    Reach,
    WantEndpoints,
)
from tsns.paths.sent_pings import MAX_PINGS, PING_PATIENCE_S
from tsns.proto.addresses import Endpoint, endpoint_text
from tsns.ways import BothPaths, DerpPath, DerpSource, Path, SendDerp, SendUdp, Source, UdpPath, UdpSource

T = TypeVar("T")

OURS: tuple[Endpoint, ...] = (("203.0.113.1", 41641), ("192.168.1.5", 41641))
P_AT, Q_AT, ELSEWHERE = ("192.0.2.1", 41641), ("192.0.2.2", 41641), ("198.51.100.7", 4242)
HOME = 7
TOKEN = b"8 bytes!"


class Peer:
    """Somebody else, with keys."""

    def __init__(self, seed: int) -> None:
        self.node = NodePrivate.generate(entropy(seed)(32)).public
        self.begin_anew(seed)

    def begin_anew(self, seed: int) -> None:
        self.disco = DiscoPrivate.generate(entropy(100 + seed)(32))
        self.sealer = Sealer(self.disco, entropy(200 + seed))

    def reach(self, *endpoints: Endpoint, relay: int | None = HOME) -> Reach:
        return Reach(self.disco.public, [endpoint_text(endpoint) for endpoint in endpoints], relay)


class Ours:
    """Our side, under a driven clock, and what it wanted."""

    def __init__(self) -> None:
        self.now = 1000.1
        self.key = NodePrivate.generate(entropy(1)(32)).public
        self.disco = DiscoPrivate.generate(entropy(2)(32))
        self.counters = Counters()
        self.way: dict[NodePublic, Path | None] = {}
        self.paths = PeerPaths(
            Sealer(self.disco, entropy(3)),
            entropy(4),
            own=lambda: self.key,
            set_path=self.way.__setitem__,
            counters=self.counters,
        )
        self.paths.set_endpoints(OURS, self.now)

    def know(self, peer: Peer, *endpoints: Endpoint, relay: int | None = HOME) -> None:
        self.paths.set_peer(peer.node, peer.reach(*endpoints, relay=relay), self.now)

    def hear(self, peer: Peer, message: Message, source: Source) -> list[Output]:
        return self.paths.receive(peer.sealer.seal(self.disco.public, message), source, self.now)

    def send(self, peer: Peer) -> list[Output]:
        return self.paths.on_activity(peer.node, self.now)

    def tick(self, seconds: float = 0.0) -> list[Output]:
        """Let time pass; all that is wanted meanwhile."""
        until, out = self.now + seconds, list[Output]()
        for _ in range(1000):
            deadline = self.paths.deadline()
            if deadline is None or deadline > until:
                self.now = until
                return out
            self.now = max(self.now, deadline)
            out += self.paths.tick(self.now)
        raise AssertionError("it does not come to rest")

    def said_to(self, peer: Peer, outputs: Iterable[Output]) -> list[tuple[Endpoint | int, Message]]:
        """What was said to a peer, and by which way; what was said to others it cannot open."""
        found: list[tuple[Endpoint | int, Message]] = []
        for output in outputs:
            if isinstance(output, SendUdp | SendDerp):
                for datagram in output.datagrams:
                    assert sender(datagram) == self.disco.public
                    try:
                        message = peer.sealer.open(datagram, self.disco.public)
                    except ProtocolError:
                        continue
                    assert message is not None
                    assert isinstance(output, SendUdp) or output.peer == peer.node
                    found.append((output.address if isinstance(output, SendUdp) else output.region, message))
        return found

    def pinged(self, peer: Peer, outputs: Iterable[Output]) -> dict[Endpoint | int, bytes]:
        """Where a peer was pinged, and the transactions."""
        return {way: said.transaction for way, said in self.said_to(peer, outputs) if isinstance(said, Ping)}

    def direct(self, peer: Peer, at: Endpoint) -> None:
        """Have a direct path to a peer."""
        pings = self.pinged(peer, self.send(peer))
        self.now += 0.02
        self.hear(peer, Pong(pings[at], OURS[0]), UdpSource(at))
        assert self.way[peer.node] == UdpPath(at)

    def kind(self, peer: Peer) -> Kind:
        return self.paths.status(peer.node).kind


def only(kind: type[T], outputs: Iterable[object]) -> list[T]:
    return [output for output in outputs if isinstance(output, kind)]


def by_relay(peer: Peer, region: int = HOME) -> DerpSource:
    return DerpSource(region, peer.node)


@pytest.fixture
def ours() -> Ours:
    return Ours()


@pytest.fixture
def p(ours: Ours) -> Peer:
    """A peer that we know."""
    peer = Peer(10)
    ours.know(peer, P_AT)
    return peer


@pytest.fixture
def q(ours: Ours) -> Peer:
    """Another one."""
    peer = Peer(20)
    ours.know(peer, Q_AT)
    return peer


# --- pings that come -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [P_AT, ELSEWHERE, ("2001:db8::1", 1), ("127.0.0.1", 9), ("fe80::1%eth0", 9)])
def test_a_ping_is_answered_to_where_it_came_from(ours: Ours, p: Peer, source: Endpoint) -> None:
    said = ours.said_to(p, ours.hear(p, Ping(b"transaction!", p.node), UdpSource(source)))
    assert said == [(source, Pong(b"transaction!", (source[0].partition("%")[0], source[1])))]


def test_a_ping_is_answered_there_though_there_is_a_better_path(ours: Ours, p: Peer) -> None:
    ours.direct(p, P_AT)
    said = ours.said_to(p, ours.hear(p, Ping(b"transaction!", p.node), UdpSource(ELSEWHERE)))
    assert said == [(ELSEWHERE, Pong(b"transaction!", ELSEWHERE))]
    assert ours.way[p.node] == UdpPath(P_AT)


def test_a_ping_by_relay_is_answered_by_that_relay(ours: Ours, p: Peer) -> None:
    said = ours.said_to(p, ours.hear(p, Ping(b"transaction!", p.node), by_relay(p, 9)))
    assert said == [(9, Pong(b"transaction!", (RELAY_ADDRESS, 9)))]


def test_pings_make_no_path(ours: Ours, p: Peer) -> None:
    for source in (P_AT, ELSEWHERE):
        outputs = ours.hear(p, Ping(bytes(12), p.node), UdpSource(source))
        assert not only(PathChanged, outputs)
    assert ours.way[p.node] == DerpPath(HOME)
    assert ours.tick(100.0) == []


def test_while_we_look_for_the_peer_a_ping_of_its_is_met(ours: Ours, p: Peer) -> None:
    ours.send(p)
    outputs = ours.hear(p, Ping(bytes(12), p.node), UdpSource(ELSEWHERE))
    assert [type(said) for _, said in ours.said_to(p, outputs)] == [Pong, Ping]
    assert set(ours.pinged(p, outputs)) == {ELSEWHERE}


@pytest.mark.parametrize(
    "source", [("127.0.0.1", 9), ("::1", 9), ("fe80::1%eth0", 9), ("224.0.0.1", 9), ("192.0.2.9", 0)]
)
def test_nobody_is_pinged_where_no_peer_can_be(ours: Ours, p: Peer, source: Endpoint) -> None:
    ours.send(p)
    assert not ours.pinged(p, ours.hear(p, Ping(bytes(12), p.node), UdpSource(source)))
    assert not set(ours.pinged(p, ours.tick(10.0))) - {P_AT}


def test_a_ping_without_a_node_key_is_its_peers_all_the_same(ours: Ours, p: Peer) -> None:
    assert ours.said_to(p, ours.hear(p, Ping(bytes(12), None), UdpSource(ELSEWHERE))) == [
        (ELSEWHERE, Pong(bytes(12), ELSEWHERE))
    ]


# --- pongs that come -----------------------------------------------------------------------------------------------


def test_a_pong_to_our_ping_makes_the_path(ours: Ours, p: Peer) -> None:
    pings = ours.pinged(p, ours.send(p))
    ours.now += 0.02
    [changed] = ours.hear(p, Pong(pings[P_AT], OURS[0]), UdpSource(P_AT))
    assert isinstance(changed, PathChanged)
    assert changed.change.kind is Kind.DIRECT
    status = ours.paths.status(p.node)
    assert status.latency_s == pytest.approx(0.02)
    assert replace(status, latency_s=None) == PathStatus(Kind.DIRECT, P_AT, HOME, None, (changed.change,))


def test_the_path_leads_to_where_the_ping_went_not_to_where_the_pong_came_from(ours: Ours, p: Peer) -> None:
    pings = ours.pinged(p, ours.send(p))
    ours.hear(p, Pong(pings[P_AT], OURS[0]), UdpSource(ELSEWHERE))
    assert ours.way[p.node] == UdpPath(P_AT)


def test_a_pong_counts_once(ours: Ours, p: Peer) -> None:
    pings = ours.pinged(p, ours.send(p))
    pong = Pong(pings[P_AT], OURS[0])
    ours.hear(p, pong, UdpSource(P_AT))
    assert ours.hear(p, pong, UdpSource(P_AT)) == []
    assert ours.counters[DISCO_UNASKED] == 1


def test_a_pong_that_nobody_waits_for_is_nothing(ours: Ours, p: Peer) -> None:
    ours.send(p)
    assert ours.hear(p, Pong(bytes(12), OURS[0]), UdpSource(P_AT)) == []
    assert ours.counters[DISCO_UNASKED] == 1
    assert ours.kind(p) is Kind.RELAYED


def test_a_pong_to_another_peers_ping_is_nothing(ours: Ours, p: Peer, q: Peer) -> None:
    pings = ours.pinged(p, ours.send(p))
    assert ours.hear(q, Pong(pings[P_AT], OURS[0]), UdpSource(P_AT)) == []
    assert ours.counters[DISCO_UNASKED] == 1
    assert (ours.kind(p), ours.kind(q)) == (Kind.RELAYED, Kind.RELAYED)
    ours.hear(p, Pong(pings[P_AT], OURS[0]), UdpSource(P_AT))  # and takes nothing from who is asked
    assert ours.kind(p) is Kind.DIRECT


@pytest.mark.parametrize(("after_s", "counts"), [(0.0, True), (4.9, True), (5.1, False)])
def test_a_late_pong_is_nothing(ours: Ours, p: Peer, after_s: float, counts: bool) -> None:
    assert 4.9 < PING_PATIENCE_S < 5.1
    pings = ours.pinged(p, ours.send(p))
    ours.now += after_s  # and no timer ran
    ours.hear(p, Pong(pings[P_AT], OURS[0]), UdpSource(P_AT))
    assert (ours.kind(p) is Kind.DIRECT) == counts
    assert ours.counters[DISCO_UNASKED] == (not counts)


def test_a_pong_by_relay_proves_nothing_about_a_ping_that_went_directly(ours: Ours, p: Peer) -> None:
    """It shows one direction only: the peer's packets may not reach us."""
    pings = ours.pinged(p, ours.send(p))
    assert ours.hear(p, Pong(pings[P_AT], OURS[0]), by_relay(p)) == []
    assert ours.counters[DISCO_UNASKED] == 1
    assert ours.kind(p) is Kind.RELAYED
    ours.hear(p, Pong(pings[P_AT], OURS[0]), UdpSource(P_AT))
    assert ours.kind(p) is Kind.DIRECT


def test_a_pong_of_who_has_begun_anew_since_is_nothing(ours: Ours, p: Peer) -> None:
    pings = ours.pinged(p, ours.send(p))
    pong = p.sealer.seal(ours.disco.public, Pong(pings[P_AT], OURS[0]))
    p.begin_anew(11)
    ours.know(p, P_AT)
    assert ours.paths.receive(pong, UdpSource(P_AT), ours.now) == []
    assert ours.counters[DISCO_STRANGER] == 1
    ours.hear(p, Pong(pings[P_AT], OURS[0]), UdpSource(P_AT))  # the one to whom it was sealed could not read it
    assert ours.counters[DISCO_UNASKED] == 0


def test_a_pong_of_who_was_removed_is_nothing(ours: Ours, p: Peer) -> None:
    pings = ours.pinged(p, ours.send(p))
    ours.paths.remove_peer(p.node)
    assert ours.hear(p, Pong(pings[P_AT], OURS[0]), UdpSource(P_AT)) == []
    assert ours.way[p.node] is None
    assert ours.kind(p) is Kind.NONE
    ours.paths.remove_peer(p.node)


# --- strangers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", [UdpSource(ELSEWHERE), DerpSource(HOME, Peer(30).node)])
@pytest.mark.parametrize("message", [Ping(bytes(12), None), Pong(bytes(12), P_AT), CallMeMaybe((P_AT,))])
def test_a_stranger_is_nobody(ours: Ours, p: Peer, source: Source, message: Message) -> None:
    ours.send(p)
    assert ours.hear(Peer(30), message, source) == []
    assert ours.counters.snapshot() == {DISCO_STRANGER: 1}


@pytest.mark.parametrize("source", [UdpSource(P_AT), DerpSource(HOME, Peer(10).node)])
def test_who_only_names_a_peer_is_not_that_peer(ours: Ours, p: Peer, source: Source) -> None:
    ours.send(p)
    forged = Peer(30).sealer.seal(ours.disco.public, Ping(bytes(12), p.node))
    assert ours.paths.receive(MAGIC + p.disco.public.raw + forged[38:], source, ours.now) == []
    assert ours.counters.snapshot() == {DISCO_NOT_AUTHENTIC: 1}


def test_what_we_said_ourselves_is_nothing_when_it_comes_back(ours: Ours, p: Peer) -> None:
    for output in ours.send(p):
        if isinstance(output, SendUdp):
            assert ours.paths.receive(output.datagrams[0], UdpSource(P_AT), ours.now) == []
    assert ours.counters.snapshot() == {DISCO_STRANGER: 1}


def test_a_message_of_a_kind_that_we_do_not_know_is_nothing(ours: Ours, p: Peer) -> None:
    for payload in (b"\x04\0" + bytes(72), b"", b"\xff"):
        sealed = p.sealer._box(ours.disco.public).seal(payload, entropy(5))
        assert ours.paths.receive(MAGIC + p.disco.public.raw + sealed, UdpSource(P_AT), ours.now) == []
    assert ours.counters.snapshot() == {DISCO_UNKNOWN: 3}


@pytest.mark.parametrize("raw", [bytes(32), b"\1" + bytes(31)])
def test_a_key_of_low_order_is_of_no_use_and_no_harm(ours: Ours, raw: bytes) -> None:
    peer = Peer(30)
    ours.paths.set_peer(peer.node, Reach(DiscoPublic(raw), [endpoint_text(P_AT)], HOME), ours.now)
    assert ours.send(peer) == []
    assert ours.paths.receive(MAGIC + raw + bytes(100), UdpSource(P_AT), ours.now) == []
    assert ours.counters.snapshot() == {DISCO_UNKNOWN: 2, DISCO_NOT_AUTHENTIC: 1}
    assert ours.way[peer.node] == DerpPath(HOME)


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=120))
def test_no_bytes_raise(data: bytes) -> None:
    ours, peer = Ours(), Peer(10)
    ours.know(peer)
    for datagram in (data, MAGIC + data, MAGIC + peer.disco.public.raw + data):
        for source in (UdpSource(P_AT), by_relay(peer)):
            assert ours.paths.receive(datagram, source, ours.now) == []


# --- calls that come -----------------------------------------------------------------------------------------------


def test_a_call_by_the_relay_is_answered_with_pings(ours: Ours, p: Peer) -> None:
    outputs = ours.hear(p, CallMeMaybe((ELSEWHERE,)), by_relay(p))
    assert set(ours.pinged(p, outputs)) == {P_AT, ELSEWHERE}
    assert len(outputs) == 2


def test_a_call_that_no_relay_brought_is_nothing(ours: Ours, p: Peer) -> None:
    assert ours.hear(p, CallMeMaybe((ELSEWHERE,)), UdpSource(P_AT)) == []
    assert ours.counters[DISCO_UNKNOWN] == 1


def test_a_call_in_another_nodes_name_is_nothing(ours: Ours, p: Peer, q: Peer) -> None:
    for source in (by_relay(q), by_relay(Peer(30))):
        assert ours.hear(p, CallMeMaybe((ELSEWHERE,)), source) == []
    assert ours.counters[DISCO_UNKNOWN] == 2


def test_a_call_names_no_places_where_no_peer_can_be(ours: Ours, p: Peer) -> None:
    named = (
        ("127.0.0.1", 22),
        ("::1", 22),
        ("0.0.0.0", 1),
        ("224.0.0.1", 1),
        ("fe80::1", 1),
        ("10.0.0.1", 0),
        ELSEWHERE,
    )
    assert set(ours.pinged(p, ours.hear(p, CallMeMaybe(named), by_relay(p)))) == {P_AT, ELSEWHERE}


def test_on_a_machine_without_a_network_peers_may_be_beside_us(ours: Ours, p: Peer) -> None:
    ours.paths.set_endpoints([("127.0.0.1", 41641)], ours.now)
    outputs = ours.hear(p, CallMeMaybe((("127.0.0.1", 5000),)), by_relay(p))
    assert ("127.0.0.1", 5000) in ours.pinged(p, outputs)


def test_a_call_makes_no_path_and_brings_no_call(ours: Ours, p: Peer) -> None:
    outputs = ours.hear(p, CallMeMaybe((ELSEWHERE,)), by_relay(p)) + ours.tick(100.0)
    assert not only(PathChanged, outputs)
    assert not only(SendDerp, outputs)


# --- one disco key for two nodes -----------------------------------------------------------------------------------


@pytest.fixture
def former(ours: Ours, p: Peer) -> Peer:
    """The node that the process of `p` was before it logged in anew: another node key, the same disco key."""
    former = Peer(20)
    former.disco, former.sealer = p.disco, p.sealer
    ours.know(former, Q_AT)
    return former


def test_who_pings_is_told_by_the_relay_or_by_the_ping(ours: Ours, p: Peer, former: Peer) -> None:
    for peer in (p, former):
        ours.send(peer)
        for source in (UdpSource(ELSEWHERE), by_relay(peer)):
            outputs = ours.hear(peer, Ping(bytes(12), peer.node), source)
            if isinstance(source, DerpSource):
                [sent] = only(SendDerp, outputs)
                assert sent.peer == peer.node
        path = ours.paths._peers[peer.node].path
        assert isinstance(path, PeerPath)
        assert path._candidates.get(ELSEWHERE) is not None


def test_pongs_belong_to_who_was_pinged(ours: Ours, p: Peer, former: Peer) -> None:
    pings = ours.pinged(former, ours.send(former))
    ours.send(p)
    ours.hear(p, Pong(pings[Q_AT], OURS[0]), UdpSource(Q_AT))
    assert (ours.kind(p), ours.kind(former)) == (Kind.RELAYED, Kind.DIRECT)


def test_the_wrong_node_of_the_two_cannot_call(ours: Ours, p: Peer, former: Peer) -> None:
    ours.send(p)
    outputs = ours.hear(p, CallMeMaybe((ELSEWHERE,)), by_relay(former))
    assert {said.node_key for _, said in ours.said_to(p, outputs) if isinstance(said, Ping)} == {ours.key}
    path = ours.paths._peers[p.node].path
    assert isinstance(path, PeerPath)
    assert path._candidates.get(ELSEWHERE) is None


@pytest.mark.parametrize("again", [False, True], ids=["", "the former one is heard of last"])
@pytest.mark.parametrize("how", ["removed", "begun anew"])
def test_when_one_of_the_two_goes_the_other_stays(ours: Ours, p: Peer, former: Peer, how: str, again: bool) -> None:
    if again:
        ours.know(p, P_AT)
        ours.know(former, Q_AT)
    if how == "removed":
        ours.paths.remove_peer(former.node)
    else:
        ours.paths.set_peer(former.node, Peer(40).reach(), ours.now)
    assert ours.said_to(p, ours.hear(p, Ping(bytes(12), p.node), UdpSource(ELSEWHERE)))
    assert ours.counters.snapshot() == {}
    ours.paths.remove_peer(p.node)
    assert ours.hear(p, Ping(bytes(12), p.node), UdpSource(ELSEWHERE)) == []
    assert set(ours.paths._disco_keys._owners) <= {Peer(40).disco.public}


# --- what the netmap says ------------------------------------------------------------------------------------------


def test_a_peer_is_relayed_until_it_is_used(ours: Ours, p: Peer) -> None:
    assert ours.way[p.node] == DerpPath(HOME)
    ours.know(p, P_AT, relay=8)
    assert ours.way[p.node] == DerpPath(8)
    assert ours.paths.status(p.node) == PathStatus(Kind.RELAYED, relay=8)
    ours.know(p, P_AT, relay=None)
    assert ours.way[p.node] is None
    assert ours.paths.deadline() is None


def test_endpoints_that_nobody_can_read_are_left_out(ours: Ours) -> None:
    peer = Peer(30)
    texts = ["?", "", "1.2.3.4", "host:5", "[::1]:5", "127.0.0.1:5", endpoint_text(P_AT), "[2001:db8::5]:6"]
    ours.paths.set_peer(peer.node, Reach(peer.disco.public, texts, HOME), ours.now)
    assert set(ours.pinged(peer, ours.send(peer))) == {P_AT, ("2001:db8::5", 6)}


def test_a_peer_without_a_disco_key_is_sent_to_by_relay_alone(ours: Ours) -> None:
    peer = Peer(30)
    ours.paths.set_peer(peer.node, Reach(None, [endpoint_text(P_AT)], HOME), ours.now)
    assert ours.send(peer) + ours.tick(30.0) + ours.paths.ping(peer.node, TOKEN, ours.now) == []
    assert ours.way[peer.node] == DerpPath(HOME)
    ours.know(peer, P_AT)  # now it has one
    assert set(ours.pinged(peer, ours.tick())) == {P_AT}


def test_a_new_relay_is_taken_whatever_the_path(ours: Ours, p: Peer) -> None:
    ours.send(p)
    ours.know(p, P_AT, relay=8)
    assert ours.way[p.node] == DerpPath(8)
    pings = ours.pinged(p, ours.tick(1.0))
    ours.hear(p, Pong(pings[P_AT], OURS[0]), UdpSource(P_AT))
    ours.know(p, P_AT, relay=9)
    assert ours.way[p.node] == UdpPath(P_AT)
    ours.now += 100.0
    ours.send(p)
    assert ours.way[p.node] == BothPaths(UdpPath(P_AT), DerpPath(9))


def test_what_is_new_leads_to_pings_with_the_next_tick_which_is_due_at_once(ours: Ours, p: Peer) -> None:
    ours.send(p)
    ours.now += 1.0
    ours.know(p, P_AT, ELSEWHERE)
    assert ours.paths.deadline() == 0.0
    assert set(ours.pinged(p, ours.paths.tick(ours.now))) == {P_AT, ELSEWHERE}
    deadline = ours.paths.deadline()
    assert deadline is not None
    assert deadline > ours.now


def test_a_peer_that_has_begun_anew_is_doubted(ours: Ours, p: Peer) -> None:
    ours.direct(p, P_AT)
    before = p.sealer
    p.begin_anew(11)
    ours.know(p, P_AT)
    assert ours.way[p.node] == BothPaths(UdpPath(P_AT), DerpPath(HOME))
    assert set(ours.pinged(p, ours.tick())) == {P_AT}
    assert ours.paths.receive(before.seal(ours.disco.public, Ping(bytes(12), p.node)), UdpSource(P_AT), ours.now) == []
    assert ours.counters.snapshot() == {DISCO_STRANGER: 1}


def test_the_peer_itself_may_name_its_new_key(ours: Ours, p: Peer) -> None:
    ours.direct(p, P_AT)
    ours.paths.set_disco(p.node, p.disco.public, ours.now)  # nothing new
    assert ours.paths.deadline() != 0.0
    p.begin_anew(11)
    ours.paths.set_disco(p.node, p.disco.public, ours.now)
    assert ours.kind(p) is Kind.DOUBTED
    assert ours.said_to(p, ours.hear(p, Ping(bytes(12), p.node), UdpSource(ELSEWHERE)))
    ours.paths.set_disco(Peer(30).node, p.disco.public, ours.now)  # of whom nobody has heard


def test_the_same_again_is_no_news(ours: Ours, p: Peer) -> None:
    ours.direct(p, P_AT)
    ours.know(p, P_AT)
    assert ours.paths.deadline() != 0.0
    assert ours.way[p.node] == UdpPath(P_AT)


def test_an_unknown_peer_is_nobody(ours: Ours) -> None:
    stranger = Peer(30)
    assert ours.send(stranger) == []
    assert ours.paths.heard(stranger.node, UdpSource(P_AT), ours.now) == []
    assert ours.paths.ping(stranger.node, TOKEN, ours.now) == []
    assert ours.paths.status(stranger.node) == PathStatus(Kind.NONE)


# --- where we are --------------------------------------------------------------------------------------------------


def calls(ours: Ours, peer: Peer, outputs: Iterable[Output]) -> list[CallMeMaybe]:
    found = [(way, said) for way, said in ours.said_to(peer, outputs) if isinstance(said, CallMeMaybe)]
    assert all(way == HOME for way, _ in found)
    return [said for _, said in found]


def test_who_is_looked_for_is_told_by_relay_where_we_are(ours: Ours, p: Peer) -> None:
    assert calls(ours, p, ours.send(p)) == [CallMeMaybe(OURS)]


def test_who_is_looked_for_is_told_at_once_when_that_changes(ours: Ours, p: Peer, q: Peer) -> None:
    ours.send(p)
    ours.direct(q, Q_AT)
    ours.paths.set_endpoints([ELSEWHERE], ours.now)
    outputs = ours.paths.tick(ours.now)
    assert calls(ours, p, outputs) == [CallMeMaybe((ELSEWHERE,))]
    assert len(outputs) == 1
    ours.paths.set_endpoints([ELSEWHERE], ours.now)
    assert ours.paths.deadline() != 0.0


def test_a_peer_is_told_of_so_many(ours: Ours, p: Peer) -> None:
    many = [("192.0.2.1", port) for port in range(1, 1000)]
    ours.paths.set_endpoints(many, ours.now)
    assert calls(ours, p, ours.send(p)) == [CallMeMaybe(tuple(many[:MAX_OWN_ENDPOINTS]))]


def test_who_does_not_know_where_it_is_calls_nobody(ours: Ours, p: Peer) -> None:
    ours.paths.set_endpoints([], ours.now)
    assert calls(ours, p, ours.send(p)) == []


@pytest.mark.parametrize(("age_s", "wants"), [(FRESH_S - 1, 0), (FRESH_S + 1, 1)])
def test_before_old_endpoints_are_told_they_are_looked_up_again(ours: Ours, p: Peer, age_s: float, wants: int) -> None:
    ours.now += age_s
    outputs = ours.send(p)
    assert len(only(WantEndpoints, outputs)) == wants
    assert calls(ours, p, outputs) == [CallMeMaybe(OURS)]


@pytest.mark.parametrize(("age_s", "wants"), [(FRESH_IN_DOUBT_S - 1, False), (FRESH_IN_DOUBT_S + 1, True)])
def test_in_doubt_they_are_looked_up_again_sooner(ours: Ours, p: Peer, age_s: float, wants: bool) -> None:
    ours.direct(p, P_AT)
    ours.tick(4.0)  # heartbeat, and no pong
    ours.paths.set_endpoints(OURS, ours.now + 1.0 - age_s)
    ours.send(p)
    outputs = ours.tick(1.0)
    assert ours.kind(p) is Kind.DOUBTED
    assert bool(only(WantEndpoints, outputs)) == wants


def test_on_another_network_all_that_is_used_is_found_out_again(ours: Ours, p: Peer, q: Peer) -> None:
    ours.direct(p, P_AT)
    ours.now += ACTIVE_S + 1.0
    ours.direct(q, Q_AT)
    ours.paths.network_changed("why", ours.now)
    outputs = ours.paths.tick(ours.now)
    assert ours.way[q.node] == BothPaths(UdpPath(Q_AT), DerpPath(HOME))
    assert only(WantEndpoints, outputs)
    assert set(ours.pinged(q, [each for each in outputs if each not in only(PathChanged, outputs)])) == {Q_AT}
    assert ours.way[p.node] == UdpPath(P_AT)  # idle
    ours.send(p)
    assert ours.way[p.node] == BothPaths(UdpPath(P_AT), DerpPath(HOME))


def test_whether_anybody_is_spoken_with(ours: Ours, p: Peer) -> None:
    assert not ours.paths.is_active(ours.now)
    ours.hear(p, Ping(bytes(12), None), UdpSource(P_AT))
    assert not ours.paths.is_active(ours.now)
    ours.send(p)
    assert ours.paths.is_active(ours.now + ACTIVE_S)
    assert not ours.paths.is_active(ours.now + ACTIVE_S + 1)


# --- people --------------------------------------------------------------------------------------------------------


def test_a_persons_ping_goes_every_way_and_each_answer_is_told(ours: Ours, p: Peer) -> None:
    ours.know(p, P_AT, ELSEWHERE)
    ours.send(p)
    ours.now += 0.1
    pings = ours.pinged(p, ours.paths.ping(p.node, TOKEN, ours.now))
    assert set(pings) == {P_AT, ELSEWHERE, HOME}
    ours.now += 0.03
    [ponged] = ours.hear(p, Pong(pings[HOME], (RELAY_ADDRESS, HOME)), by_relay(p))
    assert isinstance(ponged, Ponged)
    assert ponged.latency_s == pytest.approx(0.03)
    assert ponged == Ponged(p.node, TOKEN, DerpPath(HOME), ponged.latency_s)
    assert ours.kind(p) is Kind.RELAYED
    changed, ponged = ours.hear(p, Pong(pings[P_AT], OURS[0]), UdpSource(P_AT))
    assert isinstance(changed, PathChanged)
    assert isinstance(ponged, Ponged)
    assert ponged == Ponged(p.node, TOKEN, UdpPath(P_AT), ponged.latency_s)


def test_a_persons_ping_goes_by_the_path_that_is_trusted(ours: Ours, p: Peer) -> None:
    ours.direct(p, P_AT)
    assert set(ours.pinged(p, ours.paths.ping(p.node, TOKEN, ours.now))) == {P_AT}


# --- bounds --------------------------------------------------------------------------------------------------------


def somewhere(number: int) -> Endpoint:
    return f"198.51.{number >> 8 & 255}.{number & 255}", 1 + (number >> 16)


def test_a_peer_that_floods_us_gets_its_pongs_and_few_pings(ours: Ours, p: Peer, q: Peer) -> None:
    ours.send(p)
    ours.direct(q, Q_AT)
    pings = pongs = relayed = 0
    seconds, per_s = 4, 80
    for number in range(seconds * per_s):
        ours.now += 1 / per_s
        out = ours.hear(p, CallMeMaybe(tuple(map(somewhere, range(40 * number, 40 * number + 32)))), by_relay(p))
        out += ours.hear(p, Ping(number.to_bytes(12, "big"), None), UdpSource(somewhere(100_000 + number)))
        out += ours.send(p) + ours.tick()
        said = [said for _, said in ours.said_to(p, out)]
        for at, transaction in ours.pinged(q, out).items():
            assert at == Q_AT
            ours.hear(q, Pong(transaction, OURS[0]), UdpSource(Q_AT))
        pings += sum(isinstance(each, Ping) for each in said)
        pongs += sum(isinstance(each, Pong) for each in said)
        relayed += len(only(SendDerp, out))
    assert pongs == seconds * per_s
    assert relayed <= 10
    assert pings <= PROBES_BURST + ASKED_PROBES_BURST + (PROBES_PER_S + ASKED_PROBES_PER_S) * seconds
    path = ours.paths._peers[p.node].path
    assert isinstance(path, PeerPath)
    assert len(path._candidates) <= MAX_TOLD + 32 + MAX_LEARNT
    assert ours.way[q.node] == UdpPath(Q_AT)  # nobody else pays for it


def test_a_peer_that_is_known_but_not_used_costs_next_to_nothing(ours: Ours) -> None:
    peers = [Peer(1000 + number) for number in range(20)]
    for peer in peers:
        ours.know(peer, P_AT)
    assert not ours.paths._used
    assert ours.paths.deadline() is None
    ours.send(peers[3])
    assert set(ours.paths._used) == {peers[3].node}


# --- in any order --------------------------------------------------------------------------------------------------

WHERE: Sequence[Endpoint] = [P_AT, Q_AT, ELSEWHERE]
who, where = st.integers(0, 1), st.sampled_from(WHERE)
events = st.one_of(
    st.tuples(st.just("send"), who),
    st.tuples(st.just("wait"), st.sampled_from([0.0, 0.02, 0.5, 3.0, 12.0, 60.0])),
    st.tuples(st.just("pong"), who, st.integers(0, 5), st.integers(0, 3)),
    st.tuples(st.just("ping"), who, where),
    st.tuples(st.just("call"), who, st.lists(where, max_size=3)),
    st.tuples(st.just("know"), who, st.lists(where, max_size=3), st.sampled_from([None, 1, 2])),
    st.tuples(st.just("remove"), who),
    st.tuples(st.just("begin anew"), who),
    st.tuples(st.just("where we are"), st.lists(where, max_size=3)),
    st.tuples(st.just("another network")),
    st.tuples(st.just("a person asks"), who),
)


@settings(max_examples=40, deadline=None)
@given(st.lists(events, max_size=30))
def test_in_whatever_order_things_happen(steps: list[tuple[object, ...]]) -> None:
    ours, peers = Ours(), [Peer(10), Peer(20)]
    for peer in peers:
        ours.know(peer, P_AT)
    asked: dict[NodePublic, list[tuple[Endpoint, bytes]]] = {peer.node: [] for peer in peers}
    for number, step in enumerate(steps):
        what, peer = step[0], peers[step[1]] if len(step) > 1 and isinstance(step[1], int) else peers[0]
        before = {each.node: ours.paths.status(each.node).endpoint for each in peers}
        out: list[Output] = []
        match what, *step[1:]:
            case "send", _:
                out = ours.send(peer)
            case "wait", float(seconds):
                out = ours.tick(seconds)
            case "pong", _, int(back), int(by) if asked[peer.node]:
                at, transaction = asked[peer.node][-1 - back % len(asked[peer.node])]
                source = by_relay(peer) if by == 3 else UdpSource([at, *WHERE][by])
                out = ours.hear(peer, Pong(transaction, OURS[0]), source)
            case "ping", _, (str(host), int(port)):
                out = ours.hear(peer, Ping(number.to_bytes(12, "big"), peer.node), UdpSource((host, port)))
            case "call", _, list(endpoints):
                out = ours.hear(peer, CallMeMaybe(tuple(endpoints)), by_relay(peer))
            case "know", _, list(endpoints), relay:
                ours.know(peer, *endpoints, relay=relay)  # type: ignore[arg-type]
            case "remove", _:
                ours.paths.remove_peer(peer.node)
            case "begin anew", _:
                peer.begin_anew(1000 + number)
                if peer.node in ours.paths._peers:
                    ours.know(peer, P_AT)
            case "where we are", list(endpoints):
                ours.paths.set_endpoints(endpoints, ours.now)
            case ("another network",):
                ours.paths.network_changed("why", ours.now)
            case "a person asks", _:
                out = ours.paths.ping(peer.node, TOKEN, ours.now)
        out += ours.tick()
        for each in peers:
            pings = ours.pinged(each, out).items()
            asked[each.node] += [(at, transaction) for at, transaction in pings if isinstance(at, tuple)]
        for each in peers:
            status = ours.paths.status(each.node)
            if what != "pong" and status.endpoint is not None:
                assert status.endpoint == before[each.node], f"{what} has made a path"
            used = ours.paths._used.get(each.node)
            if used is not None and used.path is not None:
                assert ours.way[each.node] == used.path.path
            if each.node in ours.paths._peers and status.relay is not None:
                assert ours.way[each.node] is not None
            assert (each.node in ours.paths._peers) == (each.disco.public in ours.paths._disco_keys._owners)
        assert len(ours.paths._sent) <= MAX_PINGS
    for peer in peers:
        ours.know(peer, Q_AT)
        ours.tick()
        for _ in range(3):
            for way, transaction in ours.pinged(peer, ours.send(peer) + ours.tick(5.0)).items():
                if way == Q_AT:
                    ours.hear(peer, Pong(transaction, OURS[0]), UdpSource(Q_AT))
        assert ours.way[peer.node] == UdpPath(Q_AT)
    ours.tick(ACTIVE_S + 10.0)
    assert ours.tick(1e5) == []
