"""The TUNs of a node: that of its own namespace, and those of the places that share it (ring 1).

Of a single one nothing is asked: all that comes is its. With several, `sharing` says whose each frame is.
"""

from __future__ import annotations

import asyncio
import errno
import logging
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Final

from tsns.counters import Counters
from tsns.proto.virtio import Frame, packets_in
from tsns.wg.offload import Offloads, TunDevice
from tsns.wg.sharing import OWN, Ask, Output, Put, Sharing

log = logging.getLogger(__name__)

PACKETS_PER_WAKE_UP: Final = 32
TRAIN_COUNTS_AS: Final = 8  # packets, of those that a wake-up reads
SMALL_BYTES: Final = 2048  # what is longer than one packet of ours is a train

WRITE_DOWN: Final = "TUN is down"
WRITE_FULL: Final = "TUN queue full"
WRITE_REFUSED: Final = "TUN refused the packet"
NO_TUN: Final = "the namespace that it is for is gone"


class Tuns:
    """Reads and writes TUN descriptors (IFF_TUN, IFF_NO_PI, non-blocking), which stay the caller's to close, after `remove` or `pause`.

    `send` takes frames of the hosts', `ask` the question who listens on a port (`answer` is the answer), and `lost` is called once
    with the place whose device is gone for good.
    """

    def __init__(
        self,
        counters: Counters,
        *,
        send: Callable[[list[bytes]], None],
        ask: Callable[[Ask], None],
        lost: Callable[[int], None],
        clock: Callable[[], float],
    ) -> None:
        self.offloads = Offloads()
        self._counters = counters
        self._send = send
        self._ask = ask
        self._lost = lost
        self._clock = clock
        self._loop = asyncio.get_running_loop()
        self._sharing = Sharing(counters)
        self._devices: dict[int, TunDevice] = {}
        self._busy: set[int] = set()  # places of which there may have been more the last time
        self._is_reading = False
        self._timer: asyncio.TimerHandle | None = None

    def add(self, place: int, fd: int) -> None:
        """Serve this TUN, too."""
        self.remove(place)
        self._devices[place] = TunDevice(fd, self.offloads)
        self._sharing.add(place, range(0))
        if self._is_reading:
            self._watch(place)

    def remove(self, place: int) -> None:
        """Serve it no more; what is not there is not missed."""
        device = self._devices.pop(place, None)
        if device is not None:
            self._busy.discard(place)
            self._sharing.remove(place)
            if self._is_reading:
                self._loop.remove_reader(device.fd)

    def set_ports(self, place: int, ports: range) -> None:
        """What this place begins comes from these ports, which are its own."""
        if place in self._devices:
            self._sharing.add(place, ports)

    def publish(self, protocol: int, port: int, place: int) -> None:
        """What comes to this port is for this place."""
        self._sharing.publish(protocol, port, place)

    def answer(self, question: Ask, place: int | None) -> None:
        """Who listens there; None: nobody."""
        self._do(self._sharing.answer(question.protocol, question.port, place, self._clock()))

    def read(self, wanted: bool) -> None:
        """Take packets of the hosts', or leave them where they are."""
        if wanted == self._is_reading:
            return
        self._is_reading = wanted
        for place, device in self._devices.items():
            if wanted:
                self._watch(place)
            else:
                self._loop.remove_reader(device.fd)
        if not wanted and self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _watch(self, place: int) -> None:
        self._loop.add_reader(self._devices[place].fd, partial(self._read, place))

    def _read(self, place: int) -> None:
        # Who got one packet will hardly find a second one, and to find out costs as much as to read it.
        read, frames, left = self._devices[place].read, list[bytes](), PACKETS_PER_WAKE_UP if place in self._busy else 1
        try:
            while left > 0:
                frame = read()
                frames.append(frame)
                left -= 1 if len(frame) <= SMALL_BYTES else TRAIN_COUNTS_AS
        except (BlockingIOError, InterruptedError):
            pass
        except OSError as error:
            self._lose(place, error)
        if left <= 0:
            self._busy.add(place)
        else:
            self._busy.discard(place)
        if len(self._devices) > 1:
            frames = [frame for frame in frames if self._sharing.send(place, frame)]
        if frames:
            self._send(frames)

    def _lose(self, place: int, error: OSError) -> None:
        """A TUN that cannot be read does not recover, and would wake us for ever."""
        log.error("the TUN device is gone: %s", error.strerror)
        self.remove(place)
        self._lost(place)

    def write(self, frames: Sequence[Frame]) -> None:
        """Give the host, or whose they are, these frames."""
        if len(self._devices) == 1:
            [device] = self._devices.values()
            self._write(device, frames)
        else:
            self._do(self._sharing.receive(frames, self._clock()))

    def _do(self, outputs: Iterable[Output]) -> None:
        for output in outputs:
            if isinstance(output, Put):
                device = self._devices.get(output.place) or self._devices.get(OWN)
                if device is not None:
                    self._write(device, output.frames)
                else:
                    self._counters.add(NO_TUN, sum(map(packets_in, output.frames)))
            else:
                self._ask(output)
        deadline = self._sharing.deadline()
        if deadline is not None and self._timer is None:
            self._timer = self._loop.call_later(max(0.0, deadline - self._clock()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._do(self._sharing.tick(self._clock()))

    def _write(self, device: TunDevice, frames: Sequence[Frame]) -> None:
        write, counters = device.write, self._counters
        for frame in frames:
            try:
                write(frame)
            except (BlockingIOError, InterruptedError):
                counters.add(WRITE_FULL, packets_in(frame))
            except OSError as error:
                counters.add(WRITE_DOWN if error.errno == errno.EIO else WRITE_REFUSED, packets_in(frame))
