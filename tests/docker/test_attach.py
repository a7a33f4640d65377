"""Running containers on a tailnet, as a person attaches them, with a real Docker."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.docker.daemon import Box, Dockerd
from tests.machine import patiently
from tests.netns.anatomy import engine_of, keeper_of
from tests.netns.nodes import Tsns

pytestmark = pytest.mark.docker

CYCLES: Final = int(os.environ.get("TSNS_TEST_CYCLES", "20"))


@contextmanager
def web_server(tsns: Tsns, node: str, directory: Path, word: str) -> Iterator[None]:
    """A web server in a node's namespace, whose page says this word."""
    directory.mkdir(exist_ok=True)
    (directory / "index.html").write_text(word)
    command = tsns.command("exec", node, "--", "python3", "-m", "http.server", "80", "-b", "::", "-d", str(directory))
    with subprocess.Popen(command, env=tsns.environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            yield
        finally:
            server.kill()


def attach(tsns: Tsns, name: str, *flags: str) -> None:
    login = () if "--to" in flags else tsns.lab.login
    done = tsns("attach", name, *login, *flags)
    assert done.returncode == 0, done.stderr


def detach(tsns: Tsns, name: str) -> None:
    done = tsns("detach", name)
    assert done.returncode == 0, done.stderr


def fetched(box: Box, url: str) -> str:
    """A page, when the server is there."""
    until = time.monotonic() + 10
    while not (page := box.run("wget", "-qO-", url, check=False)) or "can't" in page:
        assert time.monotonic() < until, page
        time.sleep(0.1)
    return page


def pings(box: Box, name: str) -> bool:
    return "1 packets received" in box.run("ping", "-c1", "-W3", name, check=False)


def serving(docker: Dockerd, name: str, **settings: Any) -> Box:
    """A container with a web server."""
    return docker.run(name, "sh", "-c", "echo $0 > /tmp/index.html; exec httpd -f -p 8080 -h /tmp", name, **settings)


def test_a_container_is_on_the_tailnet_with_all_that_it_had(tsns: Tsns, docker: Dockerd, tmp_path: Path) -> None:
    network = docker.client.networks.create("compose")
    app = serving(docker, "app", network=network.name, ports={"8080/tcp": 18080})
    docker.run("db", network=network.name)
    tsns.up("peer")
    before = app.state()
    with web_server(tsns, "peer", tmp_path / "peer", "from the peer"):
        attach(tsns, "app")
        assert fetched(app, "http://peer.lab.test/") == "from the peer"
        assert fetched(app, "http://peer/") == "from the peer"
    assert pings(app, "db"), "its neighbour, by the name that Docker knows"
    assert "172." in app.run("nslookup", "db")
    assert "100.64." in app.run("nslookup", "peer", "127.0.0.11"), "programs that know Docker's resolver by heart"
    page = tsns(
        "exec",
        "peer",
        "--",
        "python3",
        "-c",
        "import urllib.request as r; print(r.urlopen('http://app:8080/').read().decode())",
    )
    assert page.stdout.strip() == "app", page.stderr
    by_port = docker.network.command(
        "python3", "-c", "import urllib.request as r; print(r.urlopen('http://172.31.7.1:18080/').read())"
    )
    assert b"app" in subprocess.run(by_port, capture_output=True, timeout=10, check=True).stdout, "its published port"
    [node] = [node for node in tsns.json("ls")["nodes"] if node["name"] == "app"]
    assert node["attached"] == [{"kind": "docker", "id": app.container.id, "name": "app"}]
    detach(tsns, "app")
    assert app.state() == before
    assert "app" not in [node["name"] for node in tsns.json("ls")["nodes"] if node["state"] == "running"]


@pytest.mark.parametrize(
    "settings",
    [
        {"cap_drop": ["ALL"], "user": "65534"},
        {"read_only": True},
        {"network": "none"},
        {"cap_drop": ["ALL"], "read_only": True, "security_opt": ["no-new-privileges"], "network": "none"},
    ],
    ids=["without capabilities", "read-only", "without a network", "all of it"],
)
def test_whatever_a_container_may_not_do_it_can_be_attached(
    tsns: Tsns, docker: Dockerd, settings: dict[str, Any]
) -> None:
    box = docker.run("box", **settings)
    tsns.up("peer")
    before = box.state()
    attach(tsns, "box")
    assert "100.64." in box.run("nslookup", "peer.lab.test")
    assert "open" in box.run("sh", "-c", "nc -w2 peer.lab.test 9 || echo open", check=False)
    detach(tsns, "box")
    assert box.state() == before


def test_what_cannot_be_attached_is_refused_with_what_to_do(tsns: Tsns, docker: Dockerd) -> None:
    docker.run("hosts", network_mode="host")
    stopped = docker.run("stopped")
    stopped.container.kill()
    for name, error in (
        ("hosts", "uses the host's own network"),
        ("stopped", "is not running"),
        ("nobody", "there is no container nobody"),
    ):
        done = tsns("attach", name, *tsns.lab.login)
        assert done.returncode == 1
        assert error in done.stderr
        assert "hint: " in done.stderr
    assert "not attached" in tsns("detach", "nobody").stderr
    assert tsns.json("ls")["nodes"] == []


def test_a_container_that_uses_anothers_network_is_attached_with_it(tsns: Tsns, docker: Dockerd) -> None:
    owner = docker.run("owner")
    member = docker.run("member", network_mode="container:owner")
    tsns.up("peer")
    attach(tsns, "member")
    for box in (owner, member):
        assert pings(box, "100.64.0.1")
    detach(tsns, "owner")


def test_several_containers_share_a_node(tsns: Tsns, docker: Dockerd, tmp_path: Path) -> None:
    boxes = [serving(docker, name) for name in ("one", "two")]
    tsns.up("peer")
    tsns.up("gate")
    for box, port in zip(boxes, ("8080", "tcp/8081"), strict=True):
        attach(tsns, box.container.name, "--to", "gate", "-p", port)
    with web_server(tsns, "peer", tmp_path / "peer", "from the peer"):
        assert [fetched(box, "http://peer/") for box in boxes] == ["from the peer"] * 2
    look = "import urllib.request as r; print(r.urlopen('http://gate:8080/').read().decode())"
    assert tsns("exec", "peer", "--", "python3", "-c", look).stdout.strip() == "one"
    names = [each["name"] for node in tsns.json("ls")["nodes"] if node["name"] == "gate" for each in node["attached"]]
    assert names == ["one", "two"]
    for box in boxes:
        detach(tsns, box.container.name)
    assert tsns.json("status", "gate")["state"] == "running", "it was there before, and stays"


def test_two_tailnets_with_the_same_addresses(tsns: Tsns, other_tsns: Tsns, docker: Dockerd, tmp_path: Path) -> None:
    boxes = docker.run("first"), docker.run("second")
    for each, name in ((tsns, "peer"), (other_tsns, "other-peer")):
        each.up(name)
    attach(tsns, "first")
    attach(other_tsns, "second")
    addresses = [tsns.json("ip", node)["addresses"] for node in ("first", "second")]
    assert addresses[0] == addresses[1]
    with (
        web_server(tsns, "peer", tmp_path / "peer", "here"),
        web_server(tsns, "other-peer", tmp_path / "other", "there"),
    ):
        assert [fetched(box, "http://100.64.0.1/") for box in boxes] == ["here", "there"]
    for name in ("first", "second"):
        detach(tsns, name)


def test_exclusive_is_nothing_but_the_tailnet(tsns: Tsns, docker: Dockerd, tmp_path: Path) -> None:
    network = docker.client.networks.create("compose")
    box, neighbour = docker.run("box", network=network.name), docker.run("db", network=network.name)
    neighbour.container.reload()
    address = neighbour.container.attrs["NetworkSettings"]["Networks"]["compose"]["IPAddress"]
    tsns.up("peer")
    assert pings(box, address)
    attach(tsns, "box", "--exclusive")
    with web_server(tsns, "peer", tmp_path / "peer", "from the peer"):
        assert fetched(box, "http://peer/") == "from the peer"
    assert not pings(box, address)
    assert "can't" in box.run("nslookup", "db", check=False)
    docker.client.networks.create("late").connect(box.container)
    assert not pings(box, address), "nor by a network that comes later"
    detach(tsns, "box")
    assert pings(box, address)


def test_with_its_keeper_killed_a_container_is_closed_until_it_is_detached(tsns: Tsns, docker: Dockerd) -> None:
    box = docker.run("box")
    before = box.state()
    attach(tsns, "box")
    (tsns.directories.state / ".attached").rename(tsns.directories.state / ".away")  # or the follower begins anew
    keeper = keeper_of(tsns.directories, "box")
    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)
    assert patiently(lambda: ["tsns0"] if "tsns0" in box.run("ip", "link") else []) == []
    assert "No route to host" in box.run("ping", "-c1", "-W1", "100.64.0.9", check=False)
    assert "can't" in box.run("nslookup", "peer.lab.test", check=False)
    (tsns.directories.state / ".away").rename(tsns.directories.state / ".attached")
    detach(tsns, "box")
    assert box.state() == before


