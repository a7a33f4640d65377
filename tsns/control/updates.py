"""What this node tells of itself, and the lite updates that carry it (ring 1).

Source: control/controlclient (auto.go, updateRoutine) of Tailscale's module. Servers differ: Tailscale's own reads nothing but who is asking
from a stream's request, Headscale takes all of it. So both requests say the same, and one lite update follows each start of a stream.

    stream starts --> send --200--> wait for a change that counts, or half an hour --> send ...
                       |--4xx--> `refused`: the stream is asked for anew, and its answer says whether control still knows us
                       `--anything else--> back off, then send the newest

One is in flight at a time. Latencies alone are no change: Headscale tells every peer of each update, even of one without news. Such a one is
sent seldom, for it is how we learn that Headscale has deleted this node: it leaves the stream open and sends keep-alives on it, whatever
has become of the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from tsns.control.backoff import Backoff, wish_of
from tsns.control.connection import Connection, Reply
from tsns.error import ProtocolError, RetryableError
from tsns.keys import DiscoPublic, NodePublic
from tsns.proto.text import one_line
from tsns.proto.types import Hostinfo, MapRequest, NetInfo, Node, encode

MAP_PATH: Final = "/machine/map"
UPDATE_TIMEOUT_S: Final = 30.0
HOME_PATIENCE_S: Final = 1.0  # a first update without a home would only delay the one that names it
REASSURE_S: Final = (1200.0, 2400.0)  # then an update goes without news; spread, since many nodes may start together

log = logging.getLogger(__name__)


class Updates:
    """Keeps control informed. `version` is the capability version.

    `on_refusal` is called when control refuses an update for good, after `refused` was set; who acts on that resets it.
    """

    def __init__(
        self, version: int, hostinfo: Hostinfo, disco: DiscoPublic, on_refusal: Callable[[], None] = lambda: None
    ) -> None:
        self.refused = False
        self._on_refusal = on_refusal
        self._version = version
        self._hostinfo = hostinfo
        self._disco = disco
        self._endpoints: list[tuple[str, int]] = []
        self._changed = asyncio.Event()
        self._accepted_home: int | None = None
        self._heard_home: int | None = None
        self._acceptance = asyncio.Event()  # replaced by another one each time it is set
        self._backoff = Backoff(random.random)

    def set_hostinfo(self, hostinfo: Hostinfo) -> None:
        """Tell what the node is by now; what is known of its network stays."""
        self._hostinfo = msgspec.structs.replace(hostinfo, net_info=self._hostinfo.net_info)
        self._changed.set()

    def set_net_info(self, net_info: NetInfo) -> None:
        """Tell what the network looks like, the home region above all."""
        self._hostinfo = msgspec.structs.replace(self._hostinfo, net_info=net_info)
        self._changed.set()

    def set_endpoints(self, endpoints: Sequence[tuple[str, int]]) -> None:
        """Tell where we may be reached: (`address:port`, tailcfg.EndpointType)."""
        self._endpoints = list(endpoints)
        self._changed.set()

    async def home_accepted(self, region: int) -> None:
        """Wait until control has accepted this region as our home, or says by itself that it is (`heard`)."""
        while region not in (self._accepted_home, self._heard_home):
            await self._acceptance.wait()

    def heard(self, itself: Node) -> None:
        """Our own node as control tells it to peers. Headscale remembers our home from the last time, and takes what a stream's request says.

        A server that has yet to hear of our new disco key has not: peers end their sessions with us when they hear of it.
        """
        home = itself.home_derp if itself.disco_key == str(self._disco) else None
        if home != self._heard_home:
            self._heard_home = home
            self._look_again()

    def request(self, node_key: NodePublic, *, stream: bool) -> MapRequest:
        """The request for a stream, or else a lite update."""
        return MapRequest(
            version=self._version,
            compress="zstd",
            keep_alive=True,
            node_key=str(node_key),
            disco_key=str(self._disco),
            stream=stream or None,
            omit_peers=None if stream else True,
            hostinfo=self._hostinfo,
            endpoints=[address for address, _ in self._endpoints] or None,
            endpoint_types=[kind for _, kind in self._endpoints] or None,
        )

    async def run(self, connection: Connection, node_key: NodePublic) -> None:
        """Send updates beside a stream that has started, until cancelled, refused, or the connection fails."""
        sent: MapRequest | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(HOME_PATIENCE_S):
                await self._home_known()
        while connection.usable:
            self._changed.clear()
            request = self.request(node_key, stream=False)
            if (counting := _counting(request)) == sent:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(random.uniform(*REASSURE_S)):  # noqa: S311 (no secret)
                        await self._changed.wait()
                        continue
                sent = None  # so that it is tried again where it fails
            try:
                reply = await connection.request(
                    "POST",
                    MAP_PATH,
                    encode(request),
                    load_balancing(node_key),
                    timeout_s=UPDATE_TIMEOUT_S,
                    reads_success=False,  # some servers send all of the netmap, whatever was asked for
                )
                if refuses(reply.status):
                    log.info("control refuses an update: %s", described(reply))
                    await asyncio.sleep(self._backoff.failed())
                    self.refused = True
                    self._on_refusal()
                    return
                _check(reply)
            except (ProtocolError, RetryableError) as error:
                wish = error.retry_after_s if isinstance(error, RetryableError) else None
                delay = self._backoff.failed(wish)
                log.info("control did not take an update: %s; again in %.1f s", error, delay)
                await asyncio.sleep(delay)
                continue
            self._backoff.succeeded()
            sent = counting
            self._accept(request)

    async def _home_known(self) -> None:
        while self._home(self._hostinfo) is None:
            self._changed.clear()
            await self._changed.wait()

    def _accept(self, request: MapRequest) -> None:
        self._accepted_home = self._home(request.hostinfo)
        self._look_again()

    def _look_again(self) -> None:
        before, self._acceptance = self._acceptance, asyncio.Event()
        before.set()

    @staticmethod
    def _home(hostinfo: Hostinfo | None) -> int | None:
        return hostinfo.net_info.preferred_derp or None if hostinfo and hostinfo.net_info else None


def refuses(status: int) -> bool:
    """Whether this answer to a map request is no, rather than not now."""
    return 400 <= status < 500 and status != 429


def load_balancing(*keys: NodePublic | None) -> tuple[tuple[str, str], ...]:
    """Headers by which a load balancer in front of control may tell nodes apart."""
    return tuple(("ts-lb", str(key)) for key in keys if key is not None)


def described(reply: Reply) -> str:
    """A response that is not what was hoped for, fit to be shown."""
    text = one_line(reply.body)
    return f"HTTP {reply.status} ({text})" if text else f"HTTP {reply.status}"


def _counting(request: MapRequest) -> MapRequest:
    """The request without what is no reason to send it again."""
    hostinfo = request.hostinfo
    if hostinfo is None or hostinfo.net_info is None:
        return request
    net_info = msgspec.structs.replace(hostinfo.net_info, derp_latency=None)
    return msgspec.structs.replace(request, hostinfo=msgspec.structs.replace(hostinfo, net_info=net_info))


def _check(reply: Reply) -> None:
    if reply.status != 200:
        raise RetryableError(described(reply), wish_of(reply.status, reply.retry_after, time.time(), random.random))
