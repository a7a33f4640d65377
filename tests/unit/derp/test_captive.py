"""A relay proves itself by the response that belongs to the challenge; a portal does not know it."""

from __future__ import annotations

import asyncio

import pytest

from tsns.derp import captive
from tsns.derp.captive import is_captive
from tsns.netns.underlay import Underlay
from tsns.proto.types import DERPNode

NODE = DERPNode(name="1a", host_name="derp.test", ipv4="127.0.0.1", ipv6="none", can_port80=True)
RELAY = "HTTP/1.1 204 No Content\r\nX-Tailscale-Response: response ts_derp.test\r\n\r\n"
OTHER_RELAY = RELAY.replace("ts_derp.test", "ts_elsewhere.test")
PLAIN = "HTTP/1.1 204 No Content\r\n\r\n"
PORTAL = "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nlogin"
REDIRECT = "HTTP/1.1 302 Found\r\nLocation: http://portal.test/\r\nContent-Length: 0\r\n\r\n"


def judge(answers: list[str], monkeypatch: pytest.MonkeyPatch, node: DERPNode = NODE) -> tuple[bool | None, list[str]]:
    """What is made of a server that gives these answers, one to each node asked; and what it was asked."""
    heads: list[str] = []

    async def play() -> bool | None:
        left = list(answers)

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
            writer.write(left.pop(0).encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        monkeypatch.setattr(captive, "PORT", server.sockets[0].getsockname()[1])
        async with server:
            return await is_captive([node] * max(1, len(answers)), Underlay())

    return asyncio.run(play()), heads


@pytest.mark.parametrize(
    ("answer", "verdict"),
    [(RELAY, False), (OTHER_RELAY, True), (PLAIN, True), (PORTAL, True), (REDIRECT, True), ("hello\r\n\r\n", True)],
)
def test_who_answers(answer: str, verdict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    found, [head] = judge([answer], monkeypatch)
    assert found is verdict
    assert head.startswith("GET /generate_204 HTTP/1.1\r\n")
    assert "X-Tailscale-Challenge: ts_derp.test" in head


def test_one_that_is_intercepted_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    assert judge([RELAY, PORTAL], monkeypatch)[0] is True


def test_nobody_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(captive, "PORT", 1)
    assert asyncio.run(is_captive([NODE], Underlay())) is None


def test_only_relays_that_say_so_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    silent = DERPNode(name="1a", host_name="derp.test", ipv4="127.0.0.1")
    assert judge([PORTAL], monkeypatch, silent) == (None, [])
