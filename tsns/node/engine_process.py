"""The engine as the keeper sees it: a child process and a channel to it (ring 1)."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import time
from collections.abc import Callable, Sequence
from typing import Final, NoReturn

from tsns.node import messages
from tsns.node.messages import Message
from tsns.node.watch import Watch

STOP_PATIENCE_S: Final = 4.0  # for its logout and its goodbyes

_SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)


class EngineProcess:
    """Starts, hears and ends one child. `on_message` gets its words and descriptors, `on_end` the wait status when it ended unbidden."""

    def __init__(
        self,
        watch: Watch,
        on_message: Callable[[Message, Sequence[int]], None],
        on_end: Callable[[int, float], None],
    ) -> None:
        self._watch = watch
        self._on_message = on_message
        self._on_end = on_end
        self._channel: socket.socket | None = None
        self._pidfd = -1
        self._since = 0.0
        self.pid = 0  # 0: there is none

    def start(self, body: Callable[[socket.socket, int], NoReturn]) -> None:
        """Fork a child that is `body(channel, our pid)` for the rest of its life."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * messages.MAX_ENGINE_MESSAGE_BYTES)
        parent = os.getpid()
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)  # our handlers must not run in the child
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_IGN)  # its end comes by the channel
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            body(theirs, parent)
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        theirs.close()
        self.pid, self._channel, self._pidfd, self._since = pid, ours, os.pidfd_open(pid), time.monotonic()
        self._watch.reader(ours.fileno(), self._read)
        self._watch.reader(self._pidfd, self._ended)

    def tell(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send to it; a child that just died says so by its end."""
        if self._channel is not None:
            with contextlib.suppress(OSError):
                messages.send(self._channel, message, fds, messages.MAX_ENGINE_MESSAGE_BYTES)

    def stop(self, *, logout: bool) -> None:
        """Let it say goodbye, then see that it is gone."""
        if not self.pid:
            return
        self.tell({"stop": True, "logout": logout})
        deadline = time.monotonic() + STOP_PATIENCE_S
        while (patience_s := deadline - time.monotonic()) > 0:
            readable, _, _ = select.select(self._awaited(), [], [], patience_s)
            if self._pidfd in readable:
                break
            if readable:
                self._read()  # it may want something kept before it goes
        else:
            os.kill(self.pid, signal.SIGKILL)
        self._reap()

    def _awaited(self) -> list[int]:
        channel = self._channel.fileno() if self._channel is not None else -1
        return [self._pidfd, channel] if self._watch.watches(channel) else [self._pidfd]

    def _read(self) -> None:
        assert self._channel is not None  # watched
        try:
            message, fds = messages.receive(self._channel, messages.MAX_ENGINE_MESSAGE_BYTES)
        except (EOFError, OSError, ValueError):
            self._watch.forget(self._channel.fileno())
            os.kill(self.pid, signal.SIGKILL)  # it hung up, or talks nonsense
            return
        try:
            self._on_message(message, fds)
        finally:
            for fd in fds:
                os.close(fd)

    def _ended(self) -> None:
        lived_s = time.monotonic() - self._since
        self._on_end(self._reap(), lived_s)

    def _reap(self) -> int:
        self._watch.forget(self._pidfd)
        os.close(self._pidfd)
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        if self._channel is not None:
            self._watch.forget(self._channel.fileno())
            self._channel.close()
            self._channel = None
        return status
