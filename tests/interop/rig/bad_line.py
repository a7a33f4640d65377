"""A line with faults: `bad_line.py DEVICE DEVICE FAULTS` carries frames between two devices, and ends with its input.

It does what the kernel's netem does, where there is a kernel with netem; here it has to work with every kernel. Frames come and go with
their virtio header, so that a train of segments or a checksum still to be filled in passes as it is. Standard library only.
"""

from __future__ import annotations

import contextlib
import heapq
import itertools
import json
import random
import select
import socket
import sys
import time
from dataclasses import dataclass
from typing import Final

ETH_P_ALL: Final = 3
SOL_PACKET: Final = 263
PACKET_VNET_HDR: Final = 15
PACKET_IGNORE_OUTGOING: Final = 23
VNET_HEADER_BYTES: Final = 10
MAX_FRAME_BYTES: Final = VNET_HEADER_BYTES + 14 + 65_535
BUFFER_BYTES: Final = 8 << 20
ARP: Final = b"\x08\x06"
IPV6: Final = b"\x86\xdd"
ICMPV6: Final = 58
NEIGHBOUR_TYPES: Final = range(133, 138)  # of ICMPv6: what takes the place of ARP


@dataclass(frozen=True, slots=True)
class Faults:
    """What befalls a packet on each way: shares between 0 and 1, and seconds."""

    loss: float = 0.0
    delay_s: float = 0.0
    reorder: float = 0.0  # these are not delayed, and so overtake others
    duplicate: float = 0.0
    seed: int = 1

    def due(self, choice: random.Random) -> list[float]:
        """After how many seconds a packet arrives: once, twice or never."""
        if choice.random() < self.loss:
            return []
        copies = 2 if choice.random() < self.duplicate else 1
        return [0.0 if choice.random() < self.reorder else self.delay_s for _ in range(copies)]


def is_link_talk(frame: bytes) -> bool:
    """Whether a frame is about the link itself, like ARP: it stays out of it, for an internet is no link."""
    if frame[12:14] == ARP:
        return True
    return len(frame) > 54 and frame[12:14] == IPV6 and frame[20] == ICMPV6 and frame[54] in NEIGHBOUR_TYPES


def carry(devices: list[str], faults: Faults) -> None:
    """Carries until the input ends."""
    ends = [_end(device) for device in devices]
    choice = random.Random(faults.seed)
    order = itertools.count()
    under_way: list[tuple[float, int, socket.socket, bytes]] = []
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    while True:
        timeout = max(0.0, under_way[0][0] - time.monotonic()) if under_way else None
        readable, _, _ = select.select([sys.stdin, *ends], [], [], timeout)
        if sys.stdin in readable:
            return
        for end, other in ((ends[0], ends[1]), (ends[1], ends[0])):
            if end not in readable:
                continue
            data = end.recv(MAX_FRAME_BYTES)
            spared = is_link_talk(data[VNET_HEADER_BYTES:])
            for delay_s in [0.0] if spared else faults.due(choice):
                heapq.heappush(under_way, (time.monotonic() + delay_s, next(order), other, data))
        while under_way and under_way[0][0] <= time.monotonic():
            _, _, end, data = heapq.heappop(under_way)
            with contextlib.suppress(OSError):  # a full queue loses packets, as a line does
                end.send(data)


def _end(device: str) -> socket.socket:
    end = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    end.setsockopt(SOL_PACKET, PACKET_VNET_HDR, 1)
    end.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER_BYTES)
    end.bind((device, ETH_P_ALL))
    return end


if __name__ == "__main__":
    carry(sys.argv[1:3], Faults(**json.loads(sys.argv[3])))
