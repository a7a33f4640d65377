"""Netlink's messages and attributes, byte by byte."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.netns import netlink_messages
from tsns.netns.netlink_messages import attribute, attributes, errno_of, message, nested, parts


def test_a_message_and_its_attributes_as_they_are_on_the_wire() -> None:
    body = attribute(3, b"lo\0") + nested(4, attribute(1, b"\1\2\3\4"))
    assert body == bytes.fromhex("07000300 6c6f0000 0c000480 08000100 01020304")
    assert message(16, netlink_messages.ACK, body, 7) == struct.pack("=IHHII", 36, 16, 5, 7, 0) + body
    [(kind, read)] = parts(message(16, 0, body))
    assert (kind, read) == (16, body)
    assert attributes(body) == {3: b"lo\0", 4: attribute(1, b"\1\2\3\4")}


def test_an_error_and_an_acknowledgement() -> None:
    assert errno_of(struct.pack("=i", -errno.EPERM) + bytes(16)) == errno.EPERM
    assert errno_of(bytes(20)) == 0


def test_messages_are_cut_where_they_end() -> None:
    data = message(20, 0, b"one") + message(20, 0, b"") + message(3, 0, b"last")
    assert list(parts(data)) == [(20, b"one"), (20, b""), (3, b"last")]
    assert list(parts(b"")) == []


@pytest.mark.parametrize("length", [0, 15])
def test_a_length_that_leads_nowhere_ends_it(length: int) -> None:
    data = message(20, 0, b"one") + struct.pack("=IHHII", length, 20, 0, 0, 0) + message(20, 0, b"two")
    assert list(parts(data)) == [(20, b"one")]


def test_a_message_that_is_cut_off_is_what_there_is_of_it() -> None:
    assert list(parts(message(20, 0, bytes(100))[:50])) == [(20, bytes(34))]
    assert list(parts(message(20, 0, b"")[:15])) == []


@given(st.binary(max_size=100))
def test_no_bytes_raise(data: bytes) -> None:
    for _, body in parts(data):
        attributes(body)
    attributes(data)
    attributes(data, 8)
