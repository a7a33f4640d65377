"""Pairs of whole nodes on the small internet: what they find, how soon, and what becomes of their packets when it changes.

All times are simulated. What is asserted are the promises of docs/reliability.md with some room below them; the figures themselves are
recorded as properties of the tests.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.paths.network import Cone, Easy, Firewall, Gate, Hard, Internet, Site, Weather
from tests.unit.paths.nodes import HOME, Stream, Tailnet
from tsns.paths.peer_path import ACTIVE_S, HEARTBEAT_S, Kind
from tsns.paths.peer_paths import DISCO_NOT_AUTHENTIC
from tsns.ways import DerpPath, UdpPath
from tsns.wg.timers import KEEPALIVE_TIMEOUT_S

Record = Callable[[str, object], None]

GATES: dict[str, Callable[[int], Gate]] = {
    "none": lambda _: Gate(),
    "firewall": lambda _: Firewall(),
    "easy": lambda number: Easy(f"203.0.113.{10 + number}"),
    "cone": lambda number: Cone(f"203.0.113.{10 + number}"),
    "hard": lambda number: Hard(f"203.0.113.{10 + number}"),
}
RELAYED = {("hard", other) for other in GATES if other != "none"}  # and the other way round
DIRECT_PAIRS = [("none", "none"), ("none", "hard"), ("easy", "easy"), ("cone", "firewall")]


class Pair:
    """Two nodes, each at a site of its own, that know each other and are idle."""

    def __init__(self, a_gate: str, b_gate: str, *, seed: int = 1, relay: bool = True) -> None:
        self.internet = Internet(seed)
        self.tailnet = Tailnet(self.internet)
        self.sites = [Site(self.internet, GATES[kind](number)) for number, kind in enumerate((a_gate, b_gate))]
        home = HOME if relay else None
        self.a, self.b = (self.tailnet.add(site.machine(), home=home) for site in self.sites)
        self.internet.run_for(2.0)
        self.streams: list[Stream] = []

    @property
    def now(self) -> float:
        return self.internet.now

    def both_ways(self, every_s: float = 0.1) -> list[Stream]:
        """Traffic in both directions; `b` answers what `a` has begun."""
        there = Stream(self.a, self.b, every_s=every_s)
        self.internet.run_for(0.2)
        return [there, Stream(self.b, self.a, every_s=every_s)]

    def one_way(self, every_s: float = 0.1) -> list[Stream]:
        return [Stream(self.a, self.b, every_s=every_s)]

    def connected(self, streams: list[Stream], seconds: float = 5.37) -> list[Stream]:
        """Let the traffic find its direct path, until a moment at which nothing in particular happens."""
        self.internet.run_for(seconds)
        assert self.a.is_direct(self.b)
        assert self.b.is_direct(self.a)
        return streams

    def direct_since(self, since: float) -> float:
        """How long until both sides had a direct path again, for good."""
        assert self.a.is_direct(self.b)
        assert self.b.is_direct(self.a)
        return max([change.at - since for node in (self.a, self.b) for _, change in node.changes], default=0.0)

    def handshakes(self, since: float) -> int:
        return self.a.packets(since, "initiation") + self.b.packets(since, "initiation")


# --- what they find ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("b_gate", GATES)
@pytest.mark.parametrize("a_gate", GATES)
def test_every_pair_of_gates(a_gate: str, b_gate: str, record_property: Record) -> None:
    """Direct where it can be, as with Tailscale's own client; and no packet waits for that, or is lost."""
    pair = Pair(a_gate, b_gate)
    began = pair.now
    streams = pair.both_ways(0.5)
    pair.internet.run_for(8.0)
    assert max(stream.first_s for stream in streams) <= 0.1
    assert sum(stream.lost() for stream in streams) == 0
    record_property("first packet after, s", round(streams[0].first_s, 3))
    if (a_gate, b_gate) in RELAYED or (b_gate, a_gate) in RELAYED:
        assert (pair.a.kind(pair.b), pair.b.kind(pair.a)) == (Kind.RELAYED, Kind.RELAYED)
        assert pair.a.changes == pair.b.changes == []
        return
    assert pair.direct_since(began) <= 0.15
    record_property("direct after, s", round(pair.direct_since(began), 3))
    assert pair.a.router.counters.snapshot() == pair.b.router.counters.snapshot() == {}


