"""Attached and detached: what is in a container's namespace meanwhile, and that all of it is given back."""

from __future__ import annotations

import errno
import os
import select
import socket
import subprocess
from collections.abc import Iterator
from typing import Final

import pytest

from tests.interop.rig.namespace import socket_in
from tests.netns.attached import (
    ADDRESSES,
    PATIENCE_S,
    SUBNETS,
    TAILNET,
    attached,
    held,
    lead,
    let_go,
    make,
    serving,
    try_to_reach,
)
from tests.netns.container import BRIDGE, Container, container
from tsns.netns import attachment, attachment_filter, port_range
from tsns.netns.child import in_network

pytestmark = pytest.mark.netns

SLICE: Final = range(40000, 41000)  # of ports
OF_DEVICES: Final = ("ip -json link", "ip -json address")  # in which the TUN has another number each time


@pytest.fixture
def target() -> Iterator[Container]:
    with container() as made:
        yield made


@pytest.mark.parametrize("ipv6", [True, False], ids=["with IPv6", "without IPv6"])
@pytest.mark.parametrize("manner", ["plain", "docker_names", "exclusive"])
def test_what_was_there_is_there_again(manner: str, ipv6: bool) -> None:
    with container(ipv6=ipv6) as target:
        target.network.ip("rule", "add", "from", "10.1.1.1", "pref", "5230", "lookup", "main")  # somebody else's
        target.network.nft("table inet theirs { chain output { type filter hook output priority 0; }; }")
        before = target.state()
        manners = {"exclusive": manner == "exclusive", "docker_names": manner == "docker_names"}
        with attached(target, ports=SLICE, **manners) as made:
            assert len(made.dns) == (4 if ipv6 else 2)
            lead(target, exit_node=True, exclusive=manner == "exclusive")
            meanwhile = target.state()
            assert all(meanwhile[each] != before[each] for each in before if each != "nft list ruleset")
            assert (meanwhile["nft list ruleset"] == before["nft list ruleset"]) == (manner == "plain")
        assert target.state() == before
        attachment.remove(target.fd, made.before)
        assert target.state() == before, "what is gone is no error"


def test_a_namespace_that_was_never_used_is_so_again() -> None:
    """Its loopback is down."""
    with container() as target:
        target.network.ip("link", "set", "lo", "down")
        target.network.ip("address", "flush", "dev", "lo")
        before = target.state()
        with attached(target) as made:
            assert len(made.dns) == 4
            lead(target)
        assert target.state() == before


def test_nothing_but_the_tuns_own_settings_changes(target: Container) -> None:
    settings = "sh -c grep -rs . /proc/sys/net/ipv4 /proc/sys/net/ipv6 | sort"
    before = set(target.state()[settings].splitlines())
    with attached(target, ports=SLICE, docker_names=True):
        lead(target, exit_node=True)
        changed = set(target.state()[settings].splitlines()) ^ before
    assert {line for line in changed if "/tsns0/" not in line} == {
        "/proc/sys/net/ipv4/ip_local_port_range:32768\t60999",
        "/proc/sys/net/ipv4/ip_local_port_range:40000\t40999",
    }
    assert "/proc/sys/net/ipv6/conf/tsns0/addr_gen_mode:1" in changed


def test_flows_begin_from_the_slice(target: Container) -> None:
    with attached(target, ports=SLICE) as made:
        assert attachment.ports_before(made.before) == range(32768, 61000)
        lead(target)
        for family, address in ((2, TAILNET[0]), (10, TAILNET[1])):
            code = f"s = socket.socket({family}, 2); s.connect(({address!r}, 9)); print(s.getsockname()[1])"
            assert 40000 <= int(target.run(code)) <= 40999


@pytest.mark.parametrize("manner", [{"exclusive": True}, {"docker_names": True}], ids=["exclusive", "docker_names"])
def test_over_what_a_killed_keeper_has_left_the_same_is_made(target: Container, manner: dict[str, bool]) -> None:
    exclusive = manner.get("exclusive", False)
    before = target.state()
    with held(make(target, ports=SLICE, **manner)) as first:
        lead(target, exit_node=True, exclusive=exclusive)
        made_once = target.state()
        let_go(first)
        with attached(target, ports=SLICE, before=first.before, **manner) as second:
            assert second.before == first.before
            lead(target, exit_node=True, exclusive=exclusive)
            again = target.state()
    for each in made_once:
        if each not in OF_DEVICES:
            assert sorted(again[each].splitlines()) == sorted(made_once[each].splitlines()), each
    assert target.state() == before


