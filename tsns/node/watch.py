"""One thread's poll loop: descriptors with handlers, times with handlers, signals (ring 1, standard library only)."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable
from typing import Final

LONGEST_SLEEP_S: Final = 60.0


class Watch:
    """Calls back when a descriptor can be read or a moment has come. Handlers run one after the other and may change everything here."""

    def __init__(self) -> None:
        self._poll = select.poll()
        self._readers: dict[int, Callable[[], None]] = {}
        self._moments: dict[str, tuple[float, Callable[[], None]]] = {}
        self._wakeup: tuple[int, int] | None = None

    def reader(self, fd: int, handler: Callable[[], None]) -> None:
        """Call the handler whenever `fd` has something to read, or its other end is gone."""
        self._readers[fd] = handler
        self._poll.register(fd, select.POLLIN)

    def forget(self, fd: int) -> None:
        """No longer; forgetting what is not watched is allowed."""
        if self._readers.pop(fd, None) is not None:
            self._poll.unregister(fd)

    def watches(self, fd: int) -> bool:
        """Whether this descriptor has a handler."""
        return fd in self._readers

    def at(self, name: str, moment: float, handler: Callable[[], None]) -> None:
        """Call the handler once at this time of the monotonic clock; a name has one time only."""
        self._moments[name] = (moment, handler)

    def cancel(self, name: str) -> None:
        """Not at all."""
        self._moments.pop(name, None)

    def has_moment(self, name: str) -> bool:
        """Whether something is to happen under this name."""
        return name in self._moments

    def signals(self, numbers: Iterable[int], handler: Callable[[], None]) -> None:
        """Call the handler in the loop after one of these signals (poll itself goes on sleeping after a handler of Python's)."""
        reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._wakeup = (reading, writing)
        signal.set_wakeup_fd(writing)
        for number in numbers:
            signal.signal(number, lambda *_: None)

        def woken() -> None:
            os.read(reading, 64)
            handler()

        self.reader(reading, woken)

    def close(self) -> None:
        """Let go of the pipe that signals come by."""
        for fd in self._wakeup or ():
            self.forget(fd)
            os.close(fd)
        self._wakeup = None

    def turn(self) -> None:
        """Wait for what comes next, and handle it."""
        now = time.monotonic()
        wait_s = min([LONGEST_SLEEP_S, *(moment - now for moment, _ in self._moments.values())])
        for fd, _ in self._poll.poll(max(0.0, wait_s) * 1000 + (1 if wait_s > 0 else 0)):
            handler = self._readers.get(fd)
            if handler is not None:
                handler()
        now = time.monotonic()
        for name, (moment, handler) in list(self._moments.items()):
            if moment <= now and self._moments.get(name) == (moment, handler):
                del self._moments[name]
                handler()