def test_by_ipv6_where_ipv4_leads_nowhere() -> None:
    internet = Internet()
    tailnet = Tailnet(internet)
    sites = [Site(internet, Hard(f"203.0.113.{number}"), Firewall()) for number in (10, 20)]
    a, b = (tailnet.add(site.machine()) for site in sites)
    internet.run_for(2.0)
    Stream(a, b)
    internet.run_for(1.0)
    assert a.best(b) == (b.machine.v6, b.machine.port)
    assert b.best(a) == (a.machine.v6, a.machine.port)


def test_by_the_family_that_both_have() -> None:
    internet = Internet()
    tailnet = Tailnet(internet)
    a = tailnet.add(Site(internet, Easy("203.0.113.10"), Firewall()).machine())
    b = tailnet.add(Site(internet, Easy("203.0.113.20")).machine())
    c = tailnet.add(Site(internet, None, Gate()).machine())
    internet.run_for(2.0)
    for other in (b, c):
        Stream(a, other)
    Stream(b, c)
    internet.run_for(10.0)
    assert a.best(b) == ("203.0.113.20", b.machine.port)
    assert a.best(c) == (c.machine.v6, c.machine.port)
    assert b.kind(c) is Kind.RELAYED


def test_two_at_one_place_speak_directly_whatever_is_between_them_and_the_world() -> None:
    internet = Internet()
    tailnet = Tailnet(internet)
    site = Site(internet, Hard("203.0.113.10"))
    a, b = tailnet.add(site.machine()), tailnet.add(site.machine())
    internet.run_for(2.0)
    Stream(a, b)
    internet.run_for(1.0)
    assert a.best(b) == (b.machine.v4, b.machine.port)
    assert b.best(a) == (a.machine.v4, a.machine.port)


def test_who_has_the_peers_private_address_here_is_not_the_peer() -> None:
    """Two homes with the same private network: at the peer's address there is somebody, and it is another node."""
    internet = Internet()
    tailnet = Tailnet(internet)
    here, there = Site(internet, Easy("203.0.113.10")), Site(internet, Easy("203.0.113.20"))
    there.number = here.number
    a, neighbour = tailnet.add(here.machine()), tailnet.add(here.machine())
    there.machine()
    b = tailnet.add(there.machine())
    assert b.machine.v4 == neighbour.machine.v4
    internet.run_for(2.0)
    stream = Stream(a, b)
    internet.run_for(5.0)
    assert a.best(b) == ("203.0.113.20", b.machine.port)
    assert neighbour.changes == []
    assert neighbour.router.counters[DISCO_NOT_AUTHENTIC] > 0
    assert stream.lost() == 0


def test_an_old_node_that_has_not_heard_of_a_new_one_yet() -> None:
    """The new one's first packets and pings come to somebody who does not know it."""
    pair = Pair("easy", "easy")
    late_s = 1.0
    pair.tailnet.delays_s[pair.a] = late_s
    began = pair.now
    new = pair.tailnet.add(Site(pair.internet, Easy("203.0.113.30")).machine())
    pair.internet.run_for(0.1)
    stream = Stream(new, pair.a)
    pair.internet.run_for(10.0)
    assert stream.first_s <= late_s + 1.0  # R17: two seconds
    assert stream.lost() == 0
    assert next(change.at for _, change in new.changes) - began <= late_s + 2.0


