"""Attached and detached: what is in a container's namespace then, what leaves it, and that all of it is given back."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import select
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

import pytest

from tests.interop.rig.namespace import socket_in
from tests.leak.sniffer import Seen
from tests.netns.container import BRIDGE, NOBODY, OWN, WORLD, Container, container, from_container
from tsns.netns import attachment, attachment_filter, nftables
from tsns.netns.attachment import Made
from tsns.proto.addresses import Prefix

pytestmark = pytest.mark.netns

ADDRESSES: Final = [Prefix.parse("100.64.0.9"), Prefix.parse("fd7a:115c:a1e0::9")]
SUBNETS: Final = [Prefix.parse("10.55.0.0/24"), Prefix.parse("fd55::/64")]
EVERYTHING: Final = [Prefix.parse("0.0.0.0/0"), Prefix.parse("::/0")]
TAILNET: Final = ("100.70.1.1", "fd7a:115c:a1e0::7001")
BEHIND: Final = ("10.55.0.1", "fd55::1")
PORT: Final = 8080
PATIENCE_S: Final = 5.0
SERVE: Final = """
import socketserver, sys
class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        self.request.sendall(self.request.recv(100))
class Server(socketserver.ThreadingTCPServer):
    address_family = 10
Server(("::", int(sys.argv[1])), Echo).serve_forever()
"""


@pytest.fixture
def target() -> Iterator[Container]:
    with container() as made:
        yield made


def make(target: Container, **manner: Any) -> Made:
    return attachment.make(target.fd, **{"ports": None, "exclusive": False, "docker_names": False, **manner})


@contextlib.contextmanager
def attached(target: Container, **manner: Any) -> Iterator[Made]:
    """An attachment whose descriptors the test may close; given back at the end."""
    with held(make(target, **manner)) as made:
        yield made
    attachment.remove(target.fd, made.before)


@contextlib.contextmanager
def held(made: Made) -> Iterator[Made]:
    """Descriptors, until the end of the block or until `let_go`."""
    try:
        yield made
    finally:
        let_go(made)


def let_go(made: Made) -> None:
    """As when keeper and engine are killed."""
    for fd in (made.tun, made.diag, *made.dns):
        with contextlib.suppress(OSError):
            os.close(fd)


def lead(target: Container, *, exit_node: bool = False, exclusive: bool = False) -> None:
    routes = [*SUBNETS, *(EVERYTHING if exit_node else ())]
    attachment.lead(target.fd, ADDRESSES, routes, exit_node=exit_node, exclusive=exclusive)


def try_to_reach(target: Container, addresses: tuple[str, ...], how: str = "", uid: int = NOBODY) -> dict[str, str]:
    """What comes of a datagram and a connection to each address, after `how` was done with the socket `s`."""
    code = f"""
told, connecting = {{}}, {{}}
for address in {addresses!r}:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
        s = socket.socket(family, kind)
        s.setblocking(False)
        try:
            {how or "pass"}
            s.connect((address, 9))
            s.send(b"leak")
            told[f"{{address}} {{kind.name}}"] = "sent"
        except BlockingIOError:
            connecting[f"{{address}} {{kind.name}}"] = s
        except OSError as error:
            told[f"{{address}} {{kind.name}}"] = errno.errorcode[error.errno]
time.sleep(0.2 if connecting else 0)
for name, s in connecting.items():
    told[name] = errno.errorcode.get(s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), "nothing came")
print(json.dumps(told))
"""
    found: dict[str, str] = json.loads(target.run(code, uid))
    return found


def addressed_to(frames: list[Seen], *addresses: str) -> list[str]:
    return [str(frame) for frame in frames if frame.destination in addresses]


def tun_reads(made: Made, *, timeout_s: float = 0.5) -> list[bytes]:
    found = []
    while select.select([made.tun], [], [], timeout_s)[0]:
        found.append(os.read(made.tun, 1 << 16))
        timeout_s = 0.0
    return found


@contextlib.contextmanager
def serving(target: Container, port: int = PORT) -> Iterator[None]:
    """A published port: whoever is inside answers on all addresses."""
    words = target.network.command(sys.executable, "-c", SERVE, str(port))
    with subprocess.Popen(words) as process:
        try:
            wait_until(lambda: f":{port} " in target.output("ss", "-Hltn"))
            yield
        finally:
            process.kill()


def wait_until(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def is_served(target: Container, address: str, *, source: str) -> bool:
    """Whether somebody far away, whom the default route leads to, reaches the published port."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket_in(target.bridge.path, family, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        client.bind((source, 0))
        try:
            client.connect((address, PORT))
            client.sendall(b"hello")
            return client.recv(100) == b"hello"
        except OSError:
            return False


