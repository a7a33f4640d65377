"""Messages between client, keeper and engine: JSON objects over SOCK_SEQPACKET, with descriptors (ring 1, standard library only).

The kernel keeps the messages apart; each is bounded, and whoever reads treats it as a stranger's.
"""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from collections.abc import Sequence
from typing import Any, Final

PROTOCOL: Final = 1  # a client and a keeper of other numbers do not understand each other
MAX_MESSAGE_BYTES: Final = 64 << 10
MAX_ENGINE_MESSAGE_BYTES: Final = 256 << 10  # between keeper and engine: thousands of routes
MAX_DESCRIPTORS: Final = 16
_CUT: Final = int(socket.MSG_TRUNC | socket.MSG_CTRUNC)  # as a number: flags of `enum` are slow, and much code

Message = dict[str, Any]


def send(to: socket.socket, message: Message, fds: Sequence[int] = (), limit: int = MAX_MESSAGE_BYTES) -> None:
    """Send one message; ValueError when it is too large, OSError as the socket says."""
    data = json.dumps(message).encode()
    if len(data) > limit:
        raise ValueError(f"a message of {len(data)} bytes")
    socket.send_fds(to, [data], fds)


def receive(source: socket.socket, limit: int = MAX_MESSAGE_BYTES) -> tuple[Message, list[int]]:
    """One message and its descriptors, close-on-exec; EOFError at the end, ValueError for what is no message."""
    # socket.recv_fds of Python 3.11 ignores its flags, and the namespace would leak into the command.
    data, ancillary, flags, _ = source.recvmsg(limit, socket.CMSG_SPACE(MAX_DESCRIPTORS * 4), socket.MSG_CMSG_CLOEXEC)
    fds = [
        fd
        for level, kind, raw in ancillary
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS
        for fd in array.array("i", raw[: len(raw) // 4 * 4])
    ]
    try:
        if not data:
            raise EOFError
        if flags & _CUT:
            raise ValueError("a message that is too large")
        try:
            message = json.loads(data)
        except RecursionError:
            raise ValueError("a message that is nested too deeply") from None
        if not isinstance(message, dict):
            raise ValueError("a message is an object")
    except (EOFError, ValueError):
        for fd in fds:
            os.close(fd)
        raise
    return message, fds


def peer_uid(connection: socket.socket) -> int:
    """Who is at the other end of a Unix socket."""
    return _peer(connection)[1]


def peer_pid(connection: socket.socket) -> int:
    """Which process that is: of a listening socket's, the one that has made it."""
    return _peer(connection)[0]


def _peer(connection: socket.socket) -> tuple[int, int]:
    pid, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid


def address_of(path: str, directory_fd: int) -> str:
    """How to name a socket in a directory whose own path may be longer than the 108 bytes of a Unix address."""
    return f"/proc/self/fd/{directory_fd}/{path}"
