"""Which namespace a packet is for, where several share one node and its addresses (ring 0).

Each namespace, a *place*, has a TUN of its own and, so that what they begin does not clash, a slice of the ephemeral ports of its own. What
comes belongs to the place of, first line that applies:

    a flow that is known       whichever place has sent in it, or been given its first packet
    a port that was published  (`publish`)
    a port somebody listens on `Ask`ed for once; packets of a port that is being asked for wait, bounded in number and time
    a port of a slice          what a place began, and has not sent in for so long that it was forgotten
    anything else              the node's own namespace, OWN: it answers pings, and refuses what nobody wants

An ICMP error belongs to the flow that it is about. A later fragment goes where its first one went.

    receive(frames, now) --> Put(place, frames), Ask(protocol, port)          answer(protocol, port, place, now) --> Put(place, frames)
    send(place, frame)   --> may it leave? Not in a flow of another place: that is a clash, and counted
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from tsns.counters import Counters
from tsns.proto.packets import (
    HEAD_BYTES,
    IPV4_HEADER_BYTES,
    IPV6_HEADER_BYTES,
    NO_ICMP,
    Fields,
    Protocol,
    decode,
)
from tsns.proto.virtio import HEADER_BYTES, Frame, packets_in

OWN: Final = 0  # the place that is the node's own namespace
MAX_FLOWS: Final = 4096  # the one unused for longest goes first
MAX_FRAGMENTED: Final = 64  # packets whose later fragments may be on their way
MAX_HELD_FRAMES: Final = 64
HOLD_S: Final = 0.5  # then it is nobody's port
MAX_LISTENERS: Final = 512  # answers that are remembered
LISTENER_S: Final = 5.0  # how long it is believed who listens
NOBODY_S: Final = 0.5  # and that nobody does

CLASH: Final = "another namespace of this node uses the same ports"
HELD_TOO_LONG: Final = "nobody could say in time who listens"
HELD_TOO_MANY: Final = "too many packets wait for whom they are for"

_WITH_PORTS: Final = frozenset({int(Protocol.TCP), int(Protocol.UDP), int(Protocol.SCTP)})
_ICMP: Final = frozenset({int(Protocol.ICMP), int(Protocol.ICMPV6)})
_ECHO_REPLIES: Final = {4: 0, 6: 129}
_ECHO_REQUESTS: Final = {4: 8, 6: 128}
_ICMP_ERRORS: Final = {4: frozenset({3, 11, 12}), 6: frozenset({1, 2, 3, 4})}
_ICMP_HEADER_BYTES: Final = 8  # before the packet that an error is about
_FRAGMENT_HEADER_BYTES: Final = 8

_Flow = tuple[
    int, bytes, int, int
]  # protocol, their address, their port, our port; of an echo: its identifier as our port
_Listener = tuple[int, int]  # protocol, port


@dataclass(frozen=True, slots=True)
class Put:
    """Write these frames to the TUN of this place."""

    place: int
    frames: list[Frame]


@dataclass(frozen=True, slots=True)
class Ask:
    """Find out in which place a socket of this protocol listens on this port, and say it by `answer`."""

    protocol: int
    port: int


Output = Put | Ask


class Sharing:
    """The places of one node. `counters` has what went no further."""

    def __init__(self, counters: Counters) -> None:
        self.counters = counters
        self._slices: dict[int, range] = {}
        self._published: dict[_Listener, int] = {}
        self._flows: OrderedDict[_Flow, int] = OrderedDict()
        self._fragmented: OrderedDict[bytes, int] = OrderedDict()
        # The place, or None where nobody listens, and until when that is believed.
        self._listeners: OrderedDict[_Listener, tuple[int | None, float]] = OrderedDict()
        self._held: dict[_Listener, tuple[float, list[Frame]]] = {}  # until when, and what waits
        self._held_count = 0

    # --- places ----------------------------------------------------------------------------------------------------

    def add(self, place: int, ports: range) -> None:
        """There is this place, which begins flows from these ports of its own (empty: from any); or it has other ports now."""
        self._slices[place] = ports
        self._forget_listeners()

    def remove(self, place: int) -> None:
        """It is gone, and its flows with it."""
        self._slices.pop(place, None)
        for flow in [flow for flow, of in self._flows.items() if of == place]:
            del self._flows[flow]
        for packet in [packet for packet, of in self._fragmented.items() if of == place]:
            del self._fragmented[packet]
        for listener in [listener for listener, of in self._published.items() if of == place]:
            del self._published[listener]
        self._forget_listeners()

    def publish(self, protocol: int, port: int, place: int) -> None:
        """What comes to this port is for this place, whoever listens."""
        self._published[protocol, port] = place

    def _forget_listeners(self) -> None:
        self._listeners.clear()

    # --- from the places -------------------------------------------------------------------------------------------

    def send(self, place: int, frame: Frame) -> bool:
        """Whether a frame of this place may leave; it makes its flow this place's."""
        head, size = _head(frame)
        fields = decode(head, size)
        if fields is None:
            return True  # the filter's business
        flow = _outbound_flow(fields, head)
        if flow is None:
            return True
        owner = self._flows.get(flow)
        if owner is not None and owner != place:
            self.counters.add(CLASH, packets_in(frame))
            return False
        self._remember(flow, place)
        return True

    # --- to the places ---------------------------------------------------------------------------------------------

    def receive(self, frames: Iterable[Frame], now: float) -> list[Output]:
        """Sort frames out of the tunnel."""
        out: list[Output] = []
        for frame in frames:
            head, size = _head(frame)
            place = self._place_of(head, size, frame, now, out)
            if place is not None:
                _put(place, frame, out)
        return out

    def _place_of(self, head: bytes, size: int, frame: Frame, now: float, out: list[Output]) -> int | None:
        """Where a frame goes; None while that is asked for, which holds it."""
        fields = decode(head, size)
        if fields is None:
            return OWN
        fragment = _fragment_of(fields, head)
        if fields[8]:  # a later one
            return self._fragmented.get(fragment, OWN)
        flow = _inbound_flow(fields, head)
        if flow is None:
            return OWN
        place = self._flows.get(flow)
        if place is None:
            if fields[1] not in _WITH_PORTS:
                return OWN
            place = self._listening(fields[1], fields[5], frame, now, out)
            if place is None:
                return None
        self._remember(flow, place)
        if fragment:
            self._fragmented[fragment] = place
            while len(self._fragmented) > MAX_FRAGMENTED:
                self._fragmented.popitem(last=False)
        return place

    def _listening(self, protocol: int, port: int, frame: Frame, now: float, out: list[Output]) -> int | None:
        listener = protocol, port
        published = self._published.get(listener)
        if published is not None:
            return published
        known = self._listeners.get(listener)
        if known is not None and now < known[1]:
            return known[0] if known[0] is not None else self._beginning_at(port)
        if self._held_count >= MAX_HELD_FRAMES:
            self.counters.add(HELD_TOO_MANY, packets_in(frame))
            return None
        if listener not in self._held:
            self._held[listener] = now + HOLD_S, []
            out.append(Ask(protocol, port))
        self._held[listener][1].append(bytes(frame))
        self._held_count += 1
        return None

    def _beginning_at(self, port: int) -> int:
        """Whose slice this port is of."""
        return next((place for place, ports in self._slices.items() if port in ports), OWN)

    def answer(self, protocol: int, port: int, place: int | None, now: float) -> list[Output]:
        """Somebody listens in this place, or (None) nobody does."""
        listener = protocol, port
        known = place if place in self._slices else None
        self._listeners[listener] = known, now + (NOBODY_S if known is None else LISTENER_S)
        self._listeners.move_to_end(listener)
        while len(self._listeners) > MAX_LISTENERS:
            self._listeners.popitem(last=False)
        _, frames = self._held.pop(listener, (0.0, []))
        self._held_count -= len(frames)
        return self.receive(frames, now)

    # --- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Output]:
        """Give up on questions that nobody has answered."""
        for listener in [listener for listener, (until, _) in self._held.items() if until <= now]:
            _, frames = self._held.pop(listener)
            self._held_count -= len(frames)
            self.counters.add(HELD_TOO_LONG, sum(packets_in(frame) for frame in frames))
        return []

    def deadline(self) -> float | None:
        """When `tick` is due."""
        return min((until for until, _ in self._held.values()), default=None)

    def _remember(self, flow: _Flow, place: int) -> None:
        self._flows[flow] = place
        self._flows.move_to_end(flow)
        if len(self._flows) > MAX_FLOWS:
            self._flows.popitem(last=False)


