"""A small internet on this machine: hosts are network namespaces on one bridge, which has a namespace of its own.

                 bridge namespace
        +------------- lan ---------------+
        |               |                 |
      eth0            eth0              eth0
     server            old             router        one namespace each: 10.91.0.1, .2, .3 ...
                                         |
                                       eth0
                                        new          192.168.1.2, for a host may stand behind a router of its own

It speaks IPv4 or IPv6. Nothing of it is seen in the machine's own network, and there is no way out of it.
"""

from __future__ import annotations

import contextlib
import ipaddress
import itertools
import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

from tests.interop.rig.namespace import Namespace, socket_in
from tests.interop.rig.router import GATEWAY, HOME_PREFIX_LENGTH, INSIDE, OUTSIDE, Nat, Router, home_addresses
from tests.interop.rig.uplink import BRIDGE, Uplink

# By version of IP. Private ones, so that plain http to a control server is allowed.
NETWORKS: Final[dict[int, ipaddress.IPv4Network | ipaddress.IPv6Network]] = {
    4: ipaddress.IPv4Network("10.91.0.0/24"),
    6: ipaddress.IPv6Network("fd91:7e57::/64"),
}
NAME_PREFIX: Final = f"rig-{os.getpid()}-"  # of every namespace of this test run: the check for leftovers looks for it
RUN_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.02

# What of the caller's environment programs on a host get: nothing that changes what they do.
PASSED_ON: Final = ("PATH", "HOME", "LANG", "TMPDIR")


Found = TypeVar("Found")

_numbers = itertools.count(1)  # of the internets of this test run


