"""The whole lab: a control server, and a DERP relay with STUN for each region, with one life (ring 1)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from tsns.lab import certificate
from tsns.lab.control import ControlServer
from tsns.lab.derp import DerpServer
from tsns.lab.registrar import Mode
from tsns.lab.stun import StunServer
from tsns.lab.tailnet import DEFAULT_DOMAIN, Tailnet
from tsns.proto.types import DERPMap


class Lab:
    """A tailnet on this machine: `async with Lab() as lab`, then clients log in at `lab.url`.

    `regions` is how many DERP regions there are. All ports but control's are the system's choice.
    """

    def __init__(
        self,
        address: str = "127.0.0.1",
        *,
        port: int = 0,
        regions: int = 1,
        mode: Mode = Mode.HEADSCALE,
        domain: str = DEFAULT_DOMAIN,
        address_offset: int = 1,
    ) -> None:
        self.tailnet = Tailnet(os.urandom, domain=domain, address_offset=address_offset)
        self.control = ControlServer(self.tailnet, mode=mode)
        hosts = {region: f"derp{region}.{domain}" for region in range(1, regions + 1)}
        self.certificate = certificate.make([*hosts.values(), address] if hosts else [address])
        self.derps = {region: DerpServer(region, self.certificate, host) for region, host in hosts.items()}
        self._address = address
        self._port = port

    @property
    def url(self) -> str:
        """What clients are given as login server."""
        return self.control.url

    @property
    def derp(self) -> DerpServer:
        """The relay of the first region."""
        return self.derps[min(self.derps)]

    @property
    def stun(self) -> StunServer:
        """The STUN server of the first region."""
        return self.derp.stun

    def auth_key(self, **options: Any) -> str:
        """A new auth key; options are those of `ControlServer.add_auth_key`."""
        return self.control.add_auth_key(**options)

    def publish_derp_map(self, without: Sequence[int] = ()) -> None:
        """Tell the nodes which relays there are."""
        regions = {region: derp.region() for region, derp in self.derps.items() if region not in without}
        self.tailnet.configure(derp_map=DERPMap(regions={**regions}, omit_default_regions=True))

    async def start(self) -> None:
        """Serve; OSError where an address or a port cannot be had."""
        try:
            for derp in self.derps.values():
                await derp.start(self._address)
            self.publish_derp_map()
            await self.control.start(self._address, self._port)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """End all of it."""
        await self.control.stop()
        for derp in self.derps.values():
            await derp.stop()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()