def slices(ports: range, count: int) -> Iterator[range]:
    """Cut a range of ports into so many parts of one size, in their order."""
    size = len(ports) // count
    return (ports[number * size : (number + 1) * size] for number in range(count))


def _head(frame: Frame) -> tuple[bytes, int]:
    return bytes(frame[HEADER_BYTES : HEADER_BYTES + HEAD_BYTES]), len(frame) - HEADER_BYTES


def _put(place: int, frame: Frame, out: list[Output]) -> None:
    last = out[-1] if out else None
    if isinstance(last, Put) and last.place == place:
        last.frames.append(frame)
    else:
        out.append(Put(place, [frame]))


def _outbound_flow(fields: Fields, head: bytes) -> _Flow | None:
    version, protocol, _, theirs, our_port, their_port, _, icmp_type, is_later_fragment, start, _ = fields
    if is_later_fragment:
        return None
    if icmp_type == NO_ICMP:
        return protocol, theirs, their_port, our_port
    if icmp_type == _ECHO_REQUESTS[version]:
        return protocol, theirs, 0, _identifier(head, start)
    return None


def _inbound_flow(fields: Fields, head: bytes) -> _Flow | None:
    version, protocol, theirs, _, their_port, our_port, _, icmp_type, _, start, _ = fields
    if icmp_type == NO_ICMP:
        return protocol, theirs, their_port, our_port
    if icmp_type == _ECHO_REPLIES[version]:
        return protocol, theirs, 0, _identifier(head, start)
    if icmp_type in _ICMP_ERRORS[version]:
        return _flow_within(head[start + _ICMP_HEADER_BYTES :])
    return None


