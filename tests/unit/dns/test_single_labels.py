"""Whose names of one label are."""

from __future__ import annotations

from collections.abc import Iterator

import dns.message
import dns.rcode
import dns.rrset
import pytest

from tsns.dns.single_labels import MAX_ASKED, PATIENCE_S, Answer, Pass, Send, SingleLabels, is_single_label

NOW = 50.0
WEB = 7  # who asks


def query(name: str, kind: str = "A") -> bytes:
    return dns.message.make_query(name, kind, id=0x1234).to_wire()


def reply(to: bytes, code: str, *addresses: str) -> bytes:
    answer = dns.message.make_response(dns.message.from_wire(to))
    answer.set_rcode(dns.rcode.from_text(code))
    if addresses:
        answer.answer.append(dns.rrset.from_text(answer.question[0].name, 600, "IN", "A", *addresses))
    return answer.to_wire()


@pytest.fixture
def labels() -> SingleLabels[int]:
    numbers: Iterator[int] = iter(range(1, 1 << 16))
    return SingleLabels(lambda size: next(numbers).to_bytes(size, "big"))


def sent(labels: SingleLabels[int], question: bytes, asker: int = WEB, now: float = NOW) -> bytes:
    [output] = labels.ask(question, asker, now)
    assert isinstance(output, Send)
    return output.data


def test_a_neighbours_name_is_the_containers_own(labels: SingleLabels[int]) -> None:
    forwarded = sent(labels, query("db"))
    assert forwarded[2:] == query("db")[2:]
    [answer] = labels.receive(reply(forwarded, "NOERROR", "172.18.0.3"))
    assert answer == Answer(WEB, reply(query("db"), "NOERROR", "172.18.0.3"))
    assert labels.receive(reply(forwarded, "NOERROR", "172.18.0.4")) == []  # once


def test_a_neighbour_without_such_an_address_is_not_looked_for_elsewhere(labels: SingleLabels[int]) -> None:
    forwarded = sent(labels, query("db", "AAAA"))
    assert labels.receive(reply(forwarded, "NOERROR")) == [Answer(WEB, reply(query("db", "AAAA"), "NOERROR"))]


@pytest.mark.parametrize("code", ["NXDOMAIN", "SERVFAIL", "REFUSED"])
def test_whom_the_container_does_not_know_the_tailnet_may(labels: SingleLabels[int], code: str) -> None:
    forwarded = sent(labels, query("peer"))
    assert labels.receive(reply(forwarded, code)) == [
        Pass(WEB, query("peer"), completed=True, denied=reply(query("peer"), code))
    ]


def test_a_resolver_that_is_silent_is_not_waited_for(labels: SingleLabels[int]) -> None:
    assert labels.deadline() is None
    late = sent(labels, query("peer"))
    sent(labels, query("other"), asker=8, now=NOW + 0.5)
    assert labels.deadline() == NOW + PATIENCE_S
    assert labels.tick(NOW + PATIENCE_S) == [Pass(WEB, query("peer"), completed=True)]
    assert labels.receive(reply(late, "NOERROR", "172.18.0.3")) == []
    assert labels.deadline() == NOW + 0.5 + PATIENCE_S


@pytest.mark.parametrize("name", ["peer.example.ts.net", "web.compose", ".", "www.example.com"])
def test_no_other_name_is_the_containers(labels: SingleLabels[int], name: str) -> None:
    assert labels.ask(query(name), WEB, NOW) == [Pass(WEB, query(name), completed=False)]


def test_so_many_are_asked_at_a_time(labels: SingleLabels[int]) -> None:
    for asker in range(MAX_ASKED):
        sent(labels, query("db"), asker)
    assert labels.ask(query("db"), 999, NOW) == [Pass(999, query("db"), completed=True)]


@pytest.mark.parametrize(
    "data",
    [b"", b"\0" * 11, query("db")[:12], query("db")[:14], reply(query("db"), "NOERROR"), b"\0\1\0\0\0\1" + b"\0" * 7],
)
def test_what_is_no_query_of_one_label(data: bytes) -> None:
    assert not is_single_label(data)


def test_answers_to_nothing_are_nothing(labels: SingleLabels[int]) -> None:
    forwarded = sent(labels, query("db"))
    assert labels.receive(forwarded) == []  # a question is no answer
    assert labels.receive(b"\0\1\x80") == []
    assert labels.receive(b"\xff\xff" + reply(forwarded, "NOERROR")[2:]) == []
    assert labels.receive(reply(forwarded, "NOERROR")) != []
