"""The keeper's clients: connections to NAME.ctl (ring 1). No reply may ever stop the keeper: a client that left is forgotten."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tsns.netns import linux
from tsns.node import messages
from tsns.node.messages import Message
from tsns.node.watch import Watch

MAX_CLIENTS: Final = 64
BACKLOG: Final = 64
SOCKET_MODE: Final = 0o600


class Client:
    """One connection; `waiting` while it wants to hear when the node is ready."""

    def __init__(self, connection: socket.socket, *, waiting: bool) -> None:
        self.connection = connection
        self.waiting = waiting

    def pidfd(self) -> int | None:
        """A descriptor of the process at the other end; None when it is gone."""
        try:
            return self.connection.getsockopt(socket.SOL_SOCKET, linux.SO_PEERPIDFD)
        except OSError:  # before Linux 6.5: by the pid
            raw = self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 4)
            try:
                return os.pidfd_open(int.from_bytes(raw, "little"))
            except OSError:
                return None


class Clients:
    """Accepts, hears and answers; `on_request` gets each message and its descriptors, which are closed then, `on_leave` is called when a connection is gone."""

    def __init__(
        self, watch: Watch, on_request: Callable[[Client, Message, Sequence[int]], None], on_leave: Callable[[], None]
    ) -> None:
        self._watch = watch
        self._on_request = on_request
        self._on_leave = on_leave
        self._clients: dict[int, Client] = {}

    def listen(self, path: Path) -> None:
        """Accept connections of our own uid at this path."""
        listener = listening_socket(socket.SOCK_SEQPACKET, path, os.geteuid())
        listener.setblocking(False)
        self._watch.reader(listener.fileno(), lambda: self._accept(listener))

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        if len(self._clients) >= MAX_CLIENTS or messages.peer_uid(connection) != os.geteuid():
            connection.close()
        else:
            self.admit(connection, waiting=False)

    def admit(self, connection: socket.socket, *, waiting: bool) -> None:
        """Serve this connection too."""
        connection.setblocking(False)
        client = self._clients[connection.fileno()] = Client(connection, waiting=waiting)
        self._watch.reader(connection.fileno(), lambda: self._read(client))

    def _read(self, client: Client) -> None:
        try:
            message, fds = messages.receive(client.connection)
        except (EOFError, OSError, ValueError):
            self.drop(client)
            return
        try:
            self._on_request(client, message, fds)
        finally:
            for fd in fds:
                os.close(fd)

    @property
    def anybody_waiting(self) -> bool:
        """Whether somebody wants the node to become ready."""
        return any(client.waiting for client in self._clients.values())

    def reply(self, client: Client, message: Message, fds: Sequence[int] = ()) -> None:
        """Send to one of them."""
        try:
            messages.send(client.connection, message, fds)
        except OSError:  # it left, or does not read
            self.drop(client)

    def tell_waiting(self, message: Message, fds: Sequence[int] = ()) -> None:
        """Send to all who wait."""
        for client in [client for client in self._clients.values() if client.waiting]:
            self.reply(client, message, fds)

    def served(self) -> None:
        """Nobody waits any more: all have their answer."""
        for client in self._clients.values():
            client.waiting = False

    def tell_everybody(self, message: Message) -> None:
        """Send to all."""
        for client in list(self._clients.values()):
            self.reply(client, message)

    def drop(self, client: Client) -> None:
        """Forget a client."""
        if self._clients.pop(client.connection.fileno(), None) is not None:
            self._watch.forget(client.connection.fileno())
            client.connection.close()
            self._on_leave()


def listening_socket(kind: int, path: Path, owner_uid: int) -> socket.socket:
    """A Unix socket that only this user (and root) may open, where nothing else stands any more."""
    path.unlink(missing_ok=True)
    sock = socket.socket(socket.AF_UNIX, kind)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    before = os.umask(0o777 & ~SOCKET_MODE)  # from its first moment
    try:
        sock.bind(messages.address_of(path.name, directory))
    finally:
        os.umask(before)
        os.close(directory)
    os.chown(path, owner_uid, -1)
    sock.listen(BACKLOG)
    return sock
