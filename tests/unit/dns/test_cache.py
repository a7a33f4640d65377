"""Answers of other servers: how long they may be kept, what is patched into them, what is no answer."""

from __future__ import annotations

import struct

import dns.flags
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype
import dns.rrset
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.dns.cache import ENTRY_BYTES, Cache
from tsns.dns.message import FormatError, Query, read_query
from tsns.dns.replies import MAX_NEGATIVE_TTL_S, MAX_TTL_S, Question, Reply, dress, question_of, read_reply, wire_of

SOA = "example. {ttl} IN SOA a.example. b.example. 1 2 3 4 {minimum}"


def query(name: str = "www.example.com", kind: str = "A", **options: object) -> Query:
    return read_query(dns.message.make_query(name, kind, **options).to_wire())  # type: ignore[arg-type]


def reply_to(
    asked: Query, *answers: str, soa: str = "", code: dns.rcode.Rcode = dns.rcode.NOERROR, **flags: bool
) -> bytes:
    """What a server says to our question."""
    message = dns.message.make_response(dns.message.from_wire(wire_of(question_of(asked), 7)))
    for section, lines in ((message.answer, answers), (message.authority, [soa] if soa else [])):
        for line in lines:
            name, ttl, record_class, kind, data = line.split(None, 4)
            section.append(dns.rrset.from_text(name, int(ttl), record_class, kind, data))
    message.set_rcode(code)
    if flags.get("truncated"):
        message.flags |= dns.flags.TC
    return message.to_wire()


def read(asked: Query, data: bytes) -> Reply:
    return read_reply(data, question_of(asked), 7)


# --- what leaves -----------------------------------------------------------------------------------------------------


def test_nothing_of_a_query_leaves_but_its_question() -> None:
    option = dns.edns.GenericOption(dns.edns.OptionType.COOKIE, b"recogniz")
    asked = dns.message.make_query("WWW.Example.com", "TXT", use_edns=0, payload=4000, options=[option], pad=128)
    asked.flags |= dns.flags.CD | dns.flags.AA
    sent = dns.message.from_wire(wire_of(question_of(read_query(asked.to_wire())), 4711))
    assert sent.id == 4711
    assert sent.flags == dns.flags.RD | dns.flags.CD
    assert [(str(each.name), each.rdtype) for each in sent.question] == [("www.example.com.", dns.rdatatype.TXT)]
    assert (sent.edns, sent.payload, sent.options) == (0, 1232, ())


def test_whoever_speaks_no_edns_is_asked_for_without() -> None:
    assert dns.message.from_wire(wire_of(question_of(query(use_edns=False)), 1)).edns == -1
    dnssec = dns.message.from_wire(wire_of(question_of(query(want_dnssec=True)), 1))
    assert dnssec.ednsflags & dns.flags.DO


# --- what comes back -------------------------------------------------------------------------------------------------

A = "www.example.com. {ttl} IN A 192.0.2.1"


@pytest.mark.parametrize(
    ("answers", "soa", "code", "lifetime_s"),
    [
        ([A.format(ttl=300)], "", dns.rcode.NOERROR, 300),
        (["www.example.com. 20 IN CNAME x.example.com.", "x.example.com. 300 IN A 192.0.2.1"], "", 0, 20),
        ([A.format(ttl=0)], "", dns.rcode.NOERROR, 0),
        ([A.format(ttl=MAX_TTL_S + 1)], "", dns.rcode.NOERROR, MAX_TTL_S),
        ([], SOA.format(ttl=900, minimum=60), dns.rcode.NXDOMAIN, 60),
        ([], SOA.format(ttl=30, minimum=60), dns.rcode.NXDOMAIN, 30),
        ([], SOA.format(ttl=99999, minimum=99999), dns.rcode.NXDOMAIN, MAX_NEGATIVE_TTL_S),
        ([], SOA.format(ttl=900, minimum=60), dns.rcode.NOERROR, 60),
        ([], "", dns.rcode.NXDOMAIN, 0),
        ([], "", dns.rcode.NOERROR, 0),
        (["www.example.com. 20 IN CNAME x.example.com."], "", dns.rcode.NOERROR, 0),  # and where it leads is not said
        (["www.example.com. 20 IN CNAME x.example.com."], SOA.format(ttl=900, minimum=60), dns.rcode.NOERROR, 20),
        ([A.format(ttl=300)], "", dns.rcode.SERVFAIL, 0),
    ],
)
def test_how_long_an_answer_may_be_kept(answers: list[str], soa: str, code: dns.rcode.Rcode, lifetime_s: int) -> None:
    asked = query()
    reply = read(asked, reply_to(asked, *answers, soa=soa, code=dns.rcode.Rcode.make(code)))
    assert (reply.code, reply.lifetime_s, reply.truncated) == (code, lifetime_s, False)


def test_a_time_with_the_highest_bit_set_is_none() -> None:
    asked = query(use_edns=False)
    data = reply_to(asked, A.format(ttl=300))
    place = data.index(struct.pack(">I", 300))
    assert read(asked, data[:place] + b"\x80\0\1\0" + data[place + 4 :]).lifetime_s == 0


def test_a_truncated_answer_is_nothing_to_keep() -> None:
    asked = query()
    reply = read(asked, reply_to(asked, truncated=True))
    assert (reply.truncated, reply.lifetime_s) == (True, 0)


