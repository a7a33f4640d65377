"""A small internet on this machine: hosts are network namespaces on one bridge, which has a namespace of its own.

                 bridge namespace
        +------------- lan ---------------+
        |               |                 |
      eth0            eth0              eth0
     server            old               new         one namespace each: 10.91.0.1, .2, .3 ...

Nothing of it is seen in the machine's own network, and there is no way out of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import itertools
import os
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, Self, TypeVar

NETWORK: Final = ipaddress.IPv4Network("10.91.0.0/24")  # private, so that plain http to a control server is allowed
NAME_PREFIX: Final = f"rig-{os.getpid()}-"  # of every namespace of this test run: the check for leftovers looks for it
RUN_TIMEOUT_S: Final = 60.0
STOP_TIMEOUT_S: Final = 5.0
POLL_S: Final = 0.02
CLONE_NEWNET: Final = 0x40000000

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


def _ip(*words: str) -> None:
    result = subprocess.run(["ip", *words], capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"ip {' '.join(words)}: {result.stderr.strip()}"


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
    """One machine of the small internet."""

    def __init__(self, namespace: str, name: str, address: str, directory: Path) -> None:
        self.namespace = namespace
        self.name = name
        self.address = address
        self.directory = directory
        self.environment: dict[str, str] = {key: os.environ[key] for key in PASSED_ON if key in os.environ}

    def command(self, *words: str) -> list[str]:
        """A command line that runs `words` on this host. It changes the network namespace only: no mount, no /sys."""
        return ["nsenter", f"--net=/run/netns/{self.namespace}", "--", *words]

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
        """A UDP socket of this host for the test itself: it stays in the namespace in which a thread makes it."""
        made: list[socket.socket] = []

        def make() -> None:
            with open(f"/run/netns/{self.namespace}", "rb") as namespace:
                setns = ctypes.CDLL(None, use_errno=True).setns
                if setns(namespace.fileno(), CLONE_NEWNET) == 0:
                    made.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        assert made, f"no socket in {self.namespace}"
        made[0].bind((address or self.address, port))
        return made[0]

    def block_udp(self, server: str) -> None:
        """From now on UDP goes to and from the server's address only, so that peers can meet at its relay and nowhere else."""
        rules = "\n".join(
            f"chain {hook} {{ type filter hook {hook} priority -10; "
            f'{device} "eth0" ip protocol udp ip {end} != {server} drop; }}'
            for hook, device, end in (("output", "oifname", "daddr"), ("input", "iifname", "saddr"))
        )
        self.run("nft", "-f", "-", stdin=f"table inet rig {{\n{rules}\n}}\n")

    def unblock_udp(self) -> None:
        """Takes `block_udp` back."""
        self.run("nft", "delete", "table", "inet", "rig")


class Internet:
    """The bridge and its hosts; use it as a context manager, which removes them all."""

    def __init__(self, directory: Path) -> None:
        self._token = f"{NAME_PREFIX}{next(_numbers)}"
        self._directory = directory
        self._addresses = map(str, NETWORK.hosts())
        self._bridge = f"{self._token}-lan"
        self._ports = itertools.count(1)
        self._namespaces: list[str] = []

    def __enter__(self) -> Self:
        with self._removed_on_failure():
            self._add_namespace(self._bridge)
            _ip("-n", self._bridge, "link", "add", "lan", "type", "bridge")
            _ip("-n", self._bridge, "link", "set", "lan", "up")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._remove_all()

    def host(self, name: str) -> Host:
        """A new host with the next free address; its files are in a directory of its own."""
        namespace, port, address = f"{self._token}-{name}", f"port{next(self._ports)}", next(self._addresses)
        self._add_namespace(namespace)
        _ip("-n", self._bridge, "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        _ip("-n", self._bridge, "link", "set", port, "master", "lan", "up")
        _ip("-n", namespace, "link", "set", "lo", "up")
        _ip("-n", namespace, "address", "add", f"{address}/{NETWORK.prefixlen}", "dev", "eth0")
        _ip("-n", namespace, "link", "set", "eth0", "up")
        directory = self._directory / name
        directory.mkdir()
        return Host(namespace, name, address, directory)

    def remove(self, host: Host) -> None:
        """Takes a host away; whatever runs on it must have been stopped."""
        self._namespaces.remove(host.namespace)
        _ip("netns", "delete", host.namespace)

    def _add_namespace(self, name: str) -> None:
        _ip("netns", "add", name)
        self._namespaces.append(name)

    @contextlib.contextmanager
    def _removed_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._remove_all()
            raise

    def _remove_all(self) -> None:
        while self._namespaces:
            subprocess.run(["ip", "netns", "delete", self._namespaces.pop()], capture_output=True, check=False)