# --- what is there, and what is given back --------------------------------------------------------------------------------


@pytest.mark.parametrize("ipv6", [True, False], ids=["with IPv6", "without IPv6"])
@pytest.mark.parametrize("manner", ["plain", "docker_names", "exclusive"])
def test_what_was_there_is_there_again(manner: str, ipv6: bool) -> None:
    with container(ipv6=ipv6) as target:
        target.network.ip("rule", "add", "from", "10.1.1.1", "pref", "5230", "lookup", "main")  # somebody else's
        target.network.nft("table inet theirs { chain output { type filter hook output priority 0; }; }")
        before = target.state()
        manners = {"exclusive": manner == "exclusive", "docker_names": manner == "docker_names"}
        with attached(target, ports=(40000, 40999), **manners) as made:
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
    with attached(target, ports=(40000, 40999), docker_names=True):
        lead(target, exit_node=True)
        changed = set(target.state()[settings].splitlines()) ^ before
    assert {line for line in changed if "/tsns0/" not in line} == {
        "/proc/sys/net/ipv4/ip_local_port_range:32768\t60999",
        "/proc/sys/net/ipv4/ip_local_port_range:40000\t40999",
    }
    assert "/proc/sys/net/ipv6/conf/tsns0/addr_gen_mode:1" in changed


def test_flows_begin_from_the_slice(target: Container) -> None:
    with attached(target, ports=(40000, 40999)) as made:
        assert attachment.ports_before(made.before) == range(32768, 61000)
        lead(target)
        for family, address in ((2, TAILNET[0]), (10, TAILNET[1])):
            code = f"s = socket.socket({family}, 2); s.connect(({address!r}, 9)); print(s.getsockname()[1])"
            assert 40000 <= int(target.run(code)) <= 40999


@pytest.mark.parametrize("manner", [{"exclusive": True}, {"docker_names": True}], ids=["exclusive", "docker_names"])
def test_over_what_a_killed_keeper_has_left_the_same_is_made(target: Container, manner: dict[str, bool]) -> None:
    exclusive = manner.get("exclusive", False)
    before = target.state()
    with held(make(target, ports=(40000, 40999), **manner)) as first:
        lead(target, exit_node=True, exclusive=exclusive)
        made_once = target.state()
        let_go(first)
        with attached(target, ports=(40000, 40999), before=first.before, **manner) as second:
            assert second.before == first.before
            lead(target, exit_node=True, exclusive=exclusive)
            again = target.state()
    for each in made_once:
        if each not in ("ip -json link", "ip -json address"):  # in which the TUN has another number
            assert sorted(again[each].splitlines()) == sorted(made_once[each].splitlines()), each
    assert target.state() == before


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
            make(target, ports=(40000, 40999), exclusive=True)
        assert caught.value.errno == errno.EADDRINUSE
        assert target.state() == before


def test_one_node_is_attached_at_most(target: Container) -> None:
    with attached(target):
        lead(target)
        meanwhile = target.state()
        with pytest.raises(OSError, match="another node is attached there") as caught:
            make(target, exclusive=True)
        assert caught.value.errno == errno.EBUSY
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
                with held(attachment.make(fd, ports=(40000, 40999), exclusive=True, docker_names=False)) as made:
                    attachment.lead(fd, ADDRESSES, SUBNETS, exit_node=True, exclusive=True)
                    assert b"policy drop" in subprocess.check_output(look)
                    [names] = attachment.docker_dns_sockets(fd, 1)
                    os.close(names)
                attachment.remove(fd, made.before)
            finally:
                os.close(fd)
            assert subprocess.check_output(look) == before
        finally:
            process.kill()


# --- what leaves -----------------------------------------------------------------------------------------------------------


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


# --- names ------------------------------------------------------------------------------------------------------------------

