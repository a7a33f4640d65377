"""The pump between TUNs, UDP sockets and router (ring 1).

Plain synchronous code that the event loop calls when a descriptor is readable: no task, no future and no callback for a
packet. A wake-up reads up to four trains, or a bounded number of small packets, hands them to the router as one list and sends what
comes of it; what is left wakes us again: fewer cost more processor time for each, more only let the other direction wait. One timer serves all
deadlines. DERP goes through a function of its owner, who pauses the reading of the TUN while its queues are full: packets then
wait in the kernel's queue, and programs slow down.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from tsns.keys import NodePublic
from tsns.paths.peer_paths import PathStatus
from tsns.ways import SendDerp, SendUdp, Train, messages
from tsns.wg.device import SessionUp
from tsns.wg.offload import UdpPort
from tsns.wg.router import Event, Output, Router, WriteTun
from tsns.wg.sharing import OWN, Ask
from tsns.wg.tuns import TRAIN_COUNTS_AS, Tuns

log = logging.getLogger(__name__)

UDP_DATAGRAMS_PER_WAKE_UP: Final = 32
MIN_UDP_DATAGRAMS_PER_WAKE_UP: Final = 4  # while what comes is a stranger's, see `_UdpPortion`
MIN_TIMER_DELAY_S: Final = 0.001

UDP_SEND_FULL: Final = "UDP send buffer full"
UDP_SEND_REFUSED: Final = "UDP send refused"
UDP_NO_SOCKET: Final = "no UDP socket of this family"


class _UdpPortion:
    """How many datagrams a wake-up reads from one socket.

    While there are always more of them, and none is a peer's, the portion shrinks: a flood then gets a small share of each round of
    the event loop, and the packets of TUN and relays the rest of it.
    """

    __slots__ = ("is_busy", "port", "size")

    def __init__(self, port: UdpPort) -> None:
        self.port = port
        self.size = UDP_DATAGRAMS_PER_WAKE_UP
        self.is_busy = False  # whether there may have been more the last time

    def learn(self, read: int, outputs: Iterable[Output]) -> None:
        """Judge a portion by what came of it."""
        if any(isinstance(output, WriteTun | SessionUp) for output in outputs):
            self.size = UDP_DATAGRAMS_PER_WAKE_UP
        elif read >= self.size:
            self.size = max(self.size // 2, MIN_UDP_DATAGRAMS_PER_WAKE_UP)
        else:
            self.size = min(self.size * 2, UDP_DATAGRAMS_PER_WAKE_UP)


def boot_time() -> float:
    """Seconds on a clock that goes on while the machine is suspended: sessions age then too."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class TunPump:
    """Pumps between a TUN descriptor (IFF_TUN, IFF_NO_PI, non-blocking), UDP sockets and a router.

    `send_derp(region, peer, messages)` takes what goes by relay; `event` is told of handshakes, STUN messages, pongs
    and refusals. `tuns` are the TUN of the node's own namespace (`tun_fd`) and any others, of which `tun_lost` and `who_listens` speak;
    see `Tuns`. Descriptors and sockets stay the caller's to close, after `close`. To be made and used in the event loop's thread. All times given to the router are
    `clock()`'s.
    """

    def __init__(
        self,
        router: Router,
        tun_fd: int,
        *,
        udp: Iterable[socket.socket] = (),
        send_derp: Callable[[int, NodePublic, Sequence[bytes]], None],
        event: Callable[[Event], None],
        tun_lost: Callable[[int], None] = lambda _: None,
        who_listens: Callable[[Ask], None] = lambda _: None,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self._router = router
        self.tuns = Tuns(router.counters, send=self._send, ask=who_listens, lost=tun_lost, clock=clock)
        self.tuns.add(OWN, tun_fd)
        self.offloads = self.tuns.offloads
        self._ports = {sock.family: UdpPort(sock, self.offloads) for sock in udp}
        self._send_derp = send_derp
        self._event = event
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._is_running = False
        self._is_paused = False
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0
        self._deadlines_seen = -1

    def now(self) -> float:
        """The time on the clock that the router goes by."""
        return self._clock()

    # --- life ------------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to read."""
        self._is_running = True
        for port in self._ports.values():
            self._loop.add_reader(port.sock.fileno(), self._read_udp, _UdpPortion(port))
        self._arrange_reading()
        self._arm_timer()

    def close(self) -> None:
        """Read no more and forget the timer; may be called twice."""
        if not self._is_running:
            return
        self._is_running = False
        for port in self._ports.values():
            self._loop.remove_reader(port.sock.fileno())
        self._arrange_reading()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def add_udp(self, sock: socket.socket) -> None:
        """Read and send by this socket, too: the host has got a network of its family."""
        port = self._ports[sock.family] = UdpPort(sock, self.offloads)
        if self._is_running:
            self._loop.add_reader(sock.fileno(), self._read_udp, _UdpPortion(port))

    def pause(self) -> None:
        """Leave packets of the host's where they are."""
        self._is_paused = True
        self._arrange_reading()

    def resume(self) -> None:
        """Take packets of the host's again."""
        self._is_paused = False
        self._arrange_reading()

    def _arrange_reading(self) -> None:
        self.tuns.read(self._is_running and not self._is_paused)

    # --- in --------------------------------------------------------------------------------------------------------

    def _send(self, frames: Sequence[bytes]) -> None:
        self.dispatch(self._router.outbound(frames, self._clock()))

    def _read_udp(self, portion: _UdpPortion) -> None:
        receive, left = portion.port.receive, portion.size if portion.is_busy else 1
        trains: list[tuple[Train, tuple[str, int]]] = []
        while left > 0:
            try:
                train, address = receive()
            except (BlockingIOError, InterruptedError):
                break
            except OSError:  # an ICMP error about something sent earlier: anybody can forge one
                left -= 1
                continue
            trains.append((train, address))
            left -= 1 if len(train.data) <= train.stride else TRAIN_COUNTS_AS
        outputs = self._router.inbound_udp(trains, self._clock()) if trains else []
        if portion.is_busy:
            portion.learn(portion.size - left, outputs)
        portion.is_busy = left <= 0
        self.dispatch(outputs)

    def receive_derp(self, region: int, frames: Iterable[tuple[NodePublic, bytes]]) -> None:
        """Take frames from the relay of a region."""
        self.dispatch(self._router.inbound_derp(region, frames, self._clock()))

    def ping(self, peer: NodePublic, source: bytes, destination: bytes, token: bytes) -> None:
        """Send a TSMP ping; see `Router.ping`."""
        self.dispatch(self._router.ping(peer, source, destination, token, self._clock()))

    def echo(self, peer: NodePublic, source: bytes, destination: bytes, token: bytes) -> None:
        """Send an ICMP echo request; see `Router.echo`."""
        self.dispatch(self._router.echo(peer, source, destination, token, self._clock()))

    def path_status(self, peer: NodePublic) -> PathStatus:
        """How packets to this peer go."""
        return self._router.path_status(peer)

    def ask(self, peer: NodePublic, token: bytes) -> None:
        """Send disco pings; see `Router.ask`."""
        self.dispatch(self._router.ask(peer, token, self._clock()))

    def begin_anew(self, peer: NodePublic) -> None:
        """Have new keys with a peer whose process is another one; see `Router.begin_anew`."""
        self.dispatch(self._router.begin_anew(peer, self._clock()))

    def greet(self, peer: NodePublic) -> None:
        """Begin a session; see `Router.greet`."""
        self.dispatch(self._router.greet(peer, self._clock()))

    # --- out -------------------------------------------------------------------------------------------------------

    def dispatch(self, outputs: Iterable[Output]) -> None:
        """Do what the router wants done, and see to its next deadline."""
        for output in outputs:
            if isinstance(output, WriteTun):
                self.tuns.write(output.frames)
            elif isinstance(output, SendUdp):
                self._send_udp(output.address, output.trains)
            elif isinstance(output, SendDerp):
                self._send_derp(output.region, output.peer, output.datagrams)
            else:
                self._event(output)
        self._arm_timer()

    def send_udp(self, address: tuple[str, int], datagrams: Sequence[bytes]) -> None:
        """Send datagrams to a numeric address and port, from the sockets that peers know us by."""
        self._send_udp(address, [Train.of(datagram) for datagram in datagrams])

    def _send_udp(self, address: tuple[str, int], trains: Sequence[Train]) -> None:
        counters = self._router.counters
        port = self._ports.get(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
        if port is None:
            counters.add(UDP_NO_SOCKET, len(messages(trains)))
            return
        for train in trains:
            try:
                port.send(train, address)
            except (BlockingIOError, InterruptedError):
                counters.add(UDP_SEND_FULL, len(train.messages()))
            except OSError as error:
                if error.errno == errno.ENOBUFS:
                    counters.add(UDP_SEND_FULL, len(train.messages()))
                else:  # no route there, no such source address any more, a firewall, too long ...
                    counters.add(UDP_SEND_REFUSED, len(train.messages()))

    # --- time ------------------------------------------------------------------------------------------------------

    def _arm_timer(self) -> None:
        """See to it that `_tick` runs in time; a timer that would run too early is left alone."""
        deadlines_set = self._router.deadlines_set
        if (deadlines_set == self._deadlines_seen and self._timer is not None) or not self._is_running:
            return
        self._deadlines_seen = deadlines_set
        deadline = self._router.deadline()
        if deadline is None or (self._timer is not None and self._timer_at <= deadline):
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = deadline
        self._timer = self._loop.call_later(max(deadline - self._clock(), MIN_TIMER_DELAY_S), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self.dispatch(self._router.tick(self._clock()))
