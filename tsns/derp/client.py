"""All DERP relays of a node: which region a packet takes, and one `Relay` for each region in use (ring 1).

Source: wgengine/magicsock/derp.go of Tailscale's module for the rules. Regions do not forward to one another, so a packet goes

    1. to the peer's home, if we are connected there;
    2. else over a connection on which the peer has been heard;
    3. else to the peer's home, which is dialled for it;
    4. else nowhere.
"""

from __future__ import annotations

import asyncio
import collections
import ssl
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from tsns.derp.dial import relays
from tsns.derp.queue import Drop
from tsns.derp.relay import Limits, Owner, Relay, State
from tsns.keys import NodePrivate, NodePublic
from tsns.netns.underlay import Underlay
from tsns.proto.types import DERPMap, DERPRegion


@dataclass(frozen=True, slots=True)
class RegionStatus:
    """One region, for those who look."""

    region: int
    code: str
    name: str
    state: State
    home: bool
    node: str  # the relay we are, or were last, connected to
    health: str  # the relay's own complaint
    error: str  # why the last attempt or connection failed
    stuck: bool
    queued_bytes: int


class DerpClients:
    """The node's connections to relays.

    `receive(region, [(peer, packet), ...])` is called with what came, `drained()` when `congested` is over, `changed()` when `status()`
    would say something new (a lost or failed connection among it). None of them may block.
    """

    def __init__(
        self,
        key: NodePrivate,
        *,
        underlay: Underlay,
        tls: ssl.SSLContext,
        receive: Callable[[int, list[tuple[NodePublic, bytes]]], None],
        drained: Callable[[], None],
        changed: Callable[[], None],
        limits: Limits | None = None,
    ) -> None:
        self.drops: collections.Counter[Drop] = collections.Counter()
        self._owner = Owner(
            key=key,
            underlay=underlay,
            tls=tls,
            limits=limits or Limits(),
            drops=self.drops,
            receive=receive,
            flow=self._flow_changed,
            changed=self._relay_changed,
        )
        self._drained = drained
        self._changed = changed
        self._regions: dict[int, DERPRegion] = {}
        self._relays: dict[int, Relay] = {}
        self._congested: set[Relay] = set()
        self._home: int | None = None
        self._home_ready = asyncio.Event()
        self._ending: set[asyncio.Task[None]] = set()
        self._closed = False

    @property
    def home(self) -> int | None:
        """Our home region."""
        return self._home

    @property
    def congested(self) -> bool:
        """Whether a relay that makes progress has too much to do: then stop reading the TUN until `drained()`."""
        return bool(self._congested)

    def set_map(self, derp_map: DERPMap) -> None:
        """Go by this DERP map: regions that moved are connected anew, those that are gone are left."""
        given = (derp_map.regions or {}).items()
        self._regions = {number: region for number, region in given if region is not None and relays(region)}
        for number, relay in list(self._relays.items()):
            region = self._regions.get(number)
            if region is not None:
                relay.replace(region)
            else:
                self._leave(self._relays.pop(number))
        self._connect_home()
        self._relay_changed()

    def set_home(self, region: int | None) -> None:
        """Make a region our home; it is connected at once and kept connected."""
        if region == self._home:
            return
        if self._home is not None and (old := self._relays.get(self._home)):
            old.set_home(home=False)
        self._home = region
        self._connect_home()
        self._relay_changed()

    def route(self, peer: NodePublic, home: int) -> int | None:
        """The region over which to send to a peer whose home is `home` (0: unknown); None where there is no way."""
        relay = self._relays.get(home)
        if relay is not None and relay.usable and not relay.heard.may_be_absent(peer, time.monotonic()):
            return home
        usable = [relay for relay in self._relays.values() if relay.usable]
        heard = [(at, relay.number) for relay in usable if (at := relay.heard.at(peer)) is not None]
        if heard:
            return max(heard)[1]
        return home if home in self._regions else None

    def send(self, region: int, peer: NodePublic, datagrams: list[bytes]) -> None:
        """Pass datagrams to a peer by a region, in one write; the region is connected if it is not. Never blocks, never raises."""
        relay = self._relay(region)
        if relay is None:
            self.drops[Drop.NO_REGION] += len(datagrams)
        else:
            relay.send(peer, datagrams)

    async def wait_home(self) -> None:
        """Wait until the home relay has accepted us."""
        await self._home_ready.wait()

    def last_frame_at(self, region: int) -> float | None:
        """When (monotonic seconds) something last came over the standing connection to a region; None without one."""
        relay = self._relays.get(region)
        return relay.last_frame_at if relay is not None else None

    def network_changed(self, addresses: Collection[str]) -> None:
        """The host's network has changed, and has these addresses: see soon which connections survived it, and try the others at once."""
        for relay in self._relays.values():
            relay.network_changed(addresses)

    def status(self) -> list[RegionStatus]:
        """Every region that is in use or was, by number."""
        for relay in self._relays.values():
            relay.take_counts()
        return [
            RegionStatus(
                region=number,
                code=relay.region.region_code or "",
                name=relay.region.region_name or "",
                state=relay.state,
                home=relay.home,
                node=relay.node,
                health=relay.health,
                error=relay.error,
                stuck=relay.stuck,
                queued_bytes=relay.queue.bytes,
            )
            for number, relay in sorted(self._relays.items())
        ]

    async def close(self) -> None:
        """End all connections; `drained()` may still be called."""
        self._closed = True
        for relay in self._relays.values():
            self._leave(relay)
        self._relays.clear()
        if self._ending:
            await asyncio.wait(self._ending)

    def _relay(self, number: int) -> Relay | None:
        relay = self._relays.get(number)
        region = self._regions.get(number)
        if relay is None and region is not None and not self._closed:
            relay = self._relays[number] = Relay(number, region, self._owner)
        return relay

    def _connect_home(self) -> None:
        if self._home is not None and (relay := self._relay(self._home)):
            relay.set_home(home=True)

    def _leave(self, relay: Relay) -> None:
        task = relay.stop()
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)

    def _flow_changed(self, relay: Relay) -> None:
        was = self.congested
        if relay.congested:
            self._congested.add(relay)
        else:
            self._congested.discard(relay)
        if was and not self.congested:
            self._drained()

    def _relay_changed(self) -> None:
        home = self._relays.get(self._home) if self._home is not None else None
        if home is not None and home.state is State.CONNECTED:
            self._home_ready.set()
        else:
            self._home_ready.clear()
        if not self._closed:
            self._changed()
