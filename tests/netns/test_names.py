"""Names inside a node: who answers them, which way others are asked, and what holds when the host changes its files."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pytest

from tests.machine import patiently
from tests.netns.nodes import Tsns
from tests.netns.steered_lab import SteeredLab
from tsns.proto.types import Resolver

pytestmark = pytest.mark.netns

SERVER: Final = Path(__file__).with_name("fake_dns_server.py")


@contextmanager
def dns_server(tsns: Tsns, node: str, port: int = 53) -> Iterator[str]:
    """A DNS server on a node of the tailnet, and the address where it is."""
    [address, *_] = tsns.json("ip", node)["addresses"]
    with tsns.popen("exec", node, "--", sys.executable, str(SERVER), address, str(port)) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
        try:
            yield address
        finally:
            server.terminate()


def follow(lab: SteeredLab, **dns: Any) -> None:
    """Let the tailnet have this in its DNSConfig."""

    def change(lab: Any) -> None:
        lab.tailnet.dns = dns
        lab.tailnet._changed(None)

    lab.do(change)


def has_route(tsns: Tsns, node: str, suffix: str) -> None:
    """Wait until the node goes by a route for this suffix."""
    left = patiently(
        lambda: [] if suffix in [rule["suffix"] for rule in tsns.json("dns", "status", node)["routes"]] else [suffix]
    )
    assert left == []


def test_split_routes_are_asked_through_the_tunnel(steered: SteeredLab, steered_tsns: Tsns) -> None:
    tsns = steered_tsns
    tsns.up("web")
    tsns.up("app")
    with dns_server(tsns, "web") as address:
        follow(steered, routes={"lab.test.": None, "corp.example": [Resolver(addr=address)]})
        has_route(tsns, "app", "corp.example")
        found = tsns.json("dns", "query", "app", "host.corp.example")
        assert [record["data"] for record in found["answers"]] == ["192.0.2.7"]
        assert (found["rule"], found["resolver"], found["way"], found["transport"], found["cached"]) == (
            {"kind": "route", "suffix": "corp.example"},
            address,
            "tunnel",
            "udp",
            False,
        )
        print(found)
        print(tsns("dns", "query", "app", "host.corp.example").stdout)
        print(tsns("dns", "status", "app").stdout)
        print(tsns("exec", "app", "--", "dig", "+short", "long.corp.example", "TXT").stdout)
        print(tsns("exec", "app", "--", "dig", "+tcp", "nothing.corp.example").stdout)
        print(tsns("exec", "app", "--", "getent", "hosts", "host.corp.example").stdout)
        print(tsns("exec", "app", "--", "dig", "@127.0.0.53", "host.corp.example").stdout)
        print(tsns("exec", "app", "--", "dig", "@10.255.255.53", "web.lab.test").stdout)
        print(tsns("dns", "query", "app", "example.com").stdout)
        print(tsns("dns", "status", "app").stdout)
        print((tsns.directories.state / "app" / "log").read_text())
    assert 0
