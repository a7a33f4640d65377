"""The kernel's messages about addresses, byte by byte."""

from __future__ import annotations

import errno
import socket
import struct
from typing import Self

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsns.netns import host_network, netlink_messages
from tsns.netns.host_network import _address
from tsns.netns.netlink_messages import parts
from tsns.proto.addresses import pack

ADDRESS, LOCAL, LABEL, FLAGS = 1, 2, 3, 8  # IFA_..., linux/if_addr.h
PERMANENT, TENTATIVE, DEPRECATED = 0x80, 0x40, 0x20


def message(kind: int, body: bytes) -> bytes:
    """One netlink message, padded."""
    whole = struct.pack("=IHHII", 16 + len(body), kind, 2, 1, 0) + body
    return whole + bytes(-len(whole) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    whole = struct.pack("=HH", 4 + len(value), kind) + value
    return whole + bytes(-len(whole) % 4)


def about(family: int, *attributes: bytes, flags: int = PERMANENT) -> bytes:
    """The body of an RTM_NEWADDR."""
    return struct.pack("=BBBBI", family, 24, flags, 0, 2) + b"".join(attributes)


# What Linux 6.18 answered in a new namespace after `ip link set lo up`, both reads in one.
LOOPBACK = bytes.fromhex(
    "4c0000001400020001000000a5470000020880fe01000000080001007f000001080002007f000001070003006c6f0000080008008000000014000600"
    "ffffffffffffffff8a3f07008a3f0700500000001400020001000000a54700000a8080fe010000001400010000000000000000000000000000000001"
    "14000600ffffffffffffffff8a3f07008a3f0700080008008000000005000b0001000000140000000300020001000000a547000000000000"
)


def test_an_answer_of_the_kernels() -> None:
    *told, (done, _) = parts(LOOPBACK)
    assert [(kind, _address(body)) for kind, body in told] == [(20, "127.0.0.1"), (20, "::1")]
    assert done == 3


class Kernel:
    """A netlink socket that answers with this."""

    def __init__(self, *answers: bytes) -> None:
        self.answers = list(answers)
        self.asked: list[bytes] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def send(self, data: bytes) -> None:
        self.asked.append(data)

    def recv(self, _: int) -> bytes:
        return self.answers.pop(0)


def test_addresses_are_asked_for_and_read_to_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel(LOOPBACK[:76], LOOPBACK[76:], b"not read any more")
    monkeypatch.setattr(netlink_messages, "open_socket", lambda _: kernel)
    assert host_network.addresses() == ["127.0.0.1", "::1"]
    assert kernel.asked == [struct.pack("=IHHII", 24, 22, 0x301, 1, 0) + bytes(8)]
    assert kernel.answers == [b"not read any more"]


def test_a_kernel_that_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    refusal = message(2, struct.pack("=i", -errno.EPERM) + bytes(16))
    monkeypatch.setattr(netlink_messages, "open_socket", lambda _: Kernel(refusal))
    with pytest.raises(PermissionError):
        host_network.addresses()


def test_an_answer_without_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(netlink_messages, "open_socket", lambda _: Kernel(*[LOOPBACK[:76]] * 10_000))
    assert set(host_network.addresses()) == {"127.0.0.1"}


@pytest.mark.parametrize(("family", "text"), [(socket.AF_INET, "192.0.2.7"), (socket.AF_INET6, "2001:db8::7")])
def test_an_address_of_either_family(family: int, text: str) -> None:
    assert _address(about(family, attribute(LABEL, b"eth0\0"), attribute(ADDRESS, pack(text)))) == text


def test_of_a_link_with_two_ends_it_is_ours() -> None:
    ours, theirs = attribute(LOCAL, pack("10.0.0.1")), attribute(ADDRESS, pack("10.0.0.2"))
    assert _address(about(socket.AF_INET, theirs, ours)) == "10.0.0.1"
    assert _address(about(socket.AF_INET, ours, theirs)) == "10.0.0.1"


@pytest.mark.parametrize(
    ("flags", "counts"), [(PERMANENT, True), (0, True), (DEPRECATED, True), (TENTATIVE, False), (0xFF, False)]
)
def test_an_address_that_may_be_somebody_elses_is_none_yet(flags: int, counts: bool) -> None:
    body = about(socket.AF_INET6, attribute(ADDRESS, pack("2001:db8::7")), flags=flags)
    assert (_address(body) is not None) == counts


def test_what_is_of_no_use() -> None:
    assert _address(about(socket.AF_PACKET, attribute(ADDRESS, bytes(6)))) is None
    assert _address(about(socket.AF_INET)) is None
    assert _address(about(socket.AF_INET, attribute(LABEL, b"lo"))) is None
    assert _address(about(socket.AF_INET, attribute(ADDRESS, b""))) is None


def test_an_attribute_that_leads_nowhere_ends_it() -> None:
    good = attribute(ADDRESS, pack("192.0.2.7"))
    assert _address(about(socket.AF_INET, good, b"\0\0\1\0", attribute(LOCAL, pack("10.0.0.1")))) == "192.0.2.7"


@settings(max_examples=50, deadline=None)
@given(st.binary(max_size=100), st.sampled_from([socket.AF_INET, socket.AF_INET6]))
def test_no_bytes_raise(data: bytes, family: int) -> None:
    for _, body in parts(message(20, data)):
        _address(body)
    _address(data)
    _address(about(family, data))
    for kind in (ADDRESS, LOCAL):
        _address(about(family, attribute(kind, data)))
