"""Two data planes in this process: real TUNs in namespaces of their own, real UDP sockets on loopback, and nothing else of a node."""

from __future__ import annotations

import asyncio
import importlib.util
import os
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from tests.interop.rig.namespace import socket_in
from tests.unit.wg.shuttle import entropy
from tests.unit.wg.test_router import OpenFilter
from tsns.keys import DiscoPrivate, NodePrivate, NodePublic
from tsns.netns import anchor, routes
from tsns.netns.underlay import udp_socket
from tsns.proto.addresses import Prefix, pack
from tsns.ways import DerpPath, UdpPath
from tsns.wg.device import Device
from tsns.wg.engines import NATIVE, PYTHON, maker
from tsns.wg.router import Router
from tsns.wg.socket import TunPump, boot_time

ADDRESSES = (("100.64.0.1", "fd7a:115c:a1e0::1"), ("100.64.0.2", "fd7a:115c:a1e0::2"))
PORT = 4000
ENGINES = [PYTHON, *([NATIVE] if importlib.util.find_spec("tsns.wg._native") else [])]


class Plane:
    """One end. `frames` counts what its pump wrote to the TUN."""

    def __init__(self, number: int, pin: Path, engine: str, family: int, socket_type: type[socket.socket]) -> None:
        self.addresses = ADDRESSES[number]
        self._pin = pin
        self._made = anchor.make(pin)
        routes.apply(self._made.namespace, [Prefix.parse(address) for address in self.addresses])
        self.key = NodePrivate.generate(entropy(number + 1)(32))
        device = Device(self.key, os.urandom, wall_clock=boot_time)
        self.router = Router(device, OpenFilter(), DiscoPrivate.generate(entropy(number + 5)(32)))
        self.udp = socket_type(fileno=udp_socket(family, 0).detach())
        self.frames = 0
        self.relay: Plane | None = None  # who gets what goes by relay
        self.pump = TunPump(
            self.router, self._made.tun, udp=[self.udp], send_derp=self._send_derp, event=lambda _: None
        )
        device.make_transport = maker(engine, join_udp=self.pump.offloads.tun_udp)
        [tun] = self.pump.tuns._devices.values()
        write = tun.write

        def counted(frame: bytes | memoryview) -> None:
            self.frames += 1
            write(frame)

        tun.write = counted  # type: ignore[method-assign]

    def meet(self, other: Plane, *, by_relay: bool) -> None:
        """Have the other one as a peer, reached on loopback."""
        prefixes = [Prefix(pack(address), 8 * len(pack(address))) for address in other.addresses]
        self.router.device.set_peer(other.key.public, prefixes)
        host = "::1" if self.udp.family == socket.AF_INET6 else "127.0.0.1"
        self.relay = other
        path = DerpPath(1) if by_relay else UdpPath((host, other.udp.getsockname()[1]))
        self.router.set_path(other.key.public, path)

    def socket(self, family: int, kind: int) -> socket.socket:
        """A socket of a program inside."""
        sock = socket_in(str(self._pin), family, kind)
        sock.setblocking(False)
        return sock

    def _send_derp(self, region: int, _peer: NodePublic, messages: Sequence[bytes]) -> None:
        assert self.relay is not None
        frames = [(self.key.public, message) for message in messages]
        asyncio.get_running_loop().call_soon(self.relay.pump.receive_derp, region, frames)

    def close(self) -> None:
        """Leave nothing behind."""
        self.pump.close()
        self.udp.close()
        for fd in (self._made.tun, self._made.namespace, *self._made.dns):
            os.close(fd)
        anchor.forget(self._pin)


@asynccontextmanager
async def planes(
    directory: Path,
    engine: str,
    *,
    underlay: int = socket.AF_INET,
    by_relay: bool = False,
    socket_type: type[socket.socket] = socket.socket,
) -> AsyncIterator[tuple[Plane, Plane]]:
    """Two ends that know each other."""
    ends: list[Plane] = []
    try:
        for number in range(2):
            ends.append(Plane(number, directory / f"plane-{number}", engine, underlay, socket_type))  # noqa: PERF401 (close what there is)
        a, b = ends
        a.meet(b, by_relay=by_relay)
        b.meet(a, by_relay=by_relay)
        for end in ends:
            end.pump.start()
        yield a, b
    finally:
        for end in ends:
            end.close()
