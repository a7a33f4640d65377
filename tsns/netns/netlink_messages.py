"""Netlink by hand: messages and attributes as bytes (ring 1, standard library only).

Source: netlink(7), linux/netlink.h. For what pyroute2 would do too slowly, or where loading it would cost more than the work itself.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Final

READ_BYTES: Final = 64 << 10
BATCH: Final = 100  # messages at once: their answers have to fit into the socket's buffer
REQUEST: Final = 0x1
ACK: Final = 0x4
DUMP: Final = 0x300
CREATE: Final = 0x400
REPLACE: Final = 0x100
EXCLUSIVE: Final = 0x200
APPEND: Final = 0x800
ERROR: Final = 2  # types of answers
DONE: Final = 3
FAMILIES: Final = {4: socket.AF_INET, 16: socket.AF_INET6}  # by the bytes of an address

_HEADER: Final = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ATTRIBUTE: Final = struct.Struct("=HH")  # length, type
_U32: Final = struct.Struct("=I")
_ERRNO: Final = struct.Struct("=i")  # negative
_NESTED: Final = 0x8000
_TYPE_MASK: Final = 0x3FFF


def open_socket(protocol: int, groups: int = 0) -> socket.socket:
    """A netlink socket of the caller's own network namespace. OSError with the reason."""
    sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, protocol)
    try:
        sock.bind((0, groups))
    except OSError:
        sock.close()
        raise
    return sock


def message(kind: int, flags: int, body: bytes, sequence: int = 1) -> bytes:
    """One message, padded."""
    return _HEADER.pack(_HEADER.size + len(body), kind, REQUEST | flags, sequence, 0) + body + bytes(-len(body) % 4)


def attribute(kind: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + bytes(-len(value) % 4)


def nested(kind: int, *attributes_: bytes) -> bytes:
    """An attribute that consists of others."""
    return attribute(kind | _NESTED, b"".join(attributes_))


def parts(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The (type, body) pairs of what was read."""
    start = 0
    while start + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, start)
        if length < _HEADER.size:
            return
        yield kind, data[start + _HEADER.size : start + length]
        start += -(-length // 4) * 4


def number(kind: int, value: int) -> bytes:
    """An attribute that is a number of 32 bits."""
    return attribute(kind, _U32.pack(value))


def number_of(values: Mapping[int, bytes], kind: int, otherwise: int) -> int:
    """The number in an attribute of this type; where there is none, the other one."""
    value = values.get(kind, b"")
    return int(_U32.unpack(value)[0]) if len(value) == _U32.size else otherwise


def attributes(data: bytes, start: int = 0) -> dict[int, bytes]:
    """The attributes in a body from this offset, by type."""
    found: dict[int, bytes] = {}
    while start + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, start)
        if length < _ATTRIBUTE.size:
            break
        found[kind & _TYPE_MASK] = data[start + _ATTRIBUTE.size : start + length]
        start += -(-length // 4) * 4
    return found


def errno_of(body: bytes) -> int:
    """What an ERROR says; 0: it is none, but the answer to a request with ACK."""
    return -int(_ERRNO.unpack_from(body)[0])


def until_done(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    """The (type, body) pairs of the answer to a DUMP; OSError with the bare reason where there is none."""
    while True:
        for kind, body in parts(sock.recv(READ_BYTES)):
            if kind == DONE:
                return
            if kind == ERROR:
                raise OSError(errno_of(body), "")
            yield kind, body


def answers(sock: socket.socket, messages: Sequence[bytes]) -> Iterator[int]:
    """Send messages with ACK, many at once; what comes of each, as an errno, or 0."""
    for start in range(0, len(messages), BATCH):
        batch = messages[start : start + BATCH]
        sock.send(b"".join(batch))
        missing = len(batch)
        while missing > 0:
            for kind, body in parts(sock.recv(READ_BYTES)):
                if kind == ERROR:
                    missing -= 1
                    yield errno_of(body)


def carry_out(sock: socket.socket, messages: Sequence[bytes], failed: str, fine: Collection[int] = ()) -> None:
    """The same, where nothing may go wrong but what is `fine`: OSError for the first that the kernel refuses, saying what has `failed`."""
    for code in answers(sock, messages):
        if code and code not in fine:
            raise OSError(code, f"{failed}: {os.strerror(code)}")
