"""How this node can be reached from outside: its UDP sockets, what the world sees of them, and who is told (ring 1).

    host's addresses ---.
    mapped port --------+
    STUN reports -------+--> OwnEndpoints --> control, and peers that look for a path to us
                        '--> home region  --> control, relays

The home router is asked to map our port once a STUN report shows that there is a NAT at all.

When the host's network changes, all of it is found out anew: sockets for families that are new, endpoints, home, relays, paths.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Collection, Sequence
from typing import Final, Protocol

from tsns.netns.underlay import Underlay, add_udp_sockets
from tsns.node.home import HomeFinder
from tsns.node.host_watch import HostWatch
from tsns.node.portmapping import PortMapping
from tsns.paths.endpoints import OwnEndpoints
from tsns.paths.netcheck import Report
from tsns.paths.peer_paths import PeerPaths
from tsns.proto.addresses import Endpoint, endpoint_text
from tsns.wg.socket import TunPump

PACKED_BYTES: Final = {socket.AF_INET: 4, socket.AF_INET6: 16}


class Informed(Protocol):
    """Who is told where we are, and that the network is another one."""

    def set_endpoints(self, endpoints: Sequence[tuple[str, int]]) -> None:
        """(`address:port`, tailcfg.EndpointType) pairs, best first."""

    def network_changed(self, addresses: Collection[str]) -> None:
        """See soon whether the connection survived it."""


class Reachability:
    """See the module. `sockets` are the UDP sockets that peers know us by, `port` the one that the person chose (0: any)."""

    def __init__(
        self,
        *,
        underlay: Underlay,
        sockets: Sequence[socket.socket],
        port: int,
        direct: bool,
        paths: PeerPaths,
        control: Informed,
        make_home: Callable[[Callable[[Endpoint, bytes], None], Callable[[Report], None]], HomeFinder],
        relays: Callable[[Collection[str]], None],
        clock: Callable[[], float],
    ) -> None:
        self.sockets = list(sockets)
        self.home = make_home(self._send_udp, self._on_report)
        self._port = port
        self._direct = direct
        self._paths = paths
        self._control = control
        self._tell_relays = relays
        self._clock = clock
        self._underlay = underlay
        self._mapping: PortMapping | None = None
        self._behind_nat = asyncio.Event()
        self._pump: TunPump | None = None
        self._endpoints = OwnEndpoints(fixed_port=port)
        self._watch = HostWatch(self._on_host, self._on_turn)
        self._watch.look()

    def set_pump(self, pump: TunPump) -> None:
        """From now on there is something that reads the sockets."""
        self._pump = pump

    async def run(self) -> None:
        """Keep everything up to date until cancelled."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self.home.run())
            tasks.create_task(self._watch.run())
            tasks.create_task(self._map_port())

    async def close(self) -> None:
        """Give back what the home router has given."""
        if self._mapping is not None:
            await self._mapping.close()

    def _send_udp(self, address: Endpoint, data: bytes) -> None:
        if self._pump is not None:
            self._pump.send_udp(address, [data])

    # --- what is found out -----------------------------------------------------------------------------------------

    def _on_report(self, report: Report) -> None:
        seen = [endpoint for endpoint in (report.global_v4, report.global_v6) if endpoint is not None]
        if report.global_v4 is not None and not self._endpoints.is_own_address(report.global_v4[0]):
            self._behind_nat.set()
        self._endpoints.note_seen(seen, varies=report.mapping_varies_by_dest_ip, now=self._clock())
        self._tell()

    def _on_host(self, addresses: list[str], why: str) -> None:
        if why:
            self._open_missing()
            self._endpoints.forget_seen()
        ports = {PACKED_BYTES[sock.family]: sock.getsockname()[1] for sock in self.sockets}
        self._endpoints.set_local(addresses, ports)
        self._tell()
        if why:
            if self._mapping is not None:
                self._mapping.network_changed()
            self.home.network_changed()
            self._tell_relays(addresses)
            self._control.network_changed(addresses)
            self._paths.network_changed(why, self._clock())
            self._settle()

    async def _map_port(self) -> None:
        """Ask the home router for a port that is open to all, where peers are to reach us and something is in between."""
        await self._behind_nat.wait()
        port = next((sock.getsockname()[1] for sock in self.sockets if sock.family == socket.AF_INET), 0)
        if port and self._direct:
            self._mapping = PortMapping(self._underlay, port=port, on_mapped=self._on_mapped)
            await self._mapping.run()

    def _on_mapped(self, external: Endpoint | None) -> None:
        assert self._mapping is not None  # it calls
        offers = self._mapping
        self._endpoints.set_mapped(external)
        self.home.set_port_mapping(upnp=offers.upnp, pmp=offers.pmp, pcp=offers.pcp, have=offers.have)
        self._tell()

    def _on_turn(self) -> None:
        self.home.active = self._paths.is_active(self._clock())

    def _tell(self) -> None:
        now = self._clock()
        endpoints = self._endpoints.all(now)
        if self._direct:
            self._control.set_endpoints([(endpoint_text(endpoint), int(kind)) for endpoint, kind in endpoints])
        self._paths.set_endpoints([endpoint for endpoint, _ in endpoints], now)
        self._settle()

    def _settle(self) -> None:
        """The paths may want something done at once."""
        if self._pump is not None:
            self._pump.dispatch(())

    def _open_missing(self) -> None:
        """A socket for each family that the host has got since; those that there are belong to all addresses, old and new."""
        have = len(self.sockets)
        add_udp_sockets(self.sockets, self._port)
        for sock in self.sockets[have:]:
            if self._pump is not None:
                self._pump.add_udp(sock)
