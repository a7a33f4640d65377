"""The pump on descriptors of this process: a pair of datagram sockets stands in for the TUN."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from tests.unit.wg.shuttle import A_ADDRESS, A_TO_B, B_ADDRESS, B_TO_A, entropy, udp
from tests.unit.wg.test_router import STUN_RESPONSE, OpenFilter
from tsns.keys import DiscoPrivate, NodePrivate, NodePublic
from tsns.proto.addresses import Prefix
from tsns.proto.packets import build
from tsns.proto.virtio import frame_of
from tsns.ways import DerpPath, Train, UdpPath
from tsns.wg.device import Device, SessionUp
from tsns.wg.offload import Offloads, UdpPort
from tsns.wg.router import Event, Output, Pong, Router, StunReply
from tsns.wg.sharing import CLASH, Ask
from tsns.wg.socket import (
    UDP_NO_SOCKET,
    UDP_SEND_FULL,
    UDP_SEND_REFUSED,
    TunPump,
    boot_time,
)
from tsns.wg.tuns import PACKETS_PER_WAKE_UP, WRITE_DOWN, WRITE_FULL, WRITE_REFUSED

KEYS = [NodePrivate.generate(bytes((number,)) * 32) for number in (1, 2)]
ADDRESSES = [A_ADDRESS, B_ADDRESS]


class End:
    """One node: its pump, and the host's end of its TUN."""

    def __init__(self, number: int, sockets: Sequence[socket.socket]) -> None:
        self.tun, self.host = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.tun.setblocking(False)
        self.host.setblocking(False)
        self.sockets = sockets
        self.events: list[Event] = []
        self.was_told = asyncio.Event()
        self.derp: list[tuple[int, NodePublic, Sequence[bytes]]] = []
        self.lost = 0
        self.asked: list[Ask] = []
        self.device = Device(KEYS[number], entropy(number), wall_clock=boot_time)
        self.router = Router(self.device, OpenFilter(), DiscoPrivate.generate(entropy(20 + number)(32)))
        self.peer = KEYS[1 - number].public
        self.device.set_peer(self.peer, [Prefix(ADDRESSES[1 - number], 32)])
        self.pump = TunPump(
            self.router,
            self.tun.fileno(),
            udp=sockets,
            send_derp=lambda region, peer, datagrams: self.derp.append((region, peer, datagrams)),
            event=self.tell,
            tun_lost=self.lose,
            who_listens=self.ask,
        )

    def tell(self, event: Event) -> None:
        self.events.append(event)
        self.was_told.set()

    async def told(self, count: int) -> None:
        """Wait until the owner was told this many things."""
        async with asyncio.timeout(2):
            while len(self.events) < count:
                self.was_told.clear()
                await self.was_told.wait()

    def ask(self, question: Ask) -> None:
        self.asked.append(question)
        self.was_told.set()

    def lose(self, _place: int) -> None:
        self.lost += 1

    async def packet(self) -> bytes:
        """The next packet that the host gets."""
        return await asyncio.wait_for(asyncio.get_running_loop().sock_recv(self.host, 65536), 2)

    def close(self) -> None:
        self.pump.close()
        for sock in (self.tun, self.host, *self.sockets):
            sock.close()


def udp_socket(family: int = socket.AF_INET) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(("127.0.0.1" if family == socket.AF_INET else "::1", 0))
    return sock


def address_of(sock: socket.socket) -> tuple[str, int]:
    host, port = sock.getsockname()[:2]
    return host, port


@contextlib.asynccontextmanager
async def ends(family: int = socket.AF_INET) -> AsyncIterator[tuple[End, End]]:
    """Two nodes that reach each other by UDP on loopback."""
    a, b = End(0, [udp_socket(family)]), End(1, [udp_socket(family)])
    try:
        for end, other in ((a, b), (b, a)):
            end.router.set_path(end.peer, UdpPath(address_of(other.sockets[0])))
            end.pump.start()
        yield a, b
    finally:
        a.close()
        b.close()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_packets_go_from_host_to_host(family: int) -> None:
    async def main() -> None:
        async with ends(family) as (a, b):
            a.host.send(A_TO_B)
            assert await b.packet() == A_TO_B
            b.host.send(B_TO_A)
            assert await a.packet() == B_TO_A
            assert a.events == [SessionUp(a.peer)]
            a.pump.ping(a.peer, A_ADDRESS, B_ADDRESS, b"8 bytes!")
            await a.told(2)
            assert a.events[1] == Pong(a.peer, b"8 bytes!")

    asyncio.run(main())


