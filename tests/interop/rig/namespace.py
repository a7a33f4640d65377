"""A network namespace of the rig, and what is done to it from outside."""

from __future__ import annotations

import ctypes
import json
import socket
import subprocess
import threading
from dataclasses import dataclass
from typing import Final

CLONE_NEWNET: Final = 0x40000000


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace by its name in /run/netns. What fails in it is an AssertionError with what was said."""

    name: str

    @property
    def path(self) -> str:
        """The file that stands for it."""
        return f"/run/netns/{self.name}"

    def command(self, *words: str) -> list[str]:
        """A command line that runs `words` in it: in another network, and in nothing else that is other."""
        return ["nsenter", f"--net={self.path}", "--", *words]

    def add(self) -> None:
        """Makes it, with its loopback up. By itself it says as little as possible, for packets are counted here."""
        _carry_out(["ip", "netns", "add", self.name])
        self.ip("link", "set", "lo", "up")
        self.sysctl(net__ipv6__conf__default__router_solicitations=0)

    def delete(self) -> None:
        """Takes it away, with all its devices; whatever runs in it must have been stopped."""
        _carry_out(["ip", "netns", "delete", self.name])

    def ip(self, *words: str) -> None:
        """`ip WORDS` in it."""
        _carry_out(["ip", "-n", self.name, *words])

    def is_up(self, device: str) -> bool:
        """Whether a device carries packets: what is sent just before is lost."""
        words = ["ip", "-n", self.name, "-json", "link", "show", "dev", device]
        return bool(json.loads(_carry_out(words))[0]["operstate"] == "UP")

    def nft(self, rules: str) -> None:
        """Takes rules in, all or none of them."""
        _carry_out(self.command("nft", "-f", "-"), rules)

    def sysctl(self, **values: int) -> None:
        """Sets kernel settings; two underscores in a name stand for its dots: `net__ipv4__ip_forward=1`."""
        paths = {f"/proc/sys/{name.replace('__', '/')}": value for name, value in values.items()}
        script = "; ".join(f"echo {value} > {path}" for path, value in paths.items())
        _carry_out(self.command("sh", "-ec", script))


def socket_in(path: str, family: int, kind: int, protocol: int = 0) -> socket.socket:
    """A socket for the test itself in the namespace that this file stands for: it stays where a thread makes it."""
    made: list[socket.socket] = []

    def make() -> None:
        with open(path, "rb") as namespace:
            if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), CLONE_NEWNET) == 0:
                made.append(socket.socket(family, kind, protocol))

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    assert made, f"no socket in {path}"
    return made[0]


def _carry_out(words: list[str], stdin: str = "") -> str:
    result = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    assert result.returncode == 0, f"{' '.join(words)}: {result.stderr.strip()}\n{stdin}"
    return result.stdout
