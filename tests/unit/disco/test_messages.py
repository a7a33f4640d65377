"""Disco's messages against vectors, there and back, and what is said beside the rules."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.wg.shuttle import entropy
from tsns.disco.messages import (
    CALL_ME_MAYBE,
    MAGIC,
    MAX_BOXES,
    MAX_CALLED_ENDPOINTS,
    PING,
    PONG,
    TRANSACTION_BYTES,
    CallMeMaybe,
    Message,
    Ping,
    Pong,
    Sealer,
    decode,
    encode,
    sender,
)
from tsns.error import ProtocolError
from tsns.keys import DiscoPrivate, DiscoPublic, NodePublic
from tsns.proto.addresses import ENDPOINT_BYTES

A, B, C = (DiscoPrivate(bytes((number,)) * 32) for number in (0x55, 0x66, 0x77))
TRANSACTION = bytes(range(1, 13))
NODE = NodePublic(A.public.raw)

# From disco/disco_test.go of Tailscale's module (v1.102): its test cases.
VECTORS: list[tuple[Message, str]] = [
    (Ping(TRANSACTION, None), "0100 0102030405060708090a0b0c"),
    (Ping(TRANSACTION, NODE), "0100 0102030405060708090a0b0c" + NODE.raw.hex()),
    (
        Pong(TRANSACTION, ("2.3.4.5", 1234)),
        "0200 0102030405060708090a0b0c 00000000000000000000ffff02030405 04d2",
    ),
    (
        Pong(TRANSACTION, ("fed0::12", 6666)),
        "0200 0102030405060708090a0b0c fed00000000000000000000000000012 1a0a",
    ),
    (CallMeMaybe(()), "0300"),
    (
        CallMeMaybe((("1.2.3.4", 567), ("2001::3456", 789))),
        "0300 00000000000000000000ffff01020304 0237 20010000000000000000000000003456 0315",
    ),
]

# Computed with libsodium's crypto_box: A to B, nonce 00..17, of the ping with A's disco key in the place of the node key.
SEALED_PING = (
    MAGIC
    + A.public.raw
    + bytes.fromhex(
        "000102030405060708090a0b0c0d0e0f1011121314151617453356ae5c10a4b849187de32db35c6171167b110e6256f194b2cf03c985db53"
        "2218064f92c2dfcfa33e275bdc29b33b05238d7deb62b02133b3eca82ed2"
    )
)

transactions = st.binary(min_size=TRANSACTION_BYTES, max_size=TRANSACTION_BYTES)
endpoints = st.tuples(
    # Of IPv4 within IPv6 only the IPv4 is left.
    st.ip_addresses().filter(lambda address: getattr(address, "ipv4_mapped", None) is None).map(str),
    st.integers(0, 0xFFFF),
)
messages = st.one_of(
    st.builds(Ping, transactions, st.none() | st.builds(NodePublic, st.binary(min_size=32, max_size=32))),
    st.builds(Pong, transactions, endpoints),
    st.builds(CallMeMaybe, st.lists(endpoints, max_size=MAX_CALLED_ENDPOINTS).map(tuple)),
)


def nonce_00_to_17(size: int) -> bytes:
    return bytes(range(size))


# --- in the clear --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("message", "text"), VECTORS)
def test_vectors(message: Message, text: str) -> None:
    payload = bytes.fromhex(text)
    assert encode(message) == payload
    assert decode(payload) == message


@settings(max_examples=40, deadline=None)
@given(messages)
def test_there_and_back(message: Message) -> None:
    assert decode(encode(message)) == message


@settings(max_examples=40, deadline=None)
@given(messages, st.binary(max_size=64))
def test_what_stands_behind_a_message_is_passed_over(message: Message, more: bytes) -> None:
    if isinstance(message, Ping) and message.node_key is None:
        more = more[:31]  # 32 bytes would be a node key
    if not isinstance(message, CallMeMaybe):
        assert decode(encode(message) + more) == message


def test_a_ping_may_be_padded_and_its_padding_is_no_key_where_it_is_short() -> None:
    assert decode(encode(Ping(TRANSACTION, NODE)) + bytes(1000)) == Ping(TRANSACTION, NODE)
    assert decode(encode(Ping(TRANSACTION, None)) + bytes(31)) == Ping(TRANSACTION, None)


@pytest.mark.parametrize(
    "text",
    ["", "01", "02", "03", "00", "0000", "0400", "ff00"]
    + [f"{kind:02x}00" + "00" * 100 for kind in (0, 4, 5, 6, 7, 8, 9, 10, 255)],
)
def test_what_is_no_message_that_we_know(text: str) -> None:
    assert decode(bytes.fromhex(text)) is None


@pytest.mark.parametrize(("message", "text"), VECTORS[:4])
def test_a_message_that_is_cut_short_is_none(message: Message, text: str) -> None:
    payload = bytes.fromhex(text)
    whole = 2 + TRANSACTION_BYTES + (ENDPOINT_BYTES if isinstance(message, Pong) else 0)
    for length in range(whole):
        assert decode(payload[:length]) is None


def test_a_later_version_of_ping_and_pong_is_read_as_far_as_we_know_it() -> None:
    assert decode(bytes((PING, 7)) + TRANSACTION) == Ping(TRANSACTION, None)
    assert decode(bytes((PONG, 7)) + TRANSACTION + bytes(10) + b"\xff\xff\1\2\3\4\0\5") == Pong(
        TRANSACTION, ("1.2.3.4", 5)
    )


@pytest.mark.parametrize("version", [1, 255])
def test_a_later_version_of_a_call_names_nothing(version: int) -> None:
    assert decode(bytes((CALL_ME_MAYBE, version)) + bytes(ENDPOINT_BYTES)) == CallMeMaybe(())


@pytest.mark.parametrize("length", [1, ENDPOINT_BYTES - 1, ENDPOINT_BYTES + 1, 2 * ENDPOINT_BYTES - 1])
def test_a_call_with_half_an_endpoint_names_nothing(length: int) -> None:
    assert decode(bytes((CALL_ME_MAYBE, 0)) + b"\1" * length) == CallMeMaybe(())


def test_a_call_has_room_for_so_many_endpoints() -> None:
    many = tuple(("192.0.2.1", port) for port in range(1, 1000))
    assert decode(encode(CallMeMaybe(many))) == CallMeMaybe(many[:MAX_CALLED_ENDPOINTS])


def test_ipv4_in_the_clothes_of_ipv6_is_ipv4() -> None:
    pong = Pong(TRANSACTION, ("::ffff:1.2.3.4", 5))
    assert decode(encode(pong)) == Pong(TRANSACTION, ("1.2.3.4", 5))


def test_a_zone_is_nothing_for_the_other_side() -> None:
    assert decode(encode(Pong(TRANSACTION, ("fe80::1%eth0", 5)))) == Pong(TRANSACTION, ("fe80::1", 5))


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_no_payload_raises(payload: bytes) -> None:
    decode(payload)


# --- sealed --------------------------------------------------------------------------------------------------------


def test_a_whole_datagram() -> None:
    ping = Ping(TRANSACTION, NodePublic(A.public.raw))
    assert len(SEALED_PING) == 124
    assert Sealer(A, nonce_00_to_17).seal(B.public, ping) == SEALED_PING
    assert sender(SEALED_PING) == A.public
    assert Sealer(B, nonce_00_to_17).open(SEALED_PING, A.public) == ping


@settings(max_examples=30, deadline=None)
@given(messages)
def test_sealed_and_opened(message: Message) -> None:
    datagram = Sealer(A, entropy(1)).seal(B.public, message)
    assert sender(datagram) == A.public
    assert Sealer(B, entropy(2)).open(datagram, A.public) == message


def test_each_datagram_has_its_own_nonce() -> None:
    sealer = Sealer(A, entropy(1))
    assert len({sealer.seal(B.public, VECTORS[0][0]) for _ in range(100)}) == 100


@pytest.mark.parametrize("length", [0, 1, len(MAGIC), 38, 61])
def test_what_is_too_short_is_nobodys(length: int) -> None:
    assert sender(SEALED_PING[:length]) is None


def test_what_has_no_magic_is_nobodys() -> None:
    assert sender(b"T" + SEALED_PING[:-1]) is None
    assert sender(b"\0" + SEALED_PING[1:]) is None


@pytest.mark.parametrize("at", range(len(MAGIC) + 32, 124, 3))
def test_one_bit_is_enough_for_it_not_to_be_authentic(at: int) -> None:
    tampered = bytearray(SEALED_PING)
    tampered[at] ^= 0x10
    with pytest.raises(ProtocolError):
        Sealer(B, entropy(1)).open(bytes(tampered), A.public)


def test_what_was_sealed_for_or_by_somebody_else_is_not_authentic() -> None:
    for who, whose in ((C, A), (B, C), (A, A)):
        with pytest.raises(ProtocolError):
            Sealer(who, entropy(1)).open(SEALED_PING, whose.public)


@pytest.mark.parametrize("length", range(62, 124, 7))
def test_what_is_cut_off_is_not_authentic(length: int) -> None:
    with pytest.raises(ProtocolError):
        Sealer(B, entropy(1)).open(SEALED_PING[:length], A.public)


@pytest.mark.parametrize("raw", [bytes(32), b"\1" + bytes(31), b"\xec" + b"\xff" * 30 + b"\x7f"])
def test_with_a_key_of_low_order_there_is_no_secret(raw: bytes) -> None:
    sealer = Sealer(A, entropy(1))
    with pytest.raises(ProtocolError):
        sealer.seal(DiscoPublic(raw), VECTORS[0][0])
    with pytest.raises(ProtocolError):
        sealer.open(MAGIC + raw + bytes(80), DiscoPublic(raw))
    assert not sealer._boxes


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_nothing_of_a_stranger_opens(rest: bytes) -> None:
    datagram = MAGIC + A.public.raw + rest
    if (whose := sender(datagram)) is not None:
        with pytest.raises(ProtocolError):
            Sealer(B, entropy(1)).open(datagram, whose)


def test_of_shared_keys_only_so_many_are_kept() -> None:
    sealer = Sealer(A, entropy(1))
    random = entropy(2)
    for _ in range(MAX_BOXES + 10):
        sealer.seal(DiscoPublic(random(32)), VECTORS[0][0])
    assert len(sealer._boxes) == MAX_BOXES
    assert sealer.seal(B.public, VECTORS[0][0])  # whoever was forgotten is computed again
