"""The demo's course and its end, with pretended servers and a pretended tsns: both are small scripts."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path

import pytest

from tsns.cli import demo, demo_page, demo_probe, demo_stage
from tsns.cli.demo_stage import Stage, StageError

LAB = """
import json, sys
print(json.dumps({"url": "http://127.0.0.1:1", "auth_key": "tskey-secret"}), flush=True)
sys.stdin.read()
"""

TSNS = """
import json, os, subprocess, sys, time
command, *words = sys.argv[1:]
open(os.environ["TSNS_STATE_DIR"] + ".calls", "a").write(json.dumps([command, *words, sys.stdin.read() if "-" in words else None]) + "\\n")
broken = os.environ.get("BROKEN", "")
if command == broken:
    print("tsns: waiting", file=sys.stderr)
    print("error: it is broken", file=sys.stderr)
    print("hint: mend it", file=sys.stderr)
    sys.exit(1)
if command == "up":
    os.makedirs(os.environ["TSNS_STATE_DIR"] + "/" + words[0], exist_ok=True)
    os.makedirs(os.environ["TSNS_RUN_DIR"], exist_ok=True)
    open(os.environ["TSNS_STATE_DIR"] + "/" + words[0] + "/log", "w").write("the node's last word\\n")
elif command == "status":
    print(json.dumps({"schema": 1, "pid": None, "self": {"addresses": ["100.64.0.1", "fd7a:115c:a1e0::1"]}}))
elif command == "exec":
    print("serving", flush=True)
    time.sleep(60)
elif command == "ping":
    if "LOST" in os.environ:
        print(json.dumps({"schema": 1, "ok": False, "error": "too far away"}))
    for _ in range(3 - ("LOST" in os.environ)):
        print(json.dumps({"schema": 1, "ok": True, "seconds": 0.002, "path": {"kind": "derp", "region": "lab"}}))
    sys.exit("LOST" in os.environ)
elif command == "run":
    if "HALF" in os.environ:
        print(json.dumps({"step": "look-up", "seconds": 0.1, "addresses": ["127.0.0.1"]}))
        print(json.dumps({"step": "page", "error": "timed out"}))
        sys.exit(1)
    token = open(os.environ["TSNS_STATE_DIR"] + ".token").read()
    print(json.dumps({"step": "look-up", "seconds": 0.1, "addresses": ["127.0.0.1"]}))
    print(json.dumps({"step": "page", "seconds": 0.1, "page": token}))
    print(json.dumps({"step": "throughput", "seconds": 3.0, "bytes": 1, "mbit_s": 123.4}))
