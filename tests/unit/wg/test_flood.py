"""Floods, by what they make us do: expensive steps are counted, so that no figure depends on the machine."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.wg.shuttle import A_TO_B, B_TO_A, Shuttle, Side
from tsns.keys import NodePrivate, NodePublic
from tsns.proto.addresses import Prefix
from tsns.proto.virtio import frame_of
from tsns.ways import DerpSource, Source, Train, UdpSource
from tsns.wg import device as device_module
from tsns.wg import tunnel as tunnel_module
from tsns.wg.admission import COOKIES_BURST, COOKIES_PER_S, LIMIT_BURST, LIMIT_PER_S, LOAD_MESSAGES, LOADED_MESSAGES
from tsns.wg.cookie import CookieGuard, CookieJar
from tsns.wg.device import Deliver, Reply
from tsns.wg.drops import Drop
from tsns.wg.handshake import Incoming, OwnKey, PeerKey, initiate

FLOOD_PER_S = 20_000
SECONDS = 5
FLOW_EACH = 50  # messages of the flood for each packet of the flow


class Work:
    """How often the expensive steps were taken, and how long they and everything took."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: Counter[str] = Counter()
        self._patch = monkeypatch
        self._count(device_module, "open_initiation")
        self._count(device_module, "PeerKey")
        self._count(device_module, "Tunnel")
        self._count(Incoming, "respond")
        self._count(CookieGuard, "reply")
        self._count(tunnel_module, "initiate")

    def _count(self, owner: Any, name: str) -> None:
        step: Callable[..., Any] = getattr(owner, name)

        def counted(*args: Any, **named: Any) -> Any:
            self.steps[name] += 1
            return step(*args, **named)

        self._patch.setattr(owner, name, counted)


def forged(line: Shuttle, static: NodePrivate | None = None, *, named: bytes = b"") -> tuple[bytes, CookieJar]:
    """The body of an initiation to b by a stranger, or by one who only claims to be `named`."""
    own = OwnKey(static or NodePrivate.generate(b"\x77" * 32))
    key = PeerKey(own, line.b.key.public, bytes(32))
    if named:
        own.public = named
    body, _ = initiate(own, key, ephemeral=b"\x01" * 32, index=b"abcd", timestamp=b"\x50" * 12, now=0.0)
    return body, CookieJar(line.b.key.public.raw)


def flood(line: Shuttle, sources: Callable[[int], Source], *, named: bytes = b"", with_cookies: bool = False) -> int:
    """Some seconds of messages, and between them a flow in both directions; how many packets of it arrived."""
    body, jar = forged(line, named=named)
    flow = 0
    message = jar.stamp(body, line.now)
    for number in range(FLOOD_PER_S * SECONDS):
        now = line.now + number / FLOOD_PER_S
        for output in line.b.device.receive([Train.of(message)], sources(number), now):
            assert isinstance(output, Reply)  # never anything to a peer
            if with_cookies:
                jar.receive(output.datagram, now)
                message = jar.stamp(body, now)
        if number % FLOW_EACH == 0:
            flow += exchange(line, line.a, A_TO_B, now) + exchange(line, line.b, B_TO_A, now)
    return flow


def exchange(line: Shuttle, side: Side, packet: bytes, now: float) -> int:
    [sent] = side.device.send([frame_of(packet)], now)
    assert not isinstance(sent, Reply | Deliver)
    other = line.other(side)
    outputs = other.device.receive(getattr(sent, "trains", []), UdpSource(side.address), now)
    return sum(len(output.packets) for output in outputs if isinstance(output, Deliver))


EXPECTED_FLOW = 2 * FLOOD_PER_S * SECONDS // FLOW_EACH


def scattered(number: int) -> Source:
    """Another forged address each time."""
    return UdpSource((f"198.51.{number >> 8 & 255}.{number & 255}", 1 + (number >> 16)))


def handful(number: int) -> Source:
    return UdpSource((f"198.51.100.{number % 10}", 1))