# Docker's resolver: it listens somewhere on 127.0.0.11, and a rule leads questions there.
DOCKERS_RULES: Final = """
table ip docker {
    chain output {
        type nat hook output priority -100
        ip daddr 127.0.0.11 udp dport 53 dnat to 127.0.0.11:41953
        ip daddr 127.0.0.11 tcp dport 53 dnat to 127.0.0.11:41953
    }
}
"""
DOCKERS_RESOLVER: Final = """
import select, socket
udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
udp.bind(("127.0.0.11", 41953))
tcp = socket.create_server(("127.0.0.11", 41953))
print("serves", flush=True)
while True:
    for ready in select.select([udp, tcp], [], [])[0]:
        if ready is udp:
            question, asker = udp.recvfrom(100)
            udp.sendto(b"docker", asker)
        else:
            connection, _ = tcp.accept()
            connection.sendall(b"docker")
            connection.close()
"""
# Asks for as long as it is told to, by one socket for all of it and by new ones.
ASK: Final = """
import socket, sys
def answer(sock):
    try:
        sock.send(b"?")
        return sock.recv(100).decode()
    except OSError:
        return "nobody"
def connected(kind):
    sock = socket.socket(socket.AF_INET, kind)
    sock.settimeout(1)
    try:
        sock.connect(("127.0.0.11", 53))
    except OSError:
        pass
    return sock
lasting = connected(socket.SOCK_DGRAM)
for _ in sys.stdin:
    print(answer(lasting), answer(connected(socket.SOCK_DGRAM)), answer(connected(socket.SOCK_STREAM)), flush=True)
"""


@contextlib.contextmanager
def docker_resolver(target: Container) -> Iterator[Callable[[], list[str]]]:
    """Docker's resolver is there; calling what is yielded asks 127.0.0.11 three times, first by a socket that has asked before."""
    target.network.nft(DOCKERS_RULES)
    pipe = subprocess.PIPE
    with (
        subprocess.Popen(
            target.network.command(sys.executable, "-c", DOCKERS_RESOLVER), stdout=pipe, text=True
        ) as resolver,
        subprocess.Popen(
            target.network.command(sys.executable, "-c", ASK), stdin=pipe, stdout=pipe, text=True
        ) as asker,
    ):
        assert resolver.stdout is not None
        assert resolver.stdout.readline() == "serves\n"
        question, answers = asker.stdin, asker.stdout
        assert question is not None
        assert answers is not None

        def ask() -> list[str]:
            question.write("\n")
            question.flush()
            return answers.readline().split()

        try:
            yield ask
        finally:
            asker.kill()
            resolver.kill()


@contextlib.contextmanager
def magic_dns(made: Made) -> Iterator[None]:
    """An engine that answers."""
    udp, tcp = (socket.socket(fileno=os.dup(fd)) for fd in made.dns[:2])
    ended = threading.Event()

    def serve() -> None:
        while not ended.is_set():
            for ready in select.select([udp, tcp], [], [], 0.05)[0]:
                if ready is udp:
                    udp.sendto(b"magic", udp.recvfrom(100)[1])
                else:
                    connection, _ = tcp.accept()
                    connection.sendall(b"magic")
                    connection.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        udp.close()
        tcp.close()


def ask_docker(target: Container) -> str:
    [fd] = attachment.docker_dns_sockets(target.fd, 1)
    with socket.socket(fileno=fd) as sock:
        sock.sendto(b"?", ("127.0.0.11", 53))
        return sock.recv(100).decode() if select.select([sock], [], [], 1.0)[0] else "nobody"


def test_who_knows_dockers_resolver_by_heart_is_answered_by_ours(target: Container) -> None:
    with docker_resolver(target) as ask:
        assert ask() == ["docker", "docker", "docker"]
        before = target.output("nft", "list", "ruleset")
        with attached(target, docker_names=True) as made:
            with magic_dns(made):
                assert ask() == ["magic", "magic", "magic"]
                assert ask_docker(target) == "docker"
            let_go(made)
            assert "docker" not in ask(), "nobody answers in our place"
        assert ask() == ["docker", "docker", "docker"]
        assert target.output("nft", "list", "ruleset") == before
        with attached(target, exclusive=True):
            assert ask() == ["nobody", "nobody", "nobody"]
            assert ask_docker_fails(target)


def ask_docker_fails(target: Container) -> bool:
    try:
        return ask_docker(target) == "nobody"
    except OSError:
        return True


def test_a_kernel_without_nf_tables(target: Container, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(nftables, "transact", lacking)
    with docker_resolver(target) as ask:
        before = target.state()
        with attached(target, docker_names=True):
            assert ask() == ["nobody", "nobody", "nobody"], "at least nobody asks the wrong one"
        assert ask() == ["docker", "docker", "docker"]
        with pytest.raises(OSError, match="no way to be exclusive: the kernel lacks nf_tables"):
            make(target, exclusive=True)
        assert target.state() == before


def test_the_mark_is_ours() -> None:
    assert attachment_filter.NAMES_MARK.to_bytes(4, "big") == b"tsns"
