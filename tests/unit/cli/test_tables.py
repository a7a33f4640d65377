"""What people and programs get to see of a node, from samples of its answers."""

from __future__ import annotations

from typing import Any

import pytest

from tsns.cli import tables

NOW = 1_800_000_000.0


def peer(name: str, number: int, **more: Any) -> dict[str, Any]:
    return {
        "name": name,
        "dns_name": f"{name}.tail.example",
        "addresses": [f"100.64.0.{number}", f"fd7a:115c:a1e0::{number}"],
        "user": "ann@example.com",
        "os": "linux",
        "online": True,
        "path": {"kind": "derp", "address": "", "region": "fra"},
        "rx_bytes": 0,
        "tx_bytes": 0,
        "last_handshake": None,
        **more,
    }


STATUS: dict[str, Any] = {
    "schema": 1,
    "name": "me",
    "state": "running",
    "login_url": "",
    "health": [],
    "hostname": "me",
    "tailnet": "tail.example",
    "pid": 4242,
    "netns": "/run/netns/tsns-me",
    "attached": [{"kind": "process", "id": "77", "name": "curl"}],
    "rx_bytes": 1234,
    "tx_bytes": 5_600_000,
    "data_plane": {"engine": "native", "offloads": {"TSO": True, "USO": False, "UDP_GRO": True}},
    "drops": {"seldom": 1, "often": 2000},
    "self": {
        "name": "me",
        "dns_name": "me.tail.example",
        "addresses": ["100.64.0.1", "fd7a:115c:a1e0::1"],
        "online": True,
        "key_expiry": None,
    },
    "peers": [
        peer("web", 2, last_handshake=NOW - 5, rx_bytes=456, tx_bytes=123),
        peer(
            "db",
            3,
            last_handshake=NOW - 5,
            tx_bytes=7,
            path={"kind": "direct", "address": "192.0.2.1:41641", "region": ""},
        ),
        peer("quiet", 4, last_handshake=NOW - 900, rx_bytes=1, tx_bytes=2),
        peer("gone", 5, online=False, path={"kind": "none", "address": "", "region": ""}),
        peer("unknown", 6, online=None, user="", os=""),
    ],
}


def test_what_a_curious_person_sees_besides() -> None:
    assert tables.inner_lines(STATUS) == [
        "",
        "data plane: native",
        "  with TSO, UDP_GRO",
        "  without USO",
        "",
        "dropped:",
        "  2000  often",
        "  1     seldom",
    ]
    assert tables.inner_lines(tables.stopped("me")) == ["", "data plane: -", "", "nothing was dropped"]


def test_the_status_of_a_running_node() -> None:
    assert tables.status_lines(STATUS, NOW) == [
        "100.64.0.1  me       -                -      -",
        '100.64.0.2  web      ann@example.com  linux  active; relay "fra", tx 123 rx 456, handshake 5 s ago',
        "100.64.0.3  db       ann@example.com  linux  active; direct 192.0.2.1:41641, tx 7 rx 0, handshake 5 s ago",
        "100.64.0.4  quiet    ann@example.com  linux  idle, tx 2 rx 1, handshake 15 min ago",
        "100.64.0.5  gone     ann@example.com  linux  offline",
        "100.64.0.6  unknown  -                -      idle",
    ]


def test_only_active_peers_or_none() -> None:
    assert [line.split()[1] for line in tables.status_lines(STATUS, NOW, active=True)] == ["me", "web", "db"]
    assert [line.split()[1] for line in tables.status_lines(STATUS, NOW, peers=False)] == ["me"]


def test_health_comes_last() -> None:
    lines = tables.status_lines({**STATUS, "state": "offline", "health": ["no home\x1b[1m relay"]}, NOW)
    assert lines[-4:] == [
        "",
        "# Health check:",
        "#     - the control server is away; the node goes on with what it knew",
        "#     - no home [1m relay",
    ]


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("stopped", "The node me is stopped."),
        ("starting", "The node me is starting."),
        ("needs-login", "The node me needs a login: open https://hs/x"),
        ("needs-approval", "The node me waits for an administrator to approve it."),
        ("new-state", "The node me is in the state new-state."),
    ],
)
def test_a_node_that_is_not_running_is_one_sentence(state: str, sentence: str) -> None:
    assert tables.status_lines({**STATUS, "state": state, "login_url": "https://hs/x"}, NOW) == [sentence]


def test_the_list_of_nodes() -> None:
    nodes = [tables.listed(STATUS), tables.listed(tables.stopped("old"))]
    assert tables.node_list(nodes) == [
        "NAME  STATE    TAILNET       ADDRESSES                     PEERS                  INSIDE    RECEIVED  SENT",
        "me    running  tail.example  100.64.0.1 fd7a:115c:a1e0::1  5 (1 direct, 3 relay)  curl(77)  1.2 kB    5.6 MB",
        "old   stopped  -             -                             -                      -         0 B       0 B",
    ]


