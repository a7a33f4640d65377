"""A namespace's way to the host's network, by pasta: an ordinary process that copies connections (ring 1).

Source: pasta(1) of passt; Documentation/networking/tuntap.rst. pasta runs as a user without any rights, and makes a network namespace of its
own with a TAP device. The device is taken from there and put into the node's namespace: pasta goes on holding its descriptor, and holds
nothing else of the node. With pasta the device goes, and with it the way out.

An ordinary user's pasta begins in the user namespace of the node, so that its own is below that one: who has entered the node's has rights
over both, and can take the device from the one to the other.

Before that the device gets a filter (`uplink_filter`), which whoever is inside cannot come round, root neither. pasta's own
forwarding of ports and names is off, and the gateway's address leads to nobody on the host.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import signal
import stat
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from tsns.netns import linux, netlink, routes, user_namespace
from tsns.netns.child import in_child, in_network
from tsns.netns.uplink_filter import INSTRUCTION, closed
from tsns.proto.addresses import Prefix

PROGRAM: Final = "pasta"
PLACES: Final = ("/usr/bin/pasta", "/usr/local/bin/pasta", "/bin/pasta")
HOLDER: Final = "/bin/cat"  # what pasta's namespace is for, in pasta's eyes: it ends with us
NAME: Final = "uplink0"
TUN: Final = "/dev/net/tun"
TUNATTACHFILTER: Final = 0x401054D5
ADDRESS_FLAGS: Final = 0x02 | 0x200  # IFA_F_NODAD, IFA_F_NOPREFIXROUTE
RTNH_F_ONLINK: Final = 4
METRIC: Final = 1000
MAX_ANSWER_BYTES: Final = 64 << 10
MAX_DESCRIPTORS: Final = 256  # of pasta's, among which its device is looked for
_TUN_DEVICE: Final = os.makedev(10, 200)
_SYS_PIDFD_GETFD: Final = 438
_ARGUMENTS: Final = (
    "--foreground", "--quiet", "--config-net", "--ns-ifname", NAME,
    "--no-map-gw", "--no-dhcp", "--no-dhcpv6", "--no-ra",
    "--tcp-ports", "none", "--udp-ports", "none", "--tcp-ns", "none", "--udp-ns", "none",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Started:
    """pasta, just begun. It ends when `pipe` is closed, by us or with us."""

    pid: int
    pidfd: int
    pipe: int


def program() -> str | None:
    """Where pasta is; None where it is not installed."""
    return next((place for place in PLACES if os.access(place, os.X_OK)), None)


def start(path: str, uid: int, namespace: int, output: int) -> Started:
    """Start pasta in the caller's own network, for a node's namespace; what it says goes to the descriptor `output`. OSError with the reason.

    Root starts it as this user, everybody else as themselves.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC)
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    pid = os.fork()
    if pid == 0:
        _become_pasta(path, uid, namespace, reading, output)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    os.close(reading)
    return Started(pid, os.pidfd_open(pid), writing)


