"""DNS messages: one question in, one answer out (ring 0).

Source: RFC 1035 4, RFC 6891 (EDNS), RFC 2308 (negative answers). A question is read here field by field and not by dnspython's message
parser, which would import a module for each record type that a stranger can think of. Answers are put together by hand, too: they hold
four types of records at most, and that takes a quarter of the time.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import dns.exception
import dns.flags
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.wire

from tsns.dns.names import MAX_LABEL_BYTES, MAX_NAME_BYTES, ROOT

HEADER_BYTES: Final = 12
MAX_QUERY_BYTES: Final = 4096
MIN_UDP_ANSWER_BYTES: Final = 512  # without EDNS
MAX_UDP_ANSWER_BYTES: Final = 4095
TTL_S: Final = 5  # nodes come and go
NEGATIVE_TTL_S: Final = 10

Code = dns.rcode.Rcode
Kind = dns.rdatatype.RdataType

_HEADER: Final = struct.Struct(">6H")
_RESPONSE: Final = int(dns.flags.QR)
_OPCODE: Final = 0x7800  # where it is in the flags; QUERY is 0
_EDNS_VERSION: Final = 0
DNSSEC_OK: Final = 0x8000
_CODE: Final = 0x000F  # of a code, what is in the header
_SOA_NUMBERS: Final = struct.Struct(">5I")  # serial, refresh, retry, expire, minimum
_SERIAL: Final = 1
_POINTER: Final = 0xC0  # two bytes, the first with both highest bits set (RFC 1035 4.1.4)
_QUESTION: Final = struct.Struct(">HH")
_RECORD: Final = struct.Struct(">HHIH")  # type, class, time to live, length; a name stands before it
_TO_THE_QUESTION: Final = struct.pack(">H", _POINTER << 8 | HEADER_BYTES)


class FormatError(Exception):
    """A query that cannot be read."""


@dataclass(frozen=True, slots=True)
class Edns:
    """What the asker's OPT record says."""

    payload: int
    version: int
    dnssec_ok: bool


@dataclass(frozen=True, slots=True)
class Query:
    """A question (opcode QUERY)."""

    id: int
    flags: int
    name: bytes  # on the wire, as the asker spells it
    key: bytes  # the same as in `dns.names`
    kind: int  # record type
    record_class: int
    edns: Edns | None

    @property
    def recursion_desired(self) -> bool:
        """Whether the asker wants more than what the server itself knows."""
        return bool(self.flags & dns.flags.RD)

    @property
    def is_internet(self) -> bool:
        """Whether this is about the only class in use."""
        return self.record_class == dns.rdataclass.IN


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the name that was asked for."""

    kind: Kind
    data: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """What to reply. `zone`, the name that was asked for or one above it, is whose SOA a negative answer carries."""

    code: Code = Code.NOERROR
    records: tuple[Record, ...] = ()
    authoritative: bool = False
    zone: bytes | None = None


def read_header(data: bytes) -> tuple[int, int] | None:
    """Id and flags of what can be answered at all; None for less than a header, and for responses."""
    if len(data) < HEADER_BYTES:
        return None
    ident, flags = struct.unpack_from(">HH", data)
    return None if flags & _RESPONSE else (ident, flags)


def is_query(flags: int) -> bool:
    """Whether these flags are a question's, and not those of an update, a notification or the like."""
    return flags & _OPCODE == 0


def read_query(data: bytes) -> Query:
    """Read a query with a header as `read_header` wants it; FormatError for any other than one whole question."""
    if len(data) > MAX_QUERY_BYTES:
        raise FormatError("too long")
    ident, flags, questions, *others = _HEADER.unpack_from(data)
    if questions != 1:
        raise FormatError("not one question")
    name = _whole_name(data, HEADER_BYTES)
    parser = dns.wire.Parser(data, HEADER_BYTES + len(name))
    edns: Edns | None = None
    try:
        kind, record_class = parser.get_struct("!HH")
        for _ in range(sum(others)):
            owned_by_root = pass_name(parser)
            record_kind, payload, ttl, size = parser.get_struct("!HHIH")
            parser.get_bytes(size)
            if record_kind == Kind.OPT:
                if edns is not None or not owned_by_root:
                    raise FormatError("OPT records out of place")
                edns = Edns(payload, ttl >> 16 & 0xFF, bool(ttl & DNSSEC_OK))
    except dns.exception.DNSException as error:
        raise FormatError(str(error)) from error
    if parser.remaining():
        raise FormatError("something follows the message")
    return Query(
        id=ident,
        flags=flags,
        name=name,
        key=name.lower(),
        kind=kind,
        record_class=record_class,
        edns=edns,
    )


