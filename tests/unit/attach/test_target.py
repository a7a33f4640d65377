"""What a person names, and what a container says of its names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tsns.attach import target
from tsns.attach.engines import Container
from tsns.attach.target import (
    key_of_container,
    key_of_path,
    node_name,
    open_container,
    open_netns,
    open_pid,
    parse_resolv,
)
from tsns.cli.containers import published
from tsns.error import UsageError, UserError
from tsns.node.attaching import KEY

APP = Container("docker", "0123456789abcdef", "App_1", 7, True, False, "bridge", {}, "", "", False)


@pytest.mark.parametrize(
    ("text", "search", "options", "docker_names"),
    [
        ("nameserver 127.0.0.11\noptions ndots:0\n", (), "ndots:0", True),
        ("search a.example b.example\nnameserver 192.0.2.1\n", ("a.example", "b.example"), "", False),
        (
            "search a.example\ndomain c.example\noptions edns0\noptions trust-ad\n",
            ("c.example",),
            "edns0 trust-ad",
            False,
        ),
        ("# nameserver 127.0.0.11\nnonsense\n", (), "", False),
        ("", (), "", False),
    ],
)
def test_a_resolv_conf(text: str, search: tuple[str, ...], options: str, docker_names: bool) -> None:
    assert parse_resolv(text) == (search, options, docker_names)


@pytest.mark.parametrize(
    ("name", "node"), [("app", "app"), ("My_App.1", "my-app-1"), ("--x--", "x"), ("a" * 80, "a" * 63), ("é1", "1")]
)
def test_a_node_is_named_after_its_container(name: str, node: str) -> None:
    assert node_name(name) == node


def test_a_name_of_which_nothing_is_left() -> None:
    with pytest.raises(UserError, match="named after"):
        node_name("__")


def test_keys_are_parts_of_file_names() -> None:
    keys = [key_of_container(APP, "name"), key_of_container(APP, "id"), key_of_path("/run/netns/../x y")]
    assert keys == ["docker-App_1", "docker-0123456789ab", "netns-run-netns-..-x-y"]
    assert all(map(KEY.fullmatch, keys))


@pytest.mark.parametrize(
    ("container", "error"),
    [
        (APP._replace(network_mode="host"), "the host's own network"),
        (APP._replace(running=False, pid=0), "is not running"),
        (APP._replace(pid=1 << 22), "has just ended"),
        (APP._replace(pid=os.getpid()), "the host's own network"),
    ],
    ids=["host", "stopped", "gone", "ours"],
)
def test_what_cannot_be_attached(container: Container, error: str) -> None:
    with pytest.raises(UserError, match=error), open_container(container, "docker-app"):
        pass


def test_neither_can_our_own_network_or_what_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path, error in (
        ("/proc/self/ns/net", "own network"),
        (str(tmp_path / "file"), "is no network"),
        ("/nowhere", "cannot be opened"),
    ):
        with pytest.raises(UserError, match=error), open_netns(path):
            pass
    with pytest.raises(UserError, match="own network"), open_pid(os.getpid()):
        pass
    with pytest.raises(UserError, match="no process"), open_pid(1 << 22):
        pass


def test_a_resolv_conf_without_end_is_read_so_far(tmp_path: Path) -> None:
    (tmp_path / "long").write_text("x" * (target.MAX_RESOLV_BYTES + 9))
    assert len(target._read(tmp_path / "long")) == target.MAX_RESOLV_BYTES


@pytest.mark.parametrize(("text", "port"), [("80", "tcp/80"), ("tcp/080", "tcp/80"), ("udp/53", "udp/53")])
def test_ports(text: str, port: str) -> None:
    assert published(text) == port


@pytest.mark.parametrize("text", ["", "0", "65536", "sctp/1", "x", "tcp/", "80/tcp", "-1", "٣"])
def test_no_ports(text: str) -> None:
    with pytest.raises(UsageError):
        published(text)
