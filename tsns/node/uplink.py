"""A node's way to the host's network, for who wants more than the tailnet (ring 1): pasta is started, joined, filtered and watched here.

    wanted --> pasta starts --> its device is ours, closed --filter--> routes by it --> up
                  ^                                                                     |
                  `------------------------- back-off <---- pasta ends -----------------'

The tailnet does not depend on any of it. What the filter cannot hold closes it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Final

from tsns.error import UserError
from tsns.netns import host_network, uplink, uplink_filter
from tsns.netns.routes import EVERYTHING, TAILNET
from tsns.netns.uplink import Started, Way
from tsns.node.engine_life import UID_BASE as ENGINE_UID_BASE
from tsns.node.watch import Watch
from tsns.proto.addresses import NOBODYS_TEXT, Prefix
from tsns.proto.text import one_line

UID_BASE: Final = ENGINE_UID_BASE + (1 << 22)  # plus the keeper's pid: nobody else's, and no engine's either
POLL_S: Final = 0.02
START_PATIENCE_S: Final = 5.0
RESTART_FIRST_S: Final = 0.5
RESTART_MAX_S: Final = 30.0
STEADY_AFTER_S: Final = 10.0
READ_BYTES: Final = 4096
SYSLOG: Final = "Failed to send "  # what pasta says where there is no syslog

log = logging.getLogger(__name__)


def check() -> None:
    """UserError where this machine offers no such way."""
    if uplink.program() is None:
        raise UserError(
            "--with-internet needs pasta, which is not installed",
            "install the package passt: `apt install passt`, or `dnf install passt`",
        )


class Uplink:
    """One node's. `on_settled` is called when it is up, or when there is something to say of why it is not."""

    def __init__(self, watch: Watch, on_settled: Callable[[], object]) -> None:
        self._watch = watch
        self._on_settled = on_settled
        self._wanted = False
        self._only_neighbours = False
        self._led_elsewhere: Sequence[Prefix] = ()
        self._namespace = -1
        self._started: Started | None = None
        self._output = -1
        self._since = 0.0
        self._delay_s = RESTART_FIRST_S
        self._way: Way | None = None
        self._last_words = ""
        self.error = ""

    @property
    def settled(self) -> bool:
        """Whether there is nothing to wait for."""
        return not self._wanted or self._way is not None or bool(self.error)

    @property
    def is_up(self) -> bool:
        """Whether packets can go out."""
        return self._way is not None

    def want(self, *, wanted: bool, only_neighbours: bool) -> None:
        """Have such a way or not; with `only_neighbours` it leads to the host's neighbourhood and no farther."""
        self._only_neighbours = only_neighbours
        if wanted and not self._wanted:
            self._wanted = True
            if self._may_start:
                self._start()
        elif self._wanted and not wanted:
            self._wanted = False
            self.close()
        else:
            self._filter()

    @property
    def _may_start(self) -> bool:
        """Root's pasta need not wait for the namespace; everybody else's begins in the user namespace that was made with it."""
        return os.geteuid() == 0 or self._namespace >= 0

    def set_namespace(self, namespace: int) -> None:
        """The node's namespace is there."""
        waited = not self._may_start
        self._namespace = namespace
        if waited and self._wanted:
            self._start()

    def forbid(self, routes: Sequence[Prefix]) -> None:
        """These go by the tailnet; to be said before they do."""
        led = [route for route in routes if route not in EVERYTHING]
        if led != self._led_elsewhere:
            self._led_elsewhere = led
            self._filter()

    def close(self) -> None:
        """End it."""
        self._watch.cancel("uplink")
        self._end()
        self.error = ""

    def _start(self) -> None:
        self._last_words = ""
        try:
            check()
            path = uplink.program()
            assert path is not None  # checked
            self._output, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
            os.set_blocking(writing, True)
            try:
                self._started = uplink.start(path, UID_BASE + os.getpid(), self._namespace, writing)
            finally:
                os.close(writing)
        except UserError as error:
            self._fail(error.message)
            return
        except OSError as error:
            self._fail(str(error))
            return
        self._since = time.monotonic()
        self._watch.reader(self._output, self._hear)
        self._watch.reader(self._started.pidfd, self._ended)
        self._watch.at("uplink", self._since + POLL_S, self._join)

    def _join(self) -> None:
        """See whether pasta is ready, and go by it."""
        assert self._started is not None  # it runs
        now = time.monotonic()
        try:
            way = uplink.take_over(self._started, self._namespace) if self._namespace >= 0 else None
            if way is None:
                if now - self._since > START_PATIENCE_S:
                    raise OSError(self._last_words or f"pasta is not ready after {START_PATIENCE_S:.0f} s")
                self._watch.at("uplink", now + POLL_S, self._join)
                return
            if not way.gateways:
                raise OSError("the host has no way to the internet itself")
            self._way = way
            self._filter()
            uplink.open_way(self._namespace, way)
        except OSError as error:
            self._fail(str(error))
            return
        log.info("the host's network can be reached: %s by %s", " ".join(way.addresses), " ".join(way.gateways))
        self.error = ""
        self._on_settled()

    def _filter(self) -> None:
        """Let pass what may go this way and no other."""
        if self._started is None or self._way is None:
            return
        forbidden = [*map(Prefix.parse, (*NOBODYS_TEXT, *host_network.addresses())), *TAILNET, *self._led_elsewhere]
        only = self._way.neighbourhood if self._only_neighbours else None
        try:
            uplink.filter_device(self._started, self._namespace, uplink_filter.compiled(forbidden, only))
            self.error = ""
        except (OSError, ValueError) as error:
            log.warning("the way to the internet is closed: %s", error)
            self.error = f"the way to the internet is closed: {error}"
            with contextlib.suppress(OSError):
                uplink.filter_device(self._started, self._namespace, uplink_filter.closed())
                return
            self._end()  # that one does, too

    def _hear(self) -> None:
        with contextlib.suppress(OSError):
            data = os.read(self._output, READ_BYTES)
            if not data:
                self._watch.forget(self._output)
            for line in data.decode(errors="replace").splitlines():
                if line.strip() and not line.startswith(SYSLOG):
                    self._last_words = f"pasta: {one_line(line)}"
                    log.info("%s", self._last_words)

    def _ended(self) -> None:
        """Pasta is gone, and with it its device. The tailnet is as before."""
        self._hear()
        self._fail(self._last_words or "pasta has ended")

    def _fail(self, why: str) -> None:
        lived_s = time.monotonic() - self._since if self._way is not None else 0.0
        self._end()
        self.error = f"the internet cannot be reached: {why}"
        self._delay_s = RESTART_FIRST_S if lived_s > STEADY_AFTER_S else min(2 * self._delay_s, RESTART_MAX_S)
        log.warning("%s; trying again in %.1f s", self.error, self._delay_s)
        self._watch.at("uplink", time.monotonic() + self._delay_s, self._start)
        self._on_settled()

    def _end(self) -> None:
        self._way = None
        started, self._started = self._started, None
        if started is not None:
            self._watch.forget(started.pidfd)
            os.close(started.pipe)
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(started.pidfd, signal.SIGKILL)
            os.waitpid(started.pid, 0)
            os.close(started.pidfd)
        if self._output >= 0:
            self._watch.forget(self._output)
            os.close(self._output)
            self._output = -1
