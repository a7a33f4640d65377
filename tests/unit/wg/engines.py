"""The engines of the data plane's seam that are there, and what their tests share."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
from collections.abc import Sequence
from typing import Protocol

from tests.unit.wg.train_reference import PLAIN, UDP, Flow, Super, meaning, plain_of, recut
from tsns.ways import Train
from tsns.wg.python_transport import PythonTransport
from tsns.wg.scalar_transport import ScalarTransport
from tsns.wg.transport import MAX_TRAIN_BYTES, MAX_TRAIN_MESSAGES, Opened, Sealed, Transport


class Engine(Protocol):
    """How one end of a session is made."""

    def __call__(
        self, send_key: bytes, receive_key: bytes, remote_index: bytes, local_index: bytes, *, join_udp: bool
    ) -> Transport: ...


ENGINES: dict[str, Engine] = {"python": PythonTransport, "scalar": ScalarTransport}
if importlib.util.find_spec("tsns.wg.native_transport"):
    ENGINES["native"] = importlib.import_module("tsns.wg.native_transport").NativeTransport

AB, BA = bytes(range(32)), bytes(range(32, 64))
A_INDEX, B_INDEX = b"\x0a\0\0\1", b"\x0b\0\0\2"
IPV4 = Flow()
IPV6 = Flow(version=6, source=bytes(range(16)), destination=bytes(range(16, 32)))
TIMESTAMPS = b"\1\1\x08\x0a" + bytes(range(8))
KEEPALIVE = PLAIN
FRAME = Super(IPV4, bytes(3000), 1000).frame()
DATAGRAMS = Super(Flow(protocol=UDP), bytes(3000), 1000).frame()


def pair(sealer: Engine, opener: Engine | None = None, *, join_udp: bool = True) -> tuple[Transport, Transport]:
    """The two ends of a session."""
    us = sealer(AB, BA, B_INDEX, A_INDEX, join_udp=join_udp)
    return us, (opener or sealer)(BA, AB, A_INDEX, B_INDEX, join_udp=join_udp)


def messages_of(trains: Sequence[Train]) -> list[bytes]:
    return [message for train in trains for message in train.messages()]


def plains(sealed: Sealed, first: int = 0) -> list[bytes]:
    """What is in the messages, each opened by itself."""
    return [plain_of(AB, message, B_INDEX, first + n) for n, message in enumerate(messages_of(sealed.trains))]


def received(opened: Opened) -> list[bytes]:
    """The packets that leave the TUN on the other side."""
    return [packet for frame in opened.frames for packet in recut(bytes(frame))]


def assert_received(opened: Opened, packets: Sequence[bytes]) -> None:
    """These leave the TUN on the other side."""
    assert list(map(meaning, received(opened))) == list(map(meaning, packets))


def account(opened: Opened) -> int:
    """How many messages something is said about."""
    refused = opened.replayed + opened.forged + opened.malformed + len(opened.strays)
    return opened.packets + opened.keepalives + refused


def assert_padded(plain: bytes, packet: bytes, mtu: int) -> None:
    """To 16 bytes, but not beyond the MTU, with zeros."""
    full = (len(packet) + 15) // 16 * 16
    assert plain == packet.ljust(len(packet) if len(packet) >= mtu else min(full, mtu), b"\0")


def assert_grouped(trains: Sequence[Train]) -> None:
    for data, stride in trains:
        assert len(data) <= MAX_TRAIN_BYTES
        assert 0 < len(data) <= stride * MAX_TRAIN_MESSAGES
    for (data, stride), (following, next_stride) in itertools.pairwise(trains):
        # A train ends where the next message does not fit behind it.
        messages = -(-len(data) // stride)
        size = min(next_stride, len(following))
        ended = len(data) % stride or size > stride
        assert ended or messages == MAX_TRAIN_MESSAGES or len(data) + size > MAX_TRAIN_BYTES


def assert_engines_agree(frames: Sequence[bytes], mtu: int) -> None:
    """Whatever the frames are, each is accounted for, and all engines make the same of them, in both directions."""
    results = []
    for engine in ENGINES.values():
        us, them = pair(engine)
        sealed = us.seal_train(frames, mtu)
        assert sealed.packets == len(messages_of(sealed.trains)) == us.counter
        assert sealed.malformed <= len(frames)
        assert_grouped(sealed.trains)
        opened = them.open_train(sealed.trains)
        assert account(opened) == sealed.packets
        results.append((sealed, list(map(bytes, opened.frames)), opened[1:]))
    assert all(result == results[0] for result in results)


def changed(frame: bytes, at: int, new: bytes) -> bytes:
    return frame[:at] + new + frame[at + len(new) :]


def joined(engine: Engine, packets: Sequence[bytes], *, join_udp: bool = True) -> list[int]:
    """How many packets are in each of the frames that come of these; whatever is joined, they are the same after."""
    us, them = pair(engine, join_udp=join_udp)
    opened = them.open_train(us.seal_train([PLAIN + packet for packet in packets], 1280).trains)
    assert_received(opened, packets)
    assert opened.packets == len(packets)
    return [len(recut(bytes(frame))) for frame in opened.frames]
