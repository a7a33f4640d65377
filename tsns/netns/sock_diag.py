"""Whether somebody in a namespace listens on a port, asked from outside of it (ring 1, standard library only).

Source: sock_diag(7), linux/inet_diag.h. A socket of this kind stays in the namespace that it was made in; whoever holds it may ask, with no
right at all. The kernel answers at once, so that nothing here waits.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from typing import Final

from tsns.netns import netlink_messages
from tsns.netns.netlink_messages import message, parts
from tsns.proto.addresses import SERVICE_V4, SERVICE_V6, Prefix, unmapped

MAX_READS: Final = 16  # of 64 KB: some ten thousand sockets of one port

_NETLINK_SOCK_DIAG: Final = 4
_BY_FAMILY: Final = 20  # SOCK_DIAG_BY_FAMILY
# Family, protocol, extensions; states; then of the socket: ports, addresses, interface, cookie.
_REQUEST: Final = struct.Struct("=BBBxI2s2s16s16sI8s")
_NO_COOKIE: Final = b"\xff" * 8
_ANSWER: Final = struct.Struct("=BBxx2s2s16s")  # family, state; ports, source
_STATES: Final = {socket.IPPROTO_TCP: 1 << 10, socket.IPPROTO_UDP: 1 << 7}  # listening; bound, and not connected
_FAMILIES: Final = {socket.AF_INET: 4, socket.AF_INET6: 16}
# What is bound to these cannot be reached from the tailnet: loopback, and MagicDNS.
_INSIDE: Final = (*map(Prefix.parse, ("127.0.0.0/8", "::1")), Prefix(SERVICE_V4, 32), Prefix(SERVICE_V6, 128))


def open_socket() -> int:
    """A socket that asks in the caller's network namespace, as a descriptor. OSError with the reason."""
    return netlink_messages.open_socket(_NETLINK_SOCK_DIAG).detach()


def listens(diag: int, protocol: int, port: int) -> bool:
    """Whether a TCP socket listens on this port, or a UDP socket is bound to it and not connected, where the tailnet could reach it.

    `diag` is a descriptor by `open_socket`. False where the kernel does not tell: it lacks inet_diag, tcp_diag or udp_diag, or has more to
    tell of this port than is listened to.
    """
    states = _STATES.get(protocol)
    if states is None:
        return False
    with socket.socket(fileno=os.dup(diag)) as sock:
        return any(_listens(sock, family, protocol, port, states) for family in _FAMILIES)


def _listens(sock: socket.socket, family: int, protocol: int, port: int, states: int) -> bool:
    for _ in _read(sock):  # what is left of an answer that was too long
        pass
    request = _REQUEST.pack(
        family, protocol, 0, states, port.to_bytes(2, "big"), bytes(2), bytes(16), bytes(16), 0, _NO_COOKIE
    )
    with contextlib.suppress(OSError):
        sock.send(message(_BY_FAMILY, netlink_messages.DUMP, request), socket.MSG_DONTWAIT)
    found = False
    for kind, body in _read(sock):  # to its end: before, the kernel takes no other question
        found = found or (kind == _BY_FAMILY and _is_of(body, port))
    return found


def _read(sock: socket.socket) -> Iterator[tuple[int, bytes]]:
    with contextlib.suppress(OSError):
        for _ in range(MAX_READS):
            yield from parts(sock.recv(netlink_messages.READ_BYTES, socket.MSG_DONTWAIT))


def _is_of(body: bytes, port: int) -> bool:
    """Whether this tells of a socket that listens where packets of the tailnet could come."""
    if len(body) < _ANSWER.size:
        return False
    family, _, source_port, _, source = _ANSWER.unpack_from(body)
    address = unmapped(source[: _FAMILIES.get(family, 0)])
    return int.from_bytes(source_port, "big") == port and not any(prefix.covers(address) for prefix in _INSIDE)
