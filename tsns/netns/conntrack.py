"""What the kernel remembers of flows that a rule of ours has changed the addresses of, or would now change (ring 1, standard library only).

Source: linux/netfilter/nfnetlink_conntrack.h. A rule of nat counts for the first packet of a flow: whoever has asked a name server a moment
ago goes on asking the same one, unless that is forgotten.
"""

from __future__ import annotations

import errno
import socket
import struct
from typing import Final

from tsns.netns import netlink_messages
from tsns.netns.netlink_messages import attribute, attributes, message, nested, parts
from tsns.netns.nftables import NETLINK_NETFILTER

MAX_READS: Final = 64  # of 64 KB: a kernel that cannot choose (before Linux 5.8) tells of all flows
MAX_FORGOTTEN: Final = 4096

_COUNT: Final = "/proc/sys/net/netfilter/nf_conntrack_count"
_SUBSYSTEM: Final = 1
_GET: Final = 1
_DELETE: Final = 2
_GENMSG: Final = struct.Struct(">BBH")  # family, version, resource
_TUPLE_ORIGINAL: Final = 1
_TUPLE_IP: Final = 1
_IPV4_DESTINATION: Final = 2
_FILTER: Final = 25
_FILTER_ORIGINAL: Final = 1
_BY_DESTINATION: Final = struct.pack("=I", 1 << 1)


def forget(destination: bytes) -> None:
    """Forget flows that began with a packet to this IPv4 address, in the caller's network namespace. OSError with the reason."""
    if not _any_flows():
        return
    head = _GENMSG.pack(socket.AF_INET, 0, 0)
    with netlink_messages.open_socket(NETLINK_NETFILTER) as sock:
        flows = _flows(sock, destination)[:MAX_FORGOTTEN]
        requests = [message(_SUBSYSTEM << 8 | _DELETE, netlink_messages.ACK, head + flow) for flow in flows]
        netlink_messages.carry_out(sock, requests, "a flow cannot be forgotten", {errno.ENOENT})


def _any_flows() -> bool:
    """Whether it is worth the milliseconds that the kernel takes to look through a table that it has for all namespaces in common."""
    try:
        with open(_COUNT) as file:
            return int(file.read()) > 0
    except (OSError, ValueError):
        return True


def _flows(sock: socket.socket, destination: bytes) -> list[bytes]:
    """How these flows are named, as attributes."""
    asked = (
        nested(_FILTER, attribute(_FILTER_ORIGINAL, _BY_DESTINATION)),
        nested(_TUPLE_ORIGINAL, nested(_TUPLE_IP, attribute(_IPV4_DESTINATION, destination))),
    )
    body = _GENMSG.pack(socket.AF_INET, 0, 0) + b"".join(asked)
    sock.send(message(_SUBSYSTEM << 8 | _GET, netlink_messages.DUMP, body))
    found: list[bytes] = []
    for _ in range(MAX_READS):
        for kind, answer in parts(sock.recv(netlink_messages.READ_BYTES)):
            if kind == netlink_messages.DONE:
                return found
            if kind == netlink_messages.ERROR:
                raise OSError(netlink_messages.errno_of(answer), "the kernel does not tell of flows")
            flow = attributes(answer, _GENMSG.size).get(_TUPLE_ORIGINAL, b"")
            if attributes(attributes(flow).get(_TUPLE_IP, b"")).get(_IPV4_DESTINATION) == destination:
                found.append(nested(_TUPLE_ORIGINAL, flow))
    raise OSError(errno.EMSGSIZE, "there are too many flows to look through")
