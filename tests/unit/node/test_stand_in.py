"""Names in a container while there is no engine."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import dns.message
import dns.rcode
import pytest

from tsns.node.stand_in import StandIn
from tsns.node.watch import Watch

PATIENCE_S = 5.0


def bound() -> socket.socket:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sock.settimeout(PATIENCE_S)
    sock.bind(("127.0.0.1", 0))
    return sock


class Container:
    """A program, the address that resolv.conf names, and the container engine's own resolver."""

    def __init__(self, *, has_resolver: bool = True) -> None:
        self.program, self.service, self.docker, self.way = (bound() for _ in range(4))
        self.program.connect(self.service.getsockname())
        self.way.connect(self.docker.getsockname())
        self.watch = Watch()
        self.stand_in = StandIn(self.watch, [self.service.fileno()], self.way.fileno() if has_resolver else -1)

    def ask(self, name: str) -> bytes:
        query = dns.message.make_query(name, "A").to_wire()
        self.program.send(query)
        self.watch.turn()
        return query

    def close(self) -> None:
        for sock in (self.program, self.service, self.docker, self.way):
            sock.close()


@pytest.fixture
def container() -> Iterator[Container]:
    made = Container()
    yield made
    made.stand_in.close()
    made.close()


def test_neighbours_are_found(container: Container) -> None:
    query = container.ask("db")
    asked, way = container.docker.recvfrom(512)
    assert asked[2:] == query[2:]
    container.docker.sendto(dns.message.make_response(dns.message.from_wire(asked)).to_wire(), way)
    container.watch.turn()
    answer = dns.message.from_wire(container.program.recv(512))
    assert dns.message.from_wire(query).is_response(answer)
    assert answer.rcode() == dns.rcode.NOERROR


def test_all_other_names_fail_for_now(container: Container) -> None:
    container.ask("peer.example.ts.net")
    assert dns.message.from_wire(container.program.recv(512)).rcode() == dns.rcode.SERVFAIL
    container.docker.setblocking(False)
    with pytest.raises(BlockingIOError):
        container.docker.recv(512)


def test_without_a_resolver_every_name_fails_for_now() -> None:
    container = Container(has_resolver=False)
    container.ask("db")
    assert dns.message.from_wire(container.program.recv(512)).rcode() == dns.rcode.SERVFAIL
    container.stand_in.close()
    container.close()


def test_the_next_engine_has_the_sockets_for_itself(container: Container) -> None:
    container.stand_in.close()
    container.program.send(b"question")
    assert container.service.recv(512) == b"question"


def test_what_is_no_question_gets_no_answer(container: Container) -> None:
    container.program.send(b"short")
    container.ask("peer.example.ts.net")
    assert dns.message.from_wire(container.program.recv(512)).rcode() == dns.rcode.SERVFAIL
