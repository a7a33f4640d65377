"""MagicDNS as tables of question and answer."""

from __future__ import annotations

import struct
import time

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.dns.names import reverse_key
from tsns.dns.resolver import MAX_RENDERED, Elsewhere, Resolver, search_domains
from tsns.proto.addresses import pack
from tsns.proto.types import NULL, DNSConfig, DNSRecord, Node
from tsns.proto.types import Resolver as Upstream

ME = Node(id=1, name="me.corp.ts.net.", addresses=["100.64.0.1/32", "fd7a:115c:a1e0::1/128"])
WEB = Node(id=2, name="Web.corp.ts.net.", addresses=["100.64.0.2/32", "fd7a:115c:a1e0::2/128", "100.64.0.3/32"])
OLD = Node(id=3, name="old.corp.ts.net.", addresses=["100.64.0.4/32"])
NEW = Node(id=4, name="new.corp.ts.net.", addresses=["fd7a:115c:a1e0::5/128"])
SHARED = Node(id=5, name="guest.other.ts.net.", addresses=["100.64.0.6/32"])
TREE = Node(id=6, name="tree.corp.ts.net.", addresses=["100.64.0.7/32"], cap_map={"dns-subdomain-resolve": NULL})
PEERS = [WEB, OLD, NEW, SHARED, TREE]
CONFIG = DNSConfig(
    proxied=True,
    domains=["corp.ts.net"],
    routes={"mine.example.": None, "also.example": [], "theirs.example": [Upstream(addr="10.0.0.53")]},
    extra_records=[
        DNSRecord(name="db.corp.ts.net.", value="10.1.1.1"),
        DNSRecord(name="DB.corp.ts.net", type="AAAA", value="fd00::1"),
        DNSRecord(name="old.corp.ts.net", type="A", value="10.1.1.2"),
        DNSRecord(name="wiki.example.com", type="A", value="10.1.1.3"),
        DNSRecord(name="text.corp.ts.net", type="TXT", value="10.1.1.4"),
        DNSRecord(name="odd.corp.ts.net", type="AAAA", value="10.1.1.4"),
        DNSRecord(name="bad.corp.ts.net", type="A", value="nonsense"),
        DNSRecord(),
    ],
)


def made(self_node: Node | None = ME, config: DNSConfig | None = CONFIG) -> Resolver:
    resolver = Resolver()
    resolver.update(self_node=self_node, peers=PEERS, config=config)
    return resolver


def answered(resolver: Resolver, query: bytes, *, over_tcp: bool = False) -> bytes:
    data = resolver.answer(query, over_tcp=over_tcp)
    assert isinstance(data, bytes)
    return data


def ask(resolver: Resolver, name: str, kind: str = "A", *, over_tcp: bool = False) -> dns.message.Message:
    query = dns.message.make_query(name, kind)
    data = answered(resolver, query.to_wire(), over_tcp=over_tcp)
    answer = dns.message.from_wire(data)
    assert query.is_response(answer)
    return answer


def told(answer: dns.message.Message) -> str:
    """The answer in one line: its records' data, or what it is instead; with its code if that is no plain success."""
    data = " ".join(str(record) for rrset in answer.answer for record in rrset)
    return data or ("NODATA" if answer.rcode() == dns.rcode.NOERROR else dns.rcode.to_text(answer.rcode()))


def outcome(resolver: Resolver, name: str, kind: str = "A") -> str:
    """The same for a question, which may also be for others to answer."""
    asked = dns.message.make_query(name, kind)
    if isinstance(resolver.answer(asked.to_wire()), Elsewhere):
        return "ELSEWHERE"
    return told(ask(resolver, name, kind))


