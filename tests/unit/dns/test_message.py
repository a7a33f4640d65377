"""DNS messages where they meet the limits of UDP."""

from __future__ import annotations

import subprocess
import sys

import dns.flags
import dns.message
import pytest

from tsns.dns.message import Answer, address_record, read_query, render

# 12 for the header, 13 for the question, 16 for each record with a name of two bytes, 11 for the OPT record.
BYTES_WITHOUT_RECORDS = 25
BYTES_OF_A_RECORD = 16
BYTES_OF_EDNS = 11


@pytest.mark.parametrize(
    ("records", "payload", "over_tcp", "truncated"),
    [
        (30, None, False, False),  # 505
        (31, None, False, True),  # 521
        (31, None, True, False),
        (29, 0, False, False),  # 500: whoever says less than 512 means 512
        (30, 0, False, True),  # 516
        (31, 600, False, False),  # 532
        (36, 600, False, True),  # 612
        (253, 65535, False, False),  # 4084
        (254, 65535, False, True),  # 4100: above 4095 whatever the asker can take
        (254, 65535, True, False),
    ],
)
def test_what_is_too_long_for_udp_is_said_to_be(
    records: int, payload: int | None, over_tcp: bool, truncated: bool
) -> None:
    asked = dns.message.make_query("web.net", "A", use_edns=False if payload is None else 0, payload=payload or 0)
    many = tuple(address_record(bytes((10, 0, number >> 8, number & 0xFF))) for number in range(records))
    data = render(read_query(asked.to_wire()), Answer(records=many, authoritative=True), over_tcp=over_tcp)
    answer = dns.message.from_wire(data)
    assert asked.is_response(answer)
    assert bool(answer.flags & dns.flags.TC) == truncated
    assert sum(len(rrset) for rrset in answer.answer) == (0 if truncated else records)
    extra = 0 if payload is None else BYTES_OF_EDNS
    assert len(data) == BYTES_WITHOUT_RECORDS + extra + (0 if truncated else records * BYTES_OF_A_RECORD)


def test_no_record_type_needs_a_module_that_is_not_there_yet() -> None:
    """What is imported after the fork is paid for by every node."""
    script = """
import struct, sys
from tsns.dns.resolver import Resolver
from tsns.proto.types import Node
resolver = Resolver()
resolver.update(self_node=Node(id=1, name="a.b.", addresses=["100.64.0.1/32", "fd7a::1/128"]), peers=[], config=None)
before = set(sys.modules)
for kind in [*range(1, 70), 99, 249, 250, 251, 252, 255, 257, 65280]:
    for name in (b"\\1a\\1b\\0", b"\\1x\\1b\\0", b"\\x011\\x010\\x0264\\x03100\\7in-addr\\4arpa\\0"):
        query = struct.pack(">6H", 1, 0x100, 1, 0, 0, 1) + name + struct.pack(">HH", kind, 1)
        assert resolver.answer(query + struct.pack(">BHHIH", 0, kind, 1, 0, 0))
print(sorted(set(sys.modules) - before))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout == "[]\n"
