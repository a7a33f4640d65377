"""Compiled rules permit what the rules say, however many they are, and at what cost."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.filter import rules as rules_module
from tsns.filter.addresses import AddressSet, parse_spans, span
from tsns.filter.rules import CAPABILITY_MARK, DEFAULT_PROTOCOLS, MAX_PORT, RuleSet
from tsns.proto.addresses import Prefix, pack, unpack
from tsns.proto.types import FilterRule, NetPortRange, PortRange

US, PEER = pack("100.64.0.1"), pack("100.64.0.2")
MANY = 5000
MAX_VERDICT_S = 20e-6  # of a rule set of that many, for a flow that was not there before


def rule(
    sources: Sequence[str],
    destinations: Sequence[str],
    ports: Iterable[tuple[int, int]] = ((0, MAX_PORT),),
    protocols: list[int] | None = None,
) -> FilterRule:
    return FilterRule(
        src_ips=list(sources),
        dst_ports=[
            NetPortRange(ip=text, ports=PortRange(first=first, last=last))
            for text in destinations
            for first, last in ports
        ],
        ip_proto=protocols,
    )


def compiled(*rules: FilterRule) -> RuleSet:
    found = RuleSet.of(rules)
    found.look_up(lambda _: ())
    return found


# --- the same as a walk --------------------------------------------------------------------------------------------

HOLDERS = {"near": [Prefix.parse("10.0.0.3"), Prefix.parse("fd00::/126")], "far": [Prefix.parse("10.0.0.8/30")]}


class Walk:
    """What rules mean, one after the other: the plainest way to say it."""

    def __init__(self, rules: Sequence[FilterRule]) -> None:
        self._rules = rules

    def _entries(self, source: bytes, destination: bytes) -> Iterable[tuple[frozenset[int], PortRange]]:
        for each in self._rules:
            if not any(source in addresses(text) for text in each.src_ips or ()):
                continue
            listed = {number for number in each.ip_proto or () if 0 <= number <= 255}
            protocols = frozenset(listed) if each.ip_proto else DEFAULT_PROTOCOLS
            for to in each.dst_ports or ():
                if protocols and destination in addresses(to.ip or "", capabilities=False):
                    yield protocols, to.ports or PortRange(first=0, last=0)

    def permits(self, protocol: int, source: bytes, destination: bytes, port: int) -> bool:
        return any(
            protocol in protocols and ports.first <= port <= ports.last
            for protocols, ports in self._entries(source, destination)
        )

    def permits_any(self, source: bytes, destination: bytes) -> bool:
        return any(True for _ in self._entries(source, destination))

    def permits_all_ports(self, protocol: int, source: bytes, destination: bytes) -> bool:
        return any(
            protocol in protocols and ports.first <= 0 and ports.last >= MAX_PORT
            for protocols, ports in self._entries(source, destination)
        )


def addresses(text: str, *, capabilities: bool = True) -> AddressSet:
    """What a text of a rule means."""
    if capabilities and text.startswith(CAPABILITY_MARK):
        return AddressSet(map(span, HOLDERS.get(text.removeprefix(CAPABILITY_MARK), [])))
    try:
        return AddressSet(parse_spans(text))
    except ValueError:
        return AddressSet(())


near = st.integers(0, 15).map(lambda number: f"10.0.0.{number}")
near6 = st.integers(0, 15).map(lambda number: f"fd00::{number:x}")
texts = st.one_of(
    near,
    near6,
    st.tuples(near, near).map("-".join),
    st.tuples(near6, near6).map("-".join),
    st.sampled_from(["*", "10.0.0.0/29", "10.0.0.8/31", "0.0.0.0/0", "fd00::/125", "::/0", "10.0.0.1/8", "tag:x", ""]),
    st.sampled_from(["cap:near", "cap:far", "cap:nobody"]),
)
port = st.sampled_from([-1, 0, 1, 2, 3, 1000, 65534, 65535, 70000])
rule_texts = st.builds(
    rule,
    st.lists(texts, max_size=3),
    st.lists(texts, max_size=3),
    st.lists(st.tuples(port, port), min_size=1, max_size=2),
    st.none() | st.lists(st.sampled_from([-1, 1, 6, 17, 47, 132, 256]), max_size=3),
)
flows = st.tuples(
    st.sampled_from([1, 6, 17, 47, 58, 132]),
    near.map(pack) | near6.map(pack),
    near.map(pack) | near6.map(pack),
    st.sampled_from([0, 1, 2, 3, 1000, 65534, 65535]),
)


@given(st.lists(rule_texts, max_size=6), st.lists(flows, min_size=1, max_size=8))
def test_an_index_permits_what_a_walk_through_the_rules_permits(
    rules: list[FilterRule], asked: list[tuple[int, bytes, bytes, int]]
) -> None:
    walk, indexed = Walk(rules), RuleSet.of(rules)
    indexed.look_up(lambda capability: HOLDERS.get(capability, []))
    for protocol, source, destination, wanted in asked:
        assert indexed.permits(protocol, source, destination, wanted) == walk.permits(
            protocol, source, destination, wanted
        )
        assert indexed.permits_any(source, destination) == walk.permits_any(source, destination)
        assert indexed.permits_all_ports(protocol, source, destination) == walk.permits_all_ports(
            protocol, source, destination
        )


# --- many ----------------------------------------------------------------------------------------------------------


def peer(number: int) -> str:
    """One of many addresses."""
    return f"100.{80 + (number >> 16)}.{number >> 8 & 255}.{number & 255}"


SHAPES = {
    "each peer to a port of its own": [rule([peer(n)], ["100.64.0.1"], [(1000 + n, 1000 + n)]) for n in range(MANY)],
    "all to ports": [rule(["*"], ["100.64.0.1"], [(1000 + n, 1000 + n)]) for n in range(MANY)],
    "groups": [
        rule([peer(n % 200 * 20 + m) for m in range(20)], ["100.64.0.1"], [(1000 + n, 1000 + n)]) for n in range(MANY)
    ],
    "networks to ranges of ports": [
        rule([f"10.{n >> 8}.{n & 255}.0/24"], ["100.64.0.1"], [(1000 + n, 1500 + n)]) for n in range(MANY)
    ],
    "ranges": [rule([f"{peer(n)}-{peer(n + 77)}"], ["100.64.0.1"], [(1000 + n, 1500 + n)]) for n in range(MANY)],
    "one of many capabilities": [rule([f"cap:{n % 50}"], ["100.64.0.1"], [(1000 + n, 1000 + n)]) for n in range(MANY)],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_flow_costs_little_with_five_thousand_rules(shape: str) -> None:
    subject = RuleSet.of(SHAPES[shape])
    subject.look_up(lambda capability: [Prefix.parse(peer(int(capability)))])
    asked = [(pack(peer(n * 37 % MANY)), 1000 + n * 91 % MANY) for n in range(200)]
    costs = []
    for _ in range(5):
        began = time.process_time()
        for source, wanted in asked:
            subject.permits(6, source, US, wanted)
            subject.permits_any(source, US)
        costs.append((time.process_time() - began) / len(asked) / 2)
    assert min(costs) < MAX_VERDICT_S


def test_ranges_that_would_take_too_much_memory_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_module, "MAX_RANGE_NODES", 300)
    subject = compiled(*(rule([f"::{n:x}:1-ffff::{n:x}:8"], ["100.64.0.1"]) for n in range(1, 9)))
    assert 0 < subject.skipped < 8
    plain = compiled(rule(["::1-ffff::8", "::2-ffff::9", "::3-ffff::7", "100.64.0.2"], ["100.64.0.1"]))
    assert plain.permits(6, PEER, US, 22), "an address is no range"


def test_entries_that_would_take_too_much_memory_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules_module, "MAX_PLACES", 4)
    subject = compiled(*(rule([unpack(PEER)], [unpack(US)], [(n, n)]) for n in range(4)))
    assert [subject.permits(6, PEER, US, n) for n in range(4)] == [True, True, False, False]
    assert subject.skipped == 2
