"""Everything that passes any interface of a network namespace, and what of it is explained."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Final

from tests.interop.rig.namespace import socket_in

ETH_P_ALL: Final = 0x0003
ETH_P_IP: Final = 0x0800
ETH_P_ARP: Final = 0x0806
ETH_P_IPV6: Final = 0x86DD
PACKET_OUTGOING: Final = 4
MAX_FRAME_BYTES: Final = 1 << 16
LOOK_S: Final = 0.1  # how long the sniffer's thread waits at most before it sees that it is to end
SETTLE_S: Final = 0.2  # what was sent just before has been seen by then
WITH_PORTS: Final = (socket.IPPROTO_TCP, socket.IPPROTO_UDP)


@dataclass(frozen=True, slots=True)
class Seen:
    """One frame: where, what it says of itself, and all of it."""

    device: str
    kind: int  # the EtherType
    protocol: int  # of IP, else 0
    source: str
    destination: str
    ports: tuple[int, int]  # of TCP and UDP, else 0
    data: bytes
    goes_out: bool = False  # the namespace itself has sent it

    def __str__(self) -> str:
        return (
            f"{self.device}: type {self.kind:04x}, protocol {self.protocol}, {self.source} port {self.ports[0]} > "
            f"{self.destination} port {self.ports[1]}: {self.data[:120].hex()}"
        )


class Sniffer:
    """Hears all frames of all interfaces in a namespace (a file that stands for it), while it is open."""

    def __init__(self, namespace: str) -> None:
        self._socket = socket_in(namespace, socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(ETH_P_ALL))
        self._socket.settimeout(LOOK_S)
        self._seen: list[Seen] = []
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._hear, name="sniffer")
        self._thread.start()

    def seen(self) -> list[Seen]:
        """What has passed so far."""
        return list(self._seen)

    def close(self) -> None:
        """Hear no more, when what was sent just before has been heard."""
        self._ends.wait(SETTLE_S)
        self._ends.set()
        self._thread.join()
        self._socket.close()

    def _hear(self) -> None:
        while not self._ends.is_set():
            with contextlib.suppress(TimeoutError):
                data, address = self._socket.recvfrom(MAX_FRAME_BYTES)
                seen = read(str(address[0]), int(address[1]), data)
                self._seen.append(replace(seen, goes_out=address[2] == PACKET_OUTGOING))


@contextlib.contextmanager
def sniffing(namespace: str) -> Iterator[Sniffer]:
    """A sniffer at work."""
    sniffer = Sniffer(namespace)
    try:
        yield sniffer
    finally:
        sniffer.close()


def read(device: str, kind: int, data: bytes) -> Seen:
    """What a frame says of itself, as far as that is understood."""
    protocol, source, destination, ports, upper = 0, "", "", (0, 0), b""
    if kind == ETH_P_ARP and len(data) >= 28:
        source, destination = socket.inet_ntoa(data[14:18]), socket.inet_ntoa(data[24:28])
    elif kind == ETH_P_IP and len(data) >= 20:
        protocol, source, destination = data[9], socket.inet_ntoa(data[12:16]), socket.inet_ntoa(data[16:20])
        upper = data[(data[0] & 0x0F) * 4 :]
    elif kind == ETH_P_IPV6 and len(data) >= 40:
        protocol, upper = data[6], data[40:]
        source, destination = (socket.inet_ntop(socket.AF_INET6, data[at : at + 16]) for at in (8, 24))
    if protocol in WITH_PORTS and len(upper) >= 4:
        ports = struct.unpack(">HH", upper[:4])
    return Seen(device, kind, protocol, source, destination, ports, data)


def about(frame: Seen) -> Seen | None:
    """The packet that an ICMP error is about; None for what is no error."""
    at, least = (48, 40) if frame.kind == ETH_P_IPV6 else ((frame.data[0] & 0x0F) * 4 + 8 if frame.data else 0, 20)
    is_error = (frame.protocol == socket.IPPROTO_ICMPV6 and len(frame.data) > 40 and frame.data[40] < 128) or (
        frame.protocol == socket.IPPROTO_ICMP and frame.kind == ETH_P_IP and frame.data[at - 8] in (3, 11)
    )
    return read(frame.device, frame.kind, frame.data[at:]) if is_error and len(frame.data) >= at + least else None


def between(ours: set[str], theirs: set[str], *, but_ports: set[int]) -> Callable[[Seen], bool]:
    """Explains what goes between these addresses of a host and these others, except to or from some ports."""

    def explains(frame: Seen) -> bool:
        ends = {frame.source, frame.destination}
        return len(ends) == 2 and ends <= ours | theirs and bool(ends & theirs) and not but_ports & set(frame.ports)

    return explains
