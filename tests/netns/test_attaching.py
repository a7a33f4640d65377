"""Other namespaces on a node's tailnet: attached, several at once, restored."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import pytest

from tests.machine import patiently
from tests.netns.anatomy import engine_of, keeper_of
from tests.netns.box import ADDRESS, Box, new_box
from tests.netns.nodes import Tsns
from tsns.error import UserError
from tsns.netns.tun import TUN_NAME
from tsns.node import attaching
from tsns.node.attaching import Manner
from tsns.node.places import Places

pytestmark = pytest.mark.netns

SERVE: Final = """
import socket, sys
listener = socket.create_server(("", int(sys.argv[1])))
print("serves", flush=True)
while True:
    connection, peer = listener.accept()
    connection.sendall(f"{sys.argv[2]} {peer[0]}".encode()); connection.close()
"""
ASK: Final = """
import socket, sys
try:
    print(socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5).recv(100).decode())
except OSError as error:
    print(type(error).__name__)
"""
PORT_OF_A_FLOW: Final = """
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=5) as connection:
    print(connection.getsockname()[1])
"""


@pytest.fixture
def box(tmp_path: Path) -> Iterator[Box]:
    """One container."""
    resolv = tmp_path / "resolv.conf"
    resolv.write_text("nameserver 192.0.2.1\n")
    with new_box("box", resolv) as made:
        yield made


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Box]:
    """Another one."""
    resolv = tmp_path / "others-resolv.conf"
    resolv.write_text("nameserver 192.0.2.1\n")
    with new_box("other", resolv) as made:
        yield made


def where(tsns: Tsns) -> Places:
    return Places(tsns.directories.run, tsns.directories.state)


def attach(tsns: Tsns, what: Box, node: str = "web", **manner: object) -> attaching.Attached:
    with what.target() as target:
        return attaching.attach(node, where(tsns), target, Manner(**manner))  # type: ignore[arg-type]


def serve(stack: ExitStack, tsns: Tsns, node: str, port: int, word: str) -> None:
    """A server in a node's own namespace."""
    stack.enter_context(tsns.serving(node, SERVE, str(port), word))


def serve_in(stack: ExitStack, what: Box, port: int, word: str) -> None:
    """A server in a container."""
    process = stack.enter_context(
        subprocess.Popen(
            ["nsenter", "--target", str(what.pid), "--net", "python3", "-uc", SERVE, str(port), word],
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    stack.callback(process.kill)
    assert process.stdout is not None
    assert process.stdout.readline() == "serves\n"


def ask_from(tsns: Tsns, node: str, host: str, port: int) -> str:
    return tsns("exec", node, "--", "python3", "-c", ASK, host, str(port)).stdout.strip()


def test_a_container_is_on_the_tailnet_and_then_is_as_it_was(tsns: Tsns, box: Box) -> None:
    tsns.up("peer")
    tsns.up("web")
    before = box.state()
    attached = attach(tsns, box)
    assert attached.addresses == tuple(tsns.json("status", "web")["self"]["addresses"])
    with ExitStack() as stack:
        serve(stack, tsns, "peer", 80, "peer")
        serve_in(stack, box, 8080, "box")
        assert box.python(ASK, "peer", "80") == f"peer {attached.addresses[0]}", "by its name, out of the container"
        assert ask_from(tsns, "peer", "web", 8080).startswith("box "), "and into it"
        assert tsns.json("ls")["nodes"][1]["attached"] == [{"kind": "pid", "id": str(box.pid), "name": "box"}]
        assert [each.key for each in attaching.attachments("web", where(tsns))] == ["box"]
        assert attach(tsns, box) == attached, "again"
        assert box.python(ASK, "peer", "80").startswith("peer ")
    assert attaching.detach("web", where(tsns), "box")
    assert box.state() == before
    assert not attaching.detach("web", where(tsns), "box")
    assert attaching.attachments("web", where(tsns)) == []


def test_several_share_one_node_and_its_address(tsns: Tsns, box: Box, other: Box) -> None:
    tsns.up("peer")
    tsns.up("web")
    addresses = {attach(tsns, each).addresses for each in (box, other)}
    assert len(addresses) == 1
    with ExitStack() as stack:
        serve(stack, tsns, "peer", 80, "peer")
        serve(stack, tsns, "web", 8000, "own")
        serve_in(stack, box, 8080, "box")
        serve_in(stack, other, 8081, "other")
        for port, word in ((8000, "own"), (8080, "box"), (8081, "other")):
            assert ask_from(tsns, "peer", "web", port).startswith(f"{word} ")
        assert ask_from(tsns, "peer", "web", 8082) == "ConnectionRefusedError", "at once: the node itself refuses"
        ports = [int(each.python(PORT_OF_A_FLOW, "peer", "80")) for each in (box, other)]
        own = int(tsns("exec", "web", "--", "python3", "-c", PORT_OF_A_FLOW, "peer", "80").stdout)
        assert ports[0] < 46_884 <= ports[1] < 61_000 <= own


def test_published_ports_are_for_whom_they_were_published(tsns: Tsns, box: Box, other: Box) -> None:
    tsns.up("peer")
    tsns.up("web")
    attach(tsns, box)
    attach(tsns, other, publish=("tcp/80",))
    with ExitStack() as stack:
        serve_in(stack, box, 80, "box")
        serve_in(stack, other, 80, "other")
        assert ask_from(tsns, "peer", "web", 80).startswith("other ")


def test_an_engine_that_crashes_leaves_a_container_attached(tsns: Tsns, box: Box) -> None:
    tsns.up("peer")
    tsns.up("web")
    attach(tsns, box)
    with ExitStack() as stack:
        serve(stack, tsns, "peer", 80, "peer")
        keeper = keeper_of(tsns.directories, "web")
        assert keeper is not None
        engine = engine_of(keeper)
        assert engine is not None
        os.kill(engine, signal.SIGKILL)
        assert box.python(ASK, "peer", "80").startswith("peer "), "names and flows wait for the next one"


def test_a_keeper_that_is_killed_leaves_a_container_closed_until_it_is_detached(tsns: Tsns, box: Box) -> None:
    tsns.up("peer")
    tsns.up("web")
    before = box.state()
    address = attach(tsns, box).addresses[0]
    keeper = keeper_of(tsns.directories, "web")
    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)
    assert patiently(lambda: [TUN_NAME] if TUN_NAME in box.run("ip", "link").stdout else []) == []
    assert box.python(ASK, address, "80") == "OSError", "no way, and not by eth0"
    assert "No route to host" in box.run("ip", "route", "get", "100.64.0.9", check=False).stderr
    assert box.python(ASK, "peer", "80") == "gaierror"
    assert attaching.undo("web", where(tsns), "box")
    assert box.state() == before
    assert not attaching.undo("web", where(tsns), "box")


def test_what_another_node_has_attached_since_is_left_alone(tsns: Tsns, box: Box) -> None:
    for node in ("web", "other"):
        tsns.up(node)
    attach(tsns, box)
    keeper = keeper_of(tsns.directories, "web")
    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)
    assert patiently(lambda: [TUN_NAME] if TUN_NAME in box.run("ip", "link").stdout else []) == []
    with box.target() as target:
        attaching.attach("other", where(tsns), target._replace(key="other"), Manner())
    present = box.state()
    attaching.undo("web", where(tsns), "box")
    assert {**box.state(), "mounts": []} == {**present, "mounts": []}, "but for what the first one had mounted"


