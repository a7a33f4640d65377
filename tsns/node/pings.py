"""Pings to peers' engines, through the tunnel: TSMP (ring 1)."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Final

from tsns.control.netmap import NetMap
from tsns.error import UserError
from tsns.node.localapi import Answer
from tsns.node.peering import find_peer, node_key, own_addresses
from tsns.node.status import SCHEMA, path
from tsns.proto.addresses import pack
from tsns.wg.socket import TunPump

PING_TIMEOUT_S: Final = 5.0
MAX_PING_TIMEOUT_S: Final = 60.0
TOKEN_BYTES: Final = 8


class Pings:
    """The pings that are under way."""

    def __init__(self) -> None:
        self._waiting: dict[bytes, asyncio.Future[None]] = {}

    def answered(self, token: bytes) -> None:
        """A pong came."""
        waiting = self._waiting.get(token)
        if waiting is not None and not waiting.done():
            waiting.set_result(None)

    async def ask(self, asked: Answer, netmap: NetMap | None, pump: TunPump | None) -> Answer:
        """Ping `asked["peer"]` (name or address) and wait at most `timeout_s`. UserError for what cannot be pinged."""
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
        token = secrets.token_bytes(TOKEN_BYTES)
        pong = self._waiting[token] = asyncio.get_running_loop().create_future()
        began = time.monotonic()
        seconds: float | None = None
        try:
            pump.ping(key, source, destination, token)
            async with asyncio.timeout(timeout_s):
                await pong
            seconds = time.monotonic() - began
        except TimeoutError:
            pass
        finally:
            del self._waiting[token]
        return {
            "schema": SCHEMA,
            "ok": seconds is not None,
            "seconds": seconds,
            "path": path(netmap, node.home_derp),
            "name": (node.name or "").rstrip("."),
        }
