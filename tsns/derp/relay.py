"""One region: the queue towards it, and the tasks that connect, read, write and come back (ring 1).

    IDLE --home, or something to send--> CONNECTING --SERVER_INFO--> CONNECTED
      ^                                   |      ^                       |
      |                                failure   | after a pause      loss, silence, no progress
      |                                   v      |                       |
      +-- not home, nothing written ---  WAITING <-----------------------+
          for IDLE_S (from any state)

A relay owns its reader and its writer: one that is stuck holds up nobody else. What cannot be written waits here, bounded in bytes and
in age; the oldest is dropped first, for a tunnel's old packets are worth least.
"""

from __future__ import annotations

import asyncio
import collections
import enum
import logging
import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final

from tsns.derp.backoff import Backoff
from tsns.derp.dial import CLOSE_S, READ_BYTES, Dialled, dial
from tsns.derp.heard import Heard
from tsns.derp.queue import QUEUE_AGE_S, QUEUE_BYTES, Drop, PacketQueue
from tsns.derp.session import Closed, Health, Opened, Output, PeerGone, Ready, Received, Restarting, Send, Session
from tsns.error import ProtocolError, RetryableError
from tsns.keys import NodePrivate, NodePublic
from tsns.netns.underlay import Underlay, is_from_elsewhere
from tsns.proto.types import DERPRegion

log = logging.getLogger(__name__)

QUEUE_HIGH_BYTES: Final = 64 << 10  # from here on the TUN should not be read
QUEUE_LOW_BYTES: Final = 16 << 10  # and from here on again
# Written at once, with the event loop's other work in between: a relay keeps 32 packets for each receiver and drops the oldest of more, so
# that a whole train at once would push out its own beginning.
BURST_PACKETS: Final = 24
TCP_NOTSENT_LOWAT: Final = 25
NOTSENT_BYTES: Final = 16 << 10  # with the kernel and not on its way as yet: more would only be delay
STUCK_S: Final = 2.0  # without progress for so long, a connection pushes back no more
DEAD_S: Final = 10.0  # and is given up after so long
IDLE_S: Final = 60.0  # a relay that is not home is left when nothing was written for so long
STABLE_S: Final = 5.0  # a connection that lived so long was none that failed


@dataclass(frozen=True, slots=True)
class Limits:
    """The bounds and times of one relay; tests choose others."""

    queue_bytes: int = QUEUE_BYTES
    high_bytes: int = QUEUE_HIGH_BYTES
    low_bytes: int = QUEUE_LOW_BYTES
    age_s: float = QUEUE_AGE_S
    stuck_s: float = STUCK_S
    dead_s: float = DEAD_S
    idle_s: float = IDLE_S


class State(enum.StrEnum):
    """What a relay is doing."""

    IDLE = "idle"
    CONNECTING = "connecting"
    CONNECTED = "connected"
    WAITING = "waiting"


@dataclass(frozen=True, slots=True)
class Owner:
    """What all relays of a node share, and whom they tell."""

    key: NodePrivate
    underlay: Underlay
    tls: ssl.SSLContext
    limits: Limits
    drops: collections.Counter[Drop]
    receive: Callable[[int, list[tuple[NodePublic, bytes]]], None]
    flow: Callable[[Relay], None]  # `congested` has changed
    changed: Callable[[], None]  # the state, the health or the last error has changed


