"""Targets of DNS: programs inside ask, and other servers answer."""

from __future__ import annotations

import contextlib
import functools

import dns.exception
import dns.flags
import dns.message
import dns.rcode
import dns.rrset

from tests.fuzz.material import Instructions, entropy, step
from tsns.dns.configuration import Rule
from tsns.dns.forwarder import EFFORT_S, Answered, Begin, End, Forwarder, Output
from tsns.dns.message import read_query
from tsns.dns.names import ROOT
from tsns.dns.replies import question_of, wire_of
from tsns.dns.resolver import Elsewhere, Resolver
from tsns.dns.upstreams import Way, upstream
from tsns.node.host_resolver import name_servers
from tsns.proto.types import DNSConfig, DNSRecord, Node
from tsns.proto.types import Resolver as Server


@functools.cache
def _resolver() -> Resolver:
    resolver = Resolver()
    resolver.update(
        self_node=Node(id=1, name="me.tail.example.", addresses=["100.64.0.1/32", "fd7a:115c:a1e0::1/128"]),
        peers=[Node(id=2, name="web.tail.example.", addresses=["100.64.0.2/32"])],
        config=DNSConfig(
            proxied=True,
            domains=["tail.example"],
            routes={"mine.example.": None},
            extra_records=[DNSRecord(name="db.tail.example", value="10.1.1.1")],
        ),
    )
    return resolver


def query(data: bytes) -> None:
    """A question of a program inside the namespace."""
    for over_tcp in (False, True):
        answer = _resolver().answer(data, over_tcp=over_tcp)
        if isinstance(answer, Elsewhere):
            assert answer.query.id == int.from_bytes(data[:2], "big")
            assert len(wire_of(question_of(answer.query), 1)) <= 512
        elif answer is not None:
            assert answer[:2] == data[:2]
            assert answer[2] & 0x80
            assert len(answer) <= (0xFFFF if over_tcp else 4095)


def query_seeds() -> list[bytes]:
    asked = [
        ("web.tail.example.", "A"),
        ("me.tail.example.", "AAAA"),
        ("nobody.tail.example.", "ANY"),
        ("2.0.64.100.in-addr.arpa.", "PTR"),
        ("1." + "0." * 19 + "0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa.", "PTR"),
        ("192-168-1-2-via-7.tail.example.", "AAAA"),
        ("10-1-1-1-via-0x1F.x.ts.net.", "AAAA"),
        ("db.tail.example.", "TXT"),
        ("example.com.", "A"),
        (".", "NS"),
    ]
    plain = [dns.message.make_query(name, kind).to_wire() for name, kind in asked]
    edns = dns.message.make_query("web.tail.example.", "A", use_edns=0, payload=1232, want_dnssec=True).to_wire()
    pointer = plain[0][:12] + b"\1a\xc0\x0c\0\1\0\1"
    return [*(bytes(2) + each[2:] for each in plain), bytes(2) + edns[2:], bytes(2) + pointer[2:]]


RULE = Rule(ROOT, tuple(upstream(Server(addr=text)) for text in ("192.0.2.1", "https://dns.quad9.net/dns-query")))
ASKED = [
    dns.message.make_query("www.example.com.", "A", id=number, use_edns=0 if number else False) for number in (0, 1, 2)
]


def reply(data: bytes) -> None:
    """What other servers answer: with the right id where the case has a zero one, since nobody could guess it."""
    forwarder = Forwarder(entropy(), lambda _, address: Way.TUNNEL if address[0] != 0x26 else None)
    begun: dict[int, bytes] = {}
    answered: dict[int, bytes] = {}

    def take(outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Begin(number=number, data=asked):
                    begun[number] = asked
                case End(number=number):
                    del begun[number]
                case Answered(asker=asker, data=told):
                    assert asker not in answered
                    answered[asker] = told
                    assert told[:2] == asker.to_bytes(2, "big")
                    with contextlib.suppress(dns.exception.DNSException, ValueError):
                        dns.message.from_wire(told).to_text()  # as `dns query` does

    now = 0.0
    for asker, asked in enumerate(ASKED):
        take(forwarder.ask(read_query(asked.to_wire()), RULE, asker, now, over_tcp=asker == 1))
    for what, piece in Instructions(data).steps(12):
        if begun:
            number = list(begun)[what % len(begun)]
            known = begun[number][:2] + piece[2:] if piece[:2] == b"\0\0" else piece
            take(forwarder.receive(number, known, now))
        now += what / 100
        take(forwarder.tick(now))
        assert forwarder.cache.size_bytes >= 0
    for asker, asked in enumerate(ASKED, len(ASKED)):  # by now perhaps from the cache
        again = read_query(asker.to_bytes(2, "big") + asked.to_wire()[2:])
        take(forwarder.ask(again, RULE, asker, now, over_tcp=False))
    while (due := forwarder.deadline()) is not None:
        take(forwarder.tick(max(due, now)))
        assert due <= now + EFFORT_S
    assert len(answered) == 2 * len(ASKED)
    assert not begun


def reply_seeds() -> list[bytes]:
    told = []
    for records, code, flags in (
        (["www.example.com. 60 IN A 192.0.2.7"], dns.rcode.NOERROR, 0),
        (["www.example.com. 60 IN CNAME x.example.com.", "x.example.com. 5 IN A 192.0.2.7"], dns.rcode.NOERROR, 0),
        ([], dns.rcode.NXDOMAIN, 0),
        ([], dns.rcode.SERVFAIL, 0),
        ([], dns.rcode.NOERROR, dns.flags.TC),
    ):
        message = dns.message.make_response(ASKED[1])
        for line in records:
            name, ttl, record_class, kind, data = line.split()
            message.answer.append(dns.rrset.from_text(name, int(ttl), record_class, kind, data))
        if code == dns.rcode.NXDOMAIN:
            message.authority.append(dns.rrset.from_text("example.com.", 60, "IN", "SOA", "a. b. 1 2 3 4 5"))
        message.set_rcode(code)
        message.flags |= flags
        told.append(b"\0\0" + message.to_wire()[2:])
    good, chain, missing, failed, truncated = told
    return [
        step(0, good) + step(1, good) + step(2, good),
        step(1, missing) + step(0, chain),
        step(0, failed) + step(0, failed) + step(0, failed) + step(0, failed),
        step(0, truncated) + step(250, b"stray") + step(1, good),
        step(0, good[:12] + b"\0\0\1\0\1"),
    ]


def resolv_conf(data: bytes) -> None:
    """The host's resolv.conf, which is root's, and may be anything all the same."""
    found = name_servers(data.decode(errors="replace"))
    assert len(found) <= 4


RESOLV_CONF_SEEDS = [
    b"nameserver 192.0.2.1\nnameserver fe80::1%eth0\nsearch x\n",
    b"nameserver 127.0.0.53\noptions edns0\n",
    b"\0\n",
]
