"""What every engine of the seam does with whatever comes: random super-packets, orders, damages and garbage, all judged alike."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.wg.engines import (
    B_INDEX,
    DATAGRAMS,
    ENGINES,
    FRAME,
    IPV6,
    KEEPALIVE,
    Engine,
    account,
    assert_engines_agree,
    assert_grouped,
    assert_padded,
    assert_received,
    changed,
    joined,
    messages_of,
    pair,
    plains,
    received,
)
from tests.unit.wg.train_reference import ACK, CWR, ECE, FIN, PSH, VIRTIO, Super, random_flow
from tsns.ways import Train
from tsns.wg.replay import WINDOW


def random_super(choice: random.Random) -> Super:
    flow = random_flow(choice)
    size = choice.choice(
        (1, choice.randrange(1, 300), choice.randrange(300, 1421), 1280 - flow.header, 1420 - flow.header)
    )
    segments = choice.choice((1, 2, 3, choice.randrange(1, 60)))
    length = max(1, min(size * segments - choice.choice((0, 0, choice.randrange(size))), 65000))
    flags = ACK | choice.choice((0, 0, PSH, FIN | PSH, CWR, ECE, CWR | ECE | PSH))
    start = choice.choice((choice.getrandbits(32), 2**32 - 5000))
    return Super(flow, choice.randbytes(length), size, start, flags, choice.choice((0xFFF0, choice.getrandbits(16))))


@pytest.mark.parametrize("seed", range(8))
def test_any_super_packets_cross(engine: Engine, seed: int) -> None:
    choice = random.Random(seed)
    us, them = pair(engine, join_udp=seed % 2 == 0)
    for _ in range(12):
        supers = [random_super(choice) for _ in range(choice.choice((1, 1, 2, 3)))]
        mtu = choice.choice((1280, 1420, 1393, 1281))
        first = us.counter
        sealed = us.seal_train([each.frame() for each in supers], mtu)
        sent = [packet for each in supers for packet in each.packets()]
        assert (sealed.packets, sealed.malformed, us.counter) == (len(sent), 0, first + len(sent))
        assert_grouped(sealed.trains)
        for plain, packet in zip(plains(sealed, first), sent, strict=True):
            assert_padded(plain, packet, mtu)
        opened = them.open_train(sealed.trains)
        assert received(opened) == sent
        assert opened.packets == len(sent)
        again = them.open_train(sealed.trains)
        assert (again.replayed, account(again), again.frames) == (len(sent), len(sent), [])


@pytest.mark.parametrize("seed", range(4))
def test_one_broken_bit_costs_one_message(engine: Engine, seed: int) -> None:
    choice = random.Random(seed)
    us, them = pair(engine)
    for _ in range(6):
        each = random_super(choice)
        sealed = us.seal_train([each.frame()], 1280)
        trains = list(sealed.trains)
        number = choice.randrange(len(trains))
        data = bytearray(trains[number].data)
        at = choice.randrange(8, len(data))
        data[at] ^= 1 << choice.randrange(8)
        broken = at // trains[number].stride + sum(len(train.messages()) for train in trains[:number])
        trains[number] = trains[number]._replace(data=bytes(data))
        opened = them.open_train(trains)
        assert account(opened) == sealed.packets
        assert opened.packets == sealed.packets - 1
        sent = each.packets()
        assert_received(opened, sent[:broken] + sent[broken + 1 :])


@pytest.mark.parametrize("seed", range(4))
def test_any_order_and_company(engine: Engine, seed: int) -> None:
    """Messages come late, with a stranger's among them, cut into trains anew."""
    choice = random.Random(seed)
    us, them = pair(engine)
    for _ in range(4):
        each = random_super(choice)
        sent = each.packets()
        messages = list(zip(messages_of(us.seal_train([each.frame()], 1280).trains), sent, strict=True))
        if choice.random() < 0.7:
            choice.shuffle(messages)
        stranger = bytes(len(messages[0][0]))
        messages.insert(choice.randrange(len(messages) + 1), (stranger, b""))
        trains = []
        for size, group in itertools.groupby(messages, key=lambda message: len(message[0])):
            together = list(group)
            while together:
                count = choice.randrange(1, len(together) + 1)
                trains.append(Train(b"".join(message for message, _ in together[:count]), size))
                del together[:count]
        opened = them.open_train(trains)
        assert opened.strays == [stranger]
        assert_received(opened, [packet for _, packet in messages if packet])


