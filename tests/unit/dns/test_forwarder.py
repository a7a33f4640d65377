"""The forwarder, told as transcripts: who is asked when, and what each asker gets."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import dns.flags
import dns.message
import dns.rcode
import dns.rrset
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsns.dns.configuration import Rule
from tsns.dns.forwarder import (
    EFFORT_S,
    HEDGE_S,
    MAX_ATTEMPTS,
    MAX_IN_FLIGHT,
    MAX_STRAYS,
    Answered,
    Begin,
    Count,
    End,
    Forwarder,
    Output,
)
from tsns.dns.message import read_query
from tsns.dns.names import ROOT
from tsns.dns.upstreams import Transport, Upstream, Way, upstream
from tsns.proto.addresses import pack
from tsns.proto.types import Resolver

SERVFAIL, REFUSED, NXDOMAIN = dns.rcode.SERVFAIL, dns.rcode.REFUSED, dns.rcode.NXDOMAIN


class Scene:
    """A forwarder, its clock, and what it wants of its edge. `begun` are the steps by number, `told` the answers by asker."""

    def __init__(self, *servers: str, ways: dict[str, Way | None] | None = None) -> None:
        self.now = 1000.0
        self.rule = Rule(ROOT, tuple(upstream(Resolver(addr=server)) for server in servers))
        self._ways = {pack(address): way for address, way in (ways or {}).items()}
        numbers = itertools.count(1)
        self.forwarder = Forwarder(lambda size: next(numbers).to_bytes(size, "big"), self._way, forbidden="not here")
        self.begun: dict[int, Begin] = {}
        self.told: dict[int, Answered] = {}
        self._askers = itertools.count(1)

    def _way(self, _: Upstream, address: bytes) -> Way | None:
        return self._ways.get(address, Way.TUNNEL)

    def _take(self, outputs: Sequence[Output]) -> None:
        for output in outputs:
            match output:
                case Begin(number=number):
                    assert number not in self.begun
                    self.begun[number] = output
                case End(number=number):
                    del self.begun[number]
                case Answered(asker=asker):
                    assert asker not in self.told
                    self.told[asker] = output

    def ask(self, name: str = "www.example.com", kind: str = "A", *, over_tcp: bool = False) -> int:
        asker = next(self._askers)
        query = dns.message.make_query(name, kind, id=asker)
        self._take(self.forwarder.ask(read_query(query.to_wire()), self.rule, asker, self.now, over_tcp=over_tcp))
        return asker

    def steps(self) -> list[tuple[str, str]]:
        """Who is being asked, and how."""
        return [(begin.step.upstream.text, str(begin.step.transport)) for begin in self.begun.values()]

    def number(self, server: str, transport: Transport = Transport.UDP) -> int:
        [found] = [
            number
            for number, begin in self.begun.items()
            if begin.step.upstream.text == server and begin.step.transport is transport
        ]
        return found

    def answer(
        self,
        server: str,
        *records: str,
        transport: Transport = Transport.UDP,
        code: dns.rcode.Rcode = dns.rcode.NOERROR,
        truncated: bool = False,
    ) -> None:
        number = self.number(server, transport)
        message = dns.message.make_response(dns.message.from_wire(self.begun[number].data))
        message.set_rcode(code)
        if truncated:
            message.flags |= dns.flags.TC
        name = message.question[0].name
        message.answer += [dns.rrset.from_text(name, 60, "IN", "A", record) for record in records]
        self._take(self.forwarder.receive(number, message.to_wire(), self.now))

    def say(self, number: int, data: bytes) -> None:
        self._take(self.forwarder.receive(number, data, self.now))

    def fail(self, server: str, transport: Transport = Transport.UDP) -> None:
        self._take(self.forwarder.failed(self.number(server, transport), "no route", self.now))

    def pass_time(self, seconds: float) -> None:
        until = self.now + seconds
        while (due := self.forwarder.deadline()) is not None and due <= until:
            self.now = max(self.now, due)
            self._take(self.forwarder.tick(self.now))
        self.now = until

    def outcome(self, asker: int) -> str:
        """What an asker got: records, or the code."""
        message = dns.message.from_wire(self.told[asker].data)
        assert message.id == asker
        records = " ".join(sorted(str(record) for rrset in message.answer for record in rrset))
        return records or dns.rcode.to_text(message.rcode())

    def is_over(self) -> bool:
        return not self.begun and self.forwarder.deadline() is None and self.forwarder.in_flight == 0


def test_a_question_and_its_answer() -> None:
    scene = Scene("192.0.2.1")
    asker = scene.ask()
    assert scene.steps() == [("192.0.2.1", "udp")]
    assert scene.forwarder.in_flight == 1
    scene.answer("192.0.2.1", "10.0.0.1")
    assert scene.outcome(asker) == "10.0.0.1"
    how = scene.told[asker].how
    assert (how.resolver, how.transport, how.way, how.cached, how.reason) == (
        "192.0.2.1",
        Transport.UDP,
        Way.TUNNEL,
        False,
        "",
    )
    assert scene.is_over()


def test_an_answer_is_kept_for_those_who_come_later() -> None:
    scene = Scene("192.0.2.1")
    scene.ask()
    scene.answer("192.0.2.1", "10.0.0.1")
    scene.pass_time(59)
    later = scene.ask("WWW.example.com")
    assert scene.outcome(later) == "10.0.0.1"
    assert scene.told[later].how.cached
    assert dns.message.from_wire(scene.told[later].data).answer[0].ttl == 1
    scene.pass_time(1)
    assert scene.ask() not in scene.told


def test_whoever_asks_the_same_meanwhile_waits_with_it() -> None:
    scene = Scene("192.0.2.1")
    askers = [scene.ask("www.example.com"), scene.ask("WWW.EXAMPLE.com"), scene.ask(over_tcp=True)]
    other = scene.ask(kind="AAAA")
    assert len(scene.begun) == 2
    first = min(scene.begun)
    message = dns.message.make_response(dns.message.from_wire(scene.begun[first].data))
    message.answer.append(dns.rrset.from_text("www.example.com.", 60, "IN", "A", "10.0.0.1"))
    scene.say(first, message.to_wire())
    assert [scene.outcome(asker) for asker in askers] == ["10.0.0.1"] * 3
    assert other not in scene.told
    assert scene.forwarder.counters[Count.SHARED] == 2


# --- several servers, several ways ------------------------------------------------------------------------------------


def test_all_servers_are_asked_and_the_first_good_answer_counts() -> None:
    scene = Scene("192.0.2.1", "192.0.2.2", "192.0.2.3")
    asker = scene.ask()
    assert scene.steps() == [("192.0.2.1", "udp"), ("192.0.2.2", "udp"), ("192.0.2.3", "udp")]
    scene.answer("192.0.2.1", code=SERVFAIL)
    assert asker not in scene.told
    scene.answer("192.0.2.3", "10.0.0.3")
    assert scene.outcome(asker) == "10.0.0.3"
    assert scene.is_over()


def test_a_name_that_does_not_exist_is_a_good_answer() -> None:
    scene = Scene("192.0.2.1", "192.0.2.2")
    asker = scene.ask()
    scene.answer("192.0.2.2", code=NXDOMAIN)
    assert scene.outcome(asker) == "NXDOMAIN"


@pytest.mark.parametrize(
    ("codes", "outcome"),
    [
        ([REFUSED, REFUSED], "REFUSED"),
        ([SERVFAIL, SERVFAIL], "SERVFAIL"),
        ([REFUSED, SERVFAIL], "SERVFAIL"),
        ([dns.rcode.NOTIMP, dns.rcode.NOTIMP], "NOTIMP"),
        ([dns.rcode.BADVERS, dns.rcode.BADVERS], "SERVFAIL"),
    ],
)
def test_when_all_servers_fail_their_common_code_is_the_answer(codes: list[dns.rcode.Rcode], outcome: str) -> None:
    scene = Scene("192.0.2.1", "192.0.2.2")
    asker = scene.ask()
    for number, code in enumerate(codes, 1):
        scene.answer(f"192.0.2.{number}", code=code)
    assert scene.outcome(asker) == outcome
    assert "192.0.2.1" in scene.told[asker].how.reason
    assert scene.is_over()
    assert len(scene.forwarder.cache) == 0


def test_what_is_too_long_for_udp_comes_by_tcp() -> None:
    scene = Scene("192.0.2.1")
    asker = scene.ask()
    scene.answer("192.0.2.1", truncated=True)
    assert scene.steps() == [("192.0.2.1", "tcp")]
    scene.answer("192.0.2.1", *(f"10.0.0.{number}" for number in range(200)), transport=Transport.TCP)
    assert dns.message.from_wire(scene.told[asker].data).flags & dns.flags.TC
    again = scene.ask(over_tcp=True)
    assert len(scene.outcome(again).split()) == 200


def test_whoever_cannot_be_reached_by_udp_is_asked_by_tcp_at_once() -> None:
    scene = Scene("192.0.2.1")
    asker = scene.ask()
    scene.fail("192.0.2.1")
    assert scene.steps() == [("192.0.2.1", "tcp")]
    scene.fail("192.0.2.1", Transport.TCP)
    assert scene.outcome(asker) == "SERVFAIL"
    assert scene.told[asker].how.reason == "192.0.2.1 (192.0.2.1): no route"


def test_whoever_is_silent_by_udp_is_asked_by_tcp_too() -> None:
    scene = Scene("192.0.2.1")
    asker = scene.ask()
    scene.pass_time(HEDGE_S - 0.1)
    assert scene.steps() == [("192.0.2.1", "udp")]
    scene.pass_time(0.1)
    assert scene.steps() == [("192.0.2.1", "udp"), ("192.0.2.1", "tcp")]
    scene.answer("192.0.2.1", "10.0.0.1")  # late, but by UDP
    assert scene.outcome(asker) == "10.0.0.1"
    assert scene.is_over()


def test_addresses_of_an_http_server_are_tried_one_after_the_other() -> None:
    scene = Scene("https://dns.quad9.net/dns-query", ways={"9.9.9.9": None})
    asker = scene.ask()
    [begin] = scene.begun.values()
    assert begin.step.address == pack("149.112.112.112")
    scene.pass_time(HEDGE_S)
    assert [each.step.address for each in scene.begun.values()][1:] == [pack("2620:fe::fe")]
    scene.pass_time(EFFORT_S)
    assert scene.outcome(asker) == "SERVFAIL"


def test_nobody_waits_for_ever() -> None:
    scene = Scene("192.0.2.1", "192.0.2.2")
    asker = scene.ask()
    scene.pass_time(EFFORT_S - 0.1)
    assert asker not in scene.told
    scene.pass_time(0.1)
    assert scene.outcome(asker) == "SERVFAIL"
    assert scene.told[asker].how.reason == "no answer within 10 s"
    assert scene.is_over()


# --- who must not be asked -------------------------------------------------------------------------------------------


def test_without_a_way_nobody_is_asked_and_the_asker_is_told_at_once() -> None:
    scene = Scene("192.0.2.1", ways={"192.0.2.1": None})
    asker = scene.ask()
    assert scene.outcome(asker) == "REFUSED"
    assert scene.told[asker].how.reason == "192.0.2.1: not here"
    assert scene.forwarder.counters[Count.REFUSED] == 1
    assert scene.is_over()


def test_only_servers_with_a_way_are_asked() -> None:
    scene = Scene("192.0.2.1", "100.64.0.9", ways={"192.0.2.1": None})
    scene.ask()
    assert scene.steps() == [("100.64.0.9", "udp")]


def test_a_rule_without_servers() -> None:
    scene = Scene()
    asker = scene.ask()
    assert scene.outcome(asker) == "REFUSED"
    assert scene.told[asker].how.reason == "there is no server for this name"


# --- strangers -------------------------------------------------------------------------------------------------------


def test_what_is_no_answer_is_waited_past() -> None:
    scene = Scene("192.0.2.1")
    asker = scene.ask()
    number = scene.number("192.0.2.1")
    good = bytearray(dns.message.make_response(dns.message.from_wire(scene.begun[number].data)).to_wire())
    for forged in (b"", b"x" * 20, bytes([good[0] ^ 1]) + good[1:], bytes(good[:-20])):
        scene.say(number, forged)
    assert asker not in scene.told
    assert scene.forwarder.counters[Count.STRAY] == 4
    scene.answer("192.0.2.1", "10.0.0.1")
    assert scene.outcome(asker) == "10.0.0.1"


def test_whoever_goes_on_talking_nonsense_is_left() -> None:
    scene = Scene("192.0.2.1")
    scene.ask()
    number = scene.number("192.0.2.1")
    for _ in range(MAX_STRAYS):
        scene.say(number, b"nonsense")
    assert scene.steps() == [("192.0.2.1", "tcp")]
    tcp = scene.number("192.0.2.1", Transport.TCP)
    scene.say(tcp, b"nonsense")  # on a connection, once is enough
    assert scene.is_over()


def test_what_comes_after_the_end_is_nothing() -> None:
    scene = Scene("192.0.2.1", "192.0.2.2")
    scene.ask()
    late = scene.number("192.0.2.2")
    data = scene.begun[late].data
    scene.answer("192.0.2.1", "10.0.0.1")
    scene.say(late, dns.message.make_response(dns.message.from_wire(data)).to_wire())
    assert scene.forwarder.failed(late, "no route", scene.now) == []
    assert scene.is_over()


# --- bounds and changes ----------------------------------------------------------------------------------------------


def test_askers_are_bounded() -> None:
    scene = Scene("192.0.2.1")
    same = [scene.ask() for _ in range(MAX_IN_FLIGHT // 2)]
    for number in range(MAX_IN_FLIGHT // 2):
        scene.ask(f"w{number}.example.com")
    for surplus in (scene.ask(), scene.ask("x.example.com")):
        assert scene.outcome(surplus) == "SERVFAIL"
        assert scene.told[surplus].how.reason == "too many questions at once"
    assert scene.forwarder.counters[Count.TOO_MANY] == 2
    scene.pass_time(EFFORT_S)
    assert all(scene.outcome(asker) == "SERVFAIL" for asker in same)
    assert scene.is_over()
    assert scene.ask() not in scene.told


def test_steps_are_bounded() -> None:
    scene = Scene("192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4")
    for number in range(MAX_IN_FLIGHT):
        scene.ask(f"w{number}.example.com")
    assert len(scene.begun) == MAX_ATTEMPTS
    assert scene.outcome(MAX_IN_FLIGHT) == "SERVFAIL"
    scene.pass_time(EFFORT_S)
    assert scene.is_over()


def test_with_other_servers_nothing_of_before_is_kept() -> None:
    scene = Scene("192.0.2.1")
    scene.ask("old.example.com")
    scene.answer("192.0.2.1", "10.0.0.1")
    early = scene.ask()
    scene.forwarder.forget()
    assert scene.ask("old.example.com") not in scene.told
    late = scene.ask()  # does not wait with `early`, whose answer is another server's
    [first, *_] = scene.begun
    message = dns.message.make_response(dns.message.from_wire(scene.begun[first].data))
    message.answer.append(dns.rrset.from_text("www.example.com.", 60, "IN", "A", "10.0.0.1"))
    scene.say(first, message.to_wire())
    assert scene.outcome(early) == "10.0.0.1"
    assert late not in scene.told
    assert len(scene.forwarder.cache) == 0


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 40)), max_size=60))
def test_whatever_happens_everybody_is_answered_once(events: list[tuple[int, int]]) -> None:
    scene = Scene("192.0.2.1", "192.0.2.2", "https://dns.quad9.net/dns-query")
    asked = 0
    for what, number in events:
        chosen = list(scene.begun)[number % len(scene.begun)] if scene.begun else None
        if what <= 1 or chosen is None:
            scene.ask(f"w{number % 4}.example.com", over_tcp=bool(number & 1))
            asked += 1
        elif what == 2:
            scene.say(chosen, dns.message.make_response(dns.message.from_wire(scene.begun[chosen].data)).to_wire())
        elif what == 3:
            scene._take(scene.forwarder.failed(chosen, "no route", scene.now))
        elif what == 4:
            scene.say(chosen, bytes(number))
        elif what == 5:
            scene.pass_time(number / 4)
        else:
            scene.forwarder.forget()
    scene.pass_time(EFFORT_S)
    assert len(scene.told) == asked
    assert scene.is_over()
    assert not scene.forwarder._attempts