@pytest.mark.parametrize(
    ("name", "kind", "answer"),
    [
        # nodes
        ("me.corp.ts.net", "A", "100.64.0.1"),
        ("me.corp.ts.net", "AAAA", "fd7a:115c:a1e0::1"),
        ("web.corp.ts.net", "A", "100.64.0.2"),
        ("web.corp.ts.net", "AAAA", "fd7a:115c:a1e0::2"),
        ("web.corp.ts.net", "ANY", "100.64.0.2"),
        ("WEB.CoRp.ts.NET", "A", "100.64.0.2"),
        ("new.corp.ts.net", "A", "NODATA"),
        ("new.corp.ts.net", "AAAA", "fd7a:115c:a1e0::5"),
        ("new.corp.ts.net", "ANY", "fd7a:115c:a1e0::5"),
        ("guest.other.ts.net", "A", "100.64.0.6"),
        ("guest.other.ts.net", "AAAA", "NODATA"),
        ("web.corp.ts.net", "TXT", "NODATA"),
        ("web.corp.ts.net", "MX", "NODATA"),
        ("web.corp.ts.net", "HTTPS", "NODATA"),
        ("web.corp.ts.net", "TYPE65280", "NODATA"),
        ("web.corp.ts.net", "PTR", "NODATA"),
        ("web.corp.ts.net", "NS", "NOTIMP"),
        ("web.corp.ts.net", "SOA", "NOTIMP"),
        ("web.corp.ts.net", "AXFR", "NOTIMP"),
        ("web.corp.ts.net", "HINFO", "NOTIMP"),
        # names below a node
        ("leaf.tree.corp.ts.net", "A", "100.64.0.7"),
        ("a.leaf.tree.corp.ts.net", "A", "100.64.0.7"),
        ("leaf.web.corp.ts.net", "A", "NXDOMAIN"),
        # records that control adds come first
        ("db.corp.ts.net", "A", "10.1.1.1"),
        ("db.corp.ts.net", "AAAA", "fd00::1"),
        ("old.corp.ts.net", "A", "10.1.1.2"),
        ("wiki.example.com", "A", "10.1.1.3"),
        ("wiki.example.com", "AAAA", "NODATA"),
        ("page.wiki.example.com", "A", "NXDOMAIN"),
        ("text.corp.ts.net", "A", "NXDOMAIN"),
        ("odd.corp.ts.net", "A", "NXDOMAIN"),
        ("odd.corp.ts.net", "AAAA", "NXDOMAIN"),
        ("bad.corp.ts.net", "A", "NXDOMAIN"),
        # domains of the tailnet
        ("nobody.corp.ts.net", "A", "NXDOMAIN"),
        ("nobody.corp.ts.net", "SOA", "NXDOMAIN"),
        ("corp.ts.net", "A", "NODATA"),
        ("x.mine.example", "A", "NXDOMAIN"),
        ("x.also.example", "A", "NXDOMAIN"),
        # the service itself, and 4via6
        ("magicdns.localhost-tailscale-daemon", "A", "100.100.100.100"),
        ("magicdns.localhost-tailscale-daemon", "AAAA", "fd7a:115c:a1e0::53"),
        ("192-168-1-2-via-7.corp.ts.net", "AAAA", "fd7a:115c:a1e0:b1a:0:7:c0a8:102"),
        ("192-168-1-2-via-7", "A", "NODATA"),
        # the way back
        ("2.0.64.100.in-addr.arpa", "PTR", "web.corp.ts.net."),
        ("2.0.64.100.IN-ADDR.arpa", "ANY", "web.corp.ts.net."),
        ("2.0.64.100.in-addr.arpa", "A", "NODATA"),
        ("3.0.64.100.in-addr.arpa", "PTR", "NXDOMAIN"),  # web's second address of the family
        ("99.0.64.100.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("1.0.127.100.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("100.100.100.100.in-addr.arpa", "PTR", "magicdns.localhost-tailscale-daemon."),
        ("1.1.1.10.in-addr.arpa", "PTR", "db.corp.ts.net."),
        (reverse_key(pack("fd7a:115c:a1e0::2")), "PTR", "web.corp.ts.net."),
        (reverse_key(pack("fd7a:115c:a1e0::99")), "PTR", "NXDOMAIN"),
        (reverse_key(pack("fd7a:115c:a1e0::53")), "PTR", "magicdns.localhost-tailscale-daemon."),
        # names that nobody else must be asked for
        ("secret.onion", "A", "NXDOMAIN"),
        ("onion", "A", "NXDOMAIN"),
        ("lb._dns-sd._udp.0.0.168.192.in-addr.arpa", "PTR", "NXDOMAIN"),
        ("b._dns-sd._udp.example.com", "PTR", "NXDOMAIN"),
        # not ours
        ("web", "A", "ELSEWHERE"),
        ("example.com", "A", "ELSEWHERE"),
        ("x.theirs.example", "A", "ELSEWHERE"),
        ("nobody.other.ts.net", "A", "ELSEWHERE"),
        ("notcorp.ts.net", "A", "ELSEWHERE"),
        ("ts.net", "A", "ELSEWHERE"),
        ("1.0.128.100.in-addr.arpa", "PTR", "ELSEWHERE"),
        ("8.8.8.8.in-addr.arpa", "PTR", "ELSEWHERE"),
        ("onion.example.com", "A", "ELSEWHERE"),
        (".", "NS", "ELSEWHERE"),
    ],
)
def test_questions_and_answers(name: str | bytes, kind: str, answer: str) -> None:
    text = name if isinstance(name, str) else dns.name.from_wire(name, 0)[0].to_text()
    assert outcome(made(), text, kind) == answer


# --- the form of an answer -----------------------------------------------------------------------------------------


def test_a_positive_answer() -> None:
    answer = ask(made(), "WeB.corp.ts.net")
    assert answer.flags == dns.flags.QR | dns.flags.AA | dns.flags.RD | dns.flags.RA
    assert [(str(rrset.name), rrset.ttl) for rrset in answer.answer] == [("WeB.corp.ts.net.", 5)]
    assert answer.authority == []
    assert answer.edns == -1


@pytest.mark.parametrize(
    ("name", "kind", "zone"),
    [
        ("nobody.corp.ts.net", "A", "corp.ts.net."),
        ("old.corp.ts.net", "AAAA", "corp.ts.net."),
        ("corp.ts.net", "A", "corp.ts.net."),
        ("wiki.example.com", "AAAA", "wiki.example.com."),
        ("guest.other.ts.net", "AAAA", "other.ts.net."),
        ("9.0.64.100.in-addr.arpa", "PTR", "64.100.in-addr.arpa."),
        ("secret.onion", "A", "onion."),
    ],
)
def test_a_negative_answer_names_its_zone(name: str, kind: str, zone: str) -> None:
    answer = ask(made(), name, kind)
    [rrset] = answer.authority
    assert (str(rrset.name), rrset.rdtype, rrset.ttl) == (zone, dns.rdatatype.SOA, 5)
    [soa] = rrset
    assert (soa.refresh, soa.retry, soa.expire, soa.minimum) == (10, 10, 10, 10)
    assert answer.flags & dns.flags.AA


def test_a_refusal_claims_no_authority() -> None:
    answer = ask(made(), "example.com", "AXFR")
    assert answer.rcode() == dns.rcode.REFUSED
    assert answer.flags & ~0xF == dns.flags.QR | dns.flags.RD | dns.flags.RA
    assert (answer.answer, answer.authority) == ([], [])


def test_recursion_is_available_to_those_who_desire_it() -> None:
    query = dns.message.make_query("web.corp.ts.net", "A", flags=0)
    answer = dns.message.from_wire(answered(made(), query.to_wire()))
    assert answer.flags == dns.flags.QR | dns.flags.AA


@pytest.mark.parametrize(
    ("dnssec", "name"), [(False, "web.corp.ts.net"), (True, "web.corp.ts.net"), (True, "nobody.corp.ts.net")]
)
def test_edns_is_answered_with_edns(dnssec: bool, name: str) -> None:
    query = dns.message.make_query(name, "A", use_edns=0, payload=1400, want_dnssec=dnssec)
    answer = dns.message.from_wire(answered(made(), query.to_wire()))
    assert (answer.edns, answer.payload, answer.options) == (0, 4095, ())
    assert bool(answer.ednsflags & dns.flags.DO) == dnssec


def test_a_version_of_edns_that_we_do_not_know() -> None:
    query = dns.message.make_query("web.corp.ts.net", "A", use_edns=1)
    answer = dns.message.from_wire(answered(made(), query.to_wire()))
    assert (answer.rcode(), answer.edns, answer.answer) == (dns.rcode.BADVERS, 0, [])


def test_other_classes_are_not_ours() -> None:
    query = dns.message.make_query("web.corp.ts.net", "A", rdclass="CH")
    answer = dns.message.from_wire(answered(made(), query.to_wire()))
    assert answer.rcode() == dns.rcode.REFUSED


# --- what is no question -------------------------------------------------------------------------------------------

GOOD = dns.message.make_query("web.corp.ts.net", "A", id=0x1234).to_wire()
OPT = b"\0" + struct.pack(">HHIH", 41, 1232, 0, 0)


def with_counts(data: bytes, *counts: int) -> bytes:
    return data[:4] + struct.pack(">4H", *counts) + data[12:]


@pytest.mark.parametrize("data", [b"", GOOD[:11], GOOD[:2] + b"\x80" + GOOD[3:], GOOD[:2] + b"\x81\x83" + GOOD[4:12]])
def test_no_answer_to_answers_and_to_less_than_a_header(data: bytes) -> None:
    assert made().answer(data) is None


def test_our_own_answer_is_dropped() -> None:
    assert made().answer(answered(made(), GOOD)) is None


@pytest.mark.parametrize(
    "data",
    [
        GOOD[:12],
        GOOD[:-1],
        GOOD + b"\0",
        with_counts(GOOD, 0, 0, 0, 0),
        with_counts(GOOD, 2, 0, 0, 0),
        with_counts(GOOD, 1, 0, 0, 1),
        with_counts(GOOD, 1, 65535, 65535, 65535),
        GOOD[:12] + b"\xc0\x0c" + GOOD[-4:],
        GOOD[:12] + b"\x40web" + GOOD[-4:],
        with_counts(GOOD + OPT + OPT, 1, 0, 0, 2),
        with_counts(GOOD + b"\x01x" + OPT, 1, 0, 0, 1),
        with_counts(GOOD + b"\xc0\x0c" + OPT[1:], 1, 0, 0, 1),
        with_counts(GOOD + b"\x80x" + OPT, 1, 0, 0, 1),
        with_counts(GOOD + bytes(4096), 1, 0, 0, 0),
    ],
    ids=[
        "a header that promises a question",
        "half a question",
        "something behind it",
        "no question",
        "two questions",
        "a promised record",
        "many promised records",
        "a name that points at itself",
        "a label of a kind that is not in use",
        "two OPT records",
        "an OPT record with a name",
        "an OPT record with a name elsewhere",
        "a record with a label of a kind that is not in use",
        "longer than a query may be",
    ],
)
def test_format_errors(data: bytes) -> None:
    assert made().answer(data) == struct.pack(">6H", 0x1234, 0x8181, 0, 0, 0, 0)


def test_records_that_a_query_need_not_have_are_passed_over() -> None:
    record = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 5, 4) + bytes(4)
    named = b"\x03foo\xc0\x0c" + struct.pack(">HHIH", 16, 1, 5, 0)
    answer = answered(made(), with_counts(GOOD + record + named + OPT, 1, 1, 1, 1))
    assert told(dns.message.from_wire(answer)) == "100.64.0.2"