def test_a_burst_is_taken_in_portions_and_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with ends() as (a, b):
            a.host.send(A_TO_B)
            await b.packet()
            portions: list[int] = []
            outbound = Router.outbound

            def watched(self: Router, frames: list[bytes], now: float) -> list[Output]:
                portions.append(len(frames))
                return outbound(self, frames, now)

            burst = [udp(A_ADDRESS, B_ADDRESS, bytes((number,))) for number in range(PACKETS_PER_WAKE_UP + 8)]
            waiting = iter(burst)

            def read(fd: int, size: int) -> bytes:
                packet = next(waiting, None)
                if packet is None:
                    raise BlockingIOError
                return packet

            with monkeypatch.context() as patch:
                patch.setattr(Router, "outbound", watched)
                patch.setattr("tsns.wg.offload.os.read", read)
                a.host.send(b"wake up")
                received = [await b.packet() for _ in burst]
            assert received == burst
            assert portions == [PACKETS_PER_WAKE_UP, 8]

    asyncio.run(main())


def test_a_flood_gets_a_small_share_of_each_round_until_a_peer_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with ends() as (a, b):
            a.host.send(A_TO_B)
            await b.packet()
            portions: list[int] = []
            inbound = Router.inbound_udp

            def watched(self: Router, trains: list[tuple[Train, tuple[str, int]]], now: float) -> list[Output]:
                portions.append(sum(len(train.messages()) for train, _ in trains))
                return inbound(self, trains, now)

            monkeypatch.setattr(Router, "inbound_udp", watched)
            b.pump.close()
            with udp_socket() as stranger:
                for _ in range(100):
                    stranger.sendto(b"junk", address_of(b.sockets[0]))
                a.host.send(A_TO_B)
                await asyncio.sleep(0.05)
                for _ in range(40):
                    stranger.sendto(b"junk", address_of(b.sockets[0]))
            b.pump.start()
            assert await b.packet() == A_TO_B
            await asyncio.sleep(0.05)
            assert portions[:5] == [1, 32, 16, 8, 4]
            assert set(portions[5:-3]) <= {4, 32}
            assert 32 in portions[5:]  # after the peer's packet
            assert sum(portions) == 141

    asyncio.run(main())


def test_pausing_leaves_packets_where_they_are() -> None:
    async def main() -> None:
        async with ends() as (a, b):
            a.pump.pause()
            a.pump.pause()
            a.host.send(A_TO_B)
            await asyncio.sleep(0.05)
            assert a.device.statistics(a.peer).tx_bytes == 0
            a.pump.resume()
            assert await b.packet() == A_TO_B
            b.host.send(B_TO_A)  # what comes in is not held up
            a.pump.pause()
            assert await a.packet() == B_TO_A

    asyncio.run(main())


def test_one_timer_repeats_the_first_initiation() -> None:
    async def main() -> None:
        async with ends() as (a, b):
            a.router.set_path(a.peer, UdpPath(("127.0.0.1", 9)))  # nobody there; an ICMP error may come back
            a.host.send(A_TO_B)
            await asyncio.sleep(0.1)
            a.router.set_path(a.peer, UdpPath(address_of(b.sockets[0])))
            assert await b.packet() == A_TO_B

    asyncio.run(main())


def relay(target: End, sender: NodePublic) -> Callable[[int, NodePublic, Sequence[bytes]], None]:
    """A relay that brings the target at once what the sender gives it."""

    def send(region: int, peer: NodePublic, datagrams: Sequence[bytes]) -> None:
        target.pump.receive_derp(region, [(sender, datagram) for datagram in datagrams])

    return send


def test_by_relay() -> None:
    async def main() -> None:
        async with ends() as (a, b):
            for end, other in ((a, b), (b, a)):
                end.router.set_path(end.peer, DerpPath(5))
                end.pump._send_derp = relay(other, sender=other.peer)
            a.host.send(A_TO_B)
            assert await b.packet() == A_TO_B
            assert a.device.statistics(a.peer).tx_bytes > 0

    asyncio.run(main())


