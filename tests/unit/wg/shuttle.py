"""Two devices and a line between them under a driven clock: what every transcript here is told with."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from dataclasses import dataclass, field

from tsns.keys import NodePrivate, NodePublic
from tsns.proto.addresses import Prefix, pack
from tsns.proto.packets import build
from tsns.proto.virtio import frame_of
from tsns.ways import Train, UdpSource
from tsns.wg.device import Deliver, Device, Output, Reply, SessionUp, Transmit

WALL_CLOCK_AT_0 = 1_700_000_000.0
A_ADDRESS, B_ADDRESS = pack("100.64.0.1"), pack("100.64.0.2")
A_ADDRESS6, B_ADDRESS6 = pack("fd7a:115c:a1e0::1"), pack("fd7a:115c:a1e0::2")

Fate = Callable[[bytes, float], list[float]]  # a datagram and the time -> the delays of its copies; none: lost


def entropy(seed: int) -> Callable[[int], bytes]:
    """Random bytes that are the same in every run."""
    return random.Random(seed).randbytes


def udp(source: bytes, destination: bytes, payload: bytes = b"hello") -> bytes:
    """An IP packet to carry."""
    return build(
        17, source, destination, b"\x10\x00\x20\x00" + (8 + len(payload)).to_bytes(2, "big") + b"\0\0" + payload
    )


A_TO_B, B_TO_A = udp(A_ADDRESS, B_ADDRESS), udp(B_ADDRESS, A_ADDRESS)


@dataclass
class Side:
    """One device, and what it told its owner."""

    name: str
    key: NodePrivate
    address: tuple[str, int]
    device: Device
    delivered: list[bytes] = field(default_factory=list)
    sent: list[tuple[float, bytes]] = field(default_factory=list)  # all datagrams, lost ones too
    sessions_up: list[float] = field(default_factory=list)
    fate: Fate = lambda datagram, now: [0.01]

    @property
    def types(self) -> list[int]:
        """The message types of what was sent."""
        return [datagram[0] for _, datagram in self.sent]

    def sent_at(self, kind: int) -> list[float]:
        """When messages of this type were sent."""
        return [round(at, 3) for at, datagram in self.sent if datagram[0] == kind]


class Shuttle:
    """Carries datagrams between `a` and `b`, and lets time pass no faster than either side's deadline."""

    def __init__(self, *, introduce: bool = True, preshared: tuple[bytes, bytes] = (bytes(32), bytes(32))) -> None:
        self.now = 0.0
        self.wall_clock: Callable[[], float] = lambda: WALL_CLOCK_AT_0 + self.now
        self._line: list[tuple[float, int, Side, Side, bytes]] = []
        self._carried = 0
        self.a, self.b = self._side("a", 1), self._side("b", 2)
        self.preshared = preshared
        if introduce:
            self.introduce_b_to_a()
            self.introduce_a_to_b()

    def _side(self, name: str, seed: int) -> Side:
        key = NodePrivate.generate(entropy(seed)(32))
        device = Device(key, entropy(10 + seed), wall_clock=lambda: self.wall_clock())  # noqa: PLW0108 (tests set it)
        return Side(name, key, (f"192.0.2.{seed}", 41641), device)

    def introduce_b_to_a(self) -> None:
        allowed = [Prefix(B_ADDRESS, 32), Prefix(B_ADDRESS6, 128)]
        self.a.device.set_peer(self.b.key.public, allowed, preshared=self.preshared[0])

    def introduce_a_to_b(self) -> None:
        allowed = [Prefix(A_ADDRESS, 32), Prefix(A_ADDRESS6, 128)]
        self.b.device.set_peer(self.a.key.public, allowed, preshared=self.preshared[1])

    def other(self, side: Side) -> Side:
        return self.b if side is self.a else self.a

    def peer(self, side: Side) -> NodePublic:
        return self.other(side).key.public

    def send(self, side: Side, *packets: bytes) -> None:
        """The side's host sends packets."""
        self.do(side, side.device.send([frame_of(packet) for packet in packets], self.now))

    def do(self, side: Side, outputs: list[Output]) -> None:
        """Do what the side's device wants done."""
        for output in outputs:
            match output:
                case Transmit(peer):
                    assert peer == self.peer(side)
                    for datagram in output.datagrams:
                        self.carry(side, datagram)
                case Reply(UdpSource(address), datagram):
                    assert address == self.other(side).address
                    self.carry(side, datagram)
                case Deliver(peer):
                    assert peer == self.peer(side)
                    side.delivered += output.packets
                case SessionUp(peer):
                    assert peer == self.peer(side)
                    side.sessions_up.append(self.now)

    def carry(self, side: Side, datagram: bytes) -> None:
        """Put a datagram on the line."""
        side.sent.append((self.now, datagram))
        for delay in side.fate(datagram, self.now):
            self._carried += 1
            heapq.heappush(self._line, (self.now + delay, self._carried, side, self.other(side), datagram))

    def inject(self, side: Side, datagram: bytes) -> list[Output]:
        """Let the side receive this now, as if from the other one; what comes of it is done too."""
        outputs = side.device.receive([Train.of(datagram)], UdpSource(self.other(side).address), self.now)
        self.do(side, outputs)
        return outputs

    def run(self, until: float) -> None:
        """Let time pass."""
        while True:
            deadlines = [d for d in (self.a.device.deadline(), self.b.device.deadline()) if d is not None]
            soonest = min([*deadlines, *[entry[0] for entry in self._line[:1]], until])
            self.now = max(self.now, soonest)
            if self._line and self._line[0][0] <= self.now:
                _, _, source, target, datagram = heapq.heappop(self._line)
                self.do(target, target.device.receive([Train.of(datagram)], UdpSource(source.address), self.now))
            elif any(deadline <= self.now for deadline in deadlines):
                for side in (self.a, self.b):
                    self.do(side, side.device.tick(self.now))
            else:
                return

    def run_for(self, seconds: float) -> None:
        self.run(self.now + seconds)

    def connect(self) -> None:
        """Have a session that `a` began, with nothing on the line."""
        self.send(self.a, A_TO_B)
        self.run_for(0.1)
        assert self.b.delivered == [A_TO_B]
        for side in (self.a, self.b):
            assert len(side.sessions_up) == 1
            side.delivered.clear()
            side.sent.clear()
            side.sessions_up.clear()


def lost(datagram: bytes, now: float) -> list[float]:
    return []


def delayed(seconds: float) -> Fate:
    return lambda datagram, now: [seconds]


def losing(*kinds: int, until: float = float("inf")) -> Fate:
    """Lose messages of these types until a time."""
    return lambda datagram, now: [] if datagram[0] in kinds and now < until else [0.01]