def test_a_listed_node_has_the_fields_of_the_schema() -> None:
    for status in (STATUS, tables.stopped("old"), {"name": "bare", "state": "starting"}):
        assert list(tables.listed(status)) == [
            "name",
            "state",
            "pid",
            "tailnet",
            "hostname",
            "addresses",
            "netns",
            "attached",
            "peers",
            "rx_bytes",
            "tx_bytes",
        ]
    assert tables.listed(STATUS)["peers"] == {"total": 5, "direct": 1, "relay": 3}


def test_many_inside_are_counted() -> None:
    inside = [{"kind": "process", "id": str(number), "name": "sh"} for number in range(5)]
    line = tables.node_list([tables.listed({**STATUS, "attached": inside})])[1]
    assert "sh(0) sh(1) sh(2) +2" in line


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (123_456, "123 kB"), (5_600_000, "5.6 MB"), (7e15, "7000 TB")],
)
def test_sizes_for_people(count: float, text: str) -> None:
    assert tables.size(count) == text


@pytest.mark.parametrize(
    ("wanted", "name"),
    [
        ("web", "web"),
        ("WEB", "web"),
        ("web.tail.example.", "web"),
        ("100.64.0.3", "db"),
        ("fd7a:115c:a1e0:0::4", "quiet"),
        ("me", "me"),
        ("nobody", None),
        ("", None),
        ("100.64.0.99", None),
    ],
)
def test_a_peer_by_any_of_its_names(wanted: str, name: str | None) -> None:
    found = tables.find_peer(STATUS, wanted)
    assert (found["name"] if found else None) == name


def test_addresses_of_one_version() -> None:
    own = STATUS["self"]
    assert tables.addresses(own, version=None) == ["100.64.0.1", "fd7a:115c:a1e0::1"]
    assert tables.addresses(own, version=4) == ["100.64.0.1"]
    assert tables.addresses(own, version=6) == ["fd7a:115c:a1e0::1"]


def test_pings_as_lines() -> None:
    relayed = {"ok": True, "seconds": 0.0123, "path": {"kind": "derp", "region": "fra", "address": ""}}
    direct = {"ok": True, "seconds": 0.00123, "path": {"kind": "direct", "region": "", "address": "192.0.2.1:5"}}
    assert tables.ping_line("web", relayed) == "pong from web via DERP(fra) in 12 ms"
    assert tables.ping_line("web", direct) == "pong from web via 192.0.2.1:5 in 1.2 ms"
    assert tables.ping_line("web", {"ok": False, "error": "gone"}) == "no answer from web: gone"
    assert tables.ping_line("web", {"ok": False}) == "no answer from web: it took too long"


def test_routes_and_exit_nodes_are_seen_in_a_peers_line() -> None:
    peer = {"name": "gw", "addresses": ["100.64.0.2"], "path": {"kind": "none"}, "online": True}
    lines = [
        tables.status_lines({"name": "web", "state": "running", "peers": [{**peer, **more}]}, 0.0)[0]
        for more in (
            {"exit_node_option": True, "exit_node": False, "accepted_routes": []},
            {"exit_node_option": True, "exit_node": True, "accepted_routes": [f"10.{n}.0.0/16" for n in range(5)]},
        )
    ]
    assert lines[0].endswith("idle, offers exit node")
    assert lines[1].endswith("idle, exit node, routes 10.0.0.0/16 10.1.0.0/16 10.2.0.0/16 and 2 more")


def test_the_list_of_exit_nodes_marks_the_one_in_use() -> None:
    peers = [
        {"addresses": ["100.64.0.2"], "dns_name": "a.test", "online": True, "exit_node": True},
        {"addresses": ["100.64.0.3"], "dns_name": "b.test", "online": False, "exit_node": False},
    ]
    assert [line.split() for line in tables.exit_node_list(peers)][1:] == [
        ["*", "100.64.0.2", "a.test", "online"],
        ["100.64.0.3", "b.test", "offline"],
    ]


def test_whois() -> None:
    answer: dict[str, Any] = {
        "dns_name": "web.tail.example",
        "id": "n2",
        "addresses": ["100.64.0.2", "fd7a:115c:a1e0::2"],
        "routes": [],
        "tags": [],
        "user": {"id": 7, "login_name": "ann@example.com\x1b[2J"},
        "capabilities": {"example.com/cap/b": [], "example.com/cap/a": [{"role": "admin"}]},
    }
    assert tables.whois_lines(answer) == [
        "Machine:",
        "  Name:       web.tail.example",
        "  ID:         n2",
        "  Addresses:  100.64.0.2, fd7a:115c:a1e0::2",
        "User:",
        "  Name:  ann@example.com [2J",
        "  ID:    7",
        "Capabilities:",
        "  - example.com/cap/a:",
        "      [",
        "        {",
        '          "role": "admin"',
        "        }",
        "      ]",
        "  - example.com/cap/b",
    ]
    tagged = {**answer, "user": None, "tags": ["tag:web"], "capabilities": {}}
    assert tables.whois_lines(tagged)[-1] == "  Tags:       tag:web"