def _whole_name(data: bytes, start: int) -> bytes:
    """The name that begins there, as the first one of a message: there is nothing before it that it could point at."""
    at = start
    while at < len(data):
        length = data[at]
        if length > MAX_LABEL_BYTES:
            raise FormatError("a label of a kind that is not in use")
        at += 1 + length
        if at - start > MAX_NAME_BYTES:
            raise FormatError("a name that is too long")
        if length == 0:
            return data[start:at]
    raise FormatError("half a name")


def pass_name(parser: dns.wire.Parser) -> bool:
    """Go behind a name, without following its pointers (a long chain of them costs much); whether it is the root."""
    labels = 0
    while length := parser.get_uint8():
        if length >= _POINTER:
            parser.get_uint8()
            return False
        if length > MAX_LABEL_BYTES:
            raise FormatError("a label of a kind that is not in use")
        parser.get_bytes(length)
        labels += 1
    return labels == 0


def refusal(ident: int, flags: int, code: Code) -> bytes:
    """An answer that is only a header, to a query of which no more could be read."""
    kept = flags & (_OPCODE | dns.flags.RD)
    available = dns.flags.RA if flags & dns.flags.RD else 0
    return _HEADER.pack(ident, _RESPONSE | kept | available | code, 0, 0, 0, 0)


def render(query: Query, answer: Answer, *, over_tcp: bool) -> bytes:
    """The answer's bytes, with nothing in it but the question and the TC flag where it gets too long for UDP."""
    flags = _RESPONSE
    if query.recursion_desired:
        flags |= dns.flags.RD | dns.flags.RA
    if answer.authoritative:
        flags |= dns.flags.AA
    code = answer.code
    content, counts = b"", (0, 0)
    if query.edns is not None and query.edns.version > _EDNS_VERSION:
        code = Code.BADVERS
    elif answer.records:
        content, counts = b"".join(map(_answering, answer.records)), (len(answer.records), 0)
    elif answer.zone is not None:
        content, counts = _start_of_authority(query, answer.zone), (0, 1)
    question = query.name + _QUESTION.pack(query.kind, query.record_class)
    options = _options(query.edns, code) if query.edns is not None else b""
    size = HEADER_BYTES + len(question) + len(content) + len(options)
    if not over_tcp and size > udp_limit(query.edns):
        flags |= dns.flags.TC
        content, counts = b"", (0, 0)
    head = _HEADER.pack(query.id, flags | code & _CODE, 1, *counts, int(query.edns is not None))
    return head + question + content + options


def address_record(address: bytes) -> Record:
    """An A or AAAA record."""
    return Record(Kind.A if len(address) == 4 else Kind.AAAA, address)


def pointer_record(key: bytes) -> Record:
    """A PTR record."""
    return Record(Kind.PTR, key)


def udp_limit(edns: Edns | None) -> int:
    return max(MIN_UDP_ANSWER_BYTES, min(edns.payload, MAX_UDP_ANSWER_BYTES)) if edns else MIN_UDP_ANSWER_BYTES


def _answering(record: Record) -> bytes:
    return _TO_THE_QUESTION + _RECORD.pack(record.kind, dns.rdataclass.IN, TTL_S, len(record.data)) + record.data


def _start_of_authority(query: Query, zone: bytes) -> bytes:
    # The zone itself stands for the name of its server and for the mailbox: neither exists.
    place = HEADER_BYTES + len(query.key) - len(zone)
    name = struct.pack(">H", _POINTER << 8 | place)
    numbers = _SOA_NUMBERS.pack(_SERIAL, NEGATIVE_TTL_S, NEGATIVE_TTL_S, NEGATIVE_TTL_S, NEGATIVE_TTL_S)
    data = name + name + numbers
    return name + _RECORD.pack(Kind.SOA, dns.rdataclass.IN, TTL_S, len(data)) + data


def _options(edns: Edns, code: int) -> bytes:
    """The OPT record: no option, the code's higher bits, and whether the asker wants DNSSEC, as it came (RFC 3225)."""
    flags = code >> 4 << 24 | (DNSSEC_OK if edns.dnssec_ok else 0)
    return ROOT + _RECORD.pack(Kind.OPT, MAX_UDP_ANSWER_BYTES, flags, 0)
