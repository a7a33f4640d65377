"""PCP's datagrams, as far as one mapping needs them: ANNOUNCE and MAP, and their answers (ring 0).

Source: RFC 6887. Everything is big-endian; the version is 2, addresses have 16 bytes, IPv4 ones are mapped into IPv6, and an answer's
opcode is that of the request plus 128.

    request   02 opcode 0000 lifetime, our address                  and for MAP   nonce, protocol 000000, internal port,
    answer    02 opcode 00 result lifetime, epoch, 12 bytes                       external port, external address
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

PORT: Final = 5351  # of the gateway, and NAT-PMP's as well
MAX_MESSAGE_BYTES: Final = 1100  # RFC 6887, section 7
NONCE_BYTES: Final = 12
NO_ADDRESS: Final = bytes(4)

_VERSION: Final = 2
_ANSWER: Final = 0x80
_UDP: Final = 17
_V4_IN_V6: Final = bytes(10) + b"\xff\xff"
_REQUEST: Final = struct.Struct(">BBHI16s")
_HEAD: Final = struct.Struct(">BBBBII12x")
_MAP: Final = struct.Struct(">12sB3xHH16s")


class Opcode(enum.IntEnum):
    """What is asked."""

    ANNOUNCE = 0
    MAP = 1


class Result(enum.IntEnum):
    """Those of the result codes that mean something to us; there are others."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1
    NOT_AUTHORIZED = 2
    ADDRESS_MISMATCH = 12


@dataclass(frozen=True, slots=True)
class MappedPort:
    """The part of MAP. The external address is packed, of 4 bytes where it is one of IPv4."""

    nonce: bytes
    internal_port: int
    external_port: int
    external: bytes


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; `epoch_s` is how long the gateway's table has existed. Only one to MAP has `mapped`, and an error may lack it."""

    opcode: int
    result: int
    lifetime_s: int
    epoch_s: int
    mapped: MappedPort | None = None


def announce(own: bytes) -> bytes:
    """Ask for a sign of life; `own` is our packed IPv4 address."""
    return _REQUEST.pack(_VERSION, Opcode.ANNOUNCE, 0, 0, _V4_IN_V6 + own)


def map_request(
    own: bytes, nonce: bytes, internal_port: int, lifetime_s: int, wanted_port: int = 0, wanted: bytes = NO_ADDRESS
) -> bytes:
    """Ask for a UDP port, or with a lifetime of 0 s to end a mapping. The nonce of one mapping stays the same."""
    head = _REQUEST.pack(_VERSION, Opcode.MAP, 0, lifetime_s, _V4_IN_V6 + own)
    return head + _MAP.pack(nonce, _UDP, internal_port, wanted_port, _V4_IN_V6 + wanted)


def parse_answer(data: bytes) -> Answer | None:
    """Read an answer; None for everything else."""
    if not _HEAD.size <= len(data) <= MAX_MESSAGE_BYTES or len(data) % 4:
        return None
    version, opcode, _, result, lifetime_s, epoch_s = _HEAD.unpack_from(data)
    if version != _VERSION or not opcode & _ANSWER:
        return None
    opcode &= ~_ANSWER
    mapped = None
    if opcode == Opcode.MAP and len(data) >= _HEAD.size + _MAP.size:
        nonce, protocol, internal_port, external_port, external = _MAP.unpack_from(data, _HEAD.size)
        if protocol != _UDP:
            return None
        mapped = MappedPort(nonce, internal_port, external_port, external.removeprefix(_V4_IN_V6))
    if opcode == Opcode.MAP and result == Result.SUCCESS and mapped is None:
        return None
    return Answer(opcode, result, lifetime_s, epoch_s, mapped)
