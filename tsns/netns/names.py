"""DNS sockets in a node's namespace: those that answer at the host's name servers' addresses, and those that ask others (ring 1).

A program that goes by an address of the host's, and not by resolv.conf, is answered there like any other: the address is put on the
namespace's loopback, where nothing of it can get out.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Sequence
from typing import Final

from tsns.netns import device_table
from tsns.netns.child import MAX_DESCRIPTORS, in_network
from tsns.netns.device_table import LOOPBACK, Address
from tsns.netns.namespace import DNS_KINDS, dns_socket
from tsns.proto.addresses import Prefix, pack

MAX_LISTENED: Final = MAX_DESCRIPTORS // len(DNS_KINDS) // 2  # addresses
_LOOPBACK: Final = (Prefix.parse("127.0.0.0/8"), Prefix.parse("::1"))


def listen(namespace: int, addresses: Sequence[str]) -> list[socket.socket]:
    """A UDP and a TCP socket at each of these addresses, which become the namespace's own. Those that are taken are left out."""
    return [socket.socket(fileno=fd) for fd in in_network(namespace, lambda: _listen(addresses[:MAX_LISTENED]))]


def _listen(addresses: Sequence[str]) -> list[int]:
    found: list[socket.socket] = []
    device_table.change(_of_loopback(addresses), ())
    for address in addresses:
        made: list[socket.socket] = []
        with contextlib.suppress(OSError):
            for kind in DNS_KINDS:
                made.append(dns_socket(kind, address))  # noqa: PERF401 (what was made before one failed is closed)
        if len(made) == len(DNS_KINDS):
            found += made
    return [sock.detach() for sock in found]


def give_up(namespace: int, addresses: Sequence[str]) -> None:
    """These are the namespace's own no more. OSError with the reason."""
    in_network(namespace, lambda: _give_up(addresses))


def _give_up(addresses: Sequence[str]) -> list[int]:
    device_table.change((), _of_loopback(addresses))
    return []


def asking_sockets(namespace: int, kind: int, family: int, count: int) -> list[int]:
    """Unbound sockets of the namespace, as descriptors. OSError with the reason."""
    return in_network(namespace, lambda: [socket.socket(family, kind).detach() for _ in range(count)])


def _of_loopback(addresses: Sequence[str]) -> list[Address]:
    """How it has these, but for those that it always has."""
    every = (pack(address) for address in addresses)
    return [
        Address(LOOPBACK, packed, 8 * len(packed))
        for packed in every
        if not any(prefix.covers(packed) for prefix in _LOOPBACK)
    ]