def _become_pasta(path: str, uid: int, namespace: int, stdin: int, output: int) -> NoReturn:
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGPIPE):  # pasta refuses to start with SIGPIPE ignored
            signal.signal(number, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        os.setsid()
        if os.geteuid() == 0:
            _make_tun_everybodys()
            linux.become(uid, uid, [])
        else:
            user_namespace.enter_owner(namespace)
        os.dup2(stdin, 0)
        os.dup2(output, 1)
        os.dup2(output, 2)
        linux.close_all_but()
        os.chdir("/")
        os.execve(path, [PROGRAM, *_ARGUMENTS, "--", HOLDER], {"PATH": "/usr/bin:/bin"})
    except OSError as error:
        os.write(output, f"pasta cannot be started: {error}\n".encode())
    finally:
        os._exit(127)


def _make_tun_everybodys() -> None:
    """In a mount namespace of its own: not everywhere may an ordinary user open it."""
    if os.stat(TUN).st_mode & 0o006 == 0o006:
        return
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount("none", "/", linux.MS_REC | linux.MS_SLAVE)
    linux.mount("tmpfs", "/dev/net", linux.MS_NOSUID | linux.MS_NOEXEC, kind="tmpfs", options="size=4k,mode=755")
    os.mknod(TUN, stat.S_IFCHR | 0o600, _TUN_DEVICE)
    os.chmod(TUN, 0o666)


@dataclass(frozen=True, slots=True)
class Way:
    """What pasta has found out about the host's network."""

    addresses: tuple[str, ...]  # with their lengths
    gateways: tuple[str, ...]

    @property
    def neighbourhood(self) -> list[Prefix]:
        """The networks of the addresses."""
        return [Prefix.parse(text) for text in self.addresses]


def take_over(started: Started, namespace: int) -> Way | None:
    """Move the device into the node's namespace, down, and with a filter that lets nothing pass; None while pasta is not ready.

    OSError with the reason.
    """
    holder = _holder(started.pid)
    if holder is None:
        return None
    filter_device(started, namespace, closed())
    inner = os.open(f"/proc/{holder}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        in_child(lambda: _move(inner, namespace, writing))
        addresses, _, gateways = os.read(reading, MAX_ANSWER_BYTES).decode().partition(";")
    finally:
        for fd in (inner, reading, writing):
            os.close(fd)
    return Way(tuple(addresses.split()), tuple(gateways.split()))


def _holder(pid: int) -> int | None:
    """The process inside, which is begun when all is configured."""
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        found = [int(child) for child in children if os.readlink(f"/proc/{child}/exe") == os.path.realpath(HOLDER)]
    except OSError:
        return None
    return found[0] if found else None


def _move(inner: int, namespace: int, answer: int) -> list[int]:
    user_namespace.enter_owner(namespace)
    linux.setns(inner, linux.CLONE_NEWNET)
    with netlink.connection() as ip:
        indices = ip.link_lookup(ifname=NAME)
        if not indices:
            raise OSError("pasta has made no device")
        index = indices[0]
        addresses = [
            f"{item.get_attr('IFA_ADDRESS')}/{item['prefixlen']}"
            for item in ip.get_addr(index=index)
            if item["scope"] == 0
        ]
        gateways = [
            str(route.get_attr("RTA_GATEWAY"))
            for family in netlink.FAMILIES
            for route in ip.get_default_routes(family=family)
            if route.get_attr("RTA_GATEWAY")
        ]
        ip.link("set", index=index, net_ns_fd=namespace)
    os.write(answer, f"{' '.join(addresses)};{' '.join(gateways)}".encode())
    return []


def open_way(namespace: int, way: Way) -> None:
    """Lead packets out, as far as no other table knows better. OSError with the reason."""
    in_network(namespace, lambda: _open_way(way))


def _open_way(way: Way) -> list[int]:
    with netlink.connection() as ip:
        index = ip.link_lookup(ifname=NAME)[0]
        for address in way.addresses:
            host, _, bits = address.partition("/")
            netlink.ensure(ip.addr, index=index, address=host, prefixlen=int(bits), flags=ADDRESS_FLAGS)
        ip.link("set", index=index, state="up")
        for prefix in way.neighbourhood:
            ip.route("replace", dst=str(prefix), oif=index, table=routes.LAN_TABLE, priority=METRIC)
        for gateway in way.gateways:
            ip.route(
                "replace",
                dst="::/0" if ":" in gateway else "0.0.0.0/0",
                gateway=gateway,
                oif=index,
                table=routes.INTERNET_TABLE,
                priority=METRIC,
                flags=RTNH_F_ONLINK,
            )
        for table in (routes.LAN_TABLE, routes.INTERNET_TABLE):
            routes.use_table(ip, table)
    return []


def filter_device(started: Started, namespace: int, code: bytes) -> None:
    """Give the device another filter (see `uplink_filter`). OSError where pasta is gone, or the filter is too much for the kernel."""
    [device] = in_child(lambda: _descriptor_of_device(started, namespace))
    try:
        buffer = ctypes.create_string_buffer(code, len(code))
        fcntl.ioctl(
            device, TUNATTACHFILTER, struct.pack("@HP", len(code) // INSTRUCTION.size, ctypes.addressof(buffer))
        )
    finally:
        os.close(device)


def _descriptor_of_device(started: Started, namespace: int) -> list[int]:
    """Pasta's own descriptor of the device, as one of ours."""
    user_namespace.enter_owner(namespace)  # pasta may not be looked into from elsewhere
    libc = ctypes.CDLL(None, use_errno=True)
    for number in range(MAX_DESCRIPTORS):  # its directory in /proc is nobody's to list
        fd = int(libc.syscall(_SYS_PIDFD_GETFD, started.pidfd, number, 0))
        code = ctypes.get_errno()
        if fd >= 0 and os.fstat(fd).st_rdev == _TUN_DEVICE:
            return [fd]
        if fd >= 0:
            os.close(fd)
        elif code != errno.EBADF:
            raise OSError(code, f"pasta's device cannot be had: {os.strerror(code)}")
    raise OSError("pasta has no device")