def wait_for(look: Callable[[], Found | None], what: str, timeout_s: float = 20.0) -> Found:
    """What `look` finds once it finds something; AssertionError naming `what` when it does not in time."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(POLL_S)


def address_and_port(address: str, port: int) -> str:
    """Both in one, as URLs and listeners have them."""
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


class Daemon:
    """A process that runs until it is stopped, with everything it says in a log file, after what is there already."""

    def __init__(self, process: subprocess.Popen[str], log: Path, log_start: int) -> None:
        self.process = process
        self.log = log
        self._log_start = log_start

    def said(self) -> str:
        """Everything it wrote so far."""
        return self.log.read_bytes()[self._log_start :].decode(errors="replace")

    def wait_until_said(self, text: str, timeout_s: float = 20.0) -> None:
        """Returns when its log holds this text; AssertionError with the log when it ends before, or in time says nothing."""

        def look() -> bool:
            ended = self.process.poll() is not None
            return text in self.said() or self._complain(ended)

        wait_for(look, f"{self.log.name} says {text!r}", timeout_s)

    def _complain(self, ended: bool) -> bool:
        assert not ended, f"{self.log.name} ended with {self.process.returncode}:\n{self.said()[-4000:]}"
        return False

    def stop(self) -> None:
        """Ends it, by force if it does not go."""
        if self.process.stdin:
            with contextlib.suppress(OSError):
                self.process.stdin.close()
        self.process.terminate()
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        if self.process.stdout:
            self.process.stdout.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Host:
    """One machine of the small internet, with one device, eth0, whose address `new_address` gives."""

    def __init__(
        self,
        namespace: Namespace,
        name: str,
        directory: Path,
        uplink: Uplink,
        new_address: Callable[[], str],
        router: Router | None = None,
    ) -> None:
        self.namespace = namespace.name
        self.name = name
        self.directory = directory
        self.uplink = uplink  # to the internet: the router's, where there is one
        self.router = router
        self.address = new_address()  # its own; who it is out there says `public_address`
        self.environment: dict[str, str] = {key: os.environ[key] for key in PASSED_ON if key in os.environ}
        self._new_address = new_address
        self._namespace = namespace
        namespace.ip("link", "set", "eth0", "up")
        self._take_address()

    @property
    def version(self) -> int:
        """Of IP."""
        return 6 if ":" in self.address else 4

    @property
    def public_address(self) -> str:
        """The address by which the internet knows it."""
        return self.router.address if self.router and self.router.kind.translates else self.address

    def renumber(self) -> None:
        """Another address takes the place of its own, which is gone from one moment to the next."""
        if self.router and not self.router.kind.translates:
            self.router.do_not_know(self.address)
        self._namespace.ip("address", "delete", self._address_and_length(), "dev", "eth0")
        self.address = self._new_address()
        self._take_address()

    def _take_address(self) -> None:
        flags = ("nodad",) if self.version == 6 else ()
        self._namespace.ip("address", "add", self._address_and_length(), "dev", "eth0", *flags)
        if self.router:
            self._namespace.ip(
                f"-{self.version}",
                *("route", "replace", "default", "via", GATEWAY[self.version], "dev", "eth0", "onlink"),
            )
            if not self.router.kind.translates:
                self.router.know(self.address)

    def _address_and_length(self) -> str:
        network = NETWORKS[self.version]
        if self.router is None:
            return f"{self.address}/{network.prefixlen}"
        return f"{self.address}/{HOME_PREFIX_LENGTH if self.router.kind.translates else network.max_prefixlen}"

    def command(self, *words: str) -> list[str]:
        """A command line that runs `words` on this host. It changes the network namespace only: no mount, no /sys."""
        return self._namespace.command(*words)

    def run(
        self,
        *words: str,
        environment: Mapping[str, str] | None = None,
        timeout_s: float = RUN_TIMEOUT_S,
        stdin: str = "",
        check: bool = True,
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end; AssertionError with its output when it fails and `check` is set."""
        result = subprocess.run(
            self.command(*words),
            env={**self.environment, **(environment or {})},
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        if check:
            said = f"{result.stdout[-2000:]}\n{result.stderr[-4000:]}"
            assert result.returncode == 0, f"{' '.join(words)} on {self.name}: status {result.returncode}\n{said}"
        return result

    def popen(
        self, *words: str, log: str = "", environment: Mapping[str, str] | None = None, conversation: bool = False
    ) -> Daemon:
        """Starts a command that goes on; in a `conversation` its standard input and output are pipes, else the log has all."""
        path = self.directory / f"{log or os.path.basename(words[0])}.log"
        with path.open("a") as output:
            log_start = output.tell()
            process = subprocess.Popen(
                self.command(*words),
                env={**self.environment, **(environment or {})},
                stdin=subprocess.PIPE if conversation else subprocess.DEVNULL,
                stdout=subprocess.PIPE if conversation else output,
                stderr=output,
                text=True,
            )
        return Daemon(process, path, log_start)

    def udp_socket(self, port: int, address: str = "") -> socket.socket:
        """A UDP socket of this host for the test itself, bound to the host's present address if to no other."""
        made = socket_in(self._namespace.path, self._family, socket.SOCK_DGRAM)
        made.bind((address or self.address, port))
        return made

    def tcp_socket(self) -> socket.socket:
        """A TCP socket of this host for the test itself."""
        return socket_in(self._namespace.path, self._family, socket.SOCK_STREAM)

    @property
    def _family(self) -> socket.AddressFamily:
        return socket.AF_INET6 if self.version == 6 else socket.AF_INET

    def block_udp(self, *servers: str) -> None:
        """From now on UDP goes to and from these addresses only, so that peers can meet at a relay and nowhere else.

        The host itself forbids it, and programs are told so; `uplink.block_udp` is what happens on the way.
        """
        family = "ip6" if self.version == 6 else "ip"
        rules = "\n".join(
            f"chain {hook} {{ type filter hook {hook} priority -10; "
            f'{device} "eth0" {family} {end} != {{ {", ".join(servers)} }} meta l4proto udp drop; }}'
            for hook, device, end in (("output", "oifname", "daddr"), ("input", "iifname", "saddr"))
        )
        self._namespace.nft(f"table inet rig {{\n{rules}\n}}\n")

    def unblock_udp(self) -> None:
        """Takes `block_udp` back."""
        self.run("nft", "delete", "table", "inet", "rig")


class Internet:
    """The bridge and its hosts; use it as a context manager, which removes them all."""

    def __init__(self, directory: Path, version: int = 4) -> None:
        self.version = version  # of IP
        self._token = f"{NAME_PREFIX}{next(_numbers)}"
        self._directory = directory
        self._addresses = map(str, NETWORKS[version].hosts())
        self._bridge = Namespace(f"{self._token}-lan")
        self._ports = itertools.count(1)
        self._namespaces: list[Namespace] = []

    def __enter__(self) -> Self:
        with self._removed_on_failure():
            self._add(self._bridge)
            # Without snooping: it would take neighbour discovery for groups that nobody has joined.
            self._bridge.ip("link", "add", BRIDGE, "type", "bridge", "mcast_snooping", "0")
            self._bridge.ip("link", "set", BRIDGE, "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove_all()

    def host(self, name: str, behind: Nat = Nat.NONE) -> Host:
        """A new host with the next free address, or behind a new router; its files are in a directory of its own."""
        namespace = self._add(Namespace(f"{self._token}-{name}"))
        uplink = Uplink(self._bridge, next(self._ports))
        router = None
        if behind is Nat.NONE:
            uplink.plug(namespace, "eth0")
        else:
            router = self._router(name, behind, uplink)
            router.namespace.ip("link", "add", INSIDE, "type", "veth", "peer", "name", "eth0", "netns", namespace.name)
            router.start()
        directory = self._directory / name
        directory.mkdir()
        new_address = home_addresses().__next__ if behind.translates else self._new_address
        host = Host(namespace, name, directory, uplink, new_address, router)
        devices = [(self._bridge, uplink.port), (namespace, "eth0"), *([(router.namespace, OUTSIDE)] if router else [])]
        wait_for(lambda: all(place.is_up(device) for place, device in devices), f"{name} has a line")
        return host

    def _router(self, name: str, kind: Nat, uplink: Uplink) -> Router:
        namespace = self._add(Namespace(f"{self._token}-{name}-router"))
        uplink.plug(namespace, OUTSIDE)
        return Router(namespace, kind, self.version, NETWORKS[self.version].prefixlen, self._new_address)

    def remove(self, host: Host) -> None:
        """Takes a host away, and its router; whatever runs on it must have been stopped."""
        names = {host.namespace, *([host.router.namespace.name] if host.router else [])}
        for namespace in [namespace for namespace in self._namespaces if namespace.name in names]:
            self._namespaces.remove(namespace)
            namespace.delete()

    def _new_address(self) -> str:
        return next(self._addresses)

    def _add(self, namespace: Namespace) -> Namespace:
        self._namespaces.append(namespace)
        namespace.add()
        return namespace

    @contextlib.contextmanager
    def _removed_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._remove_all()
            raise

    def _remove_all(self) -> None:
        while self._namespaces:
            with contextlib.suppress(AssertionError):
                self._namespaces.pop().delete()
