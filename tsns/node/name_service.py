"""Names for the programs inside: the netmap's from memory, the others from the servers that may be asked (ring 1).

    query --> Resolver --answer--> asker
                 `--Elsewhere--> Forwarder <--steps, replies--> Exchanges --sockets--> tunnel, or the underlay where that is allowed

Which way a server is asked is decided in one place, `NameService.way`. Nothing that a program inside asks reaches the host's network
unless `allow_underlay` says so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import socket
import ssl
from collections.abc import Callable, Sequence
from typing import Final

from tsns.dns.configuration import Configuration
from tsns.dns.exchanges import Exchanges
from tsns.dns.forwarder import Answered, Begin, End, Forwarder, How, Output
from tsns.dns.resolver import Elsewhere, Resolver
from tsns.dns.server import DnsServer
from tsns.dns.upstreams import Transport, Upstream, Way, is_tailnet
from tsns.netns.underlay import question_socket
from tsns.node.inside_sockets import InsideSockets
from tsns.node.keeper_channel import KeeperChannel
from tsns.proto.addresses import pack
from tsns.proto.types import DNSConfig, Node
from tsns.wg.device import Device
from tsns.wg.socket import boot_time

OUT_OF_REACH: Final = "it is not on the tailnet, and nothing else may be asked"
RETRY_S: Final = 30.0  # when the keeper could not do what was asked
KNOWING_S: Final = 2.0  # so long a new engine lets questions wait for its first netmap

log = logging.getLogger(__name__)


class NameService:
    """All of a node's DNS. `server` and `forwarder` are there to be looked at."""

    def __init__(self, keeper: KeeperChannel, device: Device, tls: ssl.SSLContext, *, accept: bool) -> None:
        self._keeper = keeper
        self._device = device
        self._accept = accept
        self._resolver = Resolver()
        self._netmap: tuple[Node | None, DNSConfig | None, Node | None] = (None, None, None)
        self._allow_underlay = False
        self._inside = InsideSockets(keeper)
        self._exchanges = Exchanges(self, tls, self._on_received, self._on_failed)
        self._replies: dict[int, Callable[[bytes, How | None], None]] = {}
        self._asked = 0
        self._timer: asyncio.TimerHandle | None = None
        self._ways: list[Way | None] = []
        self._known: list[str] = []  # addresses of the host's name servers
        self._wanted: set[str] | None = (
            None  # addresses that the keeper was last asked for; None: a keeper may know better
        )
        self._listening: set[str] = set()  # those of them that it could give
        self._reconsider = asyncio.Event()
        self._knows = asyncio.Event()
        self.host_servers: list[str] = []
        self.forwarder = Forwarder(secrets.token_bytes, self.way, forbidden=OUT_OF_REACH)
        self.server = DnsServer(self.ask)
        self.local_answers = 0
        keeper.on_nameservers = self._on_nameservers

    @property
    def configuration(self) -> Configuration:
        """The rules in force."""
        return self._resolver.configuration

    @property
    def accepts(self) -> bool:
        """Whether control's configuration is followed."""
        return self._accept

    # --- what the netmap says

    def update_peer(self, old: Node | None, new: Node | None) -> None:
        """Change one peer's names."""
        self._resolver.update_peer(old, new)

    def configure(
        self,
        itself: Node | None,
        config: DNSConfig | None,
        exit_node: Node | None = None,
        *,
        accept: bool | None = None,
        allow_underlay: bool = False,
    ) -> None:
        """Follow control's configuration (with `accept`; None: as before); `allow_underlay`: servers that the tunnel does not lead to are asked from the host's network.

        That must not be while an exit node is chosen, whether it is there or not.
        """
        self._netmap = (itself, config, exit_node)
        self._accept = self._accept if accept is None else accept
        self._allow_underlay = allow_underlay
        self._configure()
        self._knows.set()

    def _configure(self) -> None:
        itself, config, exit_node = self._netmap
        changed = self._resolver.configure(
            self_node=itself,
            config=config,
            exit_node=exit_node,
            host=self.host_servers if self._allow_underlay else (),
            accept=self._accept,
        )
        if changed:
            self.forwarder.forget()
        self.routes_changed()

    def routes_changed(self) -> None:
        """What the tunnel carries has changed, or may have."""
        ways = [self.way(one, address) for one in self.configuration.upstreams() for address in one.addresses]
        if ways != self._ways:
            self._ways = ways
            self.forwarder.forget()
        self._reconsider.set()

    def way(self, upstream: Upstream, address: bytes) -> Way | None:
        """From where this address of a server is asked; None: not at all."""
        if not upstream.of_host and (is_tailnet(address) or self._device.carries(address)):
            return Way.TUNNEL
        return Way.UNDERLAY if self._allow_underlay else None

    # --- the namespace

    async def run(self, sockets: Sequence[socket.socket]) -> None:
        """Serve on these sockets, and at the host's name servers' addresses as long as nothing on the tailnet has them."""
        await self.know()
        await self._serve(sockets)
        while True:
            await self._reconsider.wait()
            self._reconsider.clear()
            done = await self._listen() and await self._be_ready_to_ask()
            if not done:
                await asyncio.sleep(RETRY_S)
                self._reconsider.set()

    async def know(self) -> None:
        """Wait for the first netmap, but not for long: who asks meanwhile is better served a little later than wrongly."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(KNOWING_S):
                await self._knows.wait()

    async def close(self) -> None:
        """Answer nobody any more, and ask nobody."""
        if self._timer is not None:
            self._timer.cancel()
        await self.server.close()
        await self._exchanges.close()
        self._inside.close()

    def _on_nameservers(self, servers: list[str], addresses: list[str]) -> None:
        self.host_servers, self._known = servers, addresses
        self._configure()

    async def _serve(self, sockets: Sequence[socket.socket]) -> None:
        udp = [sock for sock in sockets if sock.type == socket.SOCK_DGRAM]
        tcp = [sock for sock in sockets if sock.type == socket.SOCK_STREAM]
        await self.server.start(udp, tcp)

    async def _listen(self) -> bool:
        """Have the listeners that there should be; False where the keeper could not help."""
        wanted = {text for text in self._known if not self._is_of_the_tailnet(pack(text))}
        if wanted == self._wanted:
            return True
        answer, fds = await self._keeper.ask_for_descriptors("listeners", {"addresses": sorted(wanted)})
        if answer["error"]:
            return False
        self._wanted = wanted
        given = [socket.socket(fileno=fd) for fd in fds]  # all of them, each time
        addresses = {str(sock.getsockname()[0]) for sock in given}
        self.server.stop(sorted(self._listening - addresses))
        new = []
        for sock in given:
            if sock.getsockname()[0] in self._listening:
                sock.close()
            else:
                new.append(sock)
        self._listening = addresses
        await self._serve(new)
        return True

    def _is_of_the_tailnet(self, address: bytes) -> bool:
        """Whether a server of this address is to be reached through the tunnel, by programs or by us."""
        return (
            is_tailnet(address)
            or self._device.covers(address)
            or any(
                address in one.addresses and self.way(one, address) is Way.TUNNEL
                for one in self.configuration.upstreams()
            )
        )

    async def _be_ready_to_ask(self) -> bool:
        """Have a socket at hand where servers inside are likely to be asked soon."""
        sizes = {
            len(address)
            for one in self.configuration.upstreams()
            for address in one.addresses
            if Transport.UDP in one.transports and self.way(one, address) is Way.TUNNEL
        }
        try:
            for size in sizes:
                await self._inside.fill(socket.SOCK_DGRAM, socket.AF_INET if size == 4 else socket.AF_INET6)
        except OSError as error:
            log.warning("%s", error)
            return False
        return True

    # --- questions

    def ask(self, query: bytes, over_tcp: bool, reply: Callable[[bytes], None]) -> bool:
        """Answer a query, now or later; False where there must be no answer."""
        return self.ask_and_tell(query, over_tcp, lambda data, _: reply(data))

    def ask_and_tell(self, query: bytes, over_tcp: bool, reply: Callable[[bytes, How | None], None]) -> bool:
        """The same for somebody who also wants to know how the answer came about (None: from the netmap)."""
        found = self._resolver.answer(query, over_tcp=over_tcp)
        if isinstance(found, Elsewhere):
            self._asked += 1
            self._replies[self._asked] = reply
            self._do(self.forwarder.ask(found.query, found.rule, self._asked, boot_time(), over_tcp=over_tcp))
        elif found is not None:
            self.local_answers += 1
            reply(found, None)
        return found is not None

    def complete(self, query: bytes, over_tcp: bool) -> bytes | None:
        """The answer for a short name that search domains make a node's, see `Resolver.complete`."""
        answer = self._resolver.complete(query, over_tcp=over_tcp)
        self.local_answers += answer is not None
        return answer

    def _on_received(self, number: int, data: bytes) -> None:
        self._do(self.forwarder.receive(number, data, boot_time()))

    def _on_failed(self, number: int, reason: str) -> None:
        self._do(self.forwarder.failed(number, reason, boot_time()))

    def _on_time(self) -> None:
        self._timer = None
        self._do(self.forwarder.tick(boot_time()))

    def _do(self, outputs: list[Output]) -> None:
        for output in outputs:
            match output:
                case Begin():
                    self._exchanges.begin(output)
                case End(number=number):
                    self._exchanges.end(number)
                case Answered(asker=asker, data=data, how=how):
                    self._replies.pop(asker)(data, how)
        self._arrange_tick()

    def _arrange_tick(self) -> None:
        due = self.forwarder.deadline()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if due is not None:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, due - boot_time()), self._on_time)

    # --- sockets for questions

    async def take(self, way: Way, kind: int, family: int) -> socket.socket:
        """A socket in the network that this way leads through; OSError where there is none."""
        return await self._inside.take(kind, family) if way is Way.TUNNEL else question_socket(kind, family)

    def give_back(self, way: Way, sock: socket.socket) -> None:
        """It has served."""
        if way is Way.TUNNEL:
            self._inside.give_back(sock)
        else:
            sock.close()
