"""STUN binding requests and their answers, as Tailscale's relays want them (ring 0).

Source: RFC 8489; net/stun/stun.go of Tailscale's module for the two attributes without which its servers do not answer: SOFTWARE
"tailnode", and FINGERPRINT as the last one.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from tsns.proto.addresses import Endpoint, pack, unmapped, unpack

TXID_BYTES: Final = 12
SOFTWARE: Final = b"tailnode"
MAX_MESSAGE_BYTES: Final = 1500  # longer ones are not read

_HEADER: Final = struct.Struct(">HHI12s")
_ATTRIBUTE: Final = struct.Struct(">HH")
_COOKIE: Final = 0x2112A442
_COOKIE_BYTES: Final = _COOKIE.to_bytes(4, "big")
_BINDING_REQUEST: Final = 0x0001
_BINDING_SUCCESS: Final = 0x0101
_MAPPED_ADDRESS: Final = 0x0001
_XOR_MAPPED_ADDRESS: Final = 0x0020
_XOR_MAPPED_ADDRESS_OLD: Final = 0x8020  # before RFC 5389 some servers used this one
_SOFTWARE: Final = 0x8022
_FINGERPRINT: Final = 0x8028
_FINGERPRINT_XOR: Final = 0x5354554E
_FAMILY_BYTES: Final = {1: 4, 2: 16}


@dataclass(frozen=True, slots=True)
class Response:
    """An answer: which request it belongs to, and the address that the server saw."""

    txid: bytes
    address: Endpoint


def request(txid: bytes) -> bytes:
    """A binding request with these 12 bytes of transaction id."""
    attributes = _ATTRIBUTE.pack(_SOFTWARE, len(SOFTWARE)) + SOFTWARE
    head = _HEADER.pack(_BINDING_REQUEST, len(attributes) + 8, _COOKIE, txid) + attributes
    return head + _ATTRIBUTE.pack(_FINGERPRINT, 4) + _fingerprint(head)


def parse_request(data: bytes) -> bytes | None:
    """The transaction id of a request that a relay answers; None for everything else."""
    message = _parse(data, _BINDING_REQUEST)
    if message is None:
        return None
    txid, attributes = message
    found = list(_attributes(attributes))
    if len(found) < 2 or (_SOFTWARE, SOFTWARE) not in found or len(attributes) < 8:
        return None
    end = _HEADER.size + len(attributes)
    return txid if found[-1] == (_FINGERPRINT, _fingerprint(data[: end - 8])) else None


def response(txid: bytes, address: Endpoint) -> bytes:
    """The answer to a request that came from this address."""
    packed, port = unmapped(pack(address[0])), address[1]
    family = 1 if len(packed) == 4 else 2
    value = struct.pack(">BBH", 0, family, port ^ (_COOKIE >> 16)) + _xor(packed, _COOKIE_BYTES + txid)
    attribute = _ATTRIBUTE.pack(_XOR_MAPPED_ADDRESS, len(value)) + value
    return _HEADER.pack(_BINDING_SUCCESS, len(attribute), _COOKIE, txid) + attribute


def parse_response(data: bytes) -> Response | None:
    """Read an answer; None for everything else."""
    message = _parse(data, _BINDING_SUCCESS)
    if message is None:
        return None
    txid, attributes = message
    fallback: Response | None = None
    for kind, value in _attributes(attributes):
        if kind in {_XOR_MAPPED_ADDRESS, _XOR_MAPPED_ADDRESS_OLD}:
            address = _address(value, port_mask=_COOKIE >> 16, mask=_COOKIE_BYTES + txid)
            if address is not None:
                return Response(txid, address)
        elif kind == _MAPPED_ADDRESS and fallback is None:
            address = _address(value, port_mask=0, mask=bytes(16))
            fallback = Response(txid, address) if address is not None else None
    return fallback


def _parse(data: bytes, wanted: int) -> tuple[bytes, bytes] | None:
    """(transaction id, attributes) of a message of the wanted type."""
    if not _HEADER.size <= len(data) <= MAX_MESSAGE_BYTES:
        return None
    kind, length, cookie, txid = _HEADER.unpack_from(data)
    end = _HEADER.size + length
    if kind != wanted or cookie != _COOKIE or end > len(data):
        return None
    return txid, data[_HEADER.size : end]


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The (type, value) pairs up to the first that is cut off."""
    start = 0
    while start + _ATTRIBUTE.size <= len(data):
        kind, length = _ATTRIBUTE.unpack_from(data, start)
        start += _ATTRIBUTE.size
        if start + length > len(data):
            return
        yield kind, data[start : start + length]
        start += -(-length // 4) * 4  # values are padded


def _address(value: bytes, port_mask: int, mask: bytes) -> Endpoint | None:
    size = _FAMILY_BYTES.get(value[1]) if len(value) >= 4 else None
    if size is None or len(value) < 4 + size:
        return None
    port = int.from_bytes(value[2:4], "big") ^ port_mask
    return unpack(unmapped(_xor(value[4 : 4 + size], mask))), port


def _xor(data: bytes, mask: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(data, mask, strict=False))


def _fingerprint(data: bytes) -> bytes:
    return (zlib.crc32(data) ^ _FINGERPRINT_XOR).to_bytes(4, "big")