# --- what becomes of it --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gates", [("none", "none"), ("easy", "easy")], ids="-".join)
@pytest.mark.parametrize("ways", ["both ways", "one way"])
@pytest.mark.parametrize("blocked", ["out and in", "out", "in"])
@pytest.mark.parametrize("phase_s", [0.4, 1.9])  # since a heartbeat, or nearly so
def test_udp_is_cut_in_mid_flow(
    gates: tuple[str, str], ways: str, blocked: str, phase_s: float, record_property: Record
) -> None:
    """R4: on DERP within 6 s, and direct again 30 s after the cut has ended at the latest."""
    pair = Pair(*gates)
    streams = pair.connected(pair.both_ways() if ways == "both ways" else pair.one_way(), 3.0 + phase_s)
    cut_at = pair.now
    gate = pair.sites[0].v4
    assert gate is not None
    gate.block(out="out" in blocked, into="in" in blocked)
    pair.internet.run_for(12.5)
    gap_s = max(stream.gap(cut_at) for stream in streams)
    record_property("longest gap, s", round(gap_s, 2))
    assert gap_s <= 3.0
    assert sum(stream.lost(cut_at + 3.0) for stream in streams) == 0
    assert pair.handshakes(cut_at) == 0
    healed_at = pair.now
    gate.unblock()
    pair.internet.run_for(10.0)
    record_property("direct again after, s", round(pair.direct_since(healed_at), 2))
    assert pair.direct_since(healed_at) <= 6.0
    assert sum(stream.lost(cut_at + 3.0) for stream in streams) == 0
    assert [stream.repeated() for stream in streams] == [0] * len(streams)


@pytest.mark.parametrize("gates", DIRECT_PAIRS, ids="-".join)
def test_udp_is_blocked_from_birth(gates: tuple[str, str]) -> None:
    """R4: the first byte by DERP within 5 s."""
    pair = Pair(*gates)
    gate = pair.sites[0].v4
    assert gate is not None
    gate.block()
    streams = pair.both_ways(0.5)
    pair.internet.run_for(30.0)
    assert max(stream.first_s for stream in streams) <= 0.1
    assert sum(stream.lost() for stream in streams) == 0
    assert pair.a.kind(pair.b) is Kind.RELAYED
    gate.unblock()
    healed_at = pair.now
    pair.internet.run_for(6.0)
    pair.direct_since(healed_at)


@pytest.mark.parametrize(
    "gates", [("easy", "easy"), ("easy", "none"), ("none", "hard"), ("cone", "cone"), ("firewall", "cone")]
)
@pytest.mark.parametrize("ways", ["both ways", "one way"])
def test_a_nat_begins_anew(gates: tuple[str, str], ways: str, record_property: Record) -> None:
    """R5: no gap over 5 s, and no handshake. Nobody tells us: the NAT has forgotten all flows and gives new ports."""
    pair = Pair(*gates)
    streams = pair.connected(pair.both_ways() if ways == "both ways" else pair.one_way())
    began = pair.now
    nat = next(site.v4 for site in pair.sites if isinstance(site.v4, Easy))
    nat.rebind()
    pair.internet.run_for(8.0)
    gap_s = max(stream.gap(began) for stream in streams)
    record_property("longest gap, s", round(gap_s, 2))
    record_property("direct again after, s", round(pair.direct_since(began), 2))
    assert gap_s <= 2.5
    assert pair.direct_since(began) <= 4.5
    assert sum(stream.lost(began + 2.5) for stream in streams) == 0
    assert pair.handshakes(began) == 0


@pytest.mark.parametrize("since_s", [0.1, 10.0])
def test_a_nat_has_begun_anew_before_anything_is_sent(since_s: float, record_property: Record) -> None:
    """What the world saw of us a moment ago holds no more, and nothing tells us but that nobody answers."""
    pair = Pair("cone", "cone")
    pair.internet.run_for(since_s)
    nat = pair.sites[0].v4
    assert isinstance(nat, Easy)
    nat.rebind()
    began = pair.now
    streams = pair.both_ways()
    pair.internet.run_for(12.0)
    record_property("direct after, s", round(pair.direct_since(began), 2))
    assert pair.direct_since(began) <= 10.0
    assert sum(stream.lost() for stream in streams) == 0


