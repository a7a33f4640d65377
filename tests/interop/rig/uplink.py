"""A host's way to the bridge, and what can be wrong with it: UDP that does not get through, packets that are lost, late or doubled.

What happens here happens on the way: the host's own system knows nothing of it, and no program there gets an error.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Final

from tests.interop.rig import bad_line
from tests.interop.rig.bad_line import Faults
from tests.interop.rig.namespace import Namespace

BRIDGE: Final = "lan"
STOP_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class Uplink:
    """The line to one port of the bridge; of a host behind a router it is the router's."""

    bridge: Namespace
    number: int

    @property
    def port(self) -> str:
        """The device at the bridge's end, which belongs to the bridge unless the line is a bad one."""
        return f"port{self.number}"

    @property
    def _detour(self) -> str:
        return f"line{self.number}"

    def plug(self, namespace: Namespace, device: str) -> None:
        """Lays the line from the bridge to a new device of a namespace."""
        self.bridge.ip("link", "add", self.port, "type", "veth", "peer", "name", device, "netns", namespace.name)
        self.bridge.ip("link", "set", self.port, "master", BRIDGE, "up")

    def block_udp(self) -> None:
        """From now on no UDP gets through, to and from nobody; nothing is said about it to anybody."""
        ends = f'{{ "{self.port}", "{self._detour}" }}'
        self.bridge.nft(f"""
            table bridge {self.port} {{
                chain forward {{
                    type filter hook forward priority filter; policy accept;
                    iifname {ends} meta l4proto udp drop
                    oifname {ends} meta l4proto udp drop
                }}
            }}
        """)

    def unblock_udp(self) -> None:
        """Takes `block_udp` back."""
        self.bridge.nft(f"delete table bridge {self.port}")

    @contextlib.contextmanager
    def bad(self, faults: Faults) -> Iterator[None]:
        """As long as the context lasts every packet, either way, passes a line with these faults."""
        inner, outer = f"{self._detour}in", self._detour
        self.bridge.ip("link", "add", inner, "type", "veth", "peer", "name", outer)
        try:
            self.bridge.ip("link", "set", inner, "addrgenmode", "none", "up")
            self.bridge.ip("link", "set", outer, "master", BRIDGE, "up")
            with self._carried(inner, faults):
                yield
        finally:
            self.bridge.ip("link", "delete", inner)

    @contextlib.contextmanager
    def _carried(self, inner: str, faults: Faults) -> Iterator[None]:
        """The port is off the bridge, and a process carries its packets to the detour and back."""
        words = (sys.executable, bad_line.__file__, self.port, inner, json.dumps(asdict(faults)))
        carrier = subprocess.Popen(
            self.bridge.command(*words),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.bridge.ip("link", "set", self.port, "nomaster")
        try:
            assert carrier.stdout is not None
            assert carrier.stderr is not None
            assert carrier.stdout.readline() == "ready\n", carrier.stderr.read()
            yield
            assert carrier.poll() is None, carrier.stderr.read()
        finally:
            self.bridge.ip("link", "set", self.port, "master", BRIDGE)
            try:
                carrier.communicate(timeout=STOP_TIMEOUT_S)  # it ends with its input
            except subprocess.TimeoutExpired:
                carrier.kill()
                carrier.communicate()