class Relay:
    """Our side of one region."""

    def __init__(self, number: int, region: DERPRegion, owner: Owner) -> None:
        self.number = number
        self.region = region
        self.state = State.IDLE
        self.home = False
        self.stuck = False
        self.congested = False
        self.node = ""  # the relay of the region that we are connected to
        self.health = ""  # what the relay itself complains of
        self.error = ""  # why the last attempt or connection failed; empty once connected
        self.heard = Heard()
        self.queue = PacketQueue(owner.drops, owner.limits.queue_bytes, owner.limits.age_s)
        self._owner = owner
        self._limits = owner.limits
        self._wanted_until = 0.0
        self._task: asyncio.Task[None] | None = None
        self._attempt: asyncio.Task[None] | None = None  # a part of `_task` that may be cancelled alone
        self._retry = asyncio.Event()  # cuts a pause short
        self._wake = asyncio.Event()  # something to write
        self._session: Session | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._end_reason: str | None = None  # why the present connection is being ended by us
        self._watchdog: asyncio.TimerHandle | None = None
        self._backoff = Backoff(random.uniform)

    # --- for the owner ---------------------------------------------------------------------------------------------

    @property
    def usable(self) -> bool:
        """Whether packets can be written now, as far as anybody knows."""
        return self._session is not None and self._session.is_open and self._end_reason is None and not self.stuck

    @property
    def last_frame_at(self) -> float | None:
        """When (monotonic seconds) the present connection last brought a frame."""
        return self._session.last_frame_at if self._session is not None and self._session.is_ready else None

    def send(self, peer: NodePublic, packets: list[bytes]) -> None:
        """Pass packets to a peer, now if the connection takes them, else when it does."""
        now = time.monotonic()
        self._wanted_until = now + self._limits.idle_s
        session, writer = self._session, self._writer
        if self.usable and not self.queue and session and writer and not writer.transport.get_write_buffer_size():
            data = session.forward(peer, packets[:BURST_PACKETS], now)
            if data:
                writer.write(data)
            packets = packets[BURST_PACKETS:]
            if not packets:
                return
        reason = Drop.STUCK if self.stuck else Drop.QUEUE_FULL if self.usable else Drop.NOT_CONNECTED
        self.queue.push(peer, packets, now, reason)
        self._update_flow()
        self._wake.set()
        self._ensure_running()

    def set_home(self, home: bool) -> None:
        """Become home (then the connection is kept) or cease to be it."""
        if home == self.home:
            return
        self.home = home
        if self._session is not None and self._writer is not None:
            self._writer.write(self._session.prefer(home))
        if home:
            self.retry_now()
            self._ensure_running()
        else:
            self._wanted_until = max(self._wanted_until, time.monotonic() + self._limits.idle_s)
        if self._session is not None:
            self._watch()

    def replace(self, region: DERPRegion) -> None:
        """Go by another definition of the region from now on; a connection by another list of nodes is left."""
        moved = region.nodes != self.region.nodes
        self.region = region
        if moved:
            self._backoff.reset()
            self.retry_now()
            if self._attempt is not None:
                self._attempt.cancel()

    def retry_now(self) -> None:
        """Do not wait any longer before the next attempt."""
        self._retry.set()

    def network_changed(self, addresses: Collection[str]) -> None:
        """The host has these addresses now: find out soon whether the connection still works, or try at once to have one."""
        if self._writer is not None and is_from_elsewhere(self._writer, addresses):
            self._end("the address that it was connected from is gone")
        elif self._session is not None and self._writer is not None:
            self._writer.write(self._session.ping(time.monotonic()))
            self._watch()
        self.retry_now()

    def stop(self) -> asyncio.Task[None] | None:
        """End everything; the task returned is done when all is closed."""
        self.home = False
        self.queue.clear(Drop.LEFT)
        self._update_flow()
        if self._task is not None:
            self._task.cancel()
        return self._task

    def take_counts(self) -> None:
        """Move what the session has refused so far to the owner's counters."""
        if self._session is not None:
            for reason, count in (
                (Drop.TOO_LONG, self._session.too_long),
                (Drop.RATE_LIMITED, self._session.rate_limited),
            ):
                if count:
                    self._owner.drops[reason] += count
            self._session.too_long = self._session.rate_limited = 0

    # --- connecting ------------------------------------------------------------------------------------------------

    def _ensure_running(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name=f"derp-{self.number}")

    def _wanted(self) -> bool:
        return self.home or time.monotonic() < self._wanted_until

    async def _run(self) -> None:
        try:
            while self._wanted():
                self._set_state(State.CONNECTING)
                self._attempt = asyncio.create_task(self._connect(), name=f"derp-{self.number}-connection")
                try:
                    await self._attempt
                except (RetryableError, ProtocolError, OSError) as error:
                    self._note_failure(str(error) or type(error).__name__)
                except asyncio.CancelledError:
                    if (this := asyncio.current_task()) is None or this.cancelling():
                        raise  # else `replace` wants another attempt
                except Exception:
                    log.exception("DERP region %d: the connection ends by an error of our own", self.number)
                    self._note_failure("internal error")
                finally:
                    self._attempt = None
                if self._wanted():
                    await self._pause()
        finally:
            self._set_state(State.IDLE)
            self.queue.clear(Drop.LEFT)
            self._update_flow()

    async def _connect(self) -> None:
        await self._serve(await dial(self.region, underlay=self._owner.underlay, tls=self._owner.tls))

    def _note_failure(self, reason: str) -> None:
        level = logging.DEBUG if reason == self.error else logging.INFO  # a relay that stays away is told once
        log.log(level, "DERP region %d (%s): %s", self.number, self.region.region_code or "?", reason)
        self._backoff.fail()
        self.error = reason

    async def _pause(self) -> None:
        self._set_state(State.WAITING)
        self._retry.clear()
        try:
            async with asyncio.timeout(self._backoff.pause_s(time.monotonic())):
                await self._retry.wait()
        except TimeoutError:
            pass

    # --- one connection --------------------------------------------------------------------------------------------

    async def _serve(self, connection: Dialled) -> None:
        """Run a connection to its end; returns where we ended it for being idle, RetryableError where it was lost."""
        reader, writer = connection.reader, connection.writer
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, TCP_NOTSENT_LOWAT, NOTSENT_BYTES)
        writer.transport.set_write_buffer_limits(high=1, low=0)  # so that `drain` returns when TLS has passed on all
        started_at = time.monotonic()
        session = self._session = Session(self._owner.key, os.urandom, started_at)
        self.heard = Heard(started_at)
        self._writer, self.node, self._end_reason = writer, connection.node, None
        self._watch()
        pump = asyncio.create_task(self._write(session, writer), name=f"derp-{self.number}-write")
        try:
            data = connection.rest
            while True:
                if data and session.is_ready:
                    self._backoff.reset()
                for output in session.receive(data, time.monotonic()):
                    self._act(output, writer)
                data = await reader.read(READ_BYTES)
                if not data:
                    break
        finally:
            if time.monotonic() - started_at > STABLE_S:
                self._backoff.reset()
            self._forget_connection()
            pump.cancel()
            await asyncio.wait({pump})
            writer.transport.abort()
            try:
                async with asyncio.timeout(CLOSE_S):
                    await writer.wait_closed()
            except (OSError, TimeoutError):
                pass
        if self._end_reason != "":
            raise RetryableError(self._end_reason or f"{self.node} hung up")

    def _act(self, output: Output, writer: asyncio.StreamWriter) -> None:
        match output:
            case Received(packets):
                self.heard.note(packets, time.monotonic())
                self._owner.receive(self.number, packets)
            case Send(data):
                writer.write(data)
            case PeerGone(peer):
                self.heard.forget(peer)
            case Opened():
                if self.home and self._session is not None:
                    writer.write(self._session.prefer(home=True))
                self._wake.set()
            case Ready():
                self.error = self.health = ""
                log.info("DERP region %d (%s): connected to %s", self.number, self.region.region_code or "?", self.node)
                self._set_state(State.CONNECTED)
            case Health(complaint):
                self.health = complaint
                log.info("DERP region %d says: %s", self.number, complaint or "all is well again")
                self._owner.changed()
            case Restarting(reconnect_in_s, try_for_s):
                self._backoff.expect_restart(reconnect_in_s, try_for_s)
                log.info("DERP region %d is about to restart", self.number)
            case Closed(reason):
                self._end(reason)

    async def _write(self, session: Session, writer: asyncio.StreamWriter) -> None:
        """Write what is queued, for as long as the connection lives."""
        try:
            while True:
                self._wake.clear()
                while self.queue and session.is_open:
                    writer.write(self._take_batch(session))
                    await self._drain(writer)
                    self._update_flow()
                    await asyncio.sleep(0)  # nobody waits in `drain` for a kernel that has taken all
                await self._wake.wait()
        except OSError as error:
            self._end(str(error) or "the connection was lost")
        except Exception:
            log.exception("DERP region %d: writing ends by an error of our own", self.number)
            self._end("internal error")

    async def _drain(self, writer: asyncio.StreamWriter) -> None:
        """Wait until all is with the kernel; in the meantime notice when nothing moves."""
        try:
            async with asyncio.timeout(self._limits.stuck_s):
                await writer.drain()
        except TimeoutError:
            self.stuck = True
            self._update_flow()
            self._owner.changed()
            try:
                async with asyncio.timeout(max(self._limits.dead_s - self._limits.stuck_s, 0)):
                    await writer.drain()
            except TimeoutError:
                raise OSError(f"{self.node} has taken nothing for {self._limits.dead_s:.0f} s") from None
            finally:
                self.stuck = False
                self._owner.changed()

    def _take_batch(self, session: Session) -> bytes:
        now = time.monotonic()
        return b"".join(session.forward(peer, packets, now) for peer, packets in self.queue.take(BURST_PACKETS, now))

    def _watch(self) -> None:
        """Let time pass for the connection: its silence, its idleness; and see to it that this happens again."""
        session, now = self._session, time.monotonic()
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        if session is None or self._end_reason is not None:
            return
        for output in session.tick(now):
            if isinstance(output, Closed):
                self._end(output.reason)
        if not self._wanted():
            self._end("")
        deadline = session.deadline()
        if self._end_reason is None and deadline is not None:
            due = deadline if self.home else min(deadline, self._wanted_until)
            self._watchdog = asyncio.get_running_loop().call_later(max(due - now, 0.001), self._watch)

    def _end(self, reason: str) -> None:
        """End the present connection: an empty reason is for one that is not needed any more, and does it politely."""
        writer = self._writer
        if writer is None or self._end_reason is not None:
            return
        self._end_reason = reason
        self._set_state(State.WAITING)
        if reason:
            writer.transport.abort()
        else:
            writer.close()
            asyncio.get_running_loop().call_later(CLOSE_S, writer.transport.abort)

    def _forget_connection(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
            self._watchdog = None
        self.take_counts()
        self._session = self._writer = None
        self.heard = Heard()
        self.health = ""
        self.stuck = False
        self._update_flow()

    # --- the state -------------------------------------------------------------------------------------------------

    def _update_flow(self) -> None:
        """Congested from the high mark down to the low one, while the connection takes packets at all."""
        mark = self._limits.low_bytes if self.congested else self._limits.high_bytes
        congested = self.usable and self.queue.bytes > mark
        if congested != self.congested:
            self.congested = congested
            self._owner.flow(self)

    def _set_state(self, state: State) -> None:
        if state is not self.state:
            self.state = state
            self._owner.changed()
