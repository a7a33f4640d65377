"""TCP connections that were asked for and not answered yet: a peer that refuses one by TSMP is heard by the program that asked (ring 0).

Tailscale writes such a refusal to its log, and the program waits until it gives up, for two minutes. Here it learns at once, by a reset as
from the other end. Since a reset must name the number that the SYN began with, only a flow that really was asked for can be refused.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from typing import Final

from tsns.proto.packets import (
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    TCP_ACK,
    TCP_RST,
    TCP_SYN,
    Protocol,
    RejectReason,
    TsmpReject,
    build,
    decode,
    upper_checksum,
)

MAX_OPENINGS: Final = 256
REFUSED_THERE: Final = "TCP connection refused by the peer: "

_REASONS: Final[dict[int, str]] = {
    RejectReason.ACL: "its rules",
    RejectReason.SHIELDS_UP: "its shields are up",
    RejectReason.FORWARDING_OFF: "it does not forward",
    RejectReason.HOST_FIREWALL: "its firewall",
}
_OTHER_REASON: Final = "another reason"

_TCP: Final = struct.Struct(">HHIIBBHHH")  # ports, sequence numbers, header length, flags, window, checksum, urgent
_FLAGS_AT: Final = 13
_SEQUENCE: Final = struct.Struct(">I")
_SEQUENCE_AT: Final = 4
_CHECKSUM_AT: Final = 16
_HEADER_WORDS: Final = 5 << 4

_Flow = tuple[bytes, bytes, int, int]  # source and destination, addresses and ports


class Openings:
    """The latest connections that programs inside asked for; the oldest is forgotten first."""

    __slots__ = ("_sequences",)

    def __init__(self) -> None:
        self._sequences: OrderedDict[_Flow, int] = OrderedDict()

    def note(self, head: bytes, size: int) -> None:
        """Look at a packet that goes out, by its first HEAD_BYTES."""
        if not _may_open(head):
            return
        fields = decode(head, size)
        if fields is None or fields[8] or fields[6] & (TCP_SYN | TCP_ACK) != TCP_SYN:
            return
        flow = (fields[2], fields[3], fields[4], fields[5])
        self._sequences[flow] = _SEQUENCE.unpack_from(head, fields[9] + _SEQUENCE_AT)[0]
        self._sequences.move_to_end(flow)
        if len(self._sequences) > MAX_OPENINGS:
            self._sequences.popitem(last=False)

    def refused(self, reject: TsmpReject) -> bytes | None:
        """The reset for a connection that a peer refuses for good; None where there is no such connection."""
        if reject.protocol != Protocol.TCP or reject.maybe_broken:
            return None
        flow = (reject.source, reject.destination, reject.source_port, reject.destination_port)
        sequence = self._sequences.pop(flow, None)
        if sequence is None:
            return None
        here, there, our_port, their_port = flow
        expected = sequence + 1 & 0xFFFFFFFF
        segment = _TCP.pack(their_port, our_port, 0, expected, _HEADER_WORDS, TCP_RST | TCP_ACK, 0, 0, 0)
        checksum = upper_checksum(Protocol.TCP, there, here, segment).to_bytes(2, "big")
        return build(Protocol.TCP, there, here, segment[:_CHECKSUM_AT] + checksum + segment[_CHECKSUM_AT + 2 :])


def refusal_text(reason: int) -> str:
    """The reason of a reject for counters and people."""
    return f"{REFUSED_THERE}{_REASONS.get(reason, _OTHER_REASON)}"


def _may_open(head: bytes) -> bool:
    """Whether this may be a SYN: most packets are none, and need not be looked at closely."""
    if len(head) < IPV4_HEADER_BYTES + _TCP.size:
        return False
    version = head[0] >> 4
    if version == 4:
        start, protocol = (head[0] & 0x0F) << 2, head[9]
    elif version == 6:
        start, protocol = IPV6_HEADER_BYTES, head[6]
    else:
        return False
    flags_at = start + _FLAGS_AT
    return protocol == Protocol.TCP and flags_at < len(head) and bool(head[flags_at] & TCP_SYN)
