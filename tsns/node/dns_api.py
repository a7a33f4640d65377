"""GET /tsns/v1/dns and POST /tsns/v1/dns/query: how names are answered, and by whom (ring 1). docs/json.md lists the fields."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from typing import Any, Final

import dns.exception
import dns.message
import dns.name
import dns.rcode
import dns.rdatatype

from tsns.dns.configuration import TAILNET_REVERSE, Configuration, Rule
from tsns.dns.forwarder import EFFORT_S, How
from tsns.dns.message import MAX_UDP_ANSWER_BYTES
from tsns.dns.names import ROOT, key_of, reverse_key
from tsns.dns.resolver import search_domains
from tsns.dns.upstreams import Upstream
from tsns.error import UserError
from tsns.node.localapi import Answer, Handler
from tsns.node.name_service import NameService
from tsns.node.status import SCHEMA
from tsns.proto.addresses import pack
from tsns.proto.types import DNSConfig

PATIENCE_S: Final = EFFORT_S + 1.0
MAX_SEARCHED: Final = 6  # domains that a short name is completed with; the C library has the same bound
MAX_RECORDS: Final = 200  # shown of one answer


class DnsApi:
    """Tells about one node's names; `config` is control's latest word."""

    def __init__(self, names: NameService, config: Callable[[], DNSConfig | None]) -> None:
        self._names = names
        self._config = config

    def handlers(self) -> dict[tuple[str, str], Handler]:
        """What is served, by method and path."""
        return {("GET", "/tsns/v1/dns"): self._on_status, ("POST", "/tsns/v1/dns/query"): self._on_query}

    async def _on_status(self, _: Answer, _uid: int) -> Answer:
        names = self._names
        found = names.configuration
        forwarder = names.forwarder
        return {
            "schema": SCHEMA,
            "magic_dns": found.magic_dns,
            "accept_dns": names.accepts,
            "suffix": _text(found.suffix) if found.suffix else "",
            "search": search_domains(self._config()) if names.accepts else [],
            "routes": [self._rule(rule) for rule in _routes(found)],
            "default": {"origin": found.origin, "resolvers": [self._upstream(one) for one in found.default.upstreams]},
            "listeners": names.server.addresses,
            "host_servers": names.host_servers,
            "skipped": found.skipped,
            "cache": {"entries": len(forwarder.cache), "bytes": forwarder.cache.size_bytes},
            "in_flight": forwarder.in_flight,
            "counters": {
                "answered from the netmap": names.local_answers,
                **forwarder.counters.snapshot(),
                **{f"dropped: {why}": count for why, count in names.server.dropped.items()},
            },
        }

    def _rule(self, rule: Rule) -> dict[str, Any]:
        resolvers = [self._upstream(one) for one in rule.upstreams]
        return {"suffix": _text(rule.suffix), "local": rule.local, "resolvers": resolvers}

    def _upstream(self, one: Upstream) -> dict[str, Any]:
        ways = {str(way) for address in one.addresses if (way := self._names.way(one, address)) is not None}
        return {"address": one.text, "way": "/".join(sorted(ways)) or "none"}

    async def _on_query(self, asked: Answer, _uid: int) -> Answer:
        name, kind = asked.get("name"), asked.get("type", "")
        if not isinstance(name, str) or not isinstance(kind, str):
            raise ValueError("a name and a type are wanted")
        try:
            answer: dict[str, Any] = {}
            for each, number in self._meant(name, kind):
                answer = await self._query(each, number)
                if answer["code"] != "NXDOMAIN":
                    break
        except (dns.exception.DNSException, ValueError) as error:
            raise UserError(f"{name!r} cannot be asked for: {error}", "a name is at most 253 characters long") from None
        return answer

    def _meant(self, name: str, kind: str) -> list[tuple[str, dns.rdatatype.RdataType]]:
        """The names to ask for, one after the other, as a program would: short ones are completed."""
        try:
            number = dns.rdatatype.from_text(kind) if kind else None
        except (dns.exception.DNSException, ValueError):
            raise UserError(f"{kind!r} is no type of record", "write A, AAAA, PTR, TXT, ...") from None
        try:
            return [(_text(reverse_key(pack(name))), number or dns.rdatatype.PTR)]
        except ValueError:
            pass
        searched = search_domains(self._config())[:MAX_SEARCHED] if "." not in name and self._names.accepts else []
        return [(each, number or dns.rdatatype.A) for each in (*(f"{name}.{domain}" for domain in searched), name)]

    async def _query(self, name: str, kind: dns.rdatatype.RdataType) -> dict[str, Any]:
        if name != ".":
            key_of(name)  # ValueError
        query = dns.message.make_query(
            name, kind, use_edns=0, payload=MAX_UDP_ANSWER_BYTES, id=int.from_bytes(secrets.token_bytes(2), "big")
        )
        later: asyncio.Future[tuple[bytes, How | None]] = asyncio.get_running_loop().create_future()

        def reply(data: bytes, how: How | None) -> None:
            if not later.done():
                later.set_result((data, how))

        began = time.monotonic()
        self._names.ask_and_tell(query.to_wire(), True, reply)
        async with asyncio.timeout(PATIENCE_S):
            data, how = await later
        seconds = time.monotonic() - began
        answer = dns.message.from_wire(data, ignore_trailing=True)
        code = dns.rcode.to_text(answer.rcode())
        return {
            "schema": SCHEMA,
            "name": query.question[0].name.to_text(),
            "type": dns.rdatatype.to_text(kind),
            "ok": answer.rcode() == dns.rcode.NOERROR and bool(answer.answer),
            "code": code,
            "answers": _records(answer),
            "seconds": seconds,
            **_told(how),
        }


def _records(answer: dns.message.Message) -> list[dict[str, Any]]:
    return [
        {
            "name": rrset.name.to_text(),
            "ttl": rrset.ttl,
            "type": dns.rdatatype.to_text(rrset.rdtype),
            "data": record.to_text(),
        }
        for rrset in answer.answer
        for record in rrset
    ][:MAX_RECORDS]


def _told(how: How | None) -> dict[str, Any]:
    """How an answer came about."""
    if how is None:
        rule = {"kind": "netmap", "suffix": ""}
        return {"rule": rule, "resolver": "", "transport": "", "way": "", "cached": False, "reason": ""}
    is_default = how.rule.suffix == ROOT
    return {
        "rule": {"kind": "default" if is_default else "route", "suffix": "" if is_default else _text(how.rule.suffix)},
        "resolver": how.resolver,
        "transport": str(how.transport or ""),
        "way": str(how.way or ""),
        "cached": how.cached,
        "reason": how.reason,
    }


def _routes(found: Configuration) -> list[Rule]:
    """The rules that say something about this tailnet, the longest suffixes last."""
    reverse = set(TAILNET_REVERSE)
    return sorted(
        (rule for key, rule in found.rules.items() if key not in reverse or not rule.local),
        key=lambda rule: (_text(rule.suffix).split(".")[::-1], rule.suffix),
    )


def _text(key: bytes) -> str:
    """A name as people write it, without the final dot."""
    name, _ = dns.name.from_wire(key, 0)
    return name.to_text(omit_final_dot=True)
