"""What other servers are asked, what they answer, and that answer as each asker gets it (ring 0).

Source: RFC 1035 4, RFC 2308 (how long what does not exist may be kept), RFC 6891 (EDNS). An answer is passed on as it came, but for what
belongs to the asker: the id, the case of the name's letters, and the time that its records have left. What is asked is made anew, so
that nothing of a program's query leaves but the question itself: no option of EDNS, no padding, no record.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import dns.exception
import dns.flags
import dns.rdataclass
import dns.wire

from tsns.dns.message import DNSSEC_OK, HEADER_BYTES, Code, FormatError, Kind, Query, pass_name, udp_limit

MAX_TTL_S: Final = 86_400
MAX_NEGATIVE_TTL_S: Final = 3600
PAYLOAD_BYTES: Final = 1232  # what we take by UDP: no fragments within the tunnel's MTU; more comes by TCP

_PASSED_ON: Final = int(dns.flags.RD | dns.flags.AD | dns.flags.CD)
_OPCODE: Final = 0x7800
_CODE: Final = 0x000F
_HEADER: Final = struct.Struct(">6H")
_OPT: Final = struct.Struct(">BHHIH")  # the root's name, type, payload, flags, length
_MIN_SOA_BYTES: Final = 22
_TTL_SIGN: Final = 1 << 31


@dataclass(frozen=True, slots=True)
class Question:
    """What makes two queries the same to another server."""

    key: bytes
    kind: int
    flags: int
    edns: bool
    dnssec_ok: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer that belongs to a question. `ttl_places` are where its times stand; `lifetime_s` is 0 where it must not be kept."""

    data: bytes
    code: int
    truncated: bool
    ttl_places: tuple[int, ...]
    lifetime_s: int


def question_of(query: Query) -> Question:
    """What another server would be asked."""
    edns = query.edns
    return Question(
        query.key, query.kind, query.flags & _PASSED_ON, edns is not None, edns is not None and edns.dnssec_ok
    )


def wire_of(question: Question, ident: int) -> bytes:
    """The message that asks it."""
    head = _HEADER.pack(ident, question.flags, 1, 0, 0, int(question.edns))
    data = head + _asked(question)
    return data + _opt(dnssec_ok=question.dnssec_ok) if question.edns else data


def read_reply(data: bytes, question: Question, ident: int) -> Reply:
    """An answer to this very question; FormatError for anything else, whatever the bytes."""
    if len(data) < HEADER_BYTES:
        raise FormatError("less than a header")
    found, flags, questions, *counts = _HEADER.unpack_from(data)
    if found != ident or not flags & dns.flags.QR or flags & _OPCODE:
        raise FormatError("not an answer to this query")
    code = flags & _CODE
    if questions == 0 and code and not any(counts):
        return Reply(data[:HEADER_BYTES], code, truncated=False, ttl_places=(), lifetime_s=0)
    asked = _asked(question)
    end = HEADER_BYTES + len(asked)
    if questions != 1 or data[HEADER_BYTES : end - 4].lower() + data[end - 4 : end] != asked:
        raise FormatError("an answer to another question")
    if flags & dns.flags.TC:
        return Reply(data, code, truncated=True, ttl_places=(), lifetime_s=0)
    parser = dns.wire.Parser(data, end)
    walk = _Walk(parser, question)
    try:
        for section, count in enumerate(counts):
            for _ in range(count):
                walk.record(section)
    except dns.exception.DNSException as error:
        raise FormatError(str(error)) from error
    if parser.remaining():
        raise FormatError("something follows the message")
    code |= walk.extended_code << 4
    return Reply(data, code, truncated=False, ttl_places=tuple(walk.places), lifetime_s=walk.lifetime_s(code))


def _asked(question: Question) -> bytes:
    """The question section."""
    return question.key + struct.pack(">HH", question.kind, dns.rdataclass.IN)


class _Walk:
    """Goes through the records of an answer, for the times in it."""

    def __init__(self, parser: dns.wire.Parser, question: Question) -> None:
        self._parser = parser
        self._question = question
        self._least_s = MAX_TTL_S
        self._negative_s: int | None = None  # as the zone's SOA says
        self._has_wanted = False
        self.places: list[int] = []
        self.extended_code = 0

    def record(self, section: int) -> None:
        parser = self._parser
        pass_name(parser)
        kind, _, ttl, size = parser.get_struct("!HHIH")
        if kind == Kind.OPT:
            self.extended_code = ttl >> 24
            parser.get_bytes(size)
            return
        self.places.append(parser.current - 6)
        ttl = 0 if ttl & _TTL_SIGN else ttl  # RFC 2181 8
        self._least_s = min(self._least_s, ttl)
        content = parser.get_bytes(size)
        if section == 0 and self._question.kind in {kind, Kind.ANY}:
            self._has_wanted = True
        if section == 1 and kind == Kind.SOA and size >= _MIN_SOA_BYTES:
            self._negative_s = min(ttl, int.from_bytes(content[-4:], "big"), MAX_NEGATIVE_TTL_S)

    def lifetime_s(self, code: int) -> int:
        if code == Code.NOERROR and self._has_wanted:
            return self._least_s
        if code in {Code.NOERROR, Code.NXDOMAIN} and self._negative_s is not None:
            return min(self._least_s, self._negative_s)
        return 0


def dress(reply: Reply, query: Query, age_s: int, *, over_tcp: bool) -> bytes:
    """The reply as this query's asker gets it; what is too long for UDP becomes its question and TC."""
    data = bytearray(reply.data)
    name = query.name
    data[0:2] = query.id.to_bytes(2, "big")
    data[HEADER_BYTES : HEADER_BYTES + len(name)] = name
    if age_s:
        for place in reply.ttl_places:
            left = max(0, int.from_bytes(data[place : place + 4], "big") - age_s)
            data[place : place + 4] = left.to_bytes(4, "big")
    if over_tcp or len(data) <= udp_limit(query.edns):
        return bytes(data)
    _, flags, *_ = _HEADER.unpack_from(data)
    head = _HEADER.pack(query.id, flags | dns.flags.TC, 1, 0, 0, int(query.edns is not None))
    question = bytes(data[HEADER_BYTES : HEADER_BYTES + len(name) + 4])
    return head + question + (_opt(dnssec_ok=query.edns.dnssec_ok) if query.edns is not None else b"")


def _opt(*, dnssec_ok: bool) -> bytes:
    return _OPT.pack(0, Kind.OPT, PAYLOAD_BYTES, DNSSEC_OK if dnssec_ok else 0, 0)
