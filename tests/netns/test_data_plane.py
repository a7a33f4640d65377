"""Programs talk through two real TUNs: with each engine, each offload missing, each family inside and outside, by relay too."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import random
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.netns.data_plane import ENGINES, PORT, Plane, planes
from tests.netns.nodes import Tsns
from tsns.netns.tun import IFF_VNET_HDR, TUNSETIFF
from tsns.wg.offload import SOL_UDP, TUN_F_USO, TUNSETOFFLOAD, UDP_GRO, UDP_SEGMENT

pytestmark = pytest.mark.netns

BULK = random.Random(7).randbytes(3 << 20)
PACKETS = -(-len(BULK) // 1228)


async def listening(end: Plane, family: int) -> socket.socket:
    sock = end.socket(family, socket.SOCK_STREAM)
    sock.bind((end.addresses[family == socket.AF_INET6], PORT))
    sock.listen()
    return sock


async def pour(a: Plane, b: Plane, family: int = socket.AF_INET) -> None:
    """A program in `a` sends BULK to one in `b` over TCP, which answers with what it has understood."""
    loop = asyncio.get_running_loop()
    with await listening(b, family) as listener, a.socket(family, socket.SOCK_STREAM) as client:
        await loop.sock_connect(client, (b.addresses[family == socket.AF_INET6], PORT))
        server, _ = await loop.sock_accept(listener)
        with server:
            server.setblocking(False)
            sending = asyncio.ensure_future(loop.sock_sendall(client, BULK))
            received = hashlib.sha256()
            left = len(BULK)
            while left:
                data = await loop.sock_recv(server, 1 << 18)
                assert data
                received.update(data)
                left -= len(data)
            await sending
            await loop.sock_sendall(server, received.digest())
            assert await loop.sock_recv(client, 100) == hashlib.sha256(BULK).digest()


async def exchange(a: Plane, b: Plane, family: int = socket.AF_INET) -> None:
    """Datagrams of all sizes, and bursts of equal ones that the kernel sends as one super-packet where it can."""
    loop = asyncio.get_running_loop()
    with a.socket(family, socket.SOCK_DGRAM) as one, b.socket(family, socket.SOCK_DGRAM) as other:
        one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        other.bind((b.addresses[family == socket.AF_INET6], PORT))
        one.connect((b.addresses[family == socket.AF_INET6], PORT))
        sent = [bytes((size % 251,)) * size for size in (1, 100, 1000, 1200, 1201, 1, 17)]
        for datagram in sent:
            one.send(datagram)
        burst = [bytes((number,)) * 1100 for number in range(20)] + [b"the last one is shorter"]
        one.sendmsg([b"".join(burst)], [(SOL_UDP, UDP_SEGMENT, (1100).to_bytes(2, "little"))])
        received = [await asyncio.wait_for(loop.sock_recv(other, 2000), 5) for _ in range(len(sent) + len(burst))]
        assert received == sent + burst


def talk(directory: Path, engine: str, **how: Any) -> tuple[Plane, Plane]:
    """TCP and UDP in both families; the ends, as they were at the end."""

    async def main() -> tuple[Plane, Plane]:
        async with asyncio.timeout(60), planes(directory, engine, **how) as (a, b):
            for family in (socket.AF_INET, socket.AF_INET6):
                await pour(a, b, family)
                await exchange(a, b, family)
            for end in (a, b):
                assert end.router.counters.snapshot() == {}
            return a, b

    return asyncio.run(main())


@pytest.mark.parametrize("engine", ENGINES)
def test_super_packets_go_through(engine: str, tmp_path: Path) -> None:
    a, b = talk(tmp_path, engine)
    assert all(a.pump.offloads.named().values())
    assert b.frames < 2 * PACKETS / 5  # joined: many packets to a write


@pytest.mark.parametrize("engine", ENGINES)
def test_over_ipv6_outside(engine: str, tmp_path: Path) -> None:
    talk(tmp_path, engine, underlay=socket.AF_INET6)


@pytest.mark.parametrize("engine", ENGINES)
def test_frames_of_a_relay_are_joined_again(engine: str, tmp_path: Path) -> None:
    _, b = talk(tmp_path, engine, by_relay=True)
    assert b.frames < 2 * PACKETS / 5


class Kernel(socket.socket):
    """A UDP socket of a kernel that lacks something."""

    lacks = ""

    def setsockopt(self, level: int, option: int, value: Any) -> None:  # type: ignore[override]
        if self.lacks == "UDP_GRO" and (level, option) == (SOL_UDP, UDP_GRO):
            raise OSError(errno.ENOPROTOOPT, "")
        super().setsockopt(level, option, value)

    def sendmsg(self, *args: Any) -> int:
        if self.lacks == "UDP_SEGMENT":
            raise OSError(errno.EIO, "")
        return super().sendmsg(*args)


def lacking(missing: str) -> Callable[..., Any]:
    """The ioctl of a kernel that lacks something."""
    ioctl = fcntl.ioctl

    def limited(fd: int, request: int, argument: Any) -> Any:
        refused = {
            "TSO": request == TUNSETOFFLOAD,
            "USO": request == TUNSETOFFLOAD and bool(argument & TUN_F_USO),
            "vnet_hdr": request == TUNSETIFF and bool(int.from_bytes(argument[16:18], "little") & IFF_VNET_HDR),
        }
        if refused.get(missing):
            raise OSError(errno.EINVAL, "")
        return ioctl(fd, request, argument)

    return limited


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("missing", ["vnet_hdr", "TSO", "USO", "UDP_SEGMENT", "UDP_GRO"])
def test_what_the_kernel_lacks_is_done_without(
    engine: str, missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fcntl, "ioctl", lacking(missing))
    monkeypatch.setattr(Kernel, "lacks", missing)
    a, b = talk(tmp_path, engine, socket_type=Kernel)
    lacks = {"vnet_hdr": {"vnet_hdr", "TSO", "USO"}, "TSO": {"TSO", "USO"}}.get(missing, {missing})
    assert {name for name, is_on in a.pump.offloads.named().items() if not is_on} == lacks
    assert b.pump.offloads.tun_header == (missing != "vnet_hdr")


@pytest.mark.parametrize("engine", ENGINES)
def test_a_node_has_the_data_plane_that_it_is_given(engine: str, tsns: Tsns) -> None:
    """Also one that the server has not loaded: it is there before the engine gives up its rights."""
    Tsns(tsns.directories, tsns.lab, {"TSNS_DATA_PLANE": engine}).up("web")
    tsns.up("db", "--data-plane", engine)
    assert tsns("ping", "db", "web", "--icmp", "-c", "3").returncode == 0
    for name in ("web", "db"):
        found = tsns.json("status", name)["data_plane"]
        assert found["engine"] == engine
        assert all(found["offloads"].values())
        assert "imported after the fork" not in tsns("logs", name).stdout
    assert f"data plane: {engine}" in tsns("status", "db", "-v").stdout


def test_a_data_plane_that_is_none(tsns: Tsns) -> None:
    done = tsns("up", "web", *tsns.lab.login, "--data-plane", "fortran")
    assert done.returncode == 2
    assert "--data-plane" in done.stderr
