"""The host's resolver files: what is read in them, and that changes are noticed."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tsns.node import host_resolver
from tsns.node.host_resolver import MAX_SERVERS, HostResolver, name_servers
from tsns.node.watch import Watch


@pytest.mark.parametrize(
    ("text", "servers"),
    [
        ("", []),
        ("nameserver 192.0.2.1\nnameserver 2001:db8::0:1\n", ["192.0.2.1", "2001:db8::1"]),
        ("# nameserver 192.0.2.9\n;nameserver 192.0.2.9\n\tnameserver\t192.0.2.1 # comment\n", ["192.0.2.1"]),
        ("nameserver 192.0.2.1\nsearch example.com\nnameserver 192.0.2.1\n", ["192.0.2.1"]),
        ("nameserver\nnameserver x\nNAMESERVER 192.0.2.1\nnameserver 192.0.2\n", []),
        ("nameserver 127.0.0.53\nnameserver 127.0.0.1\n", ["127.0.0.53", "127.0.0.1"]),
        # without an interface, these mean nothing
        ("nameserver fe80::1%eth0\nnameserver fe80::1\nnameserver 169.254.1.1\nnameserver 0.0.0.0\n", []),
        ("nameserver 224.0.0.251\nnameserver ff02::fb\nnameserver ::\n", []),
        ("".join(f"nameserver 192.0.2.{n}\n" for n in range(20)), [f"192.0.2.{n}" for n in range(MAX_SERVERS)]),
    ],
)
def test_name_servers(text: str, servers: list[str]) -> None:
    assert name_servers(text) == servers


class Host:
    """A pretended host, its files, and what was noticed of them."""

    def __init__(self, directory: Path) -> None:
        self.resolv, self.nsswitch, self.resolved = (
            directory / "etc" / "resolv.conf",
            directory / "etc" / "nsswitch.conf",
            directory / "run" / "resolv.conf",
        )
        self.resolv.parent.mkdir()
        self.resolved.parent.mkdir()
        self.resolv.write_text("nameserver 192.0.2.1\n")
        self.watch = Watch()
        self.changes = 0
        self.seen = HostResolver(
            self.watch, self._on_change, [str(self.resolv), str(self.nsswitch), str(self.resolved)]
        )
        self.seen.start()

    def _on_change(self) -> None:
        self.changes += 1

    def replace(self, path: Path, text: str) -> None:
        """As hosts do it: by another file of that name."""
        other = path.with_name("new")
        other.write_text(text)
        other.rename(path)

    def turn_until(self, condition: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 10
        while not condition():
            assert time.monotonic() < deadline
            self.watch.at("look", time.monotonic() + 0.05, lambda: None)
            self.watch.turn()


@pytest.fixture(params=["inotify", "polling"])
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Host:
    if request.param == "polling":

        def none() -> None:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr(host_resolver, "Inotify", none)
        monkeypatch.setattr(host_resolver, "POLL_S", 0.01)
    return Host(tmp_path)


def test_a_file_that_is_replaced(host: Host) -> None:
    assert (host.seen.servers, host.seen.addresses, host.changes) == (["192.0.2.1"], ["192.0.2.1"], 0)
    for number in range(2, 5):
        host.replace(host.resolv, f"nameserver 192.0.2.{number}\n")
        host.turn_until(lambda number=number: host.seen.servers == [f"192.0.2.{number}"])  # type: ignore[misc]
    assert host.changes == 3


def test_the_same_text_in_another_file_is_a_change(host: Host) -> None:
    """What was mounted on the former one is gone."""
    host.replace(host.resolv, "nameserver 192.0.2.1\n")
    host.turn_until(lambda: host.changes == 1)


def test_a_file_that_is_written_to_removed_or_made(host: Host) -> None:
    host.resolv.write_text("nameserver 192.0.2.2\n")
    host.turn_until(lambda: host.seen.servers == ["192.0.2.2"])
    host.resolv.unlink()
    host.turn_until(lambda: host.seen.servers == [])
    host.nsswitch.write_text("hosts: files\n")
    changes = host.changes
    host.turn_until(lambda: host.changes > changes)
    host.resolved.write_text("nameserver 192.0.2.9\n")
    host.turn_until(lambda: host.seen.addresses == ["192.0.2.9"])
    assert host.seen.servers == []


def test_a_link_is_followed_to_where_it_leads(host: Host) -> None:
    elsewhere = host.resolv.parent.parent / "elsewhere"
    elsewhere.mkdir()
    target = elsewhere / "stub.conf"
    target.write_text("nameserver 127.0.0.53\n")
    host.resolv.unlink()
    host.resolv.symlink_to(target)
    host.resolved.write_text("nameserver 192.0.2.8\n")
    host.turn_until(lambda: host.seen.addresses == ["127.0.0.53", "192.0.2.8"])
    host.replace(target, "nameserver 192.0.2.7\n")
    host.turn_until(lambda: host.seen.servers == ["192.0.2.7"])


def test_the_services_own_address_is_no_server_of_the_host(host: Host) -> None:
    """The host itself may be on a tailnet."""
    host.replace(host.resolv, "nameserver 100.100.100.100\nnameserver fd7a:115c:a1e0::53\nnameserver 192.0.2.2\n")
    host.turn_until(lambda: host.seen.servers == ["192.0.2.2"])
    assert host.seen.addresses == ["192.0.2.2"]


def test_other_files_are_nobodys_business(host: Host) -> None:
    (host.resolv.parent / "passwd").write_text("x")
    host.watch.at("look", time.monotonic() + 0.05, lambda: None)
    host.watch.turn()
    assert host.changes == 0
