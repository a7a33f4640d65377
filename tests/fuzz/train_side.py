"""Targets of the data plane: what a TUN hands over and what peers seal, through every engine, judged by the reference of their tests."""

from __future__ import annotations

from tests.fuzz.material import Instructions, step
from tests.unit.wg.engines import (
    DATAGRAMS,
    ENGINES,
    FRAME,
    IPV4,
    IPV6,
    account,
    assert_engines_agree,
    assert_received,
    pair,
)
from tests.unit.wg.train_reference import ACK, PLAIN, PSH, TCP_V6, UDP, VIRTIO, Flow, Super, inner
from tsns.ways import Train

FLOWS = (IPV4, IPV6, Flow(protocol=UDP), Flow(version=6, protocol=UDP, source=bytes(16), destination=bytes(16)))
LARGE_BYTES = 600  # of payload: such packets take the fast ways
MAX_STEPS = 12


def sealed_frames(data: bytes) -> None:
    """Frames of any kind: none raises, each is accounted for, and all engines make the same of them."""
    instructions = Instructions(data)
    mtu = 576 + 8 * instructions.byte()
    frames = [
        # The first number says how much payload follows, which need not be in the case.
        piece + bytes(97 * size)
        for size, piece in instructions.steps(MAX_STEPS)
    ]
    assert_engines_agree(frames, mtu)


def opened_trains(data: bytes) -> None:
    """Packets of honest flows, damaged ones and garbage, sealed by a peer and mixed with strangers' messages: those that go into the
    TUN are the very ones that were sealed."""
    instructions = Instructions(data)
    packets: list[bytes] = []
    strangers: list[Train] = []
    flow = FLOWS[instructions.byte() % len(FLOWS)]
    sequence = identification = 0
    for what, piece in instructions.steps(MAX_STEPS):
        kind = what & 3
        if kind == 3:
            strangers.append(Train(piece, what >> 2) if what >> 2 else Train.of(piece))
            continue
        for _ in range(1 + (what >> 2 & 7)):
            if kind == 0:
                packets.append(piece)
                continue
            payload = piece[3:].ljust(LARGE_BYTES if what & 0x40 else 0, b"\0")
            flags = ACK | (piece[0] & 0xFF if piece and what & 0x80 else 0)
            packet = bytearray(flow.packet(payload, sequence=sequence, flags=flags, identification=identification))
            if kind == 2:
                packet[int.from_bytes(piece[1:2], "big") % len(packet)] ^= int.from_bytes(piece[2:3], "big")
            packets.append(bytes(packet))
            sequence += len(payload)
            identification += 1
    results = []
    for engine in ENGINES.values():
        us, them = pair(engine)
        sealed = us.seal_train([PLAIN + packet for packet in packets], 1280)
        opened = them.open_train([*sealed.trains, *strangers])
        padded = [packet.ljust(min(1280, -(-len(packet) // 16) * 16), b"\0") for packet in packets]
        assert_received(opened, [found for plain in padded if (found := inner(plain))])
        assert account(opened) == sealed.packets + sum(len(train.messages()) for train in strangers)
        results.append((sealed, list(map(bytes, opened.frames)), opened[1:]))
    assert all(result == results[0] for result in results)


def sealed_frames_seeds() -> list[bytes]:
    six = Super(IPV6, b"", 100).frame()
    large = VIRTIO.pack(1, TCP_V6, 60, 900, 40, 16) + six[10:]
    return [
        b"\x58" + step(0, FRAME[:1500]) + step(0, PLAIN) + step(2, DATAGRAMS[:800]),
        b"\x58" + step(99, large) + step(0, PLAIN + IPV4.packet(b"one")) + step(1, six),
        b"\x20" + step(20, FRAME[:60]) * 3,
    ]


def opened_trains_seeds() -> list[bytes]:
    run, pushed, damaged = 0x40 | 7 << 2 | 1, 0x40 | 0x80 | 1, 0x40 | 7 << 2 | 2
    one = step(run, b"\0\0\0abc") + step(pushed, bytes((PSH, 0, 0)) + b"abc") + step(run, b"\0\0\0abc")
    return [
        *(
            bytes((flow,)) + one + step(1, b"\0\0\0tail") + step(3, b"\4\0\0\0" + bytes(40))
            for flow in range(len(FLOWS))
        ),
        b"\0" + step(damaged, b"\0\x0b\1") + step(damaged, b"\0\x50\1") + step(0x1D, b"\0\0\0small"),
        b"\1" + step(0, b"\x60" + bytes(50)) + step(0, b"") + step(4, IPV4.packet(b"x")),
    ]
