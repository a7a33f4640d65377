"""A small internet with a control server and relays, ready for clients of either make."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.interop.rig.control import OWN_REGION_CODE, Control, Headscale, OwnLab, UpstreamControl
from tests.interop.rig.internet import Host, Internet
from tests.interop.rig.peers import headscale_binary
from tests.interop.rig.relay import REGION, Authority, Derper
from tests.interop.rig.router import Nat
from tests.interop.rig.tailscaled import Tailscaled

KINDS: Final = ("testcontrol", *(["headscale"] if headscale_binary() else []))  # control servers on this machine
SERVERS: Final = {"testcontrol": UpstreamControl, "headscale": Headscale}
LAB_REGION_CODE: Final = "lab1"


@dataclass
class Tailnet:
    """What `tailnet()` yields: servers that run, and a way to add hosts."""

    internet: Internet
    server: Host
    control: Control
    region_code: str  # of the first relay, as the official client's status tells it
    authority: Authority
    relays: tuple[Derper, ...]  # one for each region; none where control is the lab
    _count: int = field(default=0)

    @contextlib.contextmanager
    def host(self, name: str, *, only_relays: bool = True, behind: Nat = Nat.NONE) -> Iterator[Host]:
        """A host whose programs trust the test authority, named `name` and a number, as long as the context lasts.

        With `only_relays` UDP goes to the server and the relays only.
        """
        self._count += 1
        host = self.internet.host(f"{name}{self._count}", behind)
        try:
            host.environment["SSL_CERT_FILE"] = str(self.authority.file)
            if only_relays:
                host.block_udp(self.server.address, *(relay.host.address for relay in self.relays))
            yield host
        finally:
            self.internet.remove(host)

    @contextlib.contextmanager
    def tailscaled(self, name: str, *, only_relays: bool = True, behind: Nat = Nat.NONE) -> Iterator[Tailscaled]:
        """An official client on a host of its own, up."""
        with self.host(name, only_relays=only_relays, behind=behind) as host, Tailscaled(host) as client:
            client.up(self.control.url, self.control.auth_key())
            yield client


@contextlib.contextmanager
def tailnet(kind: str, directory: Path, *, version: int = 4, regions: int = 1) -> Iterator[Tailnet]:
    """A new tailnet with this kind of server; its files are in `directory`.

    The kind is one of KINDS, or "lab", or "headscale alone": by https, and its own relay.
    All hosts speak this version of IP only. The first relay is on the server's host, those of further regions have one each.
    """
    with contextlib.ExitStack() as stack:
        internet = stack.enter_context(Internet(directory, version))
        server = internet.host("server")
        authority = Authority(server.directory)
        relays: tuple[Derper, ...] = ()
        region_code = LAB_REGION_CODE
        if kind == "lab":
            control: Control = OwnLab(server)
        elif kind == "headscale alone":
            control, region_code = Headscale(server, authority=authority), OWN_REGION_CODE
        else:
            hosts = (server, *(internet.host(f"relay{number}") for number in range(1, regions)))
            relays = tuple(Derper(host, authority, REGION + number) for number, host in enumerate(hosts))
            for relay in relays:
                stack.enter_context(relay)
            control, region_code = SERVERS[kind](server, relays), relays[0].region_code
        stack.callback(control.stop)
        control.start()
        yield Tailnet(internet, server, control, region_code, authority, relays)
