"""The query commands on nodes that are only pretended: which node is asked, what is printed, which exit status."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from tsns.__main__ import main
from tsns.error import UserError
from tsns.node import client
from tsns.node.places import Places


class Nodes:
    """Pretended nodes: the status of each, and what was asked."""

    def __init__(self) -> None:
        self.running: dict[str, dict[str, Any]] = {}
        self.stopped: list[str] = []
        self.pings: list[dict[str, Any]] = []
        self.asked: list[tuple[str, str, object]] = []
        self.done: list[tuple[object, ...]] = []

    def add(self, name: str, state: str = "running") -> None:
        peers = [
            {
                "name": "db",
                "dns_name": "db.t",
                "addresses": ["100.64.0.9", "fd7a::9"],
                "online": True,
                "path": {"kind": "none"},
            }
        ]
        own = {"name": name, "dns_name": f"{name}.t", "addresses": ["100.64.0.1", "fd7a::1"]}
        self.running[name] = {"schema": 1, "name": name, "state": state, "health": [], "self": own, "peers": peers}

    def query(self, name: str, _where: Places, path: str, body: object = None, timeout_s: float = 0) -> dict[str, Any]:
        self.asked.append((name, path, body))
        if path == "/tsns/v1/ping":
            assert timeout_s > 0
            return self.pings.pop(0)
        if path == "/tsns/v1/whois":
            return {"schema": 1, "name": "db", "dns_name": "db.t", "addresses": ["100.64.0.9"], "id": "n9"}
        return self.running[name]


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Nodes:
    monkeypatch.setenv("TSNS_RUN_DIR", str(tmp_path / "run"))
    monkeypatch.setenv("TSNS_STATE_DIR", str(tmp_path / "state"))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr("os.geteuid", lambda: 0)
    found = Nodes()

    def stop(name: str, _where: Places, *, logout: bool) -> None:
        if name == "bad":
            raise UserError("the node bad does not end", "see its log")
        found.done.append(("stop", name, logout))

    monkeypatch.setattr(client, "names", lambda _: sorted(found.running))
    monkeypatch.setattr(client, "known", lambda _: found.stopped)
    monkeypatch.setattr(client, "query", found.query)
    monkeypatch.setattr(client, "stop", stop)
    monkeypatch.setattr(client, "forget", lambda name, _where, _progress: found.done.append(("forget", name)))
    return found


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == 1
    assert isinstance(found, dict)
    return found


def test_ls_lists_what_runs_and_what_is_stopped(nodes: Nodes, capsys: pytest.CaptureFixture[str]) -> None:
    nodes.add("web")
    nodes.stopped = ["old", "web"]
    assert main(["ls", "--json"]) == 0
    assert [(node["name"], node["state"]) for node in answer(capsys)["nodes"]] == [
        ("old", "stopped"),
        ("web", "running"),
    ]
    assert main(["ls"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["NAME", "old", "web"]


def test_one_node_that_does_not_answer_does_not_hide_the_others(
    nodes: Nodes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nodes.add("bad")
    nodes.add("web")

    def query(name: str, where: Places, path: str) -> dict[str, Any]:
        if name == "bad":
            raise UserError("it does not answer", "-")
        return nodes.query(name, where, path)

    monkeypatch.setattr(client, "query", query)
    assert main(["ls", "--json"]) == 0
    assert [(node["name"], node["state"]) for node in answer(capsys)["nodes"]] == [
        ("bad", "starting"),
        ("web", "running"),
    ]


@pytest.mark.parametrize(("state", "status"), [("running", 0), ("offline", 0), ("starting", 1), ("needs-login", 1)])
def test_status_says_by_its_exit_whether_the_node_runs(
    nodes: Nodes, capsys: pytest.CaptureFixture[str], state: str, status: int
) -> None:
    nodes.add("web", state)
    assert main(["status"]) == status
    assert "web" in capsys.readouterr().out
    assert main(["status", "web", "--json"]) == status
    assert answer(capsys)["state"] == state


def test_status_of_a_stopped_node_is_an_answer_too(nodes: Nodes, capsys: pytest.CaptureFixture[str]) -> None:
    nodes.stopped = ["old"]
    assert main(["status", "old", "--json"]) == 1
    found = answer(capsys)
    assert {"name", "state", "login_url", "health", "self", "peers"} <= found.keys()
    assert main(["status", "old"]) == 1
    assert capsys.readouterr().out == "The node old is stopped.\n"


def test_status_without_peers(nodes: Nodes, capsys: pytest.CaptureFixture[str]) -> None:
    nodes.add("web")
    for spelling in ("--no-peers", "--peers=false", "--active"):
        assert main(["status", spelling, "--json"]) == 0
        assert answer(capsys)["peers"] == []
        assert main(["status", spelling]) == 0
        assert capsys.readouterr().out == "100.64.0.1  web  -  -  -\n"


def test_status_waits_for_a_node(
    nodes: Nodes, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = [lambda: nodes.add("web", "starting"), lambda: nodes.add("web")]
    monkeypatch.setattr(time, "sleep", lambda _: steps.pop(0)())
    assert main(["status", "--wait"]) == 0
    assert steps == []
    assert "100.64.0.1" in capsys.readouterr().out


def test_status_does_not_wait_for_ever(nodes: Nodes, capfd: pytest.CaptureFixture[str]) -> None:
    nodes.add("web", "starting")
    assert main(["status", "web", "--wait", "--timeout", "0"]) == 1
    assert "not running after 0 s" in capfd.readouterr().err


def test_with_two_nodes_the_name_is_asked_for(nodes: Nodes, capfd: pytest.CaptureFixture[str]) -> None:
    nodes.add("web")
    nodes.add("db")
    for line in ("status", "ip", "ping x", "logs"):
        assert main(line.split()) == 2
        assert "several nodes are running: db, web" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("line", "lines"),
    [
        ("ip", ["100.64.0.1", "fd7a::1"]),
        ("ip web", ["100.64.0.1", "fd7a::1"]),
        ("ip web -4", ["100.64.0.1"]),
        ("ip -6", ["fd7a::1"]),
        ("ip db", ["100.64.0.9", "fd7a::9"]),
        ("ip web db -4", ["100.64.0.9"]),
        ("ip web 100.64.0.9", ["100.64.0.9", "fd7a::9"]),
    ],
)
def test_addresses(nodes: Nodes, capsys: pytest.CaptureFixture[str], line: str, lines: list[str]) -> None:
    nodes.add("web")
    assert main(line.split()) == 0
    assert capsys.readouterr().out.splitlines() == lines
    assert main([*line.split(), "--json"]) == 0
    assert answer(capsys)["addresses"] == lines


def test_a_peer_that_is_not_there_is_a_no(nodes: Nodes, capfd: pytest.CaptureFixture[str]) -> None:
    nodes.add("web")
    assert main(["ip", "web", "nobody"]) == 1
    assert "no peer nobody" in capfd.readouterr().err


RELAYED = {"ok": True, "seconds": 0.012, "path": {"kind": "derp", "address": "", "region": "fra"}}
DIRECT = {"ok": True, "seconds": 0.001, "path": {"kind": "direct", "address": "192.0.2.1:5", "region": ""}}
LOST = {"ok": False, "error": "no answer within 5 s"}


@pytest.mark.parametrize(
    ("pings", "options", "asked", "status"),
    [
        ([RELAYED] * 3, ["-c", "3"], 3, 0),
        ([LOST, RELAYED], ["-c", "2"], 2, 0),
        ([LOST, LOST], ["-c", "2"], 2, 1),
        ([RELAYED, DIRECT, RELAYED], [], 2, 0),
        ([RELAYED] * 10, [], 10, 0),
        ([RELAYED, DIRECT], ["--until-direct"], 2, 0),
        ([RELAYED] * 2, ["--until-direct", "-c", "2"], 2, 1),
        ([DIRECT] * 3, ["--no-until-direct", "-c", "3"], 3, 0),
    ],
)
def test_pings(
    nodes: Nodes,
    capsys: pytest.CaptureFixture[str],
    pings: list[dict[str, Any]],
    options: list[str],
    asked: int,
    status: int,
) -> None:
    nodes.add("web")
    nodes.pings = list(pings)
    assert main(["ping", "web", "db", "--json", *options]) == status
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert len(answers) == asked
    assert all({"schema", "ok", "seconds", "path"} <= found.keys() for found in answers)
    nodes.pings = list(pings)
    assert main(["ping", "db", *options]) == status
    assert len(capsys.readouterr().out.splitlines()) == asked
    assert {(name, path) for name, path, _ in nodes.asked} == {("web", "/tsns/v1/ping")}
    assert nodes.asked[0][2] == {"peer": "db", "timeout_s": 5.0, "kind": "disco"}


def test_down_goes_on_after_a_failure(nodes: Nodes, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["down", "a", "bad", "b", "--logout"]) == 1
    assert nodes.done == [("stop", "a", True), ("stop", "b", True)]
    assert "bad" in capfd.readouterr().err


def test_down_all_and_rm(nodes: Nodes) -> None:
    nodes.add("a")
    nodes.add("b")
    assert main(["down", "--all"]) == 0
    assert main(["rm", "a", "b", "a"]) == 0
    assert nodes.done == [("stop", "a", False), ("stop", "b", False), ("forget", "a"), ("forget", "b")]


# --- logs


def log_of(nodes: Nodes, tmp_path: Path, name: str = "web") -> Path:
    nodes.add(name)
    path = tmp_path / "state" / name / "log"
    path.parent.mkdir(parents=True)
    return path


def test_logs_begin_with_the_file_that_was_put_aside(
    nodes: Nodes, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = log_of(nodes, tmp_path)
    path.with_name("log.1").write_bytes(b"one\n")
    path.write_bytes(b"two\n\xff\n")
    assert main(["logs"]) == 0
    assert capfdbinary.readouterr().out == b"one\ntwo\n\xff\n"


def test_logs_of_a_node_that_does_not_last(nodes: Nodes, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "run" / "run-1.d" / "log"
    path.parent.mkdir(parents=True)
    path.write_text("here\n")
    assert main(["logs", "run-1"]) == 0
    assert capfd.readouterr().out == "here\n"


def test_logs_follow_over_a_change_of_files(
    nodes: Nodes, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = log_of(nodes, tmp_path)
    path.write_text("1\n")

    def append(text: str) -> None:
        with path.open("a") as file:
            file.write(text)

    def turn_over() -> None:
        append("3\n")
        path.rename(path.with_name("log.1"))
        path.write_text("4\n")

    def interrupt() -> None:
        raise KeyboardInterrupt

    steps = [lambda: append("2\n"), lambda: None, turn_over, lambda: append("5\n"), interrupt]
    monkeypatch.setattr(time, "sleep", lambda _: steps.pop(0)())
    assert main(["logs", "web", "-f"]) == 130
    assert capfd.readouterr().out == "1\n2\n3\n4\n5\n"


@pytest.mark.parametrize("words", [["me", "100.64.0.9:80"], ["100.64.0.9:80"]])
def test_whois_asks_the_node_about_an_address(
    nodes: Nodes, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    nodes.add("me")
    assert main(["whois", *words]) == 0
    assert nodes.asked[-1] == ("me", "/tsns/v1/whois", {"who": "100.64.0.9:80"})
    assert "db.t" in capsys.readouterr().out
    assert main(["whois", *words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["id"] == "n9"


def test_whois_wants_somebody(nodes: Nodes) -> None:
    nodes.add("me")
    assert main(["whois"]) == 2
    assert nodes.asked == []
