"""NAT-PMP's datagrams, byte for byte as RFC 6886 draws them, and garbage."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.paths import natpmp
from tsns.paths.natpmp import Answer, Opcode

# Made by hand from the figures of RFC 6886, sections 3.2 and 3.3.
ADDRESS_ANSWER = bytes.fromhex("0080 0000 00012345 cb007107")
MAP_ANSWER = bytes.fromhex("0081 0000 00012345 a2c9 9c40 00000e10")


def test_the_requests() -> None:
    assert bytes.fromhex("0000") == natpmp.ADDRESS_REQUEST
    assert natpmp.map_request(41673, 40000, 7200) == bytes.fromhex("0001 0000 a2c9 9c40 00001c20")
    assert natpmp.map_request(41673, 0, 0) == bytes.fromhex("0001 0000 a2c9 0000 00000000")


def test_the_answers() -> None:
    assert natpmp.parse_answer(ADDRESS_ANSWER) == Answer(Opcode.ADDRESS, 0, 0x12345, bytes([203, 0, 113, 7]))
    assert natpmp.parse_answer(MAP_ANSWER) == Answer(
        Opcode.MAP_UDP, 0, 0x12345, internal_port=41673, external_port=40000, lifetime_s=3600
    )


@pytest.mark.parametrize("result", [1, 2, 3, 4, 5, 0xFFFF])
def test_a_refusal_needs_no_more_than_its_head(result: int) -> None:
    head = bytes.fromhex("0081") + result.to_bytes(2, "big") + bytes.fromhex("00000007")
    assert natpmp.parse_answer(head) == Answer(Opcode.MAP_UDP, result, 7)
    assert natpmp.parse_answer(head + bytes(8)) == Answer(Opcode.MAP_UDP, result, 7)


def test_what_is_behind_an_answer_does_not_count() -> None:
    assert natpmp.parse_answer(MAP_ANSWER + b"more") == natpmp.parse_answer(MAP_ANSWER)


@pytest.mark.parametrize("whole", [ADDRESS_ANSWER, MAP_ANSWER], ids=["address", "map"])
def test_a_cut_answer_is_none(whole: bytes) -> None:
    assert [natpmp.parse_answer(whole[:cut]) for cut in range(len(whole))] == [None] * len(whole)


def test_what_is_no_answer_is_none() -> None:
    assert natpmp.parse_answer(b"\x01" + ADDRESS_ANSWER[1:]) is None
    assert natpmp.parse_answer(b"\x00\x00" + ADDRESS_ANSWER[2:]) is None
    assert natpmp.parse_answer(b"\x00\x82" + ADDRESS_ANSWER[2:]) is None  # of TCP, which was not asked for
    assert natpmp.parse_answer(ADDRESS_ANSWER.ljust(natpmp.MAX_MESSAGE_BYTES + 1)) is None


@given(st.binary(max_size=40))
def test_garbage_does_not_raise(data: bytes) -> None:
    natpmp.parse_answer(data)
    natpmp.parse_answer(b"\x00\x80\x00\x00" + data)
    natpmp.parse_answer(b"\x00\x81\x00\x00" + data)
