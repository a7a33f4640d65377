"""The engine of one node: wires control, DERP, WireGuard, filter and DNS together (ring 1). It has no rights.

    control --netmap--> filter, then peers, DERP, DNS, addresses --> keeper
    TUN <--> pump <--> router <--> DERP, UDP

Ready means: control has authorised us and given us addresses, the filter is in force, TUN and routes are up, our home relay has accepted
us, and control has accepted that home.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import os
import secrets
import socket
import ssl
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from tsns.config import NodeConfig
from tsns.control.client import ControlClient
from tsns.control.netmap import NetMap, NetMapChange
from tsns.derp.client import DerpClients
from tsns.derp.relay import State
from tsns.dns.resolver import search_domains
from tsns.error import UserError
from tsns.filter.packet_filter import PacketFilter
from tsns.keys import KEY_BYTES, DiscoPrivate, NodePrivate, NodePublic
from tsns.netns.underlay import Underlay
from tsns.node.condition import RENEWAL_PATIENCE_S, Condition
from tsns.node.dns_api import DnsApi
from tsns.node.home import HomeFinder
from tsns.node.hostinfo import hostinfo
from tsns.node.keeper_channel import KeeperChannel
from tsns.node.live_settings import changed
from tsns.node.localapi import Answer, Handler, LocalApi
from tsns.node.login_api import LoginApi
from tsns.node.name_service import NameService
from tsns.node.netcheck_api import netcheck
from tsns.node.netmap_cache import NetmapCache
from tsns.node.peering import Peering, name_of, node_key
from tsns.node.pings import Pings
from tsns.node.reachability import Reachability
from tsns.node.routing import Routing
from tsns.node.rules import EVERY_RULE, applying_rules
from tsns.node.shared_places import SharedPlaces
from tsns.node.status import named, reporting
from tsns.node.whois_api import Whois
from tsns.paths.netcheck import Report
from tsns.paths.peer_paths import PathChanged, Ponged, WantEndpoints
from tsns.proto.addresses import Endpoint
from tsns.proto.types import MapResponse, NetInfo
from tsns.proxies import Proxies
from tsns.slices import in_slices
from tsns.state import Identity
from tsns.steps import Steps, finish
from tsns.wg.device import Device
from tsns.wg.engines import choose, maker
from tsns.wg.router import NO_PATH, Event, Pong, Router, StunReply
from tsns.wg.sharing import OWN
from tsns.wg.socket import TunPump, boot_time

LOGOUT_TIMEOUT_S: Final = 2.0  # all of the end is to take 3 s at most
MANY_PEERS: Final = 500  # at once
MAX_GREETED: Final = 32  # peers with whom a session is begun unasked
CONTROL_AWAY: Final = "control cannot be reached: the tailnet is as it was last known"
NETWORK_REST_S: Final = 0.05  # between changes of addresses and routes, however often control has others
NO_TUN: Final = "came before there was a namespace"
HOME_PATIENCE_S: Final = 15.0  # then the node is ready without a relay, and says so

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Given:
    """What an engine has from its keeper."""

    channel: socket.socket
    api: socket.socket  # listens
    udp: Sequence[socket.socket]  # peers know us by them, and by those that were before us
    config: NodeConfig
    identity: Identity
    latest_time: float  # the latest wall clock (Unix time) that engines before it may have told peers of


class Engine:
    """One node at work. `run` returns when the keeper wants it to end. `cached` is the netmap as it was last known."""

    def __init__(self, given: Given, tls: ssl.SSLContext, cached: MapResponse | None = None) -> None:
        config, identity = given.config, given.identity
        self._config = config
        self._condition = Condition()
        self._stop: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._identity = identity
        self._keeper = KeeperChannel(given.channel, self._on_tun, self._on_stop, self._on_configure)
        self._tasks: set[asyncio.Task[None]] = set()
        self._cache = NetmapCache(self._save_cache)
        self._barred = False
        self._unsettled = False  # somebody waits for the network to be as the settings want it
        self._netmap: NetMap | None = None
        self._knows_peers = False  # all of the first netmap's
        self._authorised = asyncio.Event()
        self._network_wanted = asyncio.Event()
        self._network_up = asyncio.Event()
        self._namespace_made = asyncio.Event()
        self._home_known = asyncio.Event()

        self._underlay = underlay = Underlay(Proxies.of(config))
        self._tls = tls
        # Until control has accepted a key of ours, this one speaks to nobody.
        node_private = identity.node_key or NodePrivate.generate(secrets.token_bytes(KEY_BYTES))
        disco = DiscoPrivate.generate(secrets.token_bytes(KEY_BYTES))  # another one in each life
        self._filter = PacketFilter()
        self._data_plane = choose(config.data_plane)
        self._device = Device(
            node_private,
            secrets.token_bytes,
            wall_clock=time.time,
            latest_time=given.latest_time,
            make_transport=maker(self._data_plane, join_udp=False),  # what the TUN takes is not known yet
        )
        self._router = Router(self._device, self._filter, disco, direct=config.direct)
        self._peering = Peering(self._device, self._router, boot_time)
        self._routing = Routing(
            self._peering, self._condition, config, latency=self._latency, changed=self._on_ways_changed
        )
        self._pings = Pings()
        self._names = NameService(self._keeper, self._device, tls, accept=config.accept_dns)
        self._places = SharedPlaces(self._keeper, self._names)
        self._whois = Whois()
        self._pump: TunPump | None = None
        self._node_private = node_private
        self._derp = self._make_derp(node_private)
        self._control = ControlClient(
            replace(identity, control_url=config.login_server),
            config,
            underlay=underlay,
            tls=tls,
            hostinfo=hostinfo(config, identity),
            disco=disco.public,
            events=self,
            cached=cached,
        )
        self._reachability = Reachability(
            underlay=underlay,
            sockets=given.udp,
            port=config.port,
            direct=config.direct,
            paths=self._router.paths,
            control=self._control,
            make_home=self._make_home,
            relays=lambda addresses: self._derp.network_changed(addresses),  # noqa: PLW0108 (those of that moment)
            clock=boot_time,
        )
        self._home = self._reachability.home
        logins = LoginApi(self._control, lambda: (self._state, self._condition.login_url), self._on_logged_out)
        handlers: dict[tuple[str, str], Handler] = {
            ("GET", "/tsns/v1/status"): self._on_status,
            ("GET", "/tsns/v1/netcheck"): self._on_netcheck,
            ("POST", "/tsns/v1/ping"): self._on_ping,
            ("POST", "/tsns/v1/whois"): self._on_whois,
            **logins.handlers(),
            **DnsApi(self._names, lambda: self._netmap.dns if self._netmap else None).handlers(),
        }
        # In a user namespace of our own the owner is 0, and whoever else it may be has no number.
        askers = {0} if os.getuid() == 0 else {0, os.getuid(), config.owner_uid}
        self._api = LocalApi(given.api, frozenset(askers), handlers)

    def _make_home(
        self, send_udp: Callable[[Endpoint, bytes], None], on_report: Callable[[Report], None]
    ) -> HomeFinder:
        return HomeFinder(
            underlay=self._underlay,
            tls=self._tls,
            send_udp=send_udp,
            on_home=self._on_home,
            on_report=on_report,
            may_change=lambda: self._condition.connected,  # else peers could not be told of another home
            heard_at=lambda region: self._derp.last_frame_at(region),  # noqa: PLW0108 (of the clients of that moment)
        )

    def _make_derp(self, key: NodePrivate) -> DerpClients:
        return DerpClients(
            key,
            underlay=self._underlay,
            tls=self._tls,
            receive=self._on_derp,
            drained=self._arrange_reading,
            changed=self._on_relays_changed,
        )

    # --- the whole life

    async def run(self) -> None:
        """Work until the keeper says stop, or a person has to act."""
        self._keeper.start()
        await self._api.start()
        for work in (self._be_controlled(), self._configure_network(), self._become_ready(), self._watch_expiry()):
            self._spawn(work)
        if not self._config.ephemeral:
            self._spawn(self._cache.run())
        logout = await self._stop
        if logout:
            await self._log_out()
        elif not self._config.ephemeral:
            await self._cache.finish()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._reachability.close()
        if self._pump is not None:
            self._pump.close()
        await self._api.close()
        await self._places.close()
        await self._names.close()
        await self._derp.close()

    def _spawn(self, work: Any) -> None:
        task: asyncio.Task[None] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._on_task_end)

    def _on_task_end(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None and not self._stop.done():
            self._stop.set_exception(error)  # our own bug: end, and let the keeper start another engine

    def _on_stop(self, logout: bool) -> None:
        if not self._stop.done():
            self._stop.set_result(logout)

    async def _be_controlled(self) -> None:
        try:
            await self._control.run()
        except UserError as error:
            log.error("%s (%s)", error.message, error.hint)  # noqa: TRY400 (no traceback: a person has to act)
            self._keeper.say({"say": "failed", "error": error.message, "hint": error.hint})

    async def _log_out(self) -> None:
        try:
            async with asyncio.timeout(LOGOUT_TIMEOUT_S):
                await self._control.logout()
            log.info("logged out")
        except (TimeoutError, OSError, Exception) as error:  # noqa: BLE001 (the end is near, with or without it)
            log.warning("could not log out: %s", error)

    async def _become_ready(self) -> None:
        await self._authorised.wait()
        await self._network_up.wait()
        try:
            async with asyncio.timeout(HOME_PATIENCE_S):
                await self._home_known.wait()
                if self._condition.home is not None:
                    self.progress("connecting to the home relay")
                    await self._derp.wait_home()
                    if self._condition.connected:
                        self.progress("telling control of the home relay")
                        await self._control.home_accepted(self._condition.home)
        except TimeoutError:
            self._warn("relay", "no relay can be reached: peers will have difficulty in reaching this node")
        self._condition.ready = True
        itself = self._netmap.self_node if self._netmap else None
        assert itself is not None  # authorised
        self._greet_peers()
        mistake = self._routing.mistake if self._condition.connected else None
        self._keeper.say({"say": "ready", **named(itself), "mistake": mistake})

    def _greet_peers(self) -> None:
        """Begin sessions with those who are there: a peer hears of us before it hears of our home, and would drop its first packets."""
        if self._netmap is not None and self._pump is not None:
            online = (key for node in self._netmap.peers.values() if node.online and (key := node_key(node)))
            for key in itertools.islice(online, MAX_GREETED):
                self._pump.greet(key)

    def _warn(self, about: str, text: str) -> None:
        log.warning("%s", text)
        self._condition.warnings[about] = text

    # --- control's events

    def progress(self, text: str) -> None:
        """Say what is waited for."""
        log.info("%s", text)
        self._keeper.say({"say": "progress", "text": text})

    def login_url(self, url: str | None) -> None:
        """A person has to open this page, or has done so (None)."""
        self._condition.login_url = url or ""
        if url:
            self._condition.warnings["login"] = f"somebody has to log in: open {url}"
            self._keeper.say({"say": "login", "url": url})
        else:
            self._condition.warnings.pop("login", None)
        self._reconsider()

    def approval_pending(self, pending: bool) -> None:
        """An administrator has to let this node in, or has done so."""
        self._condition.pending_approval = pending
        if pending:
            self.progress("an administrator of the tailnet has to approve this node")

    def key_lost(self, lost: bool) -> None:
        """Control does not take our node key any more, or again."""
        self._condition.key_lost_at = time.monotonic() if lost else None
        if lost:
            self._condition.warnings.pop("control", None)  # it is there, only not for us
            asyncio.get_running_loop().call_later(RENEWAL_PATIENCE_S + 0.01, self._reconsider)
        self._reconsider()

    def connected(self, up: bool) -> None:
        """The connection to control stands, or is gone."""
        self._condition.connected = up
        if up or self._condition.logged_out:
            self._condition.warnings.pop("control", None)
        else:
            self._condition.warnings["control"] = CONTROL_AWAY

    @property
    def _state(self) -> str:
        return self._condition.state(time.monotonic())

    def _reconsider(self) -> None:
        """A node that is nobody on the tailnet has no peers."""
        barred = self._condition.barred(time.monotonic())
        if barred == self._barred or self._netmap is None:
            return
        self._barred = barred
        if barred:
            self._warn("key", "this node is not logged in: its peers are cut off")
            self._peering.suspend(self._netmap)
        else:
            log.info("logged in again: the peers are back")
            self._condition.warnings.pop("key", None)
            self._peering.resume(self._netmap, time.time())

    async def _on_logged_out(self) -> None:
        log.info("logged out")
        self._condition.logged_out = True
        self._condition.pending_approval = False
        self._condition.warnings.pop("control", None)
        self._reconsider()
        await self._cache.clear()

    async def _save_cache(self, fd: int) -> str:
        return str((await self._keeper.ask("cache", fds=[fd]))["error"])

    async def save(self, identity: Identity) -> None:
        """Keep who we are; a new node key takes effect at once."""
        if identity.node_key is not None:
            if identity.node_key != self._node_private:
                self._use_key(identity.node_key)
            self._condition.logged_out = False
            self._condition.key_lost_at = None
            self._reconsider()
        error = (await self._keeper.ask("save", {"identity": identity.dump().decode()}))["error"]
        if error:
            self._warn("state", f"the node's identity could not be saved: {error}")
        else:
            self._condition.warnings.pop("state", None)

    def _use_key(self, key: NodePrivate) -> None:
        """Be another node towards peers and relays."""
        self._node_private = key
        self._device.set_private_key(key)
        former, self._derp = self._derp, self._make_derp(key)
        self._spawn(former.close())
        if self._netmap is not None:
            self._derp.set_map(self._netmap.derp_map)
            self._derp.set_home(self._condition.home)

    def netmap(self, netmap: NetMap, change: NetMapChange) -> Steps[None]:
        """Apply what has changed: the filter first, then all that lets packets pass. Between the steps packets go their way."""
        self._netmap = netmap
        itself = netmap.self_node
        if itself is None:
            return
        yield from self._judging(netmap, change)
        if change.derp_map:
            self._derp.set_map(netmap.derp_map)
            self._home.set_map(netmap.derp_map)
            if not self._condition.connected and self._condition.home is None:
                self._home.assume(itself.home_derp)  # where peers know us to be
        if change.dns or change.self_changed:
            self._follow_names()
            self._keeper.say({"ask": "dns", "search": search_domains(netmap.dns)})
        if change.self_changed:
            self._network_wanted.set()
        yield from self._follow_peers(netmap, change)
        if not self._knows_peers:
            self._knows_peers = True
            self._network_wanted.set()
        self._arrange_reading()
        if not self._condition.connected and change.first and not self._condition.ready:
            self._condition.warnings["control"] = CONTROL_AWAY  # until it says otherwise, which may be this moment
        self._cache.note(netmap, change)
        if itself.machine_authorized is not False and itself.addresses:
            self._authorised.set()

    def _judging(self, netmap: NetMap, change: NetMapChange) -> Steps[None]:
        """Put the filter in force, by the settings as they are at the end of it."""
        config = None
        complaint: str | None = None
        while config is not self._config:
            config = self._config
            complaint = yield from applying_rules(self._filter, netmap, change, config)
            change = EVERY_RULE
        if complaint:
            self._warn("filter", complaint)
        elif complaint == "":
            self._condition.warnings.pop("filter", None)

    def _follow_peers(self, netmap: NetMap, change: NetMapChange) -> Steps[None]:
        many = len(change.added) >= MANY_PEERS
        if many:
            gc.disable()  # looking through all that they are made of, again and again, would take longer than packets may wait
        try:
            begun_anew = yield from self._routing.applying(netmap, change, time.time())
            if self._pump is not None:
                self._pump.dispatch(())  # paths may have something to do
                for key in begun_anew:
                    self._pump.begin_anew(key)
            for old, new in change.peers():
                self._names.update_peer(old, new)
                yield
        finally:
            if many:
                gc.freeze()  # nor is it ever to be looked through later
                gc.enable()

    def _on_configure(self, settings: Answer) -> None:
        """Other settings, of those that a node takes over as it is; the keeper hears whether they can be."""
        try:
            config = changed(self._config, settings)
            self._routing.configure(config, self._netmap, time.time())
        except UserError as error:
            self._keeper.say({"say": "configured", "error": error.message, "hint": error.hint})
            return
        self._config = config
        if self._netmap is not None:
            finish(self._judging(self._netmap, EVERY_RULE))
        self._control.set_hostinfo(hostinfo(config, self._identity))
        self._keeper.say({"say": "configured", "error": "", "hint": ""})
        self._follow_names()
        self._unsettled = True
        self._network_wanted.set()

    def _on_ways_changed(self) -> None:
        """Other routes, or another exit node."""
        self._network_wanted.set()
        self._follow_names()

    def _follow_names(self) -> None:
        netmap, config = self._netmap, self._config
        if netmap is not None:
            self._names.configure(
                netmap.self_node,
                netmap.dns,
                self._routing.selected(netmap),
                accept=config.accept_dns,
                # Whoever wants an exit node wants no question to go another way, be it there or not.
                allow_underlay=config.with_internet and not config.exit_node,
            )

    async def _watch_expiry(self) -> None:
        """Keys run out without a word from control."""
        await self._authorised.wait()
        while self._netmap is not None:
            pause_s = await in_slices(self._peering.rechecking(self._netmap, time.time()))
            self._routing.recheck(self._netmap, time.time())
            await asyncio.sleep(pause_s)

    # --- namespace

    def _on_tun(self, fds: list[int]) -> None:
        tun, *dns = fds
        self._pump = TunPump(
            self._router,
            tun,
            udp=self._reachability.sockets,
            send_derp=self._send_derp,
            event=self._on_event,
            tun_lost=self._on_tun_lost,
            who_listens=self._places.who_listens,
        )
        self._places.set_tuns(self._pump.tuns)
        self._device.make_transport = maker(self._data_plane, join_udp=self._pump.offloads.tun_udp)
        self._arrange_reading()
        self._pump.start()
        self._reachability.set_pump(self._pump)
        self._spawn(self._reachability.run())
        self._spawn(self._names.run([socket.socket(fileno=fd) for fd in dns]))
        self._namespace_made.set()

    def _on_tun_lost(self, place: int) -> None:
        if place != OWN:
            self._places.lost(place)
            return
        self._warn("tun", "the TUN device was removed from the namespace: nothing reaches this node")

    async def _configure_network(self) -> None:
        """Keep the TUN's addresses and routes as the netmap has them."""
        await self._namespace_made.wait()
        present: dict[str, list[str]] = {}
        while True:
            await self._network_wanted.wait()
            self._network_wanted.clear()
            itself = self._netmap.self_node if self._netmap else None
            if itself is None or not itself.addresses or not self._knows_peers:
                continue  # routes of an engine before us stay until it is known who has them
            settles, self._unsettled = self._unsettled, False
            wanted = {"addresses": list(itself.addresses), "routes": list(self._routing.routes)}
            if wanted != present:  # much else of a node changes, above all at its start
                error = (await self._keeper.ask("network", wanted))["error"]
                if error:
                    self._warn("network", f"the node's addresses and routes could not be set: {error}")
                else:
                    present = wanted
                    self._condition.warnings.pop("network", None)
                    self._network_up.set()
            if settles:
                self._keeper.say({"say": "settled"})
            await asyncio.sleep(NETWORK_REST_S)

    # --- packets

    def _send_derp(self, region: int, peer: NodePublic, datagrams: Sequence[bytes]) -> None:
        way = self._derp.route(peer, region)
        if way is None:
            self._router.counters.add(NO_PATH, len(datagrams))
            return
        self._derp.send(way, peer, list(datagrams))
        self._arrange_reading()

    def _on_derp(self, region: int, frames: list[tuple[NodePublic, bytes]]) -> None:
        if self._pump is None:
            self._router.counters.add(NO_TUN, len(frames))
            return
        self._pump.receive_derp(region, frames)

    def _arrange_reading(self) -> None:
        """Packets of the host's stay in the TUN while the relays have enough to do, and until there are rules to judge them by, and peers."""
        if self._pump is not None:
            if not self._knows_peers or self._derp.congested:
                self._pump.pause()
            else:
                self._pump.resume()

    def _on_relays_changed(self) -> None:
        home = self._condition.home
        for relay in self._derp.status():
            if relay.region != home:
                continue
            if relay.state is State.CONNECTED:
                self._condition.warnings.pop("relay", None)
            elif self._authorised.is_set():
                self._home.request()

    def _on_home(self, region: int | None, net_info: NetInfo) -> None:
        if region != self._condition.home:
            log.info("home region: %s", region)
        self._condition.home = region
        self._derp.set_home(region)
        self._control.set_net_info(net_info)
        self._home_known.set()
        if self._netmap is not None:
            self._routing.measured(self._netmap, time.time())

    def _latency(self, region: int) -> float | None:
        return self._home.report.latencies().get(region) if self._home.report is not None else None

    # --- questions

    async def _on_status(self, _: Answer, _uid: int) -> Answer:
        answer = await in_slices(
            reporting(
                self._config.name, self._condition, self._netmap, self._router, self._derp.status(), self._routing
            )
        )
        peers = answer["peers"]
        inside = await self._keeper.ask("inside")
        internet = inside.get("internet") or {}
        attached = inside.get("attachments", [])
        return {
            **answer,
            "health": answer["health"]
            + list(filter(None, [internet.get("error"), *(each["error"] for each in attached)])),
            "internet": {key: bool(internet.get(key)) for key in ("wanted", "up")},
            "netns": str(inside.get("netns", "")),
            "attached": [
                *({key: each[key] for key in ("kind", "id", "name")} for each in attached),
                *inside.get("processes", []),
            ],
            "hostname": self._config.hostname or self._config.name,
            "pid": os.getpid(),
            "rx_bytes": sum(peer["rx_bytes"] for peer in peers),
            "tx_bytes": sum(peer["tx_bytes"] for peer in peers),
            "data_plane": {
                "engine": self._data_plane,
                "offloads": self._pump.offloads.named() if self._pump else {},
            },
            "drops": {**self._router.counters.snapshot(), **{str(why): n for why, n in self._derp.drops.items()}},
        }

    async def _on_netcheck(self, _: Answer, _uid: int) -> Answer:
        return await netcheck(self._home)

    async def _on_ping(self, asked: Answer, _uid: int) -> Answer:
        return await self._pings.ask(asked, self._netmap, self._pump)

    async def _on_whois(self, asked: Answer, _uid: int) -> Answer:
        return self._whois.answer(asked, self._netmap)

    def _on_event(self, event: Event) -> None:
        match event:
            case Pong(token=token):
                self._pings.answered(token, None)
            case Ponged(token=token, path=path):
                self._pings.answered(token, path)
            case StunReply():
                self._home.stun_reply(event.data, event.address)
            case WantEndpoints():
                self._home.request()
            case PathChanged():
                log.info("%s: %s", name_of(self._netmap, event.peer), event.change)
            case _:
                log.debug("%s", event)
