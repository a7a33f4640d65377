"""The filter at the way to the host's network, run by an interpreter of our own: what it lets pass."""

from __future__ import annotations

import random

import pytest

from tsns.netns.uplink_filter import INSTRUCTION, MAX_INSTRUCTIONS, closed, compiled
from tsns.proto.addresses import Prefix, pack, unpack
from tsns.proto.packets import Protocol, build

ARP = bytes(12) + b"\x08\x06" + bytes(28)


def frame(destination: str, protocol: int = Protocol.TCP) -> bytes:
    packed = pack(destination)
    kind = b"\x08\x00" if len(packed) == 4 else b"\x86\xdd"
    return bytes(12) + kind + build(protocol, bytes(len(packed)), packed, bytes(20))


def passes(program: bytes, data: bytes) -> bool:
    """Run classic BPF, as the kernel does: what is read beyond the end ends it with a drop."""
    code = [INSTRUCTION.unpack_from(program, at) for at in range(0, len(program), INSTRUCTION.size)]
    at = accumulator = 0
    while True:
        kind, yes, no, value = code[at]
        at += 1
        if kind in {0x20, 0x28, 0x30}:
            size = {0x20: 4, 0x28: 2, 0x30: 1}[kind]
            if value + size > len(data):
                return False
            accumulator = int.from_bytes(data[value : value + size], "big")
        elif kind == 0x54:
            accumulator &= value
        elif kind == 0x15:
            at += yes if accumulator == value else no
        elif kind == 0x05:
            at += value
        else:
            assert kind == 0x06
            return bool(value)


def prefixes(*texts: str) -> list[Prefix]:
    return [Prefix.parse(text) for text in texts]


FORBIDDEN = prefixes(
    "127.0.0.0/8", "100.64.0.0/10", "10.1.2.0/24", "192.0.2.7", "fd7a:115c:a1e0::/48", "::1", "2001:db8:1:2::/63"
)


@pytest.mark.parametrize(
    ("destination", "fine"),
    [
        ("8.8.8.8", True),
        ("127.0.0.1", False),
        ("128.0.0.1", True),
        ("100.63.255.255", True),
        ("100.127.255.255", False),
        ("10.1.2.255", False),
        ("10.1.3.0", True),
        ("192.0.2.7", False),
        ("192.0.2.6", True),
        ("fd7a:115c:a1e0::5", False),
        ("fd7a:115c:a1e1::5", True),
        ("::1", False),
        ("::2", True),
        ("2001:db8:1:3:ffff::1", False),
        ("2001:db8:1:4::1", True),
        ("fe80::1", False),
        ("ff02::fb", False),
    ],
)
def test_what_is_forbidden_stays_inside(destination: str, fine: bool) -> None:
    assert passes(compiled(FORBIDDEN), frame(destination)) is fine
    assert not passes(closed(), frame(destination))


@pytest.mark.parametrize("destination", ["fe80::1", "ff02::1:ff00:1"])
def test_neighbours_are_found(destination: str) -> None:
    program = compiled([*FORBIDDEN, *prefixes("fe80::/10", "ff00::/8")])
    assert passes(program, frame(destination, Protocol.ICMPV6))
    assert not passes(program, frame(destination, Protocol.UDP))
    assert passes(program, ARP)


@pytest.mark.parametrize(
    "data", [b"", bytes(14), bytes(12) + b"\x81\x00" + frame("8.8.8.8")[12:], frame("8.8.8.8")[:30]]
)
def test_what_is_not_understood_stays_inside(data: bytes) -> None:
    assert not passes(compiled(FORBIDDEN), data)


def test_only_some_networks() -> None:
    program = compiled(FORBIDDEN, prefixes("192.168.1.0/24", "10.0.0.0/8", "2001:db8::/32"))
    fine = {
        "192.168.1.9": True,
        "192.168.2.9": False,
        "10.9.9.9": True,
        "10.1.2.3": False,
        "2001:db8:9::1": True,
        "2002::1": False,
    }
    assert {address: passes(program, frame(address)) for address in fine} == fine


def test_thousands_of_routes_fit_and_more_are_refused() -> None:
    generator = random.Random(1)
    many = prefixes(*(f"{unpack(generator.randbytes(4))}/{generator.randrange(9, 33)}" for _ in range(3500)))
    program = compiled(many)
    assert len(program) <= MAX_INSTRUCTIONS * INSTRUCTION.size
    for _ in range(30):
        inside = generator.choice(many)
        assert not passes(program, frame(unpack(inside.network)))
        address = generator.randbytes(4)
        assert passes(program, frame(unpack(address))) is not any(prefix.covers(address) for prefix in many)
    with pytest.raises(ValueError, match="too many routes"):
        compiled(prefixes(*(f"2001:db8:{number:x}::/64" for number in range(1200))))
