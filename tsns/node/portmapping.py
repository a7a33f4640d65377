"""Our UDP port mapped at the home router: runs `paths.portmap` on the host's network (ring 1)."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Callable, Coroutine
from typing import Final

from tsns.netns.gateway import default_gateways
from tsns.netns.underlay import Underlay, udp_socket
from tsns.node.upnp import Upnp
from tsns.paths import pcp
from tsns.paths.gateway_question import Service
from tsns.paths.home_network import is_home_router
from tsns.paths.portmap import PORT, Mapped, Output, PortMap, ReleaseUpnp, SendTo, TryUpnp
from tsns.proto.addresses import Endpoint

log = logging.getLogger(__name__)

SPACING_S: Final = 2.0  # between looks at the network, however often one is asked for
LOOK_S: Final = 60.0  # a look that is older than this is taken again before anything else is asked
CLOSE_S: Final = 0.5  # for giving the mapping back
MAX_DATAGRAMS: Final = 16  # read at a time


class PortMapping:
    """Keeps the UDP port `port` of this machine mapped at its gateway, where that gives mappings.

    `on_mapped(address)` is called whenever the port can be reached at another address of the outside, with None when it no longer can.
    """

    def __init__(self, underlay: Underlay, *, port: int, on_mapped: Callable[[Endpoint | None], None]) -> None:
        self._underlay = underlay
        self._port = port
        self._on_mapped = on_mapped
        self._portmap = PortMap(os.urandom)
        self._upnp = Upnp(underlay)
        self._sock: socket.socket | None = None  # connected to the gateway
        self._place: tuple[str, str] | None = None  # the gateway, and our address towards it
        self._looked_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._trying: asyncio.Task[None] | None = None
        self._releasing: set[asyncio.Task[None]] = set()
        self._changed = asyncio.Event()
        self._moved = asyncio.Event()
        self._closed = False

    @property
    def external(self) -> Endpoint | None:
        """Where the port can be reached from outside."""
        return self._portmap.external

    @property
    def have(self) -> bool:
        """Whether there is a mapping."""
        return self.external is not None

    @property
    def pmp(self) -> bool | None:
        """Whether the gateway gives mappings by NAT-PMP; None where that is not known."""
        return self._portmap.speaks(Service.PMP)

    @property
    def pcp(self) -> bool | None:
        """Whether the gateway gives mappings by PCP; None where that is not known."""
        return self._portmap.speaks(Service.PCP)

    @property
    def upnp(self) -> bool | None:
        """Whether the gateway speaks UPnP; None where that is not known."""
        return self._portmap.speaks(Service.UPNP)

    @property
    def port(self) -> int:
        """The UDP port that is to be mapped."""
        return self._port

    @port.setter
    def port(self, port: int) -> None:
        self._port = port
        self._changed.set()

    def network_changed(self) -> None:
        """The host's network is another one, or may be: look soon."""
        self._changed.set()

    async def run(self) -> None:
        """Keep the port mapped until cancelled; `close` gives the mapping back."""
        while not self._closed:
            self._changed.clear()
            self._look(recheck=True)
            await asyncio.sleep(SPACING_S)
            await self._changed.wait()

    async def close(self) -> None:
        """Give the mapping back, if that works within CLOSE_S, and stop. `on_mapped` is not called any more."""
        self._closed = True
        self._changed.set()
        if self._trying is not None:
            self._trying.cancel()
        try:
            async with asyncio.timeout(CLOSE_S):
                self._act(self._portmap.release(time.monotonic()))
                while self._portmap.deadline() is not None:
                    self._moved.clear()
                    await self._moved.wait()
                await asyncio.gather(*self._releasing)
        except TimeoutError:
            log.debug("the mapping of UDP port %d could not be given back in time", self._port)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            self._forget_socket()
            tasks = [*self._releasing, *([self._trying] if self._trying is not None else [])]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    # --- the network -----------------------------------------------------------------------------------------------

    def _look(self, *, recheck: bool) -> None:
        """See where the way out leads; with `recheck` what is known of a gateway that stayed is asked again."""
        if self._closed:
            return
        now = self._looked_at = time.monotonic()
        gateway = next(filter(is_home_router, default_gateways()), None)
        sock = self._towards(gateway) if gateway else None
        place = (gateway, sock.getsockname()[0]) if gateway and sock else None
        if sock is not None and place == self._place:
            sock.close()
        else:
            self._forget_socket()
            self._sock, self._place = sock, place
            if sock is not None:
                asyncio.get_running_loop().add_reader(sock.fileno(), self._readable)
        known, own = place or (None, None)
        out = self._portmap.set_network(known, own, self._port, now)
        if recheck and not out:
            out = self._portmap.recheck(now)
        self._act(out)

    def _towards(self, gateway: str) -> socket.socket | None:
        """A socket that hears the gateway only, and whose own address is ours towards it; nothing is sent."""
        try:
            sock = udp_socket(socket.AF_INET, 0)
        except OSError:
            return None
        try:
            sock.connect((gateway, PORT))
        except OSError:
            sock.close()
            return None
        return sock

    def _forget_socket(self) -> None:
        if self._sock is not None:
            asyncio.get_running_loop().remove_reader(self._sock.fileno())
            self._sock.close()
        self._sock, self._place = None, None

    def _readable(self) -> None:
        for _ in range(MAX_DATAGRAMS):
            if self._sock is None:
                return
            try:
                data, source = self._sock.recvfrom(pcp.MAX_MESSAGE_BYTES + 1)
            except (BlockingIOError, InterruptedError):
                return
            except OSError:  # the gateway has nothing at this port
                self._act(self._portmap.unreachable(time.monotonic()))
            else:
                self._act(self._portmap.receive(data, source, time.monotonic()))

    # --- what the machine wants ------------------------------------------------------------------------------------

    def _act(self, outputs: list[Output]) -> None:
        now = time.monotonic()
        outputs = list(outputs)
        while outputs:
            match outputs.pop(0):
                case SendTo(address, data):
                    if not self._send(address, data):
                        outputs += self._portmap.unreachable(now)
                case TryUpnp() as asked:
                    self._begin(self._try_upnp(asked))
                case ReleaseUpnp(gateway, external_port):
                    task = asyncio.create_task(self._upnp.release(gateway, external_port), name="upnp-release")
                    self._releasing.add(task)
                    task.add_done_callback(self._releasing.discard)
                case Mapped(external):
                    self._tell(external)
        self._moved.set()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        deadline = self._portmap.deadline()
        if deadline is not None:
            self._timer = asyncio.get_running_loop().call_later(max(deadline - now, 0.001), self._tick)

    def _tick(self) -> None:
        self._timer = None
        if time.monotonic() - self._looked_at >= LOOK_S:
            self._look(recheck=False)
        self._act(self._portmap.tick(time.monotonic()))

    def _send(self, address: Endpoint, data: bytes) -> bool:
        """Send to the gateway; False where that cannot work."""
        if self._place is None or self._sock is None or address != (self._place[0], PORT):
            return False
        try:
            self._sock.send(data)
        except (BlockingIOError, InterruptedError):
            pass  # it will be sent again
        except OSError:
            return False
        return True

    def _begin(self, attempt: Coroutine[None, None, None]) -> None:
        if self._trying is not None:
            self._trying.cancel()
        self._trying = asyncio.create_task(attempt, name="upnp")

    async def _try_upnp(self, asked: TryUpnp) -> None:
        outcome = await self._upnp.map(asked)
        self._trying = None
        self._act(self._portmap.upnp(outcome, time.monotonic()))

    def _tell(self, external: Endpoint | None) -> None:
        service = self._portmap.service
        if external is None or service is None:
            log.info("UDP port %d is no longer mapped", self._port)
        else:
            log.info("UDP port %d is mapped to %s:%d by %s", self._port, *external, service.value)
        if not self._closed:
            self._on_mapped(external)