def test_a_chain_of_pointers_costs_nothing() -> None:
    chain = b"".join(struct.pack(">H", 0xC000 | at) for at in range(0x1E, 0x1E + 1600, 2))
    holder = b"\0" + struct.pack(">HHIH", 16, 1, 0, len(chain))
    end = struct.pack(">H", 0xC000 | len(GOOD) + len(holder) + len(chain) - 2)
    record = end + struct.pack(">HHIH", 16, 1, 0, 0)
    data = with_counts(GOOD + holder + chain + record * 190, 1, 0, 0, 191)
    assert len(data) <= 4096
    started = time.process_time()
    assert made().answer(data) is not None
    assert time.process_time() - started < 0.1


@pytest.mark.parametrize("opcode", range(1, 16))
def test_other_opcodes_are_not_implemented(opcode: int) -> None:
    data = GOOD[:2] + struct.pack(">H", opcode << 11) + GOOD[4:]
    assert made().answer(data) == struct.pack(">6H", 0x1234, 0x8004 | opcode << 11, 0, 0, 0, 0)


@given(st.binary(max_size=600), st.booleans())
def test_no_bytes_raise(data: bytes, over_tcp: bool) -> None:
    RESOLVER.answer(data, over_tcp=over_tcp)


@given(
    st.lists(st.binary(min_size=1, max_size=63), max_size=3),
    st.integers(0, 65535),
    st.sampled_from([1, 1, 3, 0, 254, 255, 4096]),
    st.none() | st.tuples(st.integers(0, 65535), st.integers(0, 0xFFFFFFFF), st.binary(max_size=30)),
)
def test_any_question_gets_an_answer(
    parts: list[bytes], kind: int, record_class: int, edns: tuple[int, int, bytes] | None
) -> None:
    question = b"".join(bytes((len(part),)) + part for part in parts) + struct.pack(">BHH", 0, kind, record_class)
    query = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 0 if edns is None else 1) + question
    if edns is not None:
        payload, ttl, options = edns
        query += b"\0" + struct.pack(">HHIH", 41, payload, ttl, len(options)) + options
    answer = RESOLVER.answer(query)
    assert answer is not None
    if isinstance(answer, Elsewhere):
        assert answer.query.key == question[:-4].lower()
        return
    assert answer[:2] == query[:2]
    assert answer[12 : 12 + len(question)] == question
    dns.message.from_wire(answer)


