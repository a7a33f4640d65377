"""What is special to the native engine; what it shares with the other one is tested with it."""

from __future__ import annotations

from typing import Any

import pytest

from tsns.proto.virtio import PLAIN
from tsns.ways import Train
from tsns.wg.replay import REJECT_AFTER_MESSAGES
from tsns.wg.transport import MAX_TRAIN_MESSAGES, Transport

pytest.importorskip("tsns.wg._native", reason="no Rust was there when tsns was installed", exc_type=ImportError)

from tsns.wg._native import Transport as Core
from tsns.wg.native_transport import NativeTransport

SEND, RECEIVE = bytes(range(32)), bytes(range(32, 64))
REMOTE, LOCAL = b"\1\2\3\4", b"\5\6\7\10"
PACKET = b"\x45\0\0\x20" + bytes(28)


def transport() -> NativeTransport:
    return NativeTransport(SEND, RECEIVE, REMOTE, LOCAL, join_udp=True)


def peer() -> NativeTransport:
    return NativeTransport(RECEIVE, SEND, LOCAL, REMOTE, join_udp=True)


def test_it_is_a_transport() -> None:
    own: Transport = transport()
    sealed = own.seal_train([PLAIN, PLAIN + PACKET, PLAIN[:-1]], 1280)
    assert (sealed.packets, sealed.malformed, own.counter) == (2, 1, 2)
    assert [train.stride for train in sealed.trains] == [32, 64]
    opened = peer().open_train(sealed.trains)
    assert opened.frames == [PLAIN + PACKET]
    assert opened[1:] == (1, 1, 96, 0, 0, 0, [])


def test_frames_are_views_of_one_buffer() -> None:
    sealed = transport().seal_train([PLAIN + PACKET] * (MAX_TRAIN_MESSAGES + 1), 1280)
    assert [len(train.messages()) for train in sealed.trains] == [MAX_TRAIN_MESSAGES, 1]
    frames = peer().open_train(sealed.trains).frames
    assert frames == [PLAIN + PACKET] * (MAX_TRAIN_MESSAGES + 1)
    assert len({id(frame.obj) for frame in frames if isinstance(frame, memoryview)}) == 1


def test_sequences_of_bytes_and_nothing_else() -> None:
    own = transport()
    assert own.seal_train((PLAIN, PLAIN), 1280).packets == 2
    wrong: Any
    for wrong in (PLAIN, None, [None], ["text"], [1]):
        with pytest.raises(TypeError):
            own.seal_train(wrong, 1280)
    for wrong in (None, [PLAIN], [(PLAIN, b"")], [(None, 32)]):
        with pytest.raises(TypeError):
            own.open_train(wrong)
    assert own.counter == 2


def test_numbers_that_cannot_be() -> None:
    own = transport()
    with pytest.raises(OverflowError):
        own.seal_train([PLAIN], -1)
    with pytest.raises(OverflowError):
        own.open_train([Train(bytes(64), -1)])
    assert own.open_train([]) == ([], 0, 0, 0, 0, 0, 0, [])


@pytest.mark.parametrize("place", range(4))
def test_keys_and_indexes_have_their_size_and_are_not_shown(place: int) -> None:
    arguments: list[Any] = [SEND, RECEIVE, REMOTE, LOCAL, True]
    arguments[place] += b"\0"
    with pytest.raises(ValueError, match=r"bytes are wanted, not \d+$"):
        Core(*arguments)
    arguments[place] = "text"
    with pytest.raises(TypeError):
        Core(*arguments)


def test_the_counter() -> None:
    own = transport()
    assert own.counter == 0
    own.counter = 2**60
    (train,) = own.seal_train([PLAIN], 1280).trains
    assert train.data[8:16] == (2**60).to_bytes(8, "little")
    assert own.counter == 2**60 + 1
    for wrong in (-1, 2**64):
        with pytest.raises(OverflowError):
            own.counter = wrong


def test_no_counter_is_used_past_the_limit() -> None:
    own = transport()
    own.counter = REJECT_AFTER_MESSAGES - 1
    with pytest.raises(OverflowError):
        own.seal_train([PLAIN, PLAIN], 1280)
    assert own.seal_train([PLAIN], 1280).packets == 1
    for counter in (REJECT_AFTER_MESSAGES, 2**64 - 1):
        own.counter = counter
        with pytest.raises(OverflowError):
            own.seal_train([PLAIN], 1280)
        assert own.counter == counter


def test_nothing_of_the_keys_is_shown() -> None:
    core = Core(SEND, RECEIVE, REMOTE, LOCAL, join_udp=True)
    for shown in (repr(core), repr(transport()), str(dir(core))):
        assert SEND.hex() not in shown
        assert repr(SEND)[2:-1] not in shown
    assert not hasattr(core, "__dict__")