"""


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    (tmp_path / "lab.py").write_text(LAB)
    (tmp_path / "tsns.py").write_text(TSNS)
    python = [sys.executable, "-I", "-S"]
    made = Stage(tsns=[*python, str(tmp_path / "tsns.py")], lab=[*python, str(tmp_path / "lab.py")])
    yield made
    assert made.close() == []


def calls(stage: Stage) -> list[list[str]]:
    return [json.loads(line) for line in Path(f"{stage.state}.calls").read_text().splitlines()]


def play(stage: Stage) -> demo.Demo:
    told: list[str] = []
    course = demo.Demo(stage, told.append, quiet=True)
    Path(f"{stage.state}.token").write_text(course._token)
    course.play()
    assert len(told) == len(course.steps)
    return course


def test_the_course(stage: Stage) -> None:
    course = play(stage)
    assert [step.name for step in course.steps] == [
        "servers", "web", "me", "web-server", "ping", "look-up", "page", "throughput", "run", "outside",
    ]  # fmt: skip
    assert course.throughput_mbit_s == 123.4
    assert course.steps[4].detail == "2.0 ms, 2.0 ms, 2.0 ms"
    assert len(course.summary()) == 1 + len(course.steps)
    seen = calls(stage)
    assert [call[0] for call in seen] == ["up", "status", "up", "status", "exec", "ping", "run", "run"]
    assert all("tskey-secret" not in word for call in seen for word in call[:-1]), "the key is in somebody's argv"
    assert [call[-1] for call in seen if call[0] == "up"] == ["tskey-secret\n"] * 2


def test_the_end_leaves_nothing(stage: Stage) -> None:
    play(stage)
    pids = stage.pids
    assert len(pids) == 2
    assert stage.close() == []
    assert not stage.directory.exists()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("broken", ["up", "exec", "ping", "run"])
def test_a_step_that_fails_is_told_in_the_words_of_the_command(stage: Stage, broken: str) -> None:
    stage.environ["BROKEN"] = broken
    with pytest.raises(StageError) as caught:
        play(stage)
    assert "did not start" in caught.value.message if broken == "exec" else "it is broken" in caught.value.message
    if broken != "up":
        assert ("state/web/log", ["the node's last word"]) in list(stage.last_words())


def test_pings_that_are_lost_are_told(stage: Stage) -> None:
    stage.environ["LOST"] = "1"
    with pytest.raises(StageError, match="1 of 3 pings were lost: too far away"):
        play(stage)


def test_a_probe_that_fails_half_way(stage: Stage) -> None:
    stage.environ["HALF"] = "1"
    told: list[str] = []
    course = demo.Demo(stage, told.append, quiet=True)
    with pytest.raises(StageError, match="page: timed out"):
        course.play()
    assert [(step.name, step.ok) for step in course.steps[-2:]] == [("look-up", True), ("page", False)]
    assert "FAILED: page: timed out" in told[-1]


def test_servers_that_do_not_start(stage: Stage) -> None:
    stage._lab = [sys.executable, "-c", "print('no json')"]
    with pytest.raises(StageError, match="did not start"):
        play(stage)


@pytest.mark.parametrize(
    ("interfaces", "address"), [(["lo", "tsns0"], "100.64.0.1"), (["lo"], "127.0.0.1")], ids=["interface", "address"]
)
def test_a_host_that_is_on_the_tailnet_is_a_failure(
    stage: Stage, monkeypatch: pytest.MonkeyPatch, interfaces: list[str], address: str
) -> None:
    course = demo.Demo(stage, lambda _: None, quiet=True)
    course._server_address = address
    monkeypatch.setattr(socket, "if_nameindex", lambda: list(enumerate(interfaces)))
    with pytest.raises(StageError, match="itself is on the tailnet"):
        course._from_outside()


def test_what_outlives_its_node_is_killed(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_stage, "END_PATIENCE_S", 0.1)
    pid = os.fork()
    if pid == 0:
        time.sleep(60)
        os._exit(0)
    try:
        found = demo_stage._Process.find(pid)
        assert found is not None
        assert found.parent == os.getpid()
        assert found.lives
        stage._node_processes.append(found)
        assert stage.close() == []
        assert not found.lives
    finally:
        os.waitpid(pid, 0)


def test_the_end_waits_for_nodes_that_are_on_their_way_out(stage: Stage) -> None:
    stage.run.mkdir()
    lock = stage.run / "run-1.lock"
    lock.touch()
    leaver = threading.Timer(0.1, lock.unlink)
    leaver.start()
    stage.wait_for_end("web")
    assert lock.exists()
    stage.wait_for_end("run-*")
    assert not lock.exists()
    leaver.join()


def test_a_pid_that_was_given_to_another_is_left_alone() -> None:
    assert not demo_stage._Process(os.getpid(), "12").lives
    assert demo_stage._Process.find(0) is None


# --- the two programs inside


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> Iterator[int]:
    monkeypatch.setattr(demo_page.Page, "text", "hello")
    with ThreadingHTTPServer(("127.0.0.1", 0), demo_page.Page) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def probe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str
) -> tuple[int, list[dict[str, object]]]:
    monkeypatch.setattr(sys, "argv", ["demo_probe.py", *words])
    status = demo_probe.main()
    return status, [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_the_probe_against_the_page(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], page: int
) -> None:
    status, (look_up, fetched, stream) = probe(monkeypatch, capsys, "127.0.0.1", str(page), "0.05")
    assert status == 0
    assert look_up["addresses"] == ["127.0.0.1"]
    assert fetched["page"] == "hello"
    assert isinstance(stream["mbit_s"], float)
    assert stream["mbit_s"] > 0


def test_the_probe_says_which_step_failed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    status, steps = probe(monkeypatch, capsys, "127.0.0.1", "1", "0")
    assert status == 1
    assert [step["step"] for step in steps] == ["look-up", "page"]
    assert "refused" in str(steps[1]["error"])
