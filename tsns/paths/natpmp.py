"""NAT-PMP's datagrams: what is asked of a gateway, and its answers (ring 0).

Source: RFC 6886. Everything is big-endian; the version is 0, and an answer's opcode is that of the request plus 128.

    request   00 opcode                                                      opcode 0: which is your external address
              00 opcode 0000 internal port, external port, lifetime          opcode 1: map this UDP port
    answer    00 opcode result epoch ...
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass
from typing import Final

PORT: Final = 5351  # of the gateway, and PCP's as well
MAX_MESSAGE_BYTES: Final = 1100  # longer ones are not read
ADDRESS_BYTES: Final = 4

_VERSION: Final = 0
_ANSWER: Final = 0x80
_MAP_REQUEST: Final = struct.Struct(">BBHHHI")
_HEAD: Final = struct.Struct(">BBHI")
_MAPPED: Final = struct.Struct(">HHI")


class Opcode(enum.IntEnum):
    """What is asked."""

    ADDRESS = 0
    MAP_UDP = 1


class Result(enum.IntEnum):
    """Those of the result codes that mean something to us; there are others."""

    SUCCESS = 0
    UNSUPPORTED_VERSION = 1


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer; `epoch_s` is how long the gateway's table has existed.

    With success ADDRESS has the gateway's external `address`, packed, and MAP_UDP the rest; a mapping with a lifetime of 0 s is gone.
    """

    opcode: int
    result: int
    epoch_s: int
    address: bytes = bytes(ADDRESS_BYTES)
    internal_port: int = 0
    external_port: int = 0
    lifetime_s: int = 0


ADDRESS_REQUEST: Final = bytes((_VERSION, Opcode.ADDRESS))


def map_request(internal_port: int, wanted_port: int, lifetime_s: int) -> bytes:
    """Ask for a UDP port, or with a lifetime of 0 s to end a mapping; a wanted port of 0 is any."""
    return _MAP_REQUEST.pack(_VERSION, Opcode.MAP_UDP, 0, internal_port, wanted_port, lifetime_s)


def parse_answer(data: bytes) -> Answer | None:
    """Read an answer; None for everything else."""
    if not _HEAD.size <= len(data) <= MAX_MESSAGE_BYTES:
        return None
    version, opcode, result, epoch_s = _HEAD.unpack_from(data)
    if version != _VERSION or not opcode & _ANSWER:
        return None
    opcode &= ~_ANSWER
    if result != Result.SUCCESS:
        return Answer(opcode, result, epoch_s)
    if opcode == Opcode.ADDRESS and len(data) >= _HEAD.size + ADDRESS_BYTES:
        return Answer(opcode, result, epoch_s, data[_HEAD.size : _HEAD.size + ADDRESS_BYTES])
    if opcode == Opcode.MAP_UDP and len(data) >= _HEAD.size + _MAPPED.size:
        internal_port, external_port, lifetime_s = _MAPPED.unpack_from(data, _HEAD.size)
        return Answer(
            opcode, result, epoch_s, internal_port=internal_port, external_port=external_port, lifetime_s=lifetime_s
        )
    return None
