"""Whom programs in an attached container ask for names when they go by Docker's resolver, 127.0.0.11."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Final

import pytest

from tests.netns.attached import (
    attached,
    let_go,
    make,
)
from tests.netns.container import Container, container
from tsns.netns import attachment_filter, nftables
from tsns.netns.attachment import Made
from tsns.netns.child import in_network

pytestmark = pytest.mark.netns


# Docker's resolver: it listens somewhere on 127.0.0.11, and a rule leads questions there.
DOCKERS_RULES: Final = """
table ip docker {
    chain output {
        type nat hook output priority -100
        ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:41953
        ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:41953
    }
}
"""
DOCKERS_RESOLVER: Final = """
import select, socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.11", 41953))
tcp = socket.create_server(("127.0.0.11", 41953))
print("serves", flush=True)
while True:
    for ready in select.select([udp, tcp], [], [])[0]:
        if ready is udp:
            question, asker = udp.recvfrom(100)
            udp.sendto(b"docker", asker)
        else:
            connection, _ = tcp.accept()
            connection.sendall(b"docker")
            connection.close()
"""
# Asks for as long as it is told to, by one socket for all of it and by new ones.
ASK: Final = """
import socket, sys
def answer(sock):
    try:
        sock.send(b"?")
        return sock.recv(100).decode()
    except OSError:
        return "nobody"
def connected(kind):
    sock = socket.socket(socket.AF_INET, kind)
    sock.settimeout(1)
    try:
        sock.connect(("127.0.0.11", 53))
    except OSError:
        pass
    return sock
lasting = connected(socket.SOCK_DGRAM)
for _ in sys.stdin:
    print(answer(lasting), answer(connected(socket.SOCK_DGRAM)), answer(connected(socket.SOCK_STREAM)), flush=True)
"""


@pytest.fixture
def target() -> Iterator[Container]:
    with container() as made:
        yield made


@contextlib.contextmanager
def docker_resolver(target: Container) -> Iterator[Callable[[], list[str]]]:
    """Docker's resolver is there; calling what is yielded asks 127.0.0.11 three times, first by a socket that has asked before."""
    target.network.nft(DOCKERS_RULES)
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(
            target.network.command(sys.executable, "-c", DOCKERS_RESOLVER), stdout=pipe, text=True
        ) as resolver,
        subprocess.Popen(
            target.network.command(sys.executable, "-c", ASK), stdin=pipe, stdout=pipe, text=True
        ) as asker,
    ):
        assert resolver.stdout is not None
        assert resolver.stdout.readline() == "serves\n"
        question, answers = asker.stdin, asker.stdout
        assert question is not None
        assert answers is not None

        def ask() -> list[str]:
            question.write("\n")
            question.flush()
            return answers.readline().split()

        try:
            yield ask
        finally:
            asker.kill()
            resolver.kill()


@contextlib.contextmanager
def magic_dns(made: Made) -> Iterator[None]:
    """An engine that answers."""
    udp, tcp = (socket.socket(fileno=os.dup(fd)) for fd in made.dns[:2])
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            for ready in select.select([udp, tcp], [], [], 0.05)[0]:
                if ready is udp:
                    udp.sendto(b"magic", udp.recvfrom(100)[1])
                else:
                    connection, _ = tcp.accept()
                    connection.sendall(b"magic")
                    connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        udp.close()
        tcp.close()


def ask_docker(target: Container) -> str:
    [fd] = in_network(target.fd, lambda: attachment_filter.marked_sockets(1))
    with socket.socket(fileno=fd) as sock:
        sock.sendto(b"?", ("127.0.0.11", 53))
        return sock.recv(100).decode() if select.select([sock], [], [], 1.0)[0] else "nobody"


def test_who_knows_dockers_resolver_by_heart_is_answered_by_ours(target: Container) -> None:
    with docker_resolver(target) as ask:
        assert ask() == ["docker", "docker", "docker"]
        before = target.output("nft", "list", "ruleset")
        with attached(target, docker_names=True) as made:
            with magic_dns(made):
                assert ask() == ["magic", "magic", "magic"]
                assert ask_docker(target) == "docker"
            let_go(made)
            assert "docker" not in ask(), "nobody answers in our place"
        assert ask() == ["docker", "docker", "docker"]
        assert target.output("nft", "list", "ruleset") == before
        with attached(target, exclusive=True):
            assert ask() == ["nobody", "nobody", "nobody"]
            assert ask_docker_fails(target)


def ask_docker_fails(target: Container) -> bool:
    try:
        return ask_docker(target) == "nobody"
    except OSError:
        return True


def test_a_kernel_without_nf_tables(target: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(nftables, "transact", lacking)
    with docker_resolver(target) as ask:
        before = target.state()
        with attached(target, docker_names=True):
            assert ask() == ["nobody", "nobody", "nobody"], "at least nobody asks the wrong one"
        assert ask() == ["docker", "docker", "docker"]
        with pytest.raises(OSError, match="no way to be exclusive: the kernel lacks nf_tables"):
            make(target, exclusive=True)
        assert target.state() == before


def test_the_mark_is_ours() -> None:
    assert attachment_filter.NAMES_MARK.to_bytes(4, "big") == b"tsns"