RESOLVER = made()


# --- what was rendered already ---------------------------------------------------------------------------------------


def test_a_query_that_differs_in_its_id_alone_gets_the_same_answer_with_its_own_id() -> None:
    resolver = made()
    for wire in (GOOD, with_counts(GOOD + OPT, 1, 0, 0, 1)):
        first = answered(resolver, wire)
        again = answered(resolver, b"\xab\xcd" + wire[2:])
        assert again == b"\xab\xcd" + first[2:]
    assert len(resolver._rendered) == 2


def test_a_question_for_others_is_read_once_and_keeps_its_own_id() -> None:
    resolver = made()
    wire = dns.message.make_query("x.theirs.example", "A", id=7).to_wire()
    first = resolver.answer(wire)
    again = resolver.answer(b"\xab\xcd" + wire[2:])
    assert isinstance(first, Elsewhere)
    assert isinstance(again, Elsewhere)
    assert (first.query.id, again.query.id, again.rule) == (7, 0xABCD, first.rule)
    assert [one.text for one in again.rule.upstreams] == ["10.0.0.53"]
    resolver.configure(self_node=ME, config=DNSConfig())
    changed = resolver.answer(wire)
    assert isinstance(changed, Elsewhere)
    assert changed.rule.upstreams == ()


def test_what_is_rendered_is_bounded() -> None:
    resolver = made()
    for number in range(MAX_RENDERED + 10):
        ask(resolver, f"x{number}.corp.ts.net")
    assert 0 < len(resolver._rendered) <= MAX_RENDERED


