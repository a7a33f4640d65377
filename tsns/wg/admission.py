"""Which handshake messages are worth the arithmetic of a handshake (ring 0).

Source: WireGuard paper 5.3 (denial of service). A handshake costs a hundred times what a look at a message does, so whoever floods us
must not choose how many there are. What is cheap comes first, and each step has a bound:

    mac1 --> by relay: the sender's bucket --> under load: mac2 --> by UDP: the source's bucket --> what is left of this second
                                                  `-> wrong: a cookie, as long as there are some to give

A relay says who sends, and the limit for a sender counts from the start; the source of a datagram can be forged, so its limit counts only
once a cookie has proved it, lest a stranger use up what is somebody else's. Each way (UDP, relays) has a load of its own: a flood by one
does not raise the price on the other.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from tsns.bucket import Bucket
from tsns.ways import DerpSource, Source
from tsns.wg.cookie import CookieGuard
from tsns.wg.drops import Drop

LOAD_WINDOW_S: Final = 1.0
LOAD_MESSAGES: Final = 128  # handshake messages within a window from which on we are under load: 2 % of a core
LOAD_LASTS_S: Final = 1.0
LOADED_MESSAGES: Final = 128  # those with a cookie that are dealt with in a window on top of that

LIMIT_PER_S: Final = 20.0
LIMIT_BURST: Final = 5.0
LIMIT_MAX_SOURCES: Final = 4096
LIMIT_TIDY_SOURCES: Final = 64  # from here on those are forgotten that have their limit before them again
LIMIT_CLEARING_S: Final = (
    LIMIT_BURST / LIMIT_PER_S
)  # between two looks for buckets that are full again: each looks at all of them

COOKIES_PER_S: Final = 512.0  # replies: 1 % of a core
COOKIES_BURST: Final = 64.0


class LoadGauge:
    """Whether handshake messages come faster than we care to answer strangers.

    Each is dealt with before the next one is read, so it is their number that tells, not the length of a queue.
    """

    __slots__ = ("_count", "_loaded", "_loaded_until", "_window_ends")

    def __init__(self) -> None:
        self._count = 0
        self._loaded = 0  # those that were dealt with under load
        self._window_ends = 0.0
        self._loaded_until = 0.0

    def count(self, now: float) -> bool:
        """Count one message; whether we are under load."""
        if now >= self._window_ends:
            self._count, self._loaded, self._window_ends = 0, 0, now + LOAD_WINDOW_S
        self._count += 1
        if self._count >= LOAD_MESSAGES:
            self._loaded_until = now + LOAD_LASTS_S
        return now < self._loaded_until

    def spare(self) -> bool:
        """Whether one more message may be dealt with under load, within this window."""
        self._loaded += 1
        return self._loaded <= LOADED_MESSAGES


class SourceLimiter:
    """A bucket for each source; `when_full` is the answer for those that there is no room to watch."""

    __slots__ = ("_buckets", "_next_clearing", "_when_full")

    def __init__(self, *, when_full: bool = False) -> None:
        self._buckets: dict[bytes, Bucket] = {}
        self._next_clearing = 0.0
        self._when_full = when_full

    def allow(self, host: bytes, now: float) -> bool:
        """Take a token of this source's; False when it has none."""
        bucket = self._buckets.get(host)
        if bucket is None:
            if len(self._buckets) >= LIMIT_TIDY_SOURCES and not self._clear(now):
                return self._when_full
            bucket = self._buckets[host] = Bucket(LIMIT_PER_S, LIMIT_BURST, now)
        return bucket.take(now)

    def _clear(self, now: float) -> bool:
        """Forget the buckets that are full again; whether there is room then."""
        if now >= self._next_clearing:
            self._next_clearing = now + LIMIT_CLEARING_S
            self._buckets = {host: bucket for host, bucket in self._buckets.items() if not bucket.is_full(now)}
        return len(self._buckets) < LIMIT_MAX_SOURCES


class Admission:
    """Decides about the handshake messages of one device."""

    def __init__(self, own_public: bytes, random: Callable[[int], bytes]) -> None:
        self._guard = CookieGuard(own_public, random)
        self._loads = {False: LoadGauge(), True: LoadGauge()}  # by whether a relay brought it
        self._senders = SourceLimiter()
        self._sources = SourceLimiter()
        self._cookies_by_source = SourceLimiter(when_full=True)
        self._cookies = Bucket(COOKIES_PER_S, COOKIES_BURST, 0.0)

    def admits(self, message: bytes, source: Source, now: float) -> Drop | bytes | None:
        """None where this message is worth a handshake, else why not; bytes are a cookie reply for its source."""
        if not self._guard.knows_us(message):
            return Drop.WRONG_MAC1
        relayed = isinstance(source, DerpSource)
        if relayed and not self._senders.allow(source.host, now):
            return Drop.RATE_LIMITED
        load = self._loads[relayed]
        if not load.count(now):
            return None
        if not self._guard.lives_there(message, source.identity, now):
            return self._cookie(message, source, now)
        if not relayed and not self._sources.allow(source.host, now):
            return Drop.RATE_LIMITED
        return None if load.spare() else Drop.OVERLOADED

    def _cookie(self, message: bytes, source: Source, now: float) -> Drop | bytes:
        if self._cookies_by_source.allow(source.host, now) and self._cookies.take(now):
            return self._guard.reply(message, source.identity, now)
        return Drop.NO_COOKIE_LEFT