def _flow_within(ours: bytes) -> _Flow | None:
    """The flow of a packet that we sent, of which an ICMP error brings the beginning back: maybe no more than its ports."""
    if len(ours) < IPV4_HEADER_BYTES:
        return None
    if ours[0] >> 4 == 4:
        protocol, theirs, start = ours[9], ours[16:20], (ours[0] & 0x0F) << 2
    elif len(ours) >= IPV6_HEADER_BYTES and ours[0] >> 4 == 6:
        protocol, theirs, start = ours[6], ours[24:40], IPV6_HEADER_BYTES
    else:
        return None
    if len(ours) < start + 8:
        return None
    if protocol in _ICMP:
        return protocol, theirs, 0, _identifier(ours, start)
    return protocol, theirs, ours[start + 2] << 8 | ours[start + 3], ours[start] << 8 | ours[start + 1]


def _identifier(data: bytes, start: int) -> int:
    """Of an ICMP echo."""
    return int.from_bytes(data[start + 4 : start + 6], "big")


def _fragment_of(fields: Fields, head: bytes) -> bytes:
    """What all fragments of one packet have in common; empty for a whole packet."""
    version, start = fields[0], fields[9]
    if version == 4:
        if not head[6] & 0x3F and not head[7]:
            return b""
        return head[12:20] + head[9:10] + head[4:6]
    if start != IPV6_HEADER_BYTES + _FRAGMENT_HEADER_BYTES:
        return b""
    return head[8:40] + head[44:48]