def test_the_code_that_edns_extends() -> None:
    asked = query(use_edns=0)
    assert read(asked, reply_to(asked, code=dns.rcode.BADVERS)).code == dns.rcode.BADVERS


GOOD = reply_to(query(), A.format(ttl=300))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        GOOD[:11],
        b"\0\x08" + GOOD[2:],  # another id
        GOOD[:2] + b"\x01" + GOOD[3:],  # a query
        GOOD[:2] + b"\xa9" + GOOD[3:],  # an update
        GOOD[:-1],
        GOOD + b"\0",
        reply_to(query("ww2.example.com"), A.format(ttl=300)),
        reply_to(query(kind="AAAA"), A.format(ttl=300)),
        GOOD[:4] + b"\0\0" + GOOD[6:],
        GOOD[:12] + b"\xc0\x0c" + GOOD[29:],
    ],
)
def test_what_is_no_answer_to_our_question(data: bytes) -> None:
    with pytest.raises(FormatError):
        read(query(), data)


def test_a_server_may_refuse_without_repeating_the_question() -> None:
    refused = struct.pack(">6H", 7, 0x8185, 0, 0, 0, 0)
    assert read(query(), refused).code == dns.rcode.REFUSED
    with pytest.raises(FormatError):  # but not answer
        read(query(), struct.pack(">6H", 7, 0x8180, 0, 0, 0, 0))


@given(st.binary(max_size=300), st.integers(0, 400))
def test_no_bytes_raise_anything_else(data: bytes, place: int) -> None:
    for case in (data, GOOD[:place] + data, GOOD[:12] + data):
        try:
            reply = read(query(), case)
        except FormatError:
            continue
        assert dress(reply, query(), 1, over_tcp=False)[:2] == query().id.to_bytes(2, "big") or len(case) > 0


# --- as each asker gets it --------------------------------------------------------------------------------------------


def test_an_answer_has_the_askers_id_and_spelling_and_the_time_that_is_left() -> None:
    reply = read(
        query(), reply_to(query(), "www.example.com. 100 IN A 192.0.2.1", "www.example.com. 100 IN A 192.0.2.2")
    )
    other = query("WWW.example.COM")
    told = dns.message.from_wire(dress(reply, other, 30, over_tcp=False))
    assert told.id == other.id
    assert str(told.question[0].name) == str(told.answer[0].name) == "WWW.example.COM."
    assert told.answer[0].ttl == 70
    assert dns.message.from_wire(dress(reply, other, 999, over_tcp=False)).answer[0].ttl == 0


@pytest.mark.parametrize(("payload", "truncated"), [(None, True), (600, True), (1232, False)])
def test_what_is_too_long_for_the_asker(payload: int | None, truncated: bool) -> None:
    options = {"use_edns": False} if payload is None else {"use_edns": 0, "payload": payload}
    asked = query(kind="TXT", **options)
    reply = read(asked, reply_to(asked, *[f'www.example.com. 60 IN TXT "{"x" * 200}{n}"' for n in range(4)]))
    told = dns.message.from_wire(dress(reply, asked, 0, over_tcp=False))
    assert bool(told.flags & dns.flags.TC) == truncated
    assert bool(told.answer) != truncated
    assert (told.edns >= 0) == (payload is not None)
    assert not dns.message.from_wire(dress(reply, asked, 0, over_tcp=True)).flags & dns.flags.TC


# --- the cache --------------------------------------------------------------------------------------------------------


def question(number: int) -> Question:
    return question_of(query(f"w{number}.example.com"))


def kept_for(lifetime_s: int, size: int = 100) -> Reply:
    return Reply(bytes(size), 0, truncated=False, ttl_places=(), lifetime_s=lifetime_s)


def test_an_answer_is_kept_as_long_as_it_may_be() -> None:
    cache = Cache()
    cache.put(question(1), kept_for(60), "192.0.2.1", now=1000.0)
    kept = cache.get(question(1), 1059.9)
    assert kept is not None
    assert (kept.resolver, kept.since) == ("192.0.2.1", 1000.0)
    assert cache.get(question(2), 1000.0) is None
    assert cache.get(question(1), 1060.0) is None
    assert (len(cache), cache.size_bytes) == (0, 0)


def test_an_answer_that_must_not_be_kept_takes_the_old_one_away() -> None:
    cache = Cache()
    cache.put(question(1), kept_for(60), "a", 0.0)
    cache.put(question(1), kept_for(0), "a", 1.0)
    assert len(cache) == 0


def test_who_was_not_asked_for_longest_goes_first() -> None:
    cache = Cache(max_entries=3)
    for number in (1, 2, 3):
        cache.put(question(number), kept_for(60), "a", 0.0)
    cache.get(question(1), 1.0)
    cache.put(question(4), kept_for(60), "a", 1.0)
    assert [number for number in range(1, 5) if cache.get(question(number), 2.0)] == [1, 3, 4]


def test_bytes_are_bounded() -> None:
    cache = Cache(max_bytes=10 * (1000 + ENTRY_BYTES))
    for number in range(30):
        cache.put(question(number), kept_for(60, size=1000), "a", 0.0)
    assert len(cache) == 10
    cache.put(question(99), kept_for(60, size=20_000), "a", 0.0)
    assert cache.get(question(99), 0.0) is None
    cache.clear()
    assert (len(cache), cache.size_bytes) == (0, 0)