def test_stun_comes_out_as_an_event() -> None:
    async def main() -> None:
        async with ends() as (a, b):
            b.sockets[0].sendto(STUN_RESPONSE, address_of(a.sockets[0]))
            await a.told(1)
            assert a.events == [StunReply(STUN_RESPONSE, address_of(b.sockets[0]))]

    asyncio.run(main())


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errno.EIO, WRITE_DOWN),
        (errno.EAGAIN, WRITE_FULL),
        (errno.EINVAL, WRITE_REFUSED),
    ],
)
def test_a_tun_that_does_not_take_a_packet(error: int, reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with ends() as (a, b):
            a.host.send(A_TO_B)
            await b.packet()

            def refuse(fd: int, data: bytes) -> int:
                raise OSError(error, os.strerror(error))

            with monkeypatch.context() as patch:
                patch.setattr("tsns.wg.offload.os.write", refuse)
                b.pump.tuns.write([frame_of(A_TO_B), frame_of(A_TO_B)])
            assert b.router.counters[reason] == 2

    asyncio.run(main())


class Refusing:
    """A socket on which sending fails."""

    family = socket.AF_INET

    def __init__(self, error: int) -> None:
        self._error = error

    def setsockopt(self, level: int, option: int, value: int) -> None:
        """Have an option."""

    def sendto(self, data: bytes, address: tuple[str, int]) -> int:
        raise OSError(self._error, os.strerror(self._error))


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (errno.EAGAIN, UDP_SEND_FULL),
        (errno.ENOBUFS, UDP_SEND_FULL),
        (errno.ENETUNREACH, UDP_SEND_REFUSED),
        (errno.EPERM, UDP_SEND_REFUSED),
    ],
)
def test_a_socket_that_does_not_take_a_datagram(error: int, reason: str) -> None:
    async def main() -> None:
        async with ends() as (a, _):
            real = a.pump._ports[socket.AF_INET]
            a.pump._ports[socket.AF_INET] = UdpPort(Refusing(error), Offloads())  # type: ignore[arg-type]
            a.pump.send_udp(("192.0.2.1", 1), [b"x", b"y"])
            a.pump._ports[socket.AF_INET] = real
            assert a.router.counters[reason] == 2
            a.pump.send_udp(("2001:db8::1", 1), [b"x"])
            assert a.router.counters[UDP_NO_SOCKET] == 1

    asyncio.run(main())


def test_a_tun_that_is_gone_is_left_alone() -> None:
    async def main() -> None:
        async with ends() as (a, _):

            def gone(fd: int, size: int) -> bytes:
                raise OSError(errno.EBADFD, "File descriptor in bad state")

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr("tsns.wg.offload.os.read", gone)
                a.host.send(A_TO_B)
                await asyncio.sleep(0.05)
            assert a.lost == 1
            a.pump.resume()
            await asyncio.sleep(0.05)
            assert a.device.statistics(a.peer).tx_bytes == 0

    asyncio.run(main())


def test_closing_leaves_nothing_behind() -> None:
    async def main() -> None:
        async with ends() as (a, _):
            a.host.send(A_TO_B)
            await asyncio.sleep(0.05)
            a.pump.close()
            a.pump.close()
            sent = a.device.statistics(a.peer).tx_bytes
            a.host.send(A_TO_B)
            await asyncio.sleep(0.05)
            assert a.device.statistics(a.peer).tx_bytes == sent
            assert a.pump._timer is None

    asyncio.run(main())


def test_namespaces_that_share_a_node_have_their_own_packets() -> None:
    """Two TUNs with one address: each gets the answers to what it sent, and what somebody listens for in it."""

    async def main() -> None:
        async with ends() as (a, b):
            tun, container = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
            with tun, container:
                tun.setblocking(False)
                container.setblocking(False)
                loop = asyncio.get_running_loop()
                a.pump.tuns.add(1, tun.fileno())
                a.pump.tuns.set_ports(1, range(50000, 60000))
                asked = udp(A_ADDRESS, B_ADDRESS, b"a question")
                container.send(asked)
                assert await b.packet() == asked
                answer = build(17, B_ADDRESS, A_ADDRESS, asked[22:24] + asked[20:22] + asked[24:26] + b"\0\0the answer")
                b.host.send(answer)
                assert await asyncio.wait_for(loop.sock_recv(container, 65536), 2) == answer
                a.host.send(asked)
                container.send(asked + b"")
                assert await b.packet() == asked, "the container's flow"
                assert a.router.counters[CLASH] == 1

                knock = build(17, B_ADDRESS, A_ADDRESS, b"\x12\x34\x00\x35\x00\x08\0\0")
                b.host.send(knock)
                async with asyncio.timeout(2):
                    while not a.asked:
                        a.was_told.clear()
                        await a.was_told.wait()
                assert a.asked == [Ask(17, 53)]
                a.pump.tuns.answer(a.asked[0], 1)
                assert await asyncio.wait_for(loop.sock_recv(container, 65536), 2) == knock
                a.pump.tuns.remove(1)
                b.host.send(answer)
                assert await a.packet() == answer, "nobody else is there"

    asyncio.run(main())
