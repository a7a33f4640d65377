"""A WireGuard device of tsns on a UDP socket, with the test in the place of programs and network interface."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from tsns.keys import NodePrivate, NodePublic
from tsns.proto.addresses import Prefix
from tsns.proto.packets import Protocol, echo_reply, parse
from tsns.proto.virtio import frame_of
from tsns.ways import Train, UdpSource
from tsns.wg.device import Deliver, Device, Output, Reply, SessionUp, Transmit

MAX_DATAGRAM_BYTES: Final = 65_535
ECHO_REQUEST_TYPES: Final = {Protocol.ICMP: 8, Protocol.ICMPV6: 128}
ECHO_HEADER_BYTES: Final = 8
NO_KEY: Final = bytes(32)


@dataclass
class DrivenDevice:
    """One device with one peer; it answers pings, and keeps everything else that the peer sent."""

    private: NodePrivate
    peer: NodePublic
    peer_address: tuple[str, int] | None  # of the underlay; None: learned from the peer's first datagram
    sock: socket.socket
    preshared: bytes = NO_KEY
    delivered: list[bytes] = field(default_factory=list)
    sessions: int = 0

    def __post_init__(self) -> None:
        self.device = Device(self.private, os.urandom, wall_clock=time.time)
        self.device.set_peer(self.peer, [Prefix.parse("0.0.0.0/0"), Prefix.parse("::/0")], preshared=self.preshared)

    def send(self, packet: bytes) -> None:
        """Sends an IP packet to the peer, as soon as there is a session."""
        self._carry_out(self.device.send([frame_of(packet)], time.monotonic()))

    def run_until(self, done: Callable[[], object], timeout_s: float = 20.0) -> None:
        """Lets the device work until `done`; AssertionError with what it dropped when that takes too long."""
        deadline = time.monotonic() + timeout_s
        while not done():
            now = time.monotonic()
            assert now < deadline, f"not within {timeout_s:.0f} s; dropped: {self.device.counters}"
            wake = min(self.device.deadline() or deadline, now + 0.05)
            if select.select([self.sock], [], [], max(0.0, wake - now))[0]:
                data, source = self.sock.recvfrom(MAX_DATAGRAM_BYTES)
                self.peer_address = self.peer_address or source
                self._carry_out(self.device.receive([Train.of(data)], UdpSource(source), time.monotonic()))
            self._carry_out(self.device.tick(time.monotonic()))

    def _carry_out(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Transmit():
                    assert self.peer_address is not None
                    for datagram in output.datagrams:
                        self.sock.sendto(datagram, self.peer_address)
                case Deliver():
                    for packet in output.packets:
                        self._take(packet)
                case Reply(source=source, datagram=datagram):
                    assert isinstance(source, UdpSource)
                    self.sock.sendto(datagram, source.address)
                case SessionUp():
                    self.sessions += 1

    def _take(self, data: bytes) -> None:
        packet = parse(data)
        assert packet is not None
        if ECHO_REQUEST_TYPES.get(Protocol(packet.protocol)) != packet.icmp_type:
            self.delivered.append(data)
            return
        rest = data[packet.header_bytes : packet.length]
        identifier, sequence = int.from_bytes(rest[4:6], "big"), int.from_bytes(rest[6:8], "big")
        payload = rest[ECHO_HEADER_BYTES:]
        self.send(echo_reply(packet.destination, packet.source, identifier, sequence, payload))
