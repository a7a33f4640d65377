"""Whether somebody between us and the relays answers in their place: a captive portal (ring 1).

Source: net/captivedetection and cmd/derper of Tailscale's module. A relay answers a challenge on port 80 with 204 and the response that
belongs to it; a portal answers anything with a page of its own.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterable
from typing import Final

import h11

from tsns.derp.dial import ask, hang_up, is_address, open_directly
from tsns.error import ProtocolError, RetryableError
from tsns.netns.underlay import Underlay
from tsns.proto.types import DERPNode

PORT: Final = 80
MAX_ASKED: Final = 3  # relays
PATIENCE_S: Final = 3.0
NO_CONTENT: Final = 204


async def is_captive(nodes: Iterable[DERPNode], underlay: Underlay) -> bool | None:
    """Whether what answers in place of these relays is not them; None where nothing answers."""
    asked = [node for node in nodes if node.can_port80 and node.host_name][:MAX_ASKED]
    answers = await asyncio.gather(*(_is_intercepted(node, underlay) for node in asked))
    told = [answer for answer in answers if answer is not None]
    return any(told) if told else None


async def _is_intercepted(node: DERPNode, underlay: Underlay) -> bool | None:
    challenge = f"ts_{node.host_name}"
    try:
        async with asyncio.timeout(PATIENCE_S):
            stream = await open_directly(node, PORT, underlay)
            try:
                headers = [("Host", _host(node)), ("X-Tailscale-Challenge", challenge), ("Connection", "close")]
                event = await ask(h11.Connection(h11.CLIENT), stream, "/generate_204", headers)
            finally:
                await hang_up(stream[1])
    except (TimeoutError, RetryableError, OSError, EOFError, h11.LocalProtocolError):
        return None
    except ProtocolError:
        return True  # it speaks, and not as a relay
    if not isinstance(event, h11.Response) or event.status_code != NO_CONTENT:
        return True
    return dict(event.headers).get(b"x-tailscale-response") != f"response {challenge}".encode()


def _host(node: DERPNode) -> str:
    name = node.host_name or ""
    return f"[{name}]" if is_address(name, socket.AF_INET6) else name
