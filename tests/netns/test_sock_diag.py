"""Who listens on which port in another namespace, asked from outside."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from typing import Final

import pytest

from tests.interop.rig.namespace import socket_in
from tests.netns.container import OWN, Container, container
from tsns.netns import sock_diag
from tsns.netns.child import in_network

pytestmark = pytest.mark.netns

TCP: Final = socket.IPPROTO_TCP
UDP: Final = socket.IPPROTO_UDP
SCTP: Final = 132
QUICK_S: Final = 0.05


@pytest.fixture
def target() -> Iterator[Container]:
    with container() as made:
        yield made


@pytest.fixture
def diag(target: Container) -> Iterator[int]:
    [fd] = in_network(target.fd, lambda: [sock_diag.open_socket()])
    yield fd
    os.close(fd)


@contextlib.contextmanager
def listening(target: Container, protocol: int, address: str, port: int = 8080) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == TCP else socket.SOCK_DGRAM
    with socket_in(target.network.path, family, kind) as sock:
        sock.bind((address, port))
        if protocol == TCP:
            sock.listen()
        yield sock


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("address", ["0.0.0.0", "::", *OWN])
def test_somebody_listens(target: Container, diag: int, protocol: int, address: str) -> None:
    assert not sock_diag.listens(diag, protocol, 8080)
    with listening(target, protocol, address):
        assert sock_diag.listens(diag, protocol, 8080)
        assert not sock_diag.listens(diag, protocol, 8081)
        assert not sock_diag.listens(diag, UDP if protocol == TCP else TCP, 8080)
        assert not sock_diag.listens(diag, SCTP, 8080)
    assert not sock_diag.listens(diag, protocol, 8080)


@pytest.mark.parametrize("protocol", [TCP, UDP])
@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "127.0.0.11"])
def test_who_listens_on_loopback_alone_cannot_be_reached(
    target: Container, diag: int, protocol: int, address: str
) -> None:
    with listening(target, protocol, address):
        assert not sock_diag.listens(diag, protocol, 8080)
        with listening(target, protocol, OWN[0]):
            assert sock_diag.listens(diag, protocol, 8080)


def test_whoever_is_connected_does_not_listen(target: Container, diag: int) -> None:
    with listening(target, UDP, OWN[0]) as sock:
        sock.connect((OWN[0], 9))
        assert not sock_diag.listens(diag, UDP, 8080)
    with (
        listening(target, TCP, OWN[0]) as server,
        socket_in(target.network.path, socket.AF_INET, socket.SOCK_STREAM) as client,
    ):
        client.connect((OWN[0], 8080))
        assert not sock_diag.listens(diag, TCP, client.getsockname()[1])
        accepted, _ = server.accept()
        server.close()
        with accepted:
            assert not sock_diag.listens(diag, TCP, 8080)


def test_another_namespaces_listeners_are_not_told(target: Container, diag: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as here:
        assert not sock_diag.listens(diag, TCP, here.getsockname()[1])


def test_without_ipv6() -> None:
    with container(ipv6=False) as target:
        [fd] = in_network(target.fd, lambda: [sock_diag.open_socket()])
        with listening(target, TCP, "0.0.0.0"):
            assert sock_diag.listens(fd, TCP, 8080)
        assert not sock_diag.listens(fd, TCP, 8080)
        os.close(fd)


def test_very_many_of_them_take_no_longer(target: Container, diag: int) -> None:
    """More than are listened to, of one port; and the next question is answered as if nothing had been."""
    sockets = [socket_in(target.network.path, socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2000)]
    try:
        for sock in sockets:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            sock.bind(("0.0.0.0", 8080))
        for port, answer in ((8080, True), (8081, False), (8080, True)):
            began = time.monotonic()
            assert sock_diag.listens(diag, UDP, port) is answer
            assert time.monotonic() - began < QUICK_S
    finally:
        for sock in sockets:
            sock.close()


def test_an_answer_that_was_not_read_to_its_end(target: Container, diag: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with listening(target, TCP, "0.0.0.0"):
        monkeypatch.setattr(sock_diag, "MAX_READS", 1)
        sock_diag.listens(diag, TCP, 8080)
        monkeypatch.undo()
        assert not sock_diag.listens(diag, TCP, 8081)
        assert sock_diag.listens(diag, TCP, 8080)