def test_a_new_keeper_takes_over_what_a_killed_one_left(tsns: Tsns, box: Box) -> None:
    tsns.up("peer")
    tsns.up("web")
    before = box.state()
    attach(tsns, box)
    keeper = keeper_of(tsns.directories, "web")
    assert keeper is not None
    os.kill(keeper, signal.SIGKILL)
    tsns.up("web")
    attach(tsns, box)
    with ExitStack() as stack:
        serve(stack, tsns, "peer", 80, "peer")
        assert box.python(ASK, "peer", "80").startswith("peer ")
    tsns("down", "web")
    assert box.state() == before, "a node that ends gives everything back"


def test_a_container_that_ends_is_forgotten(tsns: Tsns, box: Box) -> None:
    tsns.up("web")
    attach(tsns, box)
    box.kill()
    assert patiently(lambda: attaching.attachments("web", where(tsns))) == []
    assert not list(tsns.directories.run.glob("*.attached"))


def test_exclusive_is_nothing_but_the_tailnet(tsns: Tsns, box: Box) -> None:
    tsns.up("peer")
    tsns.up("web")
    before = box.state()
    attach(tsns, box, exclusive=True)
    with ExitStack() as stack:
        serve(stack, tsns, "peer", 80, "peer")
        assert box.python(ASK, "peer", "80").startswith("peer ")
    assert box.run("ping", "-c1", "-W1", "-I", "eth0", "172.30.0.9", check=False).returncode != 0
    assert "No route to host" in box.run("ip", "route", "get", "198.51.100.1", check=False).stderr
    attaching.detach("web", where(tsns), "box")
    assert box.state() == before


def test_the_hosts_own_network_is_refused(tsns: Tsns, box: Box) -> None:
    tsns.up("web")
    with box.target() as target:
        for path in ("/proc/self/ns/net", str(where(tsns).node("web").namespace)):
            own = os.open(path, os.O_RDONLY)
            try:
                with pytest.raises(UserError, match="own network"):
                    attaching.attach("web", where(tsns), target._replace(netns=own), Manner())
            finally:
                os.close(own)
    assert attaching.attachments("web", where(tsns)) == []


def test_its_own_network_goes_on(tsns: Tsns, box: Box) -> None:
    tsns.up("web")
    attach(tsns, box)
    assert f"dev eth0 src {ADDRESS}" in box.run("ip", "route", "get", "198.51.100.1").stdout
    assert "dev eth0" in box.run("ip", "route", "get", "172.30.0.7").stdout