# --- what a netmap changes -----------------------------------------------------------------------------------------


def test_nothing_is_known_before_the_first_netmap() -> None:
    assert outcome(Resolver(), "web.corp.ts.net") == "ELSEWHERE"


@pytest.mark.parametrize("config", [None, DNSConfig(), DNSConfig(proxied=False)])
def test_without_magic_dns_names_are_known_but_the_domain_is_not_ours(config: DNSConfig | None) -> None:
    resolver = made(config=config)
    assert outcome(resolver, "web.corp.ts.net") == "100.64.0.2"
    assert outcome(resolver, "nobody.corp.ts.net") == "ELSEWHERE"
    assert outcome(resolver, "99.0.64.100.in-addr.arpa", "PTR") == "ELSEWHERE"


def test_a_bare_name_has_no_domain() -> None:
    resolver = made(self_node=Node(id=1, name="me", addresses=["100.64.0.1/32"]))
    assert outcome(resolver, "me") == "100.64.0.1"
    assert outcome(resolver, "example") == "ELSEWHERE"


@pytest.mark.parametrize(
    ("ours", "kind", "answer"),
    [
        (["100.64.0.1/32", "fd7a:115c:a1e0::1/128"], "AAAA", "fd7a:115c:a1e0::2"),
        (["100.64.0.1/32"], "A", "100.64.0.2"),
        (["100.64.0.1/32"], "AAAA", "NODATA"),
        (["fd7a:115c:a1e0::1/128"], "A", "NODATA"),
        (["fd7a:115c:a1e0::1/128"], "AAAA", "fd7a:115c:a1e0::2"),
    ],
)
def test_a_family_that_we_lack_is_hidden(ours: list[str], kind: str, answer: str) -> None:
    resolver = made(self_node=Node(id=1, name="me.corp.ts.net.", addresses=ours))
    assert outcome(resolver, "web.corp.ts.net", kind) == answer


def test_peers_come_change_and_go() -> None:
    resolver = made()
    late = Node(id=9, name="late.corp.ts.net.", addresses=["100.64.0.9/32"])
    resolver.update_peer(None, late)
    assert outcome(resolver, "late.corp.ts.net") == "100.64.0.9"
    moved = Node(id=9, name="moved.corp.ts.net.", addresses=["100.64.0.10/32"])
    resolver.update_peer(late, moved)
    assert outcome(resolver, "late.corp.ts.net") == "NXDOMAIN"
    assert outcome(resolver, "9.0.64.100.in-addr.arpa", "PTR") == "NXDOMAIN"
    assert outcome(resolver, "moved.corp.ts.net") == "100.64.0.10"
    resolver.update_peer(moved, None)
    assert outcome(resolver, "moved.corp.ts.net") == "NXDOMAIN"


