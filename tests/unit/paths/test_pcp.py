"""PCP's datagrams, byte for byte as RFC 6887 draws them, and garbage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.paths import pcp
from tsns.paths.pcp import Answer, MappedPort, Opcode
from tsns.proto.addresses import pack

OWN = pack("192.168.1.20")
NONCE = bytes(range(1, 13))

# Made by hand from the figures of RFC 6887, sections 7.1, 7.2 and 11.1.
ANNOUNCE = bytes.fromhex("02 00 0000 00000000 00000000000000000000ffffc0a80114")
MAP = bytes.fromhex(
    "02 01 0000 00001c20 00000000000000000000ffffc0a80114"
    "0102030405060708090a0b0c 11 000000 a2c9 9c40 00000000000000000000ffffcb007107"
)
ANNOUNCE_ANSWER = bytes.fromhex("02 80 00 00 00000000 00012345 000000000000000000000000")
MAP_ANSWER = bytes.fromhex(
    "02 81 00 00 00000e10 00012345 000000000000000000000000"
    "0102030405060708090a0b0c 11 000000 a2c9 9c41 00000000000000000000ffffcb007107"
)
ANSWER = Answer(Opcode.MAP, 0, 3600, 0x12345, MappedPort(NONCE, 41673, 40001, pack("203.0.113.7")))


def test_the_requests() -> None:
    assert pcp.announce(OWN) == ANNOUNCE
    assert pcp.map_request(OWN, NONCE, 41673, 7200, 40000, pack("203.0.113.7")) == MAP
    farewell = pcp.map_request(OWN, NONCE, 41673, 0)
    assert (farewell[4:8], farewell[24:36], farewell[42:44]) == (bytes(4), NONCE, bytes(2))
    assert farewell[44:] == bytes.fromhex("00000000000000000000ffff00000000")


def test_the_answers() -> None:
    assert pcp.parse_answer(ANNOUNCE_ANSWER) == Answer(Opcode.ANNOUNCE, 0, 0, 0x12345)
    assert pcp.parse_answer(MAP_ANSWER) == ANSWER


def test_an_error_may_lack_what_was_asked_for() -> None:
    refused = MAP_ANSWER[:3] + b"\x02" + MAP_ANSWER[4:]
    assert pcp.parse_answer(refused) == Answer(Opcode.MAP, 2, 3600, 0x12345, ANSWER.mapped)
    assert pcp.parse_answer(refused[:24]) == Answer(Opcode.MAP, 2, 3600, 0x12345)


def test_options_behind_an_answer_do_not_count() -> None:
    assert pcp.parse_answer(MAP_ANSWER + bytes(8)) == ANSWER


def test_an_external_address_of_ipv6_stays_what_it_is() -> None:
    found = pcp.parse_answer(MAP_ANSWER[:44] + bytes.fromhex("20010db8000000000000000000000001"))
    assert found is not None
    assert found.mapped is not None
    assert found.mapped.external == pack("2001:db8::1")


@pytest.mark.parametrize("cut", range(len(MAP_ANSWER)))
def test_a_cut_answer_is_none(cut: int) -> None:
    assert pcp.parse_answer(MAP_ANSWER[:cut]) is None


def test_what_is_no_answer_is_none() -> None:
    assert pcp.parse_answer(b"\x01" + MAP_ANSWER[1:]) is None
    assert pcp.parse_answer(MAP) is None
    assert pcp.parse_answer(MAP_ANSWER + b"abc") is None  # no multiple of four bytes
    assert pcp.parse_answer(MAP_ANSWER[:36] + b"\x06" + MAP_ANSWER[37:]) is None  # of TCP
    assert pcp.parse_answer(MAP_ANSWER.ljust(pcp.MAX_MESSAGE_BYTES + 4)) is None


@given(st.binary(max_size=80))
def test_garbage_does_not_raise(data: bytes) -> None:
    pcp.parse_answer(data)
    pcp.parse_answer(b"\x02\x81\x00\x00" + data)
