"""What an attachment needs of a container: a process with a network and a mount namespace of its own, and a network that is not the tailnet."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tsns.node.attaching import Target

ADDRESS: Final = "172.30.0.2"
TIMEOUT_S: Final = 20.0
_START: Final = """
set -e
ip link set lo up
echo 0 > /proc/sys/net/ipv6/conf/default/accept_dad
ip link add eth0 type veth peer name bridge0
ip link set bridge0 up
ip address add 172.30.0.2/24 dev eth0
ip link set eth0 up
ip route add default via 172.30.0.1
mount --bind "$1" /etc/resolv.conf
echo ready
exec cat
"""


@dataclass(frozen=True, slots=True)
class Box:
    """One that runs."""

    name: str
    process: subprocess.Popen[str]

    @property
    def pid(self) -> int:
        """The process in its namespaces."""
        return self.process.pid

    def run(self, *command: str, check: bool = True, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """A command inside, as root of all capabilities."""
        return subprocess.run(
            ["nsenter", "--target", str(self.pid), "--net", "--mount", "--", *command],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=check,
            input=stdin,
        )

    def python(self, program: str, *words: str) -> str:
        """What a program inside prints."""
        return self.run(sys.executable, "-c", program, *words).stdout.strip()

    def state(self) -> dict[str, Any]:
        """All of its network that an attachment could change."""
        shown = {
            what: json.loads(self.run("ip", "-json", *what.split()).stdout or "[]")
            for what in ("address", "route show table all", "-6 route show table all", "rule", "-6 rule")
        }
        for each in shown["address"]:
            for address in each["addr_info"]:
                address.pop("valid_life_time", None)
        shown["nft"] = self.run("nft", "list", "ruleset").stdout
        shown["ports"] = self.run("cat", "/proc/sys/net/ipv4/ip_local_port_range").stdout
        shown["resolv.conf"] = self.run("cat", "/etc/resolv.conf").stdout
        places = [line.split()[4] for line in Path(f"/proc/{self.pid}/mountinfo").read_text().splitlines()]
        shown["mounts"] = [place for place in places if place.startswith("/etc/")]
        return shown

    @contextmanager
    def target(self) -> Iterator[Target]:
        """It, as the keeper wants it."""
        fds = [os.open(f"/proc/{self.pid}/ns/{kind}", os.O_RDONLY | os.O_CLOEXEC) for kind in ("net", "mnt")]
        fds.append(os.pidfd_open(self.pid))
        try:
            yield Target(
                key=self.name, kind="pid", id=str(self.pid), name=self.name, pid=self.pid,
                netns=fds[0], mounts=fds[1], pidfd=fds[2],
            )  # fmt: skip
        finally:
            for fd in fds:
                os.close(fd)

    def kill(self) -> None:
        """At once."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(TIMEOUT_S)


@contextmanager
def new_box(name: str, resolv: Path) -> Iterator[Box]:
    """One of this name with this file as its resolv.conf; gone with the block."""
    with subprocess.Popen(
        ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", _START, "sh", str(resolv)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            yield Box(name, process)
        finally:
            process.kill()
            process.wait(TIMEOUT_S)