def test_all_at_once_is_the_same_as_one_after_the_other(target: Container) -> None:
    found = []
    for at_once in (False, True):
        more = {"own": ADDRESSES, "led": SUBNETS, "exit_node": True} if at_once else {}
        with attached(target, docker_names=True, **more) as made:
            if not at_once:
                attachment.lead(target.fd, ADDRESSES, SUBNETS, exit_node=True, exclusive=False)
            assert made.names >= 0
            rest = {each: text for each, text in target.state().items() if each not in OF_DEVICES}
            found.append((rest, len(made.dns), made.before))
    assert found[0] == found[1]


def test_what_was_not_written_down_is_found_out(target: Container) -> None:
    """A keeper that was killed before it could say what there was."""
    before = target.state()
    with held(make(target, exclusive=True)) as first:
        let_go(first)
    with attached(target, exclusive=True) as second:
        assert second.before == first.before
    assert target.state() == before
    with held(make(target, exclusive=True)):
        pass
    attachment.remove(target.fd, {})
    assert target.state() == before


def test_an_attachment_may_become_another_kind(target: Container) -> None:
    with held(make(target, exclusive=True)) as first:
        lead(target, exclusive=True)
        let_go(first)
    with attached(target, before=first.before):
        lead(target)
        assert target.output("nft", "list", "ruleset") == ""
        assert try_to_reach(target, BRIDGE)[f"{BRIDGE[0]} SOCK_DGRAM"] == "sent"
        assert "unreachable" not in target.output("ip", "route", "show", "table", "local")


def test_where_it_fails_nothing_is_changed(target: Container) -> None:
    with serving(target, 53):
        before = target.state()
        with pytest.raises(OSError, match="a name server in there has port 53") as caught:
            make(target, ports=SLICE, exclusive=True)
        assert caught.value.errno == errno.EADDRINUSE
        assert target.state() == before


def test_one_node_is_attached_at_most(target: Container) -> None:
    with attached(target):
        lead(target)
        meanwhile = target.state()
        with pytest.raises(OSError, match="another node is attached there") as caught:
            make(target, exclusive=True)
        assert caught.value.errno == errno.EBUSY
        attachment.remove(target.fd, {})  # by the one who has not got it
        assert target.state() == meanwhile


def test_an_engine_that_is_ending_is_waited_for(target: Container) -> None:
    with held(make(target)) as first:
        engine = subprocess.Popen(["sleep", "0.5"], pass_fds=[first.tun])
    with engine, attached(target, before=first.before):
        assert engine.wait(PATIENCE_S) == 0


def test_what_is_as_it_should_be_is_left_alone(target: Container) -> None:
    with attached(target), socket_in(target.network.path, socket.AF_NETLINK, socket.SOCK_RAW) as changes:
        lead(target, exit_node=True)
        addresses_and_rules, routes = 0x10 | 0x100 | 1 << 7 | 1 << 18, 0x40 | 0x400
        changes.bind((0, addresses_and_rules | routes))
        lead(target, exit_node=True)
        assert not select.select([changes], [], [], 0.1)[0]
        attachment.lead(target.fd, ADDRESSES, SUBNETS[:1], exit_node=False, exclusive=False)
        assert select.select([changes], [], [], 0.1)[0]


def test_in_a_user_namespace_it_is_the_same() -> None:
    words = ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", "ip link set lo up; echo made; exec sleep 60"]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "made\n"
            look = [
                "nsenter",
                f"--target={process.pid}",
                "--user",
                "--net",
                "sh",
                "-c",
                "ip rule; ip -6 rule; ip addr; nft list ruleset",
            ]
            before = subprocess.check_output(look)
            fd = os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY)
            try:
                with held(attachment.make(fd, exclusive=True, docker_names=False)) as made:
                    port_range.set_range(fd, SLICE)
                    attachment.lead(fd, ADDRESSES, SUBNETS, exit_node=True, exclusive=True)
                    assert b"policy drop" in subprocess.check_output(look)
                    [names] = in_network(fd, lambda: attachment_filter.marked_sockets(1))
                    os.close(names)
                attachment.remove(fd, made.before)
            finally:
                os.close(fd)
            assert subprocess.check_output(look) == before
        finally:
            process.kill()