def test_two_peers_may_swap_names_and_addresses_one_after_the_other() -> None:
    resolver = made()
    web = Node(id=WEB.id, name=OLD.name, addresses=["100.64.0.4/32"])
    old = Node(id=OLD.id, name=WEB.name, addresses=["100.64.0.2/32"])
    resolver.configure(self_node=ME, config=DNSConfig(proxied=True))
    resolver.update_peer(WEB, web)
    resolver.update_peer(OLD, old)
    assert outcome(resolver, "web.corp.ts.net") == "100.64.0.2"
    assert outcome(resolver, "old.corp.ts.net") == "100.64.0.4"
    assert outcome(resolver, "2.0.64.100.in-addr.arpa", "PTR") == "web.corp.ts.net."
    assert outcome(resolver, "4.0.64.100.in-addr.arpa", "PTR") == "old.corp.ts.net."
    resolver.update_peer(web, None)
    assert outcome(resolver, "old.corp.ts.net") == "NXDOMAIN"
    assert outcome(resolver, "web.corp.ts.net") == "100.64.0.2"


def test_our_own_change_leaves_the_peers_alone() -> None:
    resolver = made()
    resolver.configure(
        self_node=Node(id=1, name="renamed.corp.ts.net.", addresses=["100.64.0.1/32"]), config=DNSConfig(proxied=True)
    )
    assert outcome(resolver, "renamed.corp.ts.net") == "100.64.0.1"
    assert outcome(resolver, "me.corp.ts.net") == "NXDOMAIN"
    assert outcome(resolver, "web.corp.ts.net") == "100.64.0.2"
    assert outcome(resolver, "db.corp.ts.net") == "NXDOMAIN"


def test_an_update_forgets_all_others() -> None:
    resolver = made()
    resolver.update(self_node=ME, peers=[], config=CONFIG)
    assert outcome(resolver, "web.corp.ts.net") == "NXDOMAIN"


@pytest.mark.parametrize(
    "node",
    [
        Node(id=9),
        Node(id=9, name=".", addresses=["100.64.0.9/32"]),
        Node(id=9, name="late.corp.ts.net.", addresses=None),
        Node(id=9, name="late.corp.ts.net.", addresses=["nonsense"]),
        Node(id=9, name="läte.corp.ts.net.", addresses=["100.64.0.9/32"]),
    ],
)
def test_a_node_without_name_or_address_is_passed_over(node: Node) -> None:
    resolver = made()
    resolver.update_peer(None, node)
    assert outcome(resolver, "late.corp.ts.net") == "NXDOMAIN"
    assert outcome(resolver, "9.0.64.100.in-addr.arpa", "PTR") == "NXDOMAIN"
    resolver.update_peer(node, None)


def test_many_nodes_of_one_name_cost_no_more_than_others() -> None:
    resolver = Resolver()
    twins = [Node(id=number, name="twin.ts.net.", addresses=["100.64.0.9/32"]) for number in range(5000)]
    resolver.update(self_node=None, peers=twins, config=None)
    assert outcome(resolver, "twin.ts.net") == "100.64.0.9"
    for twin in twins:
        resolver.update_peer(twin, None)
    assert outcome(resolver, "twin.ts.net") == "ELSEWHERE"


@pytest.mark.parametrize(
    ("domains", "search"),
    [
        (None, []),
        ([], []),
        (["corp.ts.net.", "Lab.example"], ["corp.ts.net", "Lab.example"]),
        (["corp.ts.net", "corp.ts.net."], ["corp.ts.net"]),
        (["", ".", "a..b", "x\nnameserver 6.6.6.6", "two words", "ünder"], []),
    ],
)
def test_search_domains(domains: list[str] | None, search: list[str]) -> None:
    assert search_domains(DNSConfig(domains=domains)) == search


def test_no_config_no_search_domains() -> None:
    assert search_domains(None) == []


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        ("web", "100.64.0.2"),
        ("WEB", "100.64.0.2"),
        ("db", "10.1.1.1"),
        ("guest", None),
        ("nobody", None),
        ("wiki", None),
    ],
)
def test_a_short_name_is_completed_by_the_search_domains(name: str, answer: str | None) -> None:
    """With the question as it was asked."""
    completed = made().complete(dns.message.make_query(name, "A").to_wire())
    if answer is None:
        assert completed is None
        return
    assert completed is not None
    [records] = dns.message.from_wire(completed).answer
    assert (records.name.to_text(), records[0].to_text()) == (f"{name}.", answer)


def test_what_is_no_question_is_not_completed() -> None:
    query = dns.message.make_query("web", "A").to_wire()
    for data in (b"", query[:12], query[:-1], made().complete(query) or b"", query[:2] + b"\x28" + query[3:]):
        assert made().complete(data) is None
    assert made(config=None).complete(query) is None
