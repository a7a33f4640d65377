"""How this node can be reached from outside: its UDP sockets, what the world sees of them, and who is told (ring 1).

    host's addresses ---.
    STUN reports -------+--> OwnEndpoints --> control, and peers that look for a path to us
                        '--> home region  --> control, relays

When the host's network changes, all of it is found out anew: sockets for families that are new, endpoints, home, relays, paths.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from tsns.netns.underlay import Underlay
from tsns.node.home import HomeFinder
from tsns.node.host_watch import HostWatch
from tsns.paths.endpoints import OwnEndpoints
from tsns.paths.netcheck import Report
from tsns.paths.peer_paths import PeerPaths
from tsns.proto.addresses import Endpoint, endpoint_text
from tsns.wg.socket import TunPump

log = logging.getLogger(__name__)

PACKED_BYTES: Final = {socket.AF_INET: 4, socket.AF_INET6: 16}


class Informed(Protocol):
    """Who is told where we are, and that the network is another one."""

    def set_endpoints(self, endpoints: Sequence[tuple[str, int]]) -> None:
        """(`address:port`, tailcfg.EndpointType) pairs, best first."""

    def network_changed(self) -> None:
        """See soon whether the connection survived it."""


class Reachability:
    """See the module. `home` is to be run by the owner, and told of the DERP map."""

    def __init__(
        self,
        *,
        underlay: Underlay,
        port: int,
        paths: PeerPaths,
        control: Informed,
        make_home: Callable[[Callable[[Endpoint, bytes], None], Callable[[Report], None]], HomeFinder],
        relays_changed: Callable[[], None],
        clock: Callable[[], float],
    ) -> None:
        self.sockets = _udp_sockets(underlay, port)
        self.home = make_home(self._send_udp, self._on_report)
        self._underlay = underlay
        self._paths = paths
        self._control = control
        self._relays_changed = relays_changed
        self._clock = clock
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

    def _send_udp(self, address: Endpoint, data: bytes) -> None:
        if self._pump is not None:
            self._pump.send_udp(address, [data])

    # --- what is found out -----------------------------------------------------------------------------------------

    def _on_report(self, report: Report) -> None:
        seen = [endpoint for endpoint in (report.global_v4, report.global_v6) if endpoint is not None]
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
            self.home.network_changed()
            self._relays_changed()
            self._control.network_changed()
            self._paths.network_changed(why, self._clock())
            self._settle()

    def _on_turn(self) -> None:
        self.home.active = self._paths.is_active(self._clock())

    def _tell(self) -> None:
        now = self._clock()
        endpoints = self._endpoints.all(now)
        self._control.set_endpoints([(endpoint_text(endpoint), int(kind)) for endpoint, kind in endpoints])
        self._paths.set_endpoints([endpoint for endpoint, _ in endpoints], now)
        self._settle()

    def _settle(self) -> None:
        """The paths may want something done at once."""
        if self._pump is not None:
            self._pump.dispatch(())

    def _open_missing(self) -> None:
        """A socket for each family that the host has got since; those that there are belong to all addresses, old and new."""
        have = {sock.family for sock in self.sockets}
        port = self.sockets[0].getsockname()[1] if self.sockets else 0
        for sock in _udp_sockets(self._underlay, port, set(PACKED_BYTES) - have):
            self.sockets.append(sock)
            if self._pump is not None:
                self._pump.add_udp(sock)


def _udp_sockets(
    underlay: Underlay, port: int, families: set[socket.AddressFamily] | None = None
) -> list[socket.socket]:
    """One for each family that the host has, on one port if that is free for both."""
    sockets: list[socket.socket] = []
    for family in families if families is not None else PACKED_BYTES:
        wanted = sockets[0].getsockname()[1] if sockets else port
        for each in dict.fromkeys((wanted, 0)):
            with contextlib.suppress(OSError):
                sockets.append(underlay.udp_socket(family, each))
                break
    return sockets
