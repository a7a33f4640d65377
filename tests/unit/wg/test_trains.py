"""What every engine of the seam makes of frames: examples."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.unit.wg.engines import (
    DATAGRAMS,
    FRAME,
    IPV4,
    IPV6,
    KEEPALIVE,
    TIMESTAMPS,
    Engine,
    assert_grouped,
    assert_padded,
    changed,
    pair,
    plains,
    received,
)
from tests.unit.wg.train_reference import (
    ACK,
    CWR,
    FIN,
    PLAIN,
    PSH,
    SYN,
    TCP,
    TCP_V4,
    UDP,
    VIRTIO,
    Flow,
    Super,
    unfinished,
)
from tsns.wg.transport import MAX_TRAIN_BYTES


def virtio(frame: bytes, **fields: int) -> bytes:
    names = ("flags", "kind", "header", "size", "start", "offset")
    values = dict(zip(names, VIRTIO.unpack_from(frame), strict=True)) | fields
    return VIRTIO.pack(*values.values()) + frame[10:]


def test_a_super_packet_of_three_segments_is_a_train_of_three_messages(engine: Engine) -> None:
    us, them = pair(engine)
    packet = Super(IPV4, bytes(range(250)), 100, sequence=2**32 - 150, flags=ACK | PSH, identification=0xFFFF)
    sealed = us.seal_train([packet.frame()], 1280)
    assert (len(sealed.trains), sealed.packets, sealed.malformed, us.counter) == (1, 3, 0, 3)
    first, second, third = plains(sealed)
    assert first[40:140] + second[40:140] + third[40:90] == packet.payload
    assert [plain[4:6] for plain in (first, second, third)] == [b"\xff\xff", b"\0\0", b"\0\1"]
    assert [int.from_bytes(plain[24:28], "big") for plain in (first, second, third)] == [2**32 - 150, 2**32 - 50, 50]
    assert [plain[33] for plain in (first, second, third)] == [ACK, ACK, ACK | PSH]
    opened = them.open_train(sealed.trains)
    assert opened.frames == [packet.frame()]
    assert (opened.packets, opened.authentic_bytes) == (3, len(sealed.trains[0].data))


def test_a_frame_without_a_packet_is_a_keepalive(engine: Engine) -> None:
    us, them = pair(engine)
    sealed = us.seal_train([KEEPALIVE], 1280)
    assert [len(train.data) for train in sealed.trains] == [32]
    opened = them.open_train(sealed.trains)
    assert (opened.frames, opened.packets, opened.keepalives, opened.authentic_bytes) == ([], 0, 1, 32)


def test_a_checksum_of_a_single_packet_is_completed(engine: Engine) -> None:
    for flow, size in itertools.product((IPV4, IPV6, Flow(protocol=UDP), Flow(tcp_options=TIMESTAMPS)), (0, 1, 2, 99)):
        us, _ = pair(engine)
        frame = unfinished(flow, bytes(range(size)), flags=SYN)
        assert plains(us.seal_train([frame], 0)) == [flow.packet(bytes(range(size)), flags=SYN)]


def test_a_checksum_of_zero_is_written_as_the_kernel_writes_it(engine: Engine) -> None:
    """All ones, but in segments of TCP: a completed checksum may be one of UDP, where zero says that there is none."""
    for protocol, at, in_segment in ((UDP, 26, b"\xff\xff"), (TCP, 36, b"\0\0")):
        flow = Flow(protocol=protocol)
        filler = flow.packet(b"\0\0")[at : at + 2]  # makes the sum all ones
        us, them = pair(engine)
        sealed = us.seal_train([unfinished(flow, filler), Super(flow, filler, 2, sequence=0).frame()], 0)
        assert [plain[at : at + 2] for plain in plains(sealed)] == [b"\xff\xff", in_segment]
        assert received(them.open_train(sealed.trains)) == plains(sealed)


def test_padding_ends_at_the_mtu(engine: Engine) -> None:
    for mtu, size in itertools.product((1280, 1281, 1287, 1420), (20, 1265, 1272, 1279, 1280, 1281, 1300, 1420, 1421)):
        us, _ = pair(engine)
        packet = IPV4.packet(bytes(size - 40 if size > 40 else 0))
        (plain,) = plains(us.seal_train([PLAIN + packet], mtu))
        assert_padded(plain, packet, mtu)


def test_messages_of_one_size_are_a_train_and_a_shorter_one_ends_it(engine: Engine) -> None:
    us, _ = pair(engine)
    sizes = [100, 100, 50, 50, 100, *[60] * 70]
    sealed = us.seal_train([PLAIN + IPV4.packet(bytes(size)) for size in sizes], 1280)
    assert [len(train.messages()) for train in sealed.trains] == [3, 1, 2, 64, 5]
    assert_grouped(sealed.trains)


def test_a_train_is_not_longer_than_a_datagram_can_be(engine: Engine) -> None:
    us, them = pair(engine)
    packet = Super(IPV4, bytes(64000), 1240)
    sealed = us.seal_train([packet.frame(), packet.frame()], 1280)
    assert [len(train.messages()) for train in sealed.trains] == [49, 3, 49, 3]
    assert_grouped(sealed.trains)
    assert received(them.open_train(sealed.trains)) == packet.packets() * 2


@pytest.mark.parametrize(
    "frame",
    [
        b"",
        PLAIN[:9],
        virtio(PLAIN, flags=1),
        virtio(PLAIN + IPV4.packet(b""), flags=1, start=24, offset=16 - 1),
        virtio(PLAIN + IPV4.packet(b""), flags=1, start=65535, offset=65535),
        PLAIN + bytes(65476),
        *(virtio(FRAME, kind=kind) for kind in (2, 3, 4, 5, 6, 0x7F, 0x80, 0xFF)),
        *(virtio(FRAME, start=start) for start in (0, 19, 21, 40, 65535)),
        *(virtio(FRAME, offset=offset) for offset in (0, 6, 15, 17, 65535)),
        virtio(FRAME, size=0),
        virtio(FRAME, size=23),
        virtio(FRAME, flags=0),
        changed(FRAME, 10, b"\x46"),
        changed(FRAME, 10, b"\x65"),
        changed(FRAME, 10 + 32, b"\x40"),
        FRAME[:40],
        virtio(FRAME[:45], size=1000),
        FRAME + bytes(65536),
        virtio(DATAGRAMS, kind=TCP_V4),
        DATAGRAMS[:37],
        virtio(Super(IPV6, bytes(3000), 1000).frame(), start=39),
        *(virtio(FRAME, header=hint) for hint in (0, 39, 3041, 65535)),
        *(virtio(DATAGRAMS, header=hint) for hint in (0, 27, 3029)),
        virtio(Super(IPV6, bytes(3000), 1000).frame(), kind=TCP_V4),
        Super(IPV4, bytes(65495), 65495).frame(),
    ],
)
def test_a_frame_that_makes_no_sense_is_counted(engine: Engine, frame: bytes) -> None:
    us, _ = pair(engine)
    assert us.seal_train([frame, KEEPALIVE, frame], 1280)[1:] == (1, 2)
    assert us.counter == 1


def test_what_lies_in_one_piece_may_be_more_than_headers(engine: Engine) -> None:
    """Linux says that, not where the headers end, and of a forwarded packet all may lie in one piece."""
    for frame, headers in ((FRAME, 40), (DATAGRAMS, 28)):
        hints = (headers, headers + 1, len(frame) - 10)
        sealed = [pair(engine)[0].seal_train([virtio(frame, header=hint)], 1280) for hint in hints]
        assert all(each == sealed[0] and each.packets == 3 for each in sealed)


def test_no_message_is_longer_than_a_datagram_can_be_whatever_the_mtu(engine: Engine) -> None:
    for size in range(65400, 65500, 5):
        sealed = pair(engine)[0].seal_train([PLAIN + IPV4.packet(bytes(size - 40))], 65535)
        assert sealed.packets + sealed.malformed == 1
        assert all(len(train.data) <= MAX_TRAIN_BYTES for train in sealed.trains)


def test_one_shape_again_and_again(engine: Engine) -> None:
    """What is left in a buffer goes nowhere."""
    choice = random.Random(1)
    flows = (IPV4, IPV6, Flow(tcp_options=TIMESTAMPS), Flow(protocol=UDP))
    for flow, size, mtu in itertools.product(flows, (999, 1000, 1001, 1002), (1280, 0)):
        us, them = pair(engine)
        for number, flags in enumerate((ACK, ACK | CWR | PSH, ACK | FIN, ACK)):
            whole = Super(flow, choice.randbytes(8 * size - number % 2), size, flags=flags)
            first = us.counter
            sealed = us.seal_train([whole.frame()], mtu)
            for plain, packet in zip(plains(sealed, first), whole.packets(), strict=True):
                assert_padded(plain, packet, mtu)
            assert received(them.open_train(sealed.trains)) == whole.packets()
