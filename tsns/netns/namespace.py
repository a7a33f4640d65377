"""A node's network namespace: made, and looked into (ring 1).

What is made here stands from the first moment: loopback with MagicDNS's addresses, and `unreachable` routes for all that a tailnet may
use, so that nothing has another way when the TUN is gone. Addresses and routes of the tailnet follow with the netmap (`routes`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from tsns.netns import device_table, linux, netlink, user_namespace
from tsns.netns.child import in_child
from tsns.netns.device_table import LOOPBACK, Address
from tsns.netns.routes import STANDING_METRIC, tun_index
from tsns.netns.tun import MTU_BYTES, SUPER_PACKET_BYTES, SUPER_PACKET_SEGMENTS, TUN_NAME, TUN_QUEUE_FRAMES, open_tun
from tsns.proto.addresses import (
    CGNAT_TEXT,
    SERVICE_V4,
    SERVICE_V4_TEXT,
    SERVICE_V6,
    SERVICE_V6_TEXT,
    ULA_TEXT,
    pack,
)

Taken = TypeVar("Taken")

DNS_PORT: Final = 53
DNS_BACKLOG: Final = 64
STUB_TEXT: Final = "127.0.0.53"  # where systemd-resolved listens: some programs know it by heart
_LOOPBACK_TEXTS: Final = ("127.0.0.1", "::1", SERVICE_V4_TEXT, SERVICE_V6_TEXT)
ALL_GROUPS: Final = "0 2147483647"
LEAVING_S: Final = 2.0  # the engine of a keeper that was killed has ended by then, and let go of TUN and sockets
_FREE_RETRY_S: Final = 0.01


class Made:
    """What a node's namespace consists of, as descriptors."""

    def __init__(self, fds: list[int]) -> None:
        self.tun, self.namespace, *self.dns = fds  # dns: a UDP and a TCP socket for each of the service's addresses


def make(*, adopted: int | None = None, map_root: bool = False) -> Made:
    """Make a namespace with its TUN, or give a new TUN to the one behind a descriptor. OSError with the reason.

    An ordinary user's is in a new user namespace, in which they are themselves, or with `map_root` root.
    """
    rootless = os.geteuid() != 0
    return Made(in_child(lambda: _make(adopted, rootless=rootless, map_root=map_root)))


def _make(adopted: int | None, *, rootless: bool, map_root: bool) -> list[int]:
    if adopted is not None:
        user_namespace.enter(adopted)
    else:
        if rootless:
            user_namespace.make(as_root=map_root)
        linux.unshare(linux.CLONE_NEWNET)
    deadline = time.monotonic() + (LEAVING_S if adopted is not None else 0.0)
    tun = once_free(open_tun, deadline)
    _allow_ping()
    set_sysctl("net/ipv4/ip_unprivileged_port_start", "0")  # here every port is the command's own
    set_sysctl("net/ipv6/conf/all/disable_ipv6", "0")
    keep_tun_silent()
    device_table.set_up(LOOPBACK)
    device_table.change([Address(LOOPBACK, SERVICE_V4, 32), Address(LOOPBACK, SERVICE_V6, 128)], ())
    with netlink.connection() as ip:
        for prefix in (CGNAT_TEXT, ULA_TEXT):
            ip.route("replace", dst=prefix, type="unreachable", priority=STANDING_METRIC)
    if adopted:
        _give_up_addresses()
    set_up_tun()
    sockets = [
        once_free(partial(dns_socket, kind, address), deadline)
        for address in (SERVICE_V4_TEXT, SERVICE_V6_TEXT)
        for kind in DNS_KINDS
    ]
    with contextlib.suppress(OSError):  # a command left there may have a resolver of its own
        sockets += [once_free(partial(dns_socket, kind, STUB_TEXT), deadline) for kind in DNS_KINDS]
    namespace = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    return [tun, namespace, *(sock.detach() for sock in sockets)]


def keep_tun_silent() -> None:
    """No link-local address, and no router solicitation through the tunnel; before it is set up."""
    set_sysctl(f"net/ipv6/conf/{TUN_NAME}/addr_gen_mode", "1")


def set_up_tun() -> None:
    """Have the TUN carry packets. OSError where there is none."""
    index = tun_index()
    device_table.set_up(index, mtu=MTU_BYTES, queue_length=TUN_QUEUE_FRAMES)
    # Longer ones, where the kernel does not know these limits, are sent as two trains.
    device_table.limit_super_packets(index, SUPER_PACKET_BYTES, SUPER_PACKET_SEGMENTS)


def _give_up_addresses() -> None:
    """Those that a keeper before us put on loopback, for name servers that the host may not have any more."""
    present = device_table.addresses()
    ours = set(map(pack, _LOOPBACK_TEXTS))
    device_table.change((), [each for each in present if each.device == LOOPBACK and each.packed not in ours])


def once_free(take: Callable[[], Taken], deadline: float) -> Taken:
    """Take what somebody who is about to end may still have; OSError where it is not free by then."""
    while True:
        try:
            return take()
        except OSError as error:
            if error.errno not in {errno.EBUSY, errno.EADDRINUSE} or time.monotonic() > deadline:
                raise
        time.sleep(_FREE_RETRY_S)


DNS_KINDS: Final = (socket.SOCK_DGRAM, socket.SOCK_STREAM)


def dns_socket(kind: int, address: str) -> socket.socket:
    """A bound UDP or listening TCP socket for DNS, in the namespace of the caller; OSError where the address is taken."""
    sock = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((address, DNS_PORT))
        if kind == socket.SOCK_STREAM:
            sock.listen(DNS_BACKLOG)
    except OSError:
        sock.close()
        raise
    return sock


def _allow_ping() -> None:
    """Without capabilities, for every group; where the kernel refuses groups that mean nothing here, for our own."""
    try:
        set_sysctl("net/ipv4/ping_group_range", ALL_GROUPS)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        set_sysctl("net/ipv4/ping_group_range", f"{os.getegid()} {os.getegid()}")


def set_sysctl(key: str, value: str) -> None:
    """A sysctl of this namespace; one that this kernel lacks (no IPv6, say) is not needed either."""
    try:
        with open(f"/proc/sys/{key}", "w") as file:
            file.write(value)
    except FileNotFoundError:
        pass


def identity(of: int | Path) -> tuple[int, int]:
    """A namespace's (device, inode). Inodes are used again: this tells living namespaces apart, not past ones."""
    status = os.stat(of)
    return status.st_dev, status.st_ino


def inside(wanted: tuple[int, int]) -> list[int]:
    """The processes in this network namespace, as far as the caller may look."""
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                status = os.stat(f"/proc/{entry}/ns/net")
            except OSError:
                continue  # it ended, or it is somebody else's
            if (status.st_dev, status.st_ino) == wanted:
                found.append(int(entry))
    return found
