"""Pings to peers, of three kinds (ring 1).

disco   asks the peer's engine by every way that may lead there, and tells which one did
tsmp    asks the peer's engine through the tunnel
icmp    asks the peer's system through the tunnel
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from tsns.control.netmap import NetMap
from tsns.error import UserError
from tsns.keys import NodePublic
from tsns.node.localapi import Answer
from tsns.node.peering import find_peer, node_key, own_addresses
from tsns.node.status import SCHEMA, path_of, way
from tsns.proto.addresses import pack
from tsns.ways import DerpPath, UdpPath
from tsns.wg.socket import TunPump

PING_TIMEOUT_S: Final = 5.0
MAX_PING_TIMEOUT_S: Final = 60.0
TOKEN_BYTES: Final = 8

Way = UdpPath | DerpPath


@dataclass(frozen=True, slots=True)
class _Asked:
    """A ping that can be sent."""

    kind: str
    peer: NodePublic
    source: bytes
    destination: bytes


class Pings:
    """The pings that are under way."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, asyncio.Future[Way | None]] = {}

    def answered(self, token: bytes, way: Way | None) -> None:
        """A pong came; `way` is by which, where it tells."""
        waiting = self._waiting.get(token)
        if waiting is not None and not waiting.done():
            waiting.set_result(way)

    async def ask(self, asked: Answer, netmap: NetMap | None, pump: TunPump | None) -> Answer:
        """Ping `asked["peer"]` (name or address) by `asked["kind"]`, and wait at most `timeout_s`.

        UserError for what cannot be pinged.
        """
        wanted = str(asked.get("peer", ""))
        timeout_s = min(float(asked.get("timeout_s", PING_TIMEOUT_S)), MAX_PING_TIMEOUT_S)
        found = find_peer(netmap, wanted) if netmap else None
        if netmap is None or netmap.self_node is None or found is None or pump is None:
            raise UserError(f"there is no peer {wanted}", "see `tsns status` for their names")
        node, address = found
        key, destination = node_key(node), pack(address)
        own = [pack(text) for text in own_addresses(netmap.self_node)]
        source = next((packed for packed in own if len(packed) == len(destination)), None)
        if key is None or source is None or destination in own:
            raise UserError(f"{wanted} cannot be pinged from here", "name another node of the tailnet")
        ping = _Asked(str(asked.get("kind", "disco")), key, source, destination)
        if node.is_wireguard_only and ping.kind != "icmp":
            raise UserError(f"{wanted} speaks WireGuard only, and no {ping.kind}", "ask its system with --icmp")
        token = secrets.token_bytes(TOKEN_BYTES)
        pong = self._waiting[token] = asyncio.get_running_loop().create_future()
        began = time.monotonic()
        seconds: float | None = None
        by: Way | None = None
        try:
            _send(pump, ping, token)
            async with asyncio.timeout(timeout_s):
                by = await pong
            seconds = time.monotonic() - began
        except TimeoutError:
            pass
        finally:
            del self._waiting[token]
        return {
            "schema": SCHEMA,
            "ok": seconds is not None,
            "seconds": seconds,
            "kind": ping.kind,
            "path": way(netmap, by) if by is not None else path_of(netmap, pump.path_status(key)),
            "name": (node.name or "").rstrip("."),
        }


def _send(pump: TunPump, ping: _Asked, token: bytes) -> None:
    senders: dict[str, Callable[[], Any]] = {
        "disco": lambda: pump.ask(ping.peer, token),
        "tsmp": lambda: pump.ping(ping.peer, ping.source, ping.destination, token),
        "icmp": lambda: pump.echo(ping.peer, ping.source, ping.destination, token),
    }
    if ping.kind not in senders:
        raise UserError(f"there is no ping of the kind {ping.kind}", f"the kinds are {', '.join(senders)}")
    senders[ping.kind]()
