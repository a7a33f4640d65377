"""Messages over SEQPACKET: whole, bounded, with descriptors that do not leak."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from tsns.node import messages

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


def test_a_message_arrives_with_its_descriptors_which_no_child_inherits(pair: Pair) -> None:
    ours, theirs = pair
    messages.send(ours, {"say": "here"}, [0, 1])
    message, fds = messages.receive(theirs)
    assert message == {"say": "here"}
    assert len(fds) == 2
    assert not any(os.get_inheritable(fd) for fd in fds)
    for fd in fds:
        os.close(fd)


def test_two_messages_stay_apart(pair: Pair) -> None:
    ours, theirs = pair
    messages.send(ours, {"n": 1})
    messages.send(ours, {"n": 2})
    assert [messages.receive(theirs)[0]["n"] for _ in range(2)] == [1, 2]


def test_the_end_of_the_other_side_is_an_end(pair: Pair) -> None:
    ours, theirs = pair
    ours.close()
    with pytest.raises(EOFError):
        messages.receive(theirs)


@pytest.mark.parametrize(
    "data", [b"{", b"[1]", b'"text"', b"\xff\xfe", b"[" * 50_000, b"x" * (messages.MAX_MESSAGE_BYTES + 1)]
)
def test_what_is_no_message_is_refused(pair: Pair, data: bytes) -> None:
    ours, theirs = pair
    ours.send(data)
    with pytest.raises(ValueError, match=r".+"):
        messages.receive(theirs)


def test_descriptors_of_a_refused_message_are_closed(pair: Pair) -> None:
    ours, theirs = pair
    before = len(os.listdir("/proc/self/fd"))
    socket.send_fds(ours, [b"no json"], [0, 1, 2])
    with pytest.raises(ValueError, match=r".+"):
        messages.receive(theirs)
    assert len(os.listdir("/proc/self/fd")) == before


def test_too_much_is_not_sent(pair: Pair) -> None:
    with pytest.raises(ValueError, match="bytes"):
        messages.send(pair[0], {"text": "x" * messages.MAX_MESSAGE_BYTES})


def test_the_peer_is_known_by_its_uid(pair: Pair) -> None:
    assert messages.peer_uid(pair[0]) == os.geteuid()