@pytest.mark.parametrize(
    "gates", [("easy", "easy"), ("none", "none"), ("none", "hard"), ("hard", "none"), ("firewall", "cone")]
)
@pytest.mark.parametrize("ways", ["both ways", "one way"])
def test_the_host_gets_another_address(gates: tuple[str, str], ways: str, record_property: Record) -> None:
    """R5, where the edge sees it: a new lease or another network card."""
    pair = Pair(*gates)
    streams = pair.connected(pair.both_ways() if ways == "both ways" else pair.one_way())
    began = pair.now
    pair.sites[0].renumber(pair.a.machine)
    pair.internet.after(0.3, pair.a.network_changed)
    pair.internet.run_for(8.0)
    gap_s = max(stream.gap(began) for stream in streams)
    record_property("longest gap, s", round(gap_s, 2))
    record_property("direct again after, s", round(pair.direct_since(began), 2))
    assert gap_s <= 2.0
    assert pair.direct_since(began) <= 4.5
    assert sum(stream.lost(began + 2.5) for stream in streams) == 0
    assert pair.handshakes(began) == 0


@pytest.mark.parametrize(("gates", "seed"), [(("easy", "easy"), 1), (("none", "hard"), 2), (("hard", "hard"), 1)])
def test_ten_minutes_of_bad_weather(gates: tuple[str, str], seed: int, record_property: Record) -> None:
    """R6: 30 % loss, 50 ms delay, 25 % reordering, 5 % duplicates. The tunnel is never down, and drops nothing that came once."""
    pair = Pair(*gates, seed=seed)
    pair.internet.weather = Weather(delay_s=0.05, loss=0.3, overtaking=0.25, duplicates=0.05)
    began = pair.now
    streams = pair.both_ways(0.5)
    pair.internet.run_for(600.0)
    record_property("longest gap, s", round(max(stream.gap(began + 1.0) for stream in streams), 2))
    assert max(stream.gap(began + 1.0) for stream in streams) <= 8.0  # sixteen packets
    assert sum(stream.lost() for stream in streams) <= 0.4 * sum(len(stream.sent) for stream in streams)
    for node, stream in zip((pair.b, pair.a), streams, strict=True):
        assert stream.repeated() == 0
        assert node.replayed == node.repeated  # each of these had come before
        assert node.came == sum(len(arrived) for arrived in node.arrived.values())  # and what came once was taken
    assert pair.handshakes(began) <= 2 * 600 / 120 + 10


@pytest.mark.parametrize("gates", [*DIRECT_PAIRS, ("hard", "hard")], ids="-".join)
@pytest.mark.parametrize("who", ["who sends", "who receives"])
def test_a_process_begins_anew(gates: tuple[str, str], who: str, record_property: Record) -> None:
    """Another disco key, another port, no session; control tells the other one."""
    pair = Pair(*gates)
    stream = Stream(pair.a, pair.b)
    pair.internet.run_for(5.37)
    began = pair.now
    (pair.a if who == "who sends" else pair.b).restart(port=50_000)
    pair.internet.run_for(8.0)
    record_property("longest gap, s", round(stream.gap(began), 2))
    assert stream.gap(began) <= 0.5
    if gates != ("hard", "hard"):
        record_property("direct again after, s", round(pair.direct_since(began), 2))
        assert pair.direct_since(began) <= 1.0


def test_a_process_begins_anew_and_control_is_away() -> None:
    """Its disco key is a stranger's; packets go by relay, and as soon as control tells the key, directly."""
    pair = Pair("easy", "easy")
    stream = Stream(pair.a, pair.b)
    pair.internet.run_for(5.37)
    began = pair.now
    pair.tailnet.is_there = False
    pair.b.start()
    pair.b.know(pair.a)  # by the netmap last seen
    pair.b.do(pair.b.router.greet(pair.a.public, pair.now))
    pair.internet.run_for(30.0)
    assert stream.gap(began) <= 0.5
    assert pair.a.kind(pair.b) is Kind.RELAYED
    pair.tailnet.is_there = True
    back_at = pair.now
    pair.tailnet.tell(pair.b)
    pair.internet.run_for(10.0)
    assert pair.direct_since(back_at) <= 1.0


# --- relays --------------------------------------------------------------------------------------------------------


def test_a_direct_path_needs_no_relay() -> None:
    pair = Pair("easy", "easy")
    streams = pair.connected(pair.both_ways(0.5))
    pair.internet.regions_down.add(HOME)
    pair.internet.run_for(200.0)
    assert sum(stream.lost() for stream in streams) == 0
    assert all(len(node.changes) == 1 for node in (pair.a, pair.b))


