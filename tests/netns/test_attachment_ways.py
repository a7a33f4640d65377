"""What leaves an attached container, and by which way: with the tunnel there and with it gone."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.attached import (
    BEHIND,
    TAILNET,
    addressed_to,
    attached,
    is_served,
    lead,
    let_go,
    serving,
    try_to_reach,
    tun_reads,
)
from tests.netns.container import BRIDGE, NOBODY, OWN, WORLD, Container, container, from_container

pytestmark = pytest.mark.netns


@pytest.fixture
def target() -> Iterator[Container]:
    with container() as made:
        yield made


def test_everything_goes_where_it_should(target: Container) -> None:
    """The tailnet by the TUN, the world by the container's own way, or with an exit node by the TUN."""
    with attached(target) as made, target.watched() as sniffer:
        lead(target)
        try_to_reach(target, (*TAILNET, *BEHIND))
        assert len(tun_reads(made)) >= 8
        try_to_reach(target, WORLD)
        lead(target, exit_node=True)
        assert tun_reads(made, timeout_s=0.1) == []
        try_to_reach(target, WORLD)
        assert len(tun_reads(made)) >= 4
        try_to_reach(target, BRIDGE)
        assert tun_reads(made, timeout_s=0.1) == [], "its own networks are its own"
    frames = sniffer.seen()
    assert addressed_to(frames, *TAILNET, *BEHIND) == []
    assert {frame.source for frame in frames if frame.destination in WORLD} == set(OWN)
    assert {frame.destination for frame in frames} > {*WORLD, *BRIDGE}


@pytest.mark.parametrize("exit_node", [False, True], ids=["no exit node", "exit node"])
def test_with_the_tun_gone_nothing_has_another_way(target: Container, exit_node: bool) -> None:
    closed = (*TAILNET, *BEHIND, *(WORLD if exit_node else ()))
    with attached(target) as made, target.watched() as sniffer:
        lead(target, exit_node=exit_node)
        let_go(made)
        assert set(try_to_reach(target, closed).values()) <= {"EHOSTUNREACH", "ENETUNREACH"}
        bound = "s.bind(({!r} if family == socket.AF_INET else {!r}, 0))".format(*OWN)
        try_to_reach(target, TAILNET, bound)
        reached = try_to_reach(target, (*BRIDGE, *(() if exit_node else WORLD)))
        assert all(reached[each] == "sent" for each in reached if each.endswith("DGRAM"))
    frames = sniffer.seen()
    assert addressed_to(frames, *closed) == []
    assert addressed_to(frames, *BRIDGE) != []


def test_the_way_of_before_leads_there_again(target: Container) -> None:
    """Or the test above would show nothing."""
    with target.watched() as sniffer:
        with attached(target):
            lead(target, exit_node=True)
        try_to_reach(target, (*TAILNET, *BEHIND, *WORLD))
    assert {frame.destination for frame in sniffer.seen()} > {*TAILNET, *BEHIND, *WORLD}


def test_published_ports_answer_whatever_the_way_out(target: Container) -> None:
    with serving(target), attached(target):
        for exit_node in (False, True, False, True):
            lead(target, exit_node=exit_node)
            for address, far in zip(OWN, WORLD, strict=True):
                assert is_served(target, address, source=far)
        target.add_network("eth1", 31)
        assert not is_served(target, "172.30.31.2", source=WORLD[0])
        lead(target, exit_node=True)  # as after `docker network connect`
        assert is_served(target, "172.30.31.2", source=WORLD[0])


def test_exclusive_lets_nothing_out_and_nothing_in(target: Container) -> None:
    everywhere = (*TAILNET, *BEHIND, *WORLD, *BRIDGE, "172.30.31.1", "fd30:31::1", "172.30.0.255", "224.0.0.251")
    with serving(target), attached(target, exclusive=True) as made, target.watched() as sniffer:
        lead(target, exclusive=True)
        target.add_network("eth1", 31)
        try_to_reach(target, TAILNET)
        assert len(tun_reads(made)) >= 4
        for keeper in ("alive", "killed"):
            for uid in (NOBODY, 0):
                broadcast = "s.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)"
                tried = try_to_reach(target, everywhere, broadcast, uid)
                assert keeper == "alive" or "sent" not in tried.values()
                for device in ("eth0", "eth1"):
                    by_device = f"{broadcast}; s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'{device}')"
                    tried = try_to_reach(target, everywhere, by_device, uid)
                    assert "sent" not in tried.values()
            raw = f"""
s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"eth0")
try:
    s.sendto(bytes([8, 0, 0xf7, 0xff, 0, 0, 0, 0]), ({WORLD[0]!r}, 0))
    print("sent")
except OSError as error:
    print(errno.errorcode[error.errno])
"""
            assert target.run(raw, 0) == "EPERM"
            for address, far in zip(OWN, BRIDGE, strict=True):
                assert not is_served(target, address, source=far)
            if keeper == "alive":
                let_go(made)
    assert [line for line in from_container(sniffer.seen()) if line.startswith("peer")] == []
    assert [line for line in from_container(sniffer.seen()) if "type 0806" not in line] == []


def test_exclusive_holds_who_may_write_to_a_device_itself(target: Container) -> None:
    """Docker leaves CAP_NET_RAW to root. A device that has come is closed when the attachment is asked for again."""
    frame = """
for device in ("eth0", "eth1"):
    for bypass in (0, 1):
        s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
        s.bind((device, 0x88b5))
        s.setsockopt(263, 20, bypass)  # SOL_PACKET, PACKET_QDISC_BYPASS
        try:
            s.send(bytes.fromhex("ffffffffffff 020000000001 88b5") + bytes(60))
        except OSError:
            pass
"""
    with attached(target, exclusive=True):
        lead(target, exclusive=True)
        target.add_network("eth1", 31)
        lead(target, exclusive=True)
        rules = target.output("nft", "list", "ruleset")
        with target.watched() as sniffer:
            target.run(frame, 0)
            assert not is_served(target, "172.30.31.2", source="172.30.31.1"), "its address is not even found"
        assert from_container(sniffer.seen()) == []
        lead(target, exclusive=True)
        assert target.output("nft", "list", "ruleset") == rules
        target.bridge.ip("link", "delete", "eth1-peer")
        lead(target, exclusive=True)
    assert target.output("nft", "list", "ruleset") == ""
    target.add_network("eth1", 31)
    with target.watched() as sniffer:
        target.run(frame, 0)
    assert len(from_container(sniffer.seen())) >= 4