def test_small_packets_of_many_flows_interleaved(engine: Engine) -> None:
    choice = random.Random(7)
    flows = [random_flow(choice, plain=True) for _ in range(9)]
    sequences = dict.fromkeys(range(9), 0)
    packets = []
    for number in range(300):
        which = choice.randrange(9) if number % 5 else 0
        payload = bytes(choice.choice((0, 1, 40, 40, 500)))
        packets.append(flows[which].packet(payload, sequence=sequences[which], identification=number))
        sequences[which] += len(payload)
    joined(engine, packets)


@given(st.data())
def test_frames_of_garbage(data: st.DataObject) -> None:
    kinds = st.sampled_from([0, 1, 4, 5, 0x81, 3])
    header = st.builds(
        VIRTIO.pack,
        *(st.sampled_from([0, 1, 255]), kinds, st.integers(0, 65535), st.integers(0, 2000), st.integers(0, 70)),
        st.sampled_from([0, 6, 16]),
    )
    versions = st.sampled_from([b"\x45", b"\x46", b"\x60", b""])
    garbage = st.builds(lambda *parts: b"".join(parts), header, versions, st.binary(max_size=200))
    broken = st.builds(
        lambda frame, at, value: changed(frame, at, bytes((value,))),
        *(st.sampled_from([FRAME, DATAGRAMS, Super(IPV6, bytes(900), 200).frame()]), st.integers(0, 70)),
        st.integers(0, 255),
    )
    frames = data.draw(st.lists(garbage | broken | st.binary(max_size=30), max_size=6))
    assert_engines_agree(frames, 1280)


@given(st.lists(st.tuples(st.binary(max_size=200), st.integers(1, 90)), max_size=5), st.booleans())
def test_trains_of_garbage(pieces: list[tuple[bytes, int]], ours: bool) -> None:
    head = b"\4\0\0\0" + B_INDEX if ours else b""
    trains = [Train(head + data, stride) for data, stride in pieces]
    count = sum(len(train.messages()) for train in trains)
    results = []
    for engine in ENGINES.values():
        opened = pair(engine)[1].open_train(trains)
        assert account(opened) == count
        results.append(opened)
    assert all(result == results[0] for result in results)


@pytest.mark.parametrize(("sealer", "opener"), list(itertools.product(ENGINES, ENGINES)))
def test_engines_understand_one_another_and_agree(sealer: str, opener: str) -> None:
    choice = random.Random(99)
    us, them = pair(ENGINES[sealer], ENGINES[opener])
    judge = pair(ENGINES["scalar"])
    for _ in range(10):
        frames = [random_super(choice).frame() for _ in range(choice.randrange(1, 4))]
        sealed = us.seal_train(frames, 1280)
        assert sealed == judge[0].seal_train(frames, 1280)
        opened, expected = them.open_train(sealed.trains), judge[1].open_train(sealed.trains)
        assert list(map(bytes, opened.frames)) == list(map(bytes, expected.frames))
        assert opened[1:] == expected[1:]


@pytest.mark.parametrize("seed", range(3))
def test_the_window_agrees_with_a_perfect_memory(engine: Engine, seed: int) -> None:
    choice = random.Random(seed)
    us, them = pair(engine)
    seen: set[int] = set()
    for _ in range(60):
        newest = max(seen, default=0)
        first = max(0, newest + choice.choice((1, choice.randrange(-WINDOW - 90, 90), choice.randrange(9000))))
        us.counter = first
        count = choice.choice((1, 5, 40))
        trains = us.seal_train([KEEPALIVE] * count, 1280).trains
        fresh = 0
        for counter in range(first, first + count):
            if counter not in seen and max(seen, default=0) - counter <= WINDOW:
                seen.add(counter)
                fresh += 1
        opened = them.open_train(trains)
        assert (opened.keepalives, opened.replayed) == (fresh, count - fresh)
