"""NaCl's box against a vector, and against those who have no part in it."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tsns.error import ProtocolError
from tsns.keys import NodePrivate
from tsns.sealed_box import OVERHEAD_BYTES, SealedBox

A = NodePrivate(b"\x55" * 32)
B = NodePrivate(b"\x66" * 32)

# Computed with libsodium's crypto_box: keys as above, nonce 00..17.
NONCE = bytes(range(24))
MESSAGE = bytes.fromhex("01000102030405060708090a0b0c") + A.public.raw
SEALED = bytes.fromhex(
    "000102030405060708090a0b0c0d0e0f1011121314151617453356ae5c10a4b849187de32db35c6171167b110e6256f194b2cf03c985db53"
    "2218064f92c2dfcfa33e275bdc29b33b05238d7deb62b02133b3eca82ed2"
)


def test_vector() -> None:
    assert SealedBox(A, B.public.raw).seal(MESSAGE, lambda size: NONCE[:size]) == SEALED
    assert SealedBox(B, A.public.raw).open(SEALED) == MESSAGE
    assert len(SEALED) == OVERHEAD_BYTES + len(MESSAGE)


@pytest.mark.parametrize("sealed", [b"", SEALED[:23], SEALED[:39], SEALED[:-1], SEALED[:-1] + b"\x00", bytes(60)])
def test_what_the_owner_did_not_write_is_refused(sealed: bytes) -> None:
    with pytest.raises(ProtocolError):
        SealedBox(B, A.public.raw).open(sealed)


@pytest.mark.parametrize("worthless", [bytes(32), b"\x01" + bytes(31), b"\x00" * 31, b""])
def test_a_key_without_a_secret_is_refused(worthless: bytes) -> None:
    with pytest.raises(ProtocolError, match="worthless"):
        SealedBox(A, worthless)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=100))
def test_garbage_does_not_open(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        SealedBox(B, A.public.raw).open(data)
