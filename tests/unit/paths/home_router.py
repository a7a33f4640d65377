"""A home router that speaks NAT-PMP and PCP: a table of mappings and a clock; no sockets (those are the test's)."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Collection
from dataclasses import dataclass, field

PORT = 5351
PMP, PCP = 0, 2  # the versions
BOTH = frozenset({PMP, PCP})


def in_v6(address: str) -> bytes:
    return bytes(10) + b"\xff\xff" + ipaddress.IPv4Address(address).packed


@dataclass
class HomeRouter:
    """Answers datagrams. `result` other than 0 refuses everything that is asked for."""

    external: str = "203.0.113.7"
    speaks: Collection[int] = BOTH
    result: int = 0
    max_lifetime_s: int = 7200
    started_at: float = 0.0
    silent: bool = False
    mappings: dict[tuple[str, int], tuple[int, float, bytes]] = field(default_factory=dict)  # external port, end, nonce
    heard: list[tuple[float, bytes]] = field(default_factory=list)

    def restart(self, now: float) -> None:
        """Lose the table, and begin to count anew."""
        self.mappings.clear()
        self.started_at = now

    def answer(self, data: bytes, source: str, now: float) -> bytes | None:
        """The answer to a datagram from this address of the home network."""
        self.heard.append((now, data))
        if self.silent or len(data) < 2:
            return None
        version, opcode = data[:2]
        epoch = int(now - self.started_at)
        if version not in self.speaks:
            if PCP in self.speaks:  # RFC 6887, section 9
                return struct.pack(">BBBBII12x", PCP, opcode | 0x80, 0, 1, 0, epoch)
            return struct.pack(">BBHI", PMP, opcode | 0x80, 1, epoch) if PMP in self.speaks else None
        take = self._pmp if version == PMP else self._pcp
        return take(data, opcode, source, epoch, now)

    def _pmp(self, data: bytes, opcode: int, source: str, epoch: int, now: float) -> bytes | None:
        head = struct.pack(">BBHI", PMP, opcode | 0x80, self.result, epoch)
        if opcode == 0 and len(data) == 2:
            return head + ipaddress.IPv4Address(self.external).packed
        if opcode == 1 and len(data) == 12:
            _, _, reserved, internal, wanted, lifetime = struct.unpack(">BBHHHI", data)
            assert reserved == 0
            external, granted = self._map(source, internal, wanted, lifetime, b"", now)
            return head + struct.pack(">HHI", internal, external, granted)
        return struct.pack(">BBHI", PMP, opcode | 0x80, 5, epoch)

    def _pcp(self, data: bytes, opcode: int, source: str, epoch: int, now: float) -> bytes | None:
        _, _, reserved, lifetime, client = struct.unpack_from(">BBHI16s", data)
        assert reserved == 0
        result = self.result if client == in_v6(source) else 12
        if opcode == 0 and len(data) == 24:
            return struct.pack(">BBBBII12x", PCP, 0x80, 0, result, 0, epoch)
        if opcode == 1 and len(data) == 60:
            nonce, protocol, internal, wanted, _ = struct.unpack_from(">12sB3xHH16s", data, 24)
            assert protocol == 17
            held = self.mappings.get((source, internal))
            if held is not None and held[2] != nonce:
                result = 2
            external, granted = (wanted, 30) if result else self._map(source, internal, wanted, lifetime, nonce, now)
            body = struct.pack(">12sB3xHH16s", nonce, 17, internal, external, in_v6(self.external))
            return struct.pack(">BBBBII12x", PCP, 0x81, 0, result, granted, epoch) + body
        return struct.pack(">BBBBII12x", PCP, opcode | 0x80, 0, 4, 0, epoch)

    def _map(self, source: str, internal: int, wanted: int, lifetime: int, nonce: bytes, now: float) -> tuple[int, int]:
        if self.result:
            return 0, 0
        if lifetime == 0:
            self.mappings.pop((source, internal), None)
            return 0, 0
        held = self.mappings.get((source, internal))
        external = held[0] if held else wanted or 40000 + len(self.mappings)
        lifetime = min(lifetime, self.max_lifetime_s)
        self.mappings[source, internal] = (external, now + lifetime, nonce)
        return external, lifetime
