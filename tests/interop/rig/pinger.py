"""A ping that never stops: an echo request every so often from inside a namespace, and when each was answered."""

from __future__ import annotations

import contextlib
import itertools
import select
import socket
import struct
import threading
import time
from types import TracebackType
from typing import Final, Self

from tests.interop.rig.internet import wait_for
from tests.interop.rig.namespace import socket_in

HEADER: Final = struct.Struct("!BBHHH")
PAYLOAD: Final = b"tsns rig"
ECHO_REQUEST: Final = 8
ECHO_REPLY: Final = 0
MAX_PACKET_BYTES: Final = 2048

_identifiers = itertools.count(1)


class Pinger:
    """Pings an IPv4 address from the namespace of a file, whether there is a way to it yet or not, as long as the context lasts.

    Times are time.monotonic()'s, in seconds.
    """

    def __init__(self, netns: str, address: str, every_s: float) -> None:
        self._address = address
        self._every_s = every_s
        self._identifier = next(_identifiers) & 0xFFFF
        self._sock = socket_in(netns, socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP)
        self._sock.setblocking(False)
        self._sent: list[float] = []
        self._answered: list[tuple[float, float]] = []  # when sent and when answered, in the order of answers
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"ping {address}")

    def wait_for_answer(self, since: float, timeout_s: float) -> float:
        """When a ping that was sent after this moment was first answered; AssertionError when none was in time."""
        what = f"a pong from {self._address}"
        return wait_for(lambda: next((at for sent, at in list(self._answered) if sent >= since), None), what, timeout_s)

    def longest_silence_s(self, since: float, until: float) -> float:
        """The longest time within these moments without an answer."""
        heard = sorted(at for _, at in list(self._answered) if since < at < until)
        return max(later - earlier for earlier, later in itertools.pairwise([since, *heard, until]))

    def unanswered(self, since: float, until: float) -> int:
        """How many of the pings sent within these moments have had no answer until now."""
        sent = sum(since <= at < until for at in list(self._sent))
        return sent - sum(since <= at < until for at, _ in list(self._answered))

    def answered_share(self, since: float, until: float) -> float:
        """Which share of the pings sent within these moments has been answered until now."""
        return 1 - self.unanswered(since, until) / sum(since <= at < until for at in list(self._sent))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stopped.set()
        self._thread.join()
        self._sock.close()

    def _work(self) -> None:
        due = time.monotonic()
        open_pings: dict[int, float] = {}
        while not self._stopped.is_set():
            now = time.monotonic()
            if now >= due:
                number = len(self._sent) & 0xFFFF
                open_pings[number] = now
                self._sent.append(now)
                with contextlib.suppress(OSError):  # there is no way to it yet, or its queue is full
                    self._sock.sendto(self._request(number), (self._address, 0))
                due = max(due + self._every_s, now)
            elif select.select([self._sock], [], [], due - now)[0]:
                answered = self._number_of(self._sock.recv(MAX_PACKET_BYTES))
                if answered in open_pings:
                    self._answered.append((open_pings.pop(answered), time.monotonic()))

    def _request(self, number: int) -> bytes:
        """The kernel does not fill in the checksum of a raw socket's ICMP."""
        words = struct.unpack("!4H", PAYLOAD)
        total = (ECHO_REQUEST << 8) + self._identifier + number + sum(words)
        total = (total & 0xFFFF) + (total >> 16)
        checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
        return HEADER.pack(ECHO_REQUEST, 0, checksum, self._identifier, number) + PAYLOAD

    def _number_of(self, packet: bytes) -> int | None:
        """Of an answer to one of ours; other ICMP comes by, too."""
        header = (packet[0] & 0x0F) * 4
        if len(packet) < header + HEADER.size:
            return None
        kind, _, _, identifier, number = HEADER.unpack_from(packet, header)
        return number if kind == ECHO_REPLY and identifier == self._identifier else None
