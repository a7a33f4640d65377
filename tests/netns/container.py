"""What a container has for a network, without a container: a namespace on a bridge, with a default route, and all that leaves it is seen.

container   eth0: 172.30.0.2, fd30::2 ------- bridge: 172.30.0.1, fd30::1, and the world behind it; sniffed
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.interop.rig.internet import NAME_PREFIX
from tests.interop.rig.namespace import Namespace
from tests.leak.sniffer import Seen, Sniffer, sniffing

ROOT: Final = Path(__file__).parents[2]
OWN: Final = ("172.30.0.2", "fd30::2")
BRIDGE: Final = ("172.30.0.1", "fd30::1")
WORLD: Final = ("198.51.100.7", "2001:db8:7::7")
NOBODY: Final = 65534
RUN_TIMEOUT_S: Final = 30.0
_BITS: Final = ("24", "64")
_STATE: Final = (
    ("ip", "-json", "link"),
    ("ip", "-json", "address"),
    *(("ip", version, "-json", what) for version in ("-4", "-6") for what in ("rule",)),
    *(("ip", version, "-json", "route", "show", "table", "all") for version in ("-4", "-6")),
    ("nft", "list", "ruleset"),
    ("sh", "-c", "grep -rs . /proc/sys/net/ipv4 /proc/sys/net/ipv6 | sort"),
)
# Runs its argument as somebody without any rights, or with root's.
_AS: Final = """
import errno, json, os, socket, sys, time
uid = int(sys.argv[1])
os.setgroups([]); os.setresgid(uid, uid, uid); os.setresuid(uid, uid, uid)
exec(sys.argv[2])
"""


@dataclass(frozen=True)
class Container:
    """One of them, with the bridge that it is on."""

    network: Namespace
    bridge: Namespace
    fd: int  # of its network namespace

    def state(self) -> dict[str, str]:
        """Everything about its network, as text."""
        return {" ".join(words): self.output(*words) for words in _STATE}

    def output(self, *words: str) -> str:
        done = subprocess.run(
            self.network.command(*words), capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False
        )
        assert done.returncode == 0 or words[0] == "sh", done.stderr
        return done.stdout

    def json(self, *words: str) -> Any:
        return json.loads(self.output(*words) or "[]")

    def run(self, code: str, uid: int = NOBODY) -> str:
        """What Python code prints there; `errno`, `json`, `os`, `socket`, `sys` and `time` are imported."""
        words = self.network.command(sys.executable, "-c", _AS, str(uid), code)
        done = subprocess.run(words, capture_output=True, text=True, timeout=RUN_TIMEOUT_S, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def add_network(self, device: str, number: int) -> None:
        """One more network, as by `docker network connect`."""
        peer = f"{device}-peer"
        self.bridge.ip("link", "add", peer, "type", "veth", "peer", "name", device, "netns", self.network.name)
        for end, name, last in ((self.network, device, 2), (self.bridge, peer, 1)):
            end.ip("link", "set", name, "up")
            end.ip("address", "add", f"172.30.{number}.{last}/24", "dev", name)
            end.ip("address", "add", f"fd30:{number}::{last}/64", "dev", name, "nodad")

    @contextlib.contextmanager
    def watched(self) -> Iterator[Sniffer]:
        """All that the bridge hears."""
        with sniffing(self.bridge.path) as sniffer:
            yield sniffer


def from_container(frames: list[Seen]) -> list[str]:
    """What a container has sent, as lines for a person."""
    return [str(frame) for frame in frames if frame.device != "lo" and not frame.goes_out]


_numbers = iter(range(1, 1 << 20))


@contextlib.contextmanager
def container(*, ipv6: bool = True) -> Iterator[Container]:
    """A container and its bridge, until the end of the block. Without `ipv6` it is switched off in the container, as older Dockers do."""
    number = next(_numbers)
    network, bridge = (Namespace(f"{NAME_PREFIX}{name}{number}") for name in ("container", "bridge"))
    with contextlib.ExitStack() as stack:
        for each in (network, bridge):
            each.add()
            stack.callback(each.delete)
            each.sysctl(net__ipv6__conf__default__accept_dad=0)  # addresses are there at once
        if not ipv6:
            network.sysctl(net__ipv6__conf__all__disable_ipv6=1, net__ipv6__conf__default__disable_ipv6=1)
        network.ip("link", "add", "eth0", "type", "veth", "peer", "name", "peer", "netns", bridge.name)
        for end, name, addresses in ((network, "eth0", OWN), (bridge, "peer", BRIDGE)):
            end.ip("link", "set", name, "up")
            for address, bits in zip(addresses, _BITS, strict=True):
                if bits == "24" or ipv6 or end is bridge:
                    end.ip("address", "add", f"{address}/{bits}", "dev", name, *(["nodad"] if bits == "64" else []))
        for address in WORLD:
            bridge.ip("address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
        network.ip("route", "add", "default", "via", BRIDGE[0])
        if ipv6:
            network.ip("-6", "route", "add", "default", "via", BRIDGE[1])
        fd = os.open(network.path, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
        yield Container(network, bridge, fd)