def test_packets_go_to_where_the_peer_has_its_home() -> None:
    pair = Pair("hard", "hard")
    streams = pair.both_ways()
    pair.internet.run_for(5.0)
    pair.b.home = 2
    pair.tailnet.tell(pair.b)
    pair.internet.run_for(5.0)
    assert pair.a.router.path(pair.b.public) == DerpPath(2)
    assert pair.b.router.path(pair.a.public) == DerpPath(HOME)
    moved_at = pair.now
    pair.internet.regions_down.add(HOME)  # b's packets to a are lost, and a's still come
    pair.internet.run_for(5.0)
    assert streams[0].lost(moved_at) == 0
    assert streams[1].lost(moved_at) > 0
    pair.a.home = 2
    pair.tailnet.tell(pair.a)
    moved_at = pair.now
    pair.internet.run_for(5.0)
    assert streams[1].lost(moved_at + 0.1) == 0


def test_without_any_relay_whoever_can_be_reached_is_reached(record_property: Record) -> None:
    pair = Pair("none", "none", relay=False)
    [stream] = pair.one_way()
    pair.internet.run_for(10.0)
    record_property("first packet after, s", round(stream.first_s, 2))
    assert stream.first_s <= 1.0
    assert pair.a.router.path(pair.b.public) == UdpPath((pair.b.machine.addresses[0], pair.b.machine.port))


def test_two_behind_nats_find_each_other_without_a_relay_if_both_try() -> None:
    pair = Pair("easy", "easy", relay=False)
    streams = pair.both_ways()
    pair.internet.run_for(10.0)
    assert max(stream.first_s for stream in streams) <= 1.0
    assert pair.a.is_direct(pair.b)


def test_when_the_relay_is_down_from_the_start_direct_paths_are_found() -> None:
    pair = Pair("none", "easy")
    pair.internet.regions_down.add(HOME)
    streams = pair.both_ways()
    pair.internet.run_for(10.0)
    assert max(stream.first_s for stream in streams) <= 1.0
    assert pair.a.is_direct(pair.b)


# --- peers that speak WireGuard only -------------------------------------------------------------------------------


def plain_pair(a_gate: str, b_gate: str) -> Pair:
    pair = Pair.__new__(Pair)
    Pair.__init__(pair, a_gate, b_gate, relay=False)
    for node in (pair.a, pair.b):
        node.plain, node.speaks_disco = True, False
        pair.tailnet.tell(node)
    pair.internet.run_for(1.0)
    return pair


@pytest.mark.parametrize("gates", [("none", "none"), ("easy", "none"), ("hard", "none")], ids="-".join)
def test_a_plain_peer_is_reached_and_followed(gates: tuple[str, str]) -> None:
    pair = plain_pair(*gates)
    streams = pair.both_ways()
    pair.internet.run_for(20.0)
    assert max(stream.first_s for stream in streams) <= 0.1
    assert all(not what.startswith(("ping", "pong", "call")) for node in (pair.a, pair.b) for _, what in node.sent)
    pair.sites[0].renumber(pair.a.machine)
    moved_at = pair.now
    pair.internet.run_for(20.0)
    assert max(stream.gap(moved_at) for stream in streams) <= 0.2


def test_a_plain_peer_whose_first_endpoint_leads_nowhere() -> None:
    pair = plain_pair("none", "none")
    reach = pair.a.router.paths._peers[pair.b.public].reach
    assert not isinstance(reach.endpoints, str)
    dead = replace(reach, endpoints=["198.51.99.1:1", "198.51.99.2:1", *reach.endpoints])
    pair.a.router.paths.set_peer(pair.b.public, replace(dead, plain=False), pair.now)
    pair.a.router.paths.set_peer(pair.b.public, dead, pair.now)
    stream = Stream(pair.a, pair.b)
    pair.internet.run_for(30.0)
    assert stream.first_s <= 15.0