@pytest.mark.parametrize("sources", [scattered, handful], ids=["forged addresses", "ten addresses"])
@pytest.mark.parametrize("named", [False, True], ids=["stranger", "claims to be a peer"])
def test_a_flood_of_forged_initiations_by_udp_costs_a_bounded_number_of_steps(
    sources: Callable[[int], Source], named: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = Shuttle()
    line.connect()
    others = [NodePrivate.generate(number.to_bytes(32, "big")).public for number in range(1, 3)]
    for other in others:
        line.b.device.set_peer(other, [Prefix(b"\x64\x40\1" + other.raw[:1], 32)])
    work = Work(monkeypatch)
    begun = time.process_time()
    assert flood(line, sources, named=others[0].raw if named else b"") == EXPECTED_FLOW
    elapsed_s = time.process_time() - begun
    handshakes = (LOAD_MESSAGES - 1) * (SECONDS + 1)
    assert work.steps["open_initiation"] <= handshakes
    assert work.steps["PeerKey"] <= handshakes
    assert work.steps["reply"] <= COOKIES_BURST + COOKIES_PER_S * SECONDS
    assert work.steps["respond"] == work.steps["Tunnel"] == work.steps["initiate"] == 0  # nobody has proved anything
    assert line.b.device._peers[others[0]].tunnel is None
    print(f"{FLOOD_PER_S * SECONDS} forged, {dict(work.steps)}, {1e6 * elapsed_s / FLOOD_PER_S / SECONDS:.1f} us each")  # noqa: T201


def test_a_flood_with_cookies_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Shuttle()
    line.connect()
    work = Work(monkeypatch)
    here = UdpSource(("198.51.100.1", 1))
    assert flood(line, lambda _: here, with_cookies=True) == EXPECTED_FLOW
    assert work.steps["open_initiation"] <= (LOAD_MESSAGES - 1 + LIMIT_PER_S) * (SECONDS + 1) + LIMIT_BURST
    assert work.steps["open_initiation"] <= (LOAD_MESSAGES + LOADED_MESSAGES) * (SECONDS + 1)
    assert line.b.device.counters[Drop.RATE_LIMITED] > FLOOD_PER_S * (SECONDS - 1)


def test_a_stranger_by_relay_costs_nothing_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Shuttle()
    line.connect()
    work = Work(monkeypatch)
    stranger = DerpSource(1, NodePublic(b"\x09" * 32))
    assert flood(line, lambda _: stranger) == EXPECTED_FLOW
    assert work.steps == Counter()
    assert line.b.device.counters.snapshot() == {str(Drop.UNKNOWN_SENDER): FLOOD_PER_S * SECONDS}


def test_a_peer_by_relay_costs_twenty_handshakes_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Shuttle()
    line.connect()
    work = Work(monkeypatch)
    peer = DerpSource(1, line.a.key.public)
    assert flood(line, lambda _: peer) == EXPECTED_FLOW
    assert work.steps["open_initiation"] <= LIMIT_BURST + LIMIT_PER_S * SECONDS + 1
    assert work.steps["reply"] == 0


def test_a_flood_of_responses_and_cookies_finds_no_index(monkeypatch: pytest.MonkeyPatch) -> None:
    line = Shuttle()
    line.connect()
    work = Work(monkeypatch)
    jar = CookieJar(line.b.key.public.raw)
    for number in itertools.islice(itertools.count(), 10_000):
        response = jar.stamp(b"\2\0\0\0" + number.to_bytes(4, "big") + (number + 1).to_bytes(4, "big") + bytes(48), 0.0)
        cookie = b"\3\0\0\0" + number.to_bytes(4, "big") + bytes(56)
        assert line.b.device.receive([Train.of(response), Train.of(cookie)], scattered(number), line.now) == []
    assert work.steps == Counter()
    assert line.b.device.counters[Drop.UNKNOWN_INDEX] == 20_000


def test_a_new_session_comes_about_in_the_middle_of_a_flood() -> None:
    line = Shuttle()
    body, jar = forged(line)
    message = jar.stamp(body, 0.0)
    line.send(line.a, A_TO_B)
    while line.now < 3.0 and not line.b.delivered:
        for number in range(100):
            line.b.device.receive([Train.of(message)], scattered(number), line.now)
        line.run_for(0.01)
    assert line.b.delivered == [A_TO_B]
    assert line.now < 1.0  # with its second try, which has a cookie
