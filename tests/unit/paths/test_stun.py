"""STUN against known messages, round trips and garbage."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsns.paths.stun import Response, parse_request, parse_response, request, response

TXID = bytes(range(1, 13))
# As Tailscale's Go code makes it for this transaction id.
REQUEST = bytes.fromhex("000100142112a4420102030405060708090a0b0c802200087461696c6e6f646580280004b32c370f")
# From the tests of net/stun of Tailscale's module: recorded answers of public servers.
ANSWER = bytes.fromhex("0101000c2112a4422360b11e3ec68ffa93e08007002000080001c7866957856f")


def head(kind: int, attributes: bytes) -> bytes:
    return kind.to_bytes(2, "big") + len(attributes).to_bytes(2, "big") + bytes.fromhex("2112a442") + TXID + attributes


def test_the_request() -> None:
    assert request(TXID) == REQUEST
    assert parse_request(REQUEST) == TXID


def test_a_recorded_answer() -> None:
    assert parse_response(ANSWER) == Response(bytes.fromhex("2360b11e3ec68ffa93e08007"), ("72.69.33.45", 59028))


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(min_size=12, max_size=12), st.ip_addresses(), st.integers(0, 0xFFFF))
def test_an_answer_says_what_was_put_in(
    txid: bytes, address: ipaddress.IPv4Address | ipaddress.IPv6Address, port: int
) -> None:
    found = parse_response(response(txid, (str(address), port)))
    assert found is not None
    assert found.txid == txid
    back = ipaddress.ip_address(found.address[0])
    assert back == (getattr(address, "ipv4_mapped", None) or address)
    assert found.address[1] == port


def test_the_old_form_without_xor_is_a_fallback() -> None:
    plain = bytes.fromhex("0001000800011f9001020304")
    assert parse_response(head(0x0101, plain)) == Response(TXID, ("1.2.3.4", 8080))
    xored = response(TXID, ("5.6.7.8", 9))[20:]
    assert parse_response(head(0x0101, plain + xored)) == Response(TXID, ("5.6.7.8", 9))
    assert parse_response(head(0x0101, b"\x80" + xored[1:])) == Response(TXID, ("5.6.7.8", 9))


def test_values_are_padded_and_bytes_behind_the_message_do_not_count() -> None:
    software = bytes.fromhex("80220005") + b"abcde" + bytes(3)
    xored = response(TXID, ("5.6.7.8", 9))[20:]
    assert parse_response(head(0x0101, software + xored) + b"trailer") == Response(TXID, ("5.6.7.8", 9))
    assert parse_response(head(0x0101, software) + xored) is None


def test_an_ipv4_address_in_ipv6_clothes_is_undressed() -> None:
    found = parse_response(response(TXID, ("::ffff:1.2.3.4", 5)))
    assert found == Response(TXID, ("1.2.3.4", 5))


@pytest.mark.parametrize("cut", range(len(ANSWER)))
def test_a_cut_answer_is_none(cut: int) -> None:
    assert parse_response(ANSWER[:cut]) is None


@pytest.mark.parametrize("place", range(len(REQUEST)))
def test_one_wrong_byte_spoils_a_request(place: int) -> None:
    spoilt = bytearray(REQUEST)
    spoilt[place] ^= 0x04
    assert parse_request(bytes(spoilt)) is None


def test_a_request_needs_its_two_attributes() -> None:
    assert parse_request(head(0x0001, b"")) is None
    assert parse_request(head(0x0001, REQUEST[20:32])) is None


def test_an_answer_is_no_request_and_the_other_way_round() -> None:
    assert parse_request(ANSWER) is None
    assert parse_response(REQUEST) is None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=120))
def test_garbage_does_not_raise(data: bytes) -> None:
    for message in (data, head(0x0101, data), head(0x0001, data), head(0x0101, data)[: 20 + len(data) // 2]):
        parse_request(message)
        parse_response(message)
