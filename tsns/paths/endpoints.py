"""Where we ourselves may be reached: what control and peers are told, best first (ring 0).

Source: wgengine/magicsock (determineEndpoints, endpoint_tracker.go) of Tailscale's module for kinds, order and times.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Final

from tsns.paths.candidates import is_link_local, is_loopback
from tsns.proto.addresses import CGNAT, ULA, Endpoint, pack

REMEMBERED_S: Final = (
    310.0  # how long what the outside saw of us is told after it was last seen: mappings outlive a lost answer
)
MAX_PER_HOST: Final = 6  # of one outside address: a NAT that gives each server another port would fill the list
MAX_LOCAL: Final = 24


class EndpointType(enum.IntEnum):
    """tailcfg.EndpointType: how an endpoint became known."""

    LOCAL = 1
    STUN = 2
    PORT_MAPPED = 3
    STUN_LOCAL_PORT = 4


class OwnEndpoints:
    """Gathers what is known. `fixed_port` is the UDP port that the person chose, 0 where any will do."""

    def __init__(self, fixed_port: int = 0) -> None:
        self._fixed_port = fixed_port
        self._local: list[Endpoint] = []
        self._mapped: Endpoint | None = None
        self._seen: dict[tuple[Endpoint, EndpointType], float] = {}  # by the outside, and when last; the newest last

    def set_local(self, addresses: Iterable[str], ports: dict[int, int]) -> None:
        """The host's own addresses; `ports` are our UDP ports by the length of a packed address (4, 16)."""
        packed = {address: pack(address) for address in addresses}
        usable = {address: raw for address, raw in packed.items() if len(raw) in ports and not _is_tailnet(raw)}
        outer = [a for a, raw in usable.items() if not is_loopback(raw) and not is_link_local(raw)]
        # A machine without any other address still has its own programs to talk with.
        chosen = outer or [a for a, raw in usable.items() if is_loopback(raw)]
        self._local = [(address, ports[len(packed[address])]) for address in chosen][:MAX_LOCAL]

    def set_mapped(self, endpoint: Endpoint | None) -> None:
        """The gateway has opened this one for us, or none any more."""
        self._mapped = endpoint

    def note_seen(self, endpoints: Iterable[Endpoint], *, varies: bool | None, now: float) -> None:
        """STUN servers saw us at these, best first. `varies`: each destination sees another port."""
        for endpoint in reversed(list(endpoints)):
            self._note(endpoint, EndpointType.STUN, now)
            if varies and self._fixed_port and ":" not in endpoint[0]:
                # Somebody who fixes a port may have opened it in the router by hand.
                self._note((endpoint[0], self._fixed_port), EndpointType.STUN_LOCAL_PORT, now)
        self._prune(now)

    def _note(self, endpoint: Endpoint, kind: EndpointType, now: float) -> None:
        self._seen.pop((endpoint, kind), None)
        self._seen[endpoint, kind] = now

    def _prune(self, now: float) -> None:
        hosts: dict[str, int] = {}
        for key in reversed(list(self._seen)):
            (host, _), _ = key
            hosts[host] = hosts.get(host, 0) + 1
            if now - self._seen[key] > REMEMBERED_S or hosts[host] > MAX_PER_HOST:
                del self._seen[key]

    def forget_seen(self) -> None:
        """The host's network is another one: nobody sees us there any more."""
        self._seen.clear()

    def is_own_address(self, host: str) -> bool:
        """Whether the host itself has this address: then no NAT stands in between."""
        return is_loopback(pack(host)) or any(host == own for own, _ in self._local)

    def all(self, now: float) -> list[tuple[Endpoint, EndpointType]]:
        """Every endpoint once, best first, with its kind."""
        self._prune(now)
        found: dict[Endpoint, EndpointType] = {}
        if self._mapped is not None:
            found[self._mapped] = EndpointType.PORT_MAPPED
        for kind in (EndpointType.STUN, EndpointType.STUN_LOCAL_PORT):
            for endpoint, seen_as in reversed(self._seen):
                if seen_as is kind:
                    found.setdefault(endpoint, kind)
        for endpoint in self._local:
            found.setdefault(endpoint, EndpointType.LOCAL)
        return list(found.items())


def _is_tailnet(packed: bytes) -> bool:
    """Whether an address is, or may be, that of a tailnet's interface: a tunnel through a tunnel would lead back to itself."""
    return CGNAT.covers(packed) or ULA.covers(packed)
