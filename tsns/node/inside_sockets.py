"""Sockets in the node's namespace for the engine's own questions to servers inside the tailnet (ring 1).

The engine cannot enter the namespace. The keeper makes them, a few at a time; they are used again and again, for a socket that is
disconnected is as good as new: the next connection has another port.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Final

from tsns.netns import linux
from tsns.node.keeper_channel import KeeperChannel

AT_ONCE: Final = 16  # asked of the keeper in one message
MAX_IDLE: Final = 64  # of each kind, kept for later
MAX_DRAINED: Final = 64  # late datagrams that are thrown away
_NAMES: Final = {socket.SOCK_DGRAM: "udp", socket.SOCK_STREAM: "tcp"}
_VERSIONS: Final = {socket.AF_INET: 4, socket.AF_INET6: 6}


class InsideSockets:
    """A pool of unconnected sockets by kind and family."""

    def __init__(self, keeper: KeeperChannel) -> None:
        self._keeper = keeper
        self._idle: dict[tuple[int, int], list[socket.socket]] = {
            (kind, family): [] for kind in _NAMES for family in _VERSIONS
        }
        self._asking = {key: asyncio.Lock() for key in self._idle}

    async def take(self, kind: int, family: int) -> socket.socket:
        """A non-blocking socket, the caller's until `give_back`; OSError where there is none to be had."""
        idle = self._idle[kind, family]
        while not idle:
            async with self._asking[kind, family]:
                if not idle:
                    idle += await self._more(kind, family)
        return idle.pop()

    async def fill(self, kind: int, family: int) -> None:
        """See to it that the next one need not be waited for; OSError where that cannot be."""
        if not self._idle[kind, family]:
            self.give_back(await self.take(kind, family))

    def give_back(self, sock: socket.socket) -> None:
        """For somebody else; whatever it was connected to, it is no more."""
        idle = self._idle[sock.type, sock.family]
        try:
            linux.disconnect(sock.fileno())
            if len(idle) >= MAX_IDLE or not _drained(sock):
                sock.close()
                return
        except OSError:
            sock.close()
            return
        idle.append(sock)

    def close(self) -> None:
        """Keep none."""
        for idle in self._idle.values():
            for sock in idle:
                sock.close()
            idle.clear()

    async def _more(self, kind: int, family: int) -> list[socket.socket]:
        wanted = {"kind": _NAMES[socket.SocketKind(kind)], "family": _VERSIONS[socket.AddressFamily(family)]}
        answer, fds = await self._keeper.ask_for_descriptors("sockets", {**wanted, "count": AT_ONCE})
        sockets = [socket.socket(fileno=fd) for fd in fds]
        if answer["error"] or not sockets:
            _close(sockets)
            raise OSError(f"no socket in the namespace: {answer['error'] or 'the keeper gave none'}")
        for sock in sockets:
            sock.setblocking(False)
        return sockets


def _drained(sock: socket.socket) -> bool:
    """Throw away what still came for the last question; False where there is no end to it."""
    if sock.type != socket.SOCK_DGRAM:
        return True
    for _ in range(MAX_DRAINED):
        try:
            sock.recv(1)
        except BlockingIOError:
            return True
    return False


def _close(sockets: Iterable[socket.socket]) -> None:
    for sock in sockets:
        sock.close()
