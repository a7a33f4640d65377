"""Streams of iperf3 between two ends, and what its two processes counted."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from tests.bench.ends import End
from tests.interop.rig.internet import Daemon, wait_for

PORT: Final = 5201
CONNECT_TIMEOUT_MS: Final = 5000
PATIENCE_S: Final = 20.0  # beyond the stream's own time: a flood may keep the last words waiting


@dataclass(frozen=True, slots=True)
class Tcp:
    """One or several connections at a time, all together."""

    gbit_s: float  # as received
    received_bytes: int
    retransmits: int


@dataclass(frozen=True, slots=True)
class Udp:
    """A flood of datagrams: as fast as the sender can, whatever becomes of them."""

    sent: int
    received: int
    payload_bytes: int  # of each
    seconds: float

    @property
    def received_bytes(self) -> int:
        """Payload only."""
        return self.received * self.payload_bytes

    @property
    def lost_share(self) -> float:
        """Of those that were sent."""
        return 1 - self.received / self.sent


def tcp(sender: End, receiver: End, seconds: float, *flags: str, meanwhile: Callable[[], None] | None = None) -> Tcp:
    """One stream, or what iperf3's flags say; `meanwhile` is called as soon as it has begun. AssertionError with what went wrong."""
    client, _ = _stream(sender, receiver, seconds, flags, meanwhile)
    return read_tcp(client)


def udp(sender: End, receiver: End, seconds: float, payload_bytes: int) -> Udp:
    """A flood of datagrams with so much payload each."""
    flags = ("--udp", "--bitrate", "0", "--length", str(payload_bytes))
    client, server = _stream(sender, receiver, seconds, flags, None)
    return read_udp(client, server, payload_bytes)


def read_tcp(client: dict[str, Any]) -> Tcp:
    """What the client, whichever way the stream went, says in JSON."""
    sent, received = client["end"]["sum_sent"], client["end"]["sum_received"]
    return Tcp(received["bits_per_second"] / 1e9, received["bytes"], sent.get("retransmits", 0))


def read_udp(client: dict[str, Any], server: dict[str, Any], payload_bytes: int) -> Udp:
    """Sent is what the client says, received the bytes that the server saw: of what came after the last one it knows nothing."""
    sent, seen = client["end"]["sum_sent"], server["end"]["sum_received"]
    return Udp(sent["packets"], seen["bytes"] // payload_bytes, payload_bytes, sent["seconds"])


def tcp_at_once(senders: Sequence[End], receiver: End, seconds: float) -> list[Tcp]:
    """One stream from each sender, all of them together: each has a server of its own, and no client begins before all are there."""
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(len(senders)) as at_once:
        for place in range(len(senders)):
            stack.enter_context(_server(receiver, PORT + place))
        streams = [
            at_once.submit(_client, sender, receiver, seconds, (), PORT + place) for place, sender in enumerate(senders)
        ]
        return [read_tcp(stream.result()) for stream in streams]


def _stream(
    sender: End,
    receiver: End,
    seconds: float,
    flags: tuple[str, ...],
    meanwhile: Callable[[], None] | None,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What client and server say."""
    with _server(receiver, PORT) as server, ThreadPoolExecutor(1) as aside:
        waiting = aside.submit(_client, sender, receiver, seconds, flags, PORT)
        if meanwhile:
            meanwhile()
        client = waiting.result()
        server.process.wait(PATIENCE_S)
        return client, _json(server.said())


def _client(sender: End, receiver: End, seconds: float, flags: tuple[str, ...], port: int) -> dict[str, Any]:
    words = (
        *("iperf3", "--client", receiver.address, "--port", str(port), "--json"),
        *("--time", f"{seconds:.0f}", "--connect-timeout", str(CONNECT_TIMEOUT_MS)),
    )
    done = sender.host.run(*sender.inside(*words, *flags), timeout_s=seconds + PATIENCE_S, check=False)
    return _json(done.stdout or done.stderr)


@contextlib.contextmanager
def _server(end: End, port: int) -> Iterator[Daemon]:
    """A server for one stream: one that has served a flood is not always fit for the next."""
    words = ("iperf3", "--server", "--one-off", "--json", "--bind", end.address, "--port", str(port))
    with end.host.popen(*end.inside(*words), log=f"iperf3-{port}") as daemon:
        wait_for(lambda: _listens(end, port), f"iperf3 listens on {end.host.name}")
        yield daemon


def _listens(end: End, port: int) -> bool:
    return bool(end.host.run(*end.inside("ss", "-Hltn", f"sport = {port}")).stdout.strip())


def _json(said: str) -> dict[str, Any]:
    assert "{" in said, f"iperf3: {said.strip()[-500:] or 'it said nothing'}"
    found: dict[str, Any] = json.loads(said[said.index("{") :])
    assert "error" not in found, f"iperf3: {found['error']}"
    return found
