"""Trains on sockets of this process, with a kernel that has offloads and with ones that lack them."""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.wg.engines import FRAME
from tests.unit.wg.train_reference import recut
from tsns.proto.virtio import frame_of
from tsns.ways import Train
from tsns.wg.offload import SOL_UDP, UDP_SEGMENT, Offloads, TunDevice, UdpPort

TRAIN = Train(b"".join(bytes((number,)) * 1000 for number in range(10)) + b"short", 1000)


class Kernel(socket.socket):
    """A socket whose sends of trains are refused with this error, in turn."""

    errors: list[int] = []  # noqa: RUF012 (each test sets its own)

    def sendmsg(self, *args: Any) -> int:
        if self.errors:
            error = self.errors.pop(0)
            raise OSError(error, os.strerror(error))
        return super().sendmsg(*args)


@pytest.fixture
def sockets() -> Iterator[tuple[Kernel, Kernel]]:
    with Kernel(socket.AF_INET, socket.SOCK_DGRAM) as one, Kernel(socket.AF_INET, socket.SOCK_DGRAM) as other:
        for sock in (one, other):
            sock.bind(("127.0.0.1", 0))
            sock.settimeout(2)
        yield one, other


def received(port: UdpPort) -> list[bytes]:
    """All messages of TRAIN, in whatever trains they come."""
    found: list[bytes] = []
    while sum(map(len, found)) < len(TRAIN.data):
        train, _ = port.receive()
        found += train.messages()
    return found


def test_a_train_crosses_as_one(sockets: tuple[Kernel, Kernel]) -> None:
    offloads = Offloads()
    one, other = (UdpPort(sock, offloads) for sock in sockets)
    one.send(TRAIN, other.sock.getsockname())
    assert other.receive() == (TRAIN, one.sock.getsockname())
    assert offloads.udp_segment
    assert offloads.udp_gro


def test_a_message_by_itself_is_a_train_too(sockets: tuple[Kernel, Kernel]) -> None:
    one, other = (UdpPort(sock, Offloads()) for sock in sockets)
    for message in (b"", b"x", bytes(1312)):
        one.send(Train.of(message), other.sock.getsockname())
        assert other.receive()[0] == Train.of(message)


@pytest.mark.parametrize("error", [errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT])
def test_what_the_device_cannot_do_is_never_asked_again(error: int, sockets: tuple[Kernel, Kernel]) -> None:
    sockets[0].errors = [error, errno.EPERM]
    offloads = Offloads()
    one, other = (UdpPort(sock, offloads) for sock in sockets)
    for _ in range(2):
        one.send(TRAIN, other.sock.getsockname())
        assert received(other) == TRAIN.messages()
    assert not offloads.udp_segment


def test_messages_longer_than_the_path_takes_go_by_themselves(sockets: tuple[Kernel, Kernel]) -> None:
    sockets[0].errors = [errno.EMSGSIZE]
    offloads = Offloads()
    one, other = (UdpPort(sock, offloads) for sock in sockets)
    one.send(TRAIN, other.sock.getsockname())
    assert received(other) == TRAIN.messages()
    assert offloads.udp_segment  # of other paths nothing is known


def test_other_errors_are_the_callers(sockets: tuple[Kernel, Kernel]) -> None:
    sockets[0].errors = [errno.EAGAIN]
    one, other = (UdpPort(sock, Offloads()) for sock in sockets)
    with pytest.raises(BlockingIOError):
        one.send(TRAIN, other.sock.getsockname())


def test_a_kernel_without_trains_brings_messages(
    sockets: tuple[Kernel, Kernel], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOPROTOOPT, "")

    with monkeypatch.context() as patch:
        patch.setattr(Kernel, "setsockopt", refuse)
        offloads = Offloads()
        port = UdpPort(sockets[1], offloads)
    sockets[0].sendmsg([TRAIN.data], [(SOL_UDP, UDP_SEGMENT, struct.pack("H", 1000))], 0, sockets[1].getsockname())
    assert received(port) == TRAIN.messages()
    assert not offloads.udp_gro


def test_without_virtio_headers_packets_come_and_go_by_themselves() -> None:
    ours, host = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)  # which knows no ioctl of a TUN's
    with ours, host:
        offloads = Offloads()
        tun = TunDevice(ours.fileno(), offloads)
        assert not any((offloads.tun_header, offloads.tun_tcp, offloads.tun_udp))
        host.send(b"a packet")
        assert tun.read() == frame_of(b"a packet")
        tun.write(FRAME)
        packets = recut(FRAME)
        assert len(packets) == 3
        assert [host.recv(2000) for _ in packets] == packets