def test_nothing_runs_before_the_tailnet_is_there(tsns: Tsns, docker: Dockerd) -> None:
    """The container waits for a file, and meanwhile is paused."""
    box = docker.run(
        "box", "sh", "-c", "while ! test -e /run/tailnet; do sleep 0.05; done; ip link > /run/seen; exec sleep 100000"
    )
    attach(tsns, "box", "--pause", "--wait-file", "/run/tailnet")
    until = time.monotonic() + 5
    while "tsns0" not in box.run("cat", "/run/seen", check=False):
        assert time.monotonic() < until
        time.sleep(0.05)
    detach(tsns, "box")


def test_by_process_and_by_path(tsns: Tsns, docker: Dockerd) -> None:
    box = docker.run("box")
    tsns.up("peer")
    before = box.state()
    for flags in (("--pid", str(box.pid)), ("--netns", f"/proc/{box.pid}/ns/net")):
        done = tsns("attach", *flags, "--to", "peer")
        assert done.returncode == 0, done.stderr
        assert "tsns0" in box.run("ip", "link")
        assert tsns("detach", *flags).returncode == 0
        assert box.state() == before
    done = tsns("attach", "--pid", str(os.getpid()), "--to", "peer")
    assert "the host's own network" in done.stderr


def test_many_cycles_leave_nothing(tsns: Tsns, docker: Dockerd) -> None:
    box = docker.run("box")
    tsns.up("gate")
    before = box.state()

    def held() -> dict[str, tuple[int, int]]:
        keeper = keeper_of(tsns.directories, "gate")
        assert keeper is not None
        engine = engine_of(keeper)
        assert engine is not None
        return {
            what: (len(os.listdir(f"/proc/{pid}/fd")), len(os.listdir(f"/proc/{pid}/task")))
            for what, pid in (("keeper", keeper), ("engine", engine))
        }

    attach(tsns, "box", "--to", "gate")
    detach(tsns, "box")
    at_first = held()
    for _ in range(CYCLES):
        attach(tsns, "box", "--to", "gate")
        detach(tsns, "box")
    assert patiently(lambda: [] if held() == at_first else [held()]) == []
    assert box.state() == before
    assert not list(tsns.directories.run.glob("*.attached"))
    assert not list(tsns.directories.run.glob("gate.*.resolv"))