# --- rest and restlessness -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("gates", [*DIRECT_PAIRS, ("hard", "hard"), ("easy", "hard")], ids="-".join)
def test_who_has_nothing_to_say_is_silent(gates: tuple[str, str], record_property: Record) -> None:
    """A WireGuard keepalive is the last packet that is sent of anybody's own accord: what serves the path ends with it."""
    pair = Pair(*gates)
    stream = Stream(pair.a, pair.b, seconds=20.0)
    pair.internet.run_for(21.0 + KEEPALIVE_TIMEOUT_S + ACTIVE_S + HEARTBEAT_S)
    last = max(at for node in (pair.a, pair.b) for at, _ in node.sent)
    record_property("last packet after the end, s", round(last - stream.ends, 1))
    silent_at = pair.now
    pair.internet.run_for(3 * 3600.0)
    assert pair.a.packets(silent_at) == pair.b.packets(silent_at) == 0


@pytest.mark.parametrize("gates", [*DIRECT_PAIRS, ("cone", "easy"), ("hard", "hard")], ids="-".join)
def test_who_wakes_after_hours_waits_for_nothing(gates: tuple[str, str]) -> None:
    """All that was known is old, and the NATs have forgotten us."""
    pair = Pair(*gates)
    Stream(pair.a, pair.b, seconds=5.0)
    pair.internet.run_for(3 * 3600.0)
    woke_at = pair.now
    streams = pair.both_ways()
    pair.internet.run_for(10.0)
    assert max(stream.first_s for stream in streams) <= 0.1
    assert sum(stream.lost() for stream in streams) == 0
    if gates != ("hard", "hard"):
        assert pair.direct_since(woke_at) <= 0.5


def test_a_packet_now_and_then_finds_its_way_each_time() -> None:
    for every_s in (20.0, 45.1, 47.5, 100.0):
        pair = Pair("cone", "easy")
        streams = pair.both_ways(every_s)
        pair.internet.run_for(12 * every_s + 1.0)
        assert sum(stream.lost() for stream in streams) == 0, every_s
        assert pair.a.is_direct(pair.b), every_s


@pytest.mark.parametrize(
    ("gates", "ways", "most"),
    [
        (("easy", "easy"), "both ways", 50),  # a ping and a pong every 3 s
        (("easy", "easy"), "one way", 90),  # and one of each a second where nothing comes back
        (("hard", "hard"), "both ways", 60),
        (("easy", "hard"), "one way", 60),
    ],
)
def test_how_much_a_path_costs(gates: tuple[str, str], ways: str, most: float, record_property: Record) -> None:
    pair = Pair(*gates)
    streams = pair.both_ways(0.4) if ways == "both ways" else pair.one_way(0.4)
    pair.internet.run_for(30.0)
    since = pair.now
    pair.internet.run_for(300.0)
    for name, node in (("a", pair.a), ("b", pair.b)):
        messages = sum(node.packets(since, kind) for kind in ("ping", "pong", "call")) / 5
        record_property(f"disco messages of {name} a minute", messages)
        assert messages <= most
    assert sum(stream.lost() for stream in streams) == 0


def test_a_day_of_use_in_a_second(record_property: Record) -> None:
    """Busy hours, idle hours, cuts and other addresses; and whenever somebody sends, it arrives."""
    pair = Pair("cone", "easy")
    gate = pair.sites[1].v4
    assert isinstance(gate, Easy)
    for hour in range(24):
        stream = Stream(pair.a, pair.b, every_s=1.0, seconds=30.0)
        pair.internet.run_for(15.0)
        if hour % 4 == 1:
            gate.block()
        elif hour % 4 == 2:
            gate.rebind()
        elif hour % 4 == 3:
            pair.sites[0].renumber(pair.a.machine)
            pair.a.network_changed()
        pair.internet.run_for(15.0)
        gate.unblock()
        pair.internet.run_for(3570.0)
        assert stream.lost() <= 4
    assert len(pair.a.router.paths._sent) < 100
    assert len(pair.a.router.paths._agenda._heap) < 100
    record_property("changes of the path", len(pair.a.changes))


# --- in any order --------------------------------------------------------------------------------------------------

