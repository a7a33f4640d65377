"""A peer may know us by other addresses than our own: packets are rewritten on their way to it and from it (ring 0).

Source: net/tstun (wrap.go) of Tailscale's module; RFC 1624 for checksums. A tailnet may be shared with one that uses our address itself.

    to the peer      source ours       -> source as the peer knows us
    from the peer    destination that  -> destination ours

Nothing else is looked at, what ICMP errors quote neither. A frame with many packets is rewritten as one: where its checksum is left to be
completed, the sum in the field is of the addresses too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from tsns.proto.packets import (
    FRAGMENT_HEADER_BYTES,
    HEAD_BYTES,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    Protocol,
    destination,
    source,
)
from tsns.proto.virtio import HEADER, HEADER_BYTES, NEEDS_CHECKSUM, Frame

_V4_CHECKSUM_AT: Final = 10
_V4_SOURCE_AT: Final = 12
_V6_SOURCE_AT: Final = 8
# Where the checksum of those protocols stands that covers the addresses, too.
_COVERING: Final = {int(Protocol.TCP): 16, int(Protocol.UDP): 6, int(Protocol.ICMPV6): 2}


class Masquerade:
    """The addresses of one peer's picture of us: `pairs` of our own one and the one by which the peer knows us, packed, of one family each."""

    __slots__ = ("_own", "_worn")

    def __init__(self, pairs: Iterable[tuple[bytes, bytes]]) -> None:
        self._worn = {own: worn for own, worn in pairs if own != worn and len(own) == len(worn)}
        self._own = {worn: own for own, worn in self._worn.items()}

    def __bool__(self) -> bool:
        return bool(self._worn)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Masquerade) and other._worn == self._worn

    __hash__ = None  # type: ignore[assignment]

    def outbound(self, frames: Sequence[bytes]) -> list[bytes]:
        """Frames to the peer, as it is to see them."""
        out = []
        for frame in frames:
            worn = self._worn.get(source(frame[HEADER_BYTES : HEADER_BYTES + HEAD_BYTES]) or b"")
            out.append(frame if worn is None else _rewritten(frame, worn, is_source=True))
        return out

    def inbound(self, frames: Sequence[Frame]) -> list[Frame]:
        """Frames from the peer, as we are to see them."""
        out: list[Frame] = []
        for frame in frames:
            own = self._own.get(destination(bytes(frame[HEADER_BYTES : HEADER_BYTES + HEAD_BYTES])) or b"")
            out.append(frame if own is None else _rewritten(frame, own, is_source=False))
        return out


def _rewritten(frame: Frame, address: bytes, *, is_source: bool) -> bytes:
    """The frame with this address in place of its source or destination, and its checksums still as right or as wrong as they were."""
    new = bytearray(frame)
    size = len(address)
    at = HEADER_BYTES + (_V4_SOURCE_AT if size == 4 else _V6_SOURCE_AT) + (0 if is_source else size)
    difference = (int.from_bytes(address, "big") - int.from_bytes(new[at : at + size], "big")) % 0xFFFF
    new[at : at + size] = address
    if size == 4:
        _adjust(new, HEADER_BYTES + _V4_CHECKSUM_AT, -difference)
        protocol, start = new[HEADER_BYTES + 9], HEADER_BYTES + (new[HEADER_BYTES] & 0x0F) * 4
        is_later_fragment = bool(new[HEADER_BYTES + 6] & 0x1F or new[HEADER_BYTES + 7])
        if start < HEADER_BYTES + IPV4_HEADER_BYTES:
            return bytes(new)
    else:
        protocol, start = new[HEADER_BYTES + 6], HEADER_BYTES + IPV6_HEADER_BYTES
        is_later_fragment = False
        if protocol == Protocol.FRAGMENT and len(new) >= start + FRAGMENT_HEADER_BYTES:
            protocol = new[start]
            is_later_fragment = bool(new[start + 2] or new[start + 3] & 0xF8)
            start += FRAGMENT_HEADER_BYTES
    offset = _COVERING.get(protocol)
    if offset is None or is_later_fragment or len(new) < start + offset + 2:
        return bytes(new)
    field = start + offset
    if new[0] & NEEDS_CHECKSUM and _unfinished_at(frame) == field:
        _adjust(new, field, difference)  # a sum, not the complement of one
    elif protocol != Protocol.UDP or new[field] or new[field + 1]:  # a zero of UDP's says that there is none
        _adjust(new, field, -difference)
        if protocol == Protocol.UDP and not (new[field] or new[field + 1]):
            new[field : field + 2] = b"\xff\xff"
    return bytes(new)


def _unfinished_at(frame: Frame) -> int:
    """Where the checksum is that is left to be completed: of a tunnel in the tunnel it may be an inner one."""
    start: int
    offset: int
    _, _, _, _, start, offset = HEADER.unpack_from(frame)
    return HEADER_BYTES + start + offset


def _adjust(packet: bytearray, at: int, difference: int) -> None:
    """Add to a 16-bit field in the arithmetic of ones' complement, where 0 and 0xFFFF are the same."""
    value = (int.from_bytes(packet[at : at + 2], "big") + difference) % 0xFFFF
    packet[at : at + 2] = value.to_bytes(2, "big")
