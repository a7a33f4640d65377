"""`dns status` and `dns query` on nodes that are only pretended."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tsns.__main__ import main
from tsns.node import client

STATUS: dict[str, Any] = {
    "schema": 1,
    "magic_dns": True,
    "accept_dns": True,
    "suffix": "corp.ts.net",
    "search": ["corp.ts.net", "example.com"],
    "routes": [
        {"suffix": "corp.ts.net", "local": True, "resolvers": []},
        {
            "suffix": "lab.example",
            "local": False,
            "resolvers": [{"address": "10.0.0.53", "way": "tunnel"}, {"address": "192.0.2.1", "way": "none"}],
        },
        {"suffix": "odd.example", "local": False, "resolvers": []},
    ],
    "default": {"origin": "the host", "resolvers": [{"address": "127.0.0.53", "way": "underlay"}]},
    "listeners": ["100.100.100.100", "127.0.0.53"],
    "host_servers": ["127.0.0.53"],
    "skipped": 2,
    "cache": {"entries": 3, "bytes": 999},
    "in_flight": 1,
    "counters": {"answered from the netmap": 7, "answered from the cache": 0},
}
FOUND: dict[str, Any] = {
    "schema": 1,
    "name": "web.corp.ts.net.",
    "type": "A",
    "ok": True,
    "code": "NOERROR",
    "answers": [{"name": "web.corp.ts.net.", "ttl": 5, "type": "A", "data": "100.64.0.2"}],
    "seconds": 0.0012,
    "rule": {"kind": "netmap", "suffix": ""},
    "resolver": "",
    "transport": "",
    "way": "",
    "cached": False,
    "reason": "",
}
ROUTE = {"kind": "route", "suffix": "lab.example"}


class Nodes:
    """Pretended nodes, what they answer and what they were asked."""

    def __init__(self) -> None:
        self.found = dict(FOUND)
        self.asked: list[tuple[str, str, object]] = []

    def query(self, name: str, _where: object, path: str, body: object = None, timeout_s: float = 0) -> dict[str, Any]:
        self.asked.append((name, path, body))
        return STATUS if path == "/tsns/v1/dns" else self.found


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Nodes:
    monkeypatch.setenv("TSNS_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("TSNS_STATE_DIR", str(tmp_path / "state"))
    nodes = Nodes()
    monkeypatch.setattr(client, "names", lambda _: ["app"])
    monkeypatch.setattr(client, "known", lambda _: ["app", "stopped"])
    monkeypatch.setattr(client, "query", nodes.query)
    return nodes


def test_status(nodes: Nodes, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dns", "status"]) == 0
    assert nodes.asked == [("app", "/tsns/v1/dns", None)]
    assert capsys.readouterr().out.splitlines() == [
        "MagicDNS: on, for names under corp.ts.net",
        "Control's configuration: followed",
        "Search domains: corp.ts.net, example.com",
        "Answers at: 100.100.100.100, 127.0.0.53",
        "",
        "Routes:",
        "  corp.ts.net: answered here alone",
        "  lab.example: 10.0.0.53 (through the tunnel), 192.0.2.1 (not asked: out of reach)",
        "  odd.example: nobody is asked",
        "All else: 127.0.0.53 (from the host's network), as the host has it",
        "2 entries of control's configuration cannot be understood",
        "",
        "Cache: 3 answers; waiting for one: 1",
        "7  answered from the netmap",
    ]


def test_json_is_what_the_node_says(nodes: Nodes, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dns", "status", "app", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == STATUS
    assert main(["dns", "query", "web", "--json=true"]) == 0
    assert json.loads(capsys.readouterr().out) == FOUND


@pytest.mark.parametrize(
    ("words", "node", "name", "kind"),
    [
        (["web"], "app", "web", ""),
        (["app"], "app", "app", ""),
        (["web.example", "AAAA"], "app", "web.example", "AAAA"),
        (["web.example", "mx"], "app", "web.example", "mx"),
        (["app", "mx"], "app", "mx", ""),  # a node's name, and a name in small letters
        (["app", "MX"], "app", "app", "MX"),
        (["stopped", "web"], "stopped", "web", ""),
        (["app", "web", "TXT"], "app", "web", "TXT"),
    ],
)
def test_which_word_is_what(nodes: Nodes, words: list[str], node: str, name: str, kind: str) -> None:
    assert main(["dns", "query", *words]) == 0
    assert nodes.asked == [(node, "/tsns/v1/dns/query", {"name": name, "type": kind})]


@pytest.mark.parametrize(
    ("found", "status", "lines"),
    [
        ({}, 0, ["web.corp.ts.net.  5  A  100.64.0.2", "", "answered from the netmap, after 1.2 ms"]),
        (
            {"rule": ROUTE, "resolver": "10.0.0.53", "transport": "udp", "way": "tunnel"},
            0,
            [
                "web.corp.ts.net.  5  A  100.64.0.2",
                "",
                "answered by 10.0.0.53 over udp through the tunnel, by the route for lab.example, after 1.2 ms",
            ],
        ),
        (
            {"rule": {"kind": "default", "suffix": ""}, "resolver": "10.0.0.53", "cached": True},
            0,
            [
                "web.corp.ts.net.  5  A  100.64.0.2",
                "",
                "answered from the cache, by the default: 10.0.0.53, after 1.2 ms",
            ],
        ),
        (
            {"ok": False, "code": "NXDOMAIN", "answers": []},
            1,
            [
                "web.corp.ts.net.: there is no such name (NXDOMAIN)",
                "",
                "answered from the netmap, after 1.2 ms",
            ],
        ),
        (
            {"ok": False, "answers": []},
            1,
            ["web.corp.ts.net.: no record of this type", "", "answered from the netmap, after 1.2 ms"],
        ),
        (
            {"ok": False, "code": "REFUSED", "answers": [], "rule": ROUTE, "reason": "192.0.2.1: out\x1b[2J of reach"},
            1,
            [
                "web.corp.ts.net.: REFUSED",
                "",
                "not answered, by the route for lab.example: 192.0.2.1: out [2J of reach, after 1.2 ms",
            ],
        ),
    ],
)
def test_what_people_see(
    nodes: Nodes, capsys: pytest.CaptureFixture[str], found: dict[str, Any], status: int, lines: list[str]
) -> None:
    nodes.found |= found
    assert main(["dns", "query", "web"]) == status
    assert capsys.readouterr().out.splitlines() == lines


@pytest.mark.parametrize(
    ("words", "complaint"),
    [
        (["dns"], "missing command"),
        (["dns", "nonsense"], "no such command 'nonsense'"),
        (["dns", "query"], "missing argument"),
        (["dns", "query", "a", "b", "A", "d"], "these are too many words"),
        (["dns", "status", "--nonsense"], "no such option: --nonsense"),
    ],
)
def test_what_is_wrong_is_said(
    nodes: Nodes, capfd: pytest.CaptureFixture[str], words: list[str], complaint: str
) -> None:
    assert main(words) == 2
    assert complaint in capfd.readouterr().err