happenings = st.one_of(
    st.tuples(st.just("send"), st.booleans(), st.sampled_from([0.2, 1.0, 5.0])),
    st.tuples(st.just("wait"), st.sampled_from([0.01, 0.1, 1.0, 4.0, 15.0])),
    st.tuples(st.just("rest"), st.sampled_from([50.0, 200.0, 4000.0])),
    st.tuples(st.just("sleep"), st.sampled_from([2.0, 20.0, 600.0])),
    st.tuples(st.just("block"), st.booleans(), st.booleans(), st.booleans()),
    st.tuples(st.just("unblock"), st.booleans()),
    st.tuples(st.just("NAT begins anew"), st.booleans()),
    st.tuples(st.just("another address"), st.booleans()),
    st.tuples(st.just("process begins anew"), st.booleans(), st.integers(2000, 60_000)),
    st.tuples(st.just("relay"), st.booleans()),
    st.tuples(st.just("control"), st.booleans()),
    st.tuples(st.just("weather"), st.sampled_from([0.001, 0.2, 1.0]), st.sampled_from([0.0, 0.5])),
    st.tuples(st.just("a person asks"), st.booleans()),
)


@settings(max_examples=15, deadline=None)
@given(st.sampled_from(sorted(GATES)), st.sampled_from(sorted(GATES)), st.lists(happenings, max_size=15))
def test_whatever_happened_all_is_well_again(a_gate: str, b_gate: str, events: list[tuple[object, ...]]) -> None:
    pair = Pair(a_gate, b_gate)
    internet, nodes = pair.internet, (pair.a, pair.b)
    streams: list[Stream] = []
    moved_behind_a_nat = False
    for event in events:
        which = event[1] is True
        node, other, gate = nodes[which], nodes[not which], pair.sites[which].v4
        assert gate is not None
        match event:
            case "send", _, float(every_s):
                streams.append(Stream(node, other, every_s=every_s))
            case ("wait" | "rest", float(seconds)):
                if event[0] == "rest":
                    for stream in streams:
                        stream.stop()
                internet.run_for(seconds)
            case "sleep", float(seconds):
                internet.now += seconds
            case "block", _, bool(out), bool(into):
                gate.block(out=out, into=into)
            case "unblock", _:
                gate.unblock()
            case "NAT begins anew", _ if isinstance(gate, Easy):
                gate.rebind()
            case "another address", _:
                # A NAT may keep what it knows of the former address alive, with the port that the new one then lacks.
                moved_behind_a_nat |= gate.translates
                pair.sites[which].renumber(node.machine)
                node.network_changed()
            case "process begins anew", _, int(port):
                node.restart(port)
            case "relay", bool(up):
                (internet.regions_down.discard if up else internet.regions_down.add)(HOME)
            case "control", bool(there):
                pair.tailnet.is_there = there
            case "weather", float(delay_s), float(loss):
                internet.weather = Weather(delay_s=delay_s, loss=loss)
            case "a person asks", _:
                node.do(node.router.ask(other.public, b"8 bytes!", internet.now))
    internet.weather = Weather()
    internet.regions_down.clear()
    pair.tailnet.is_there = True
    for stream in streams:
        stream.stop()
    for node, site in zip(nodes, pair.sites, strict=True):
        assert site.v4 is not None
        site.v4.unblock()
        pair.tailnet.tell(node)
    healed_at = pair.now
    streams = pair.both_ways(0.5)
    internet.run_for(36.0)  # R4: 30 s, and what is then under way
    assert max(stream.gap(healed_at) for stream in streams) <= 10.0  # two initiations of WireGuard's
    assert sum(stream.lost(healed_at + 10.0) for stream in streams) == 0
    if (a_gate, b_gate) not in RELAYED and (b_gate, a_gate) not in RELAYED and not moved_behind_a_nat:
        assert pair.direct_since(healed_at) <= 30.0
    for node in nodes:
        assert node.packets(healed_at, "p") + node.packets(healed_at, "call") <= 36 * 5
        assert node.replayed <= node.repeated
    for stream in streams:
        stream.stop()
    internet.run_for(2 * KEEPALIVE_TIMEOUT_S + ACTIVE_S + HEARTBEAT_S + 5.0)  # there may be two keepalives
    silent_at = pair.now
    internet.run_for(1000.0)
    assert pair.a.packets(silent_at) == pair.b.packets(silent_at) == 0
