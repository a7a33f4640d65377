"""The endpoints at which a peer might be reached, and which of two is better (ring 0).

Source: wgengine/magicsock/endpoint.go of Tailscale's module (betterAddr for the points).
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final

from tsns.proto.addresses import Endpoint, Prefix, pack

LEARNT_S: Final = 45.0  # how long an endpoint that only the peer's own pings told us of is a candidate
MAX_TOLD: Final = 32  # from the netmap
MAX_LEARNT: Final = 32  # from pings

_LOOPBACK: Final = (Prefix.parse("127.0.0.0/8"), Prefix.parse("::1/128"))
_LINK_LOCAL: Final = (Prefix.parse("169.254.0.0/16"), Prefix.parse("fe80::/10"))
_PRIVATE: Final = tuple(map(Prefix.parse, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7")))
_NOBODY: Final = tuple(map(Prefix.parse, ("0.0.0.0/8", "224.0.0.0/3", "::/128", "ff00::/8", "fe80::/10")))

LOOPBACK_POINTS: Final = 50
LINK_LOCAL_POINTS: Final = 30
PRIVATE_POINTS: Final = 20
IPV6_POINTS: Final = 10


class Candidate:
    """One endpoint of a peer, by whom we know of it, and what came of our pings."""

    __slots__ = ("called", "endpoint", "heard_at", "latency_s", "pinged_at", "told")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.told = False  # by the netmap
        self.called = False  # by the peer's last call-me-maybe
        self.heard_at = -inf  # when a ping came from there
        self.pinged_at = -inf
        self.latency_s: float | None = None

    def is_known(self, now: float) -> bool:
        """Whether there is still a reason to ping it."""
        return self.told or self.called or now - self.heard_at <= LEARNT_S


class Candidates:
    """All candidates of one peer. What a peer may fill it with is bounded."""

    __slots__ = ("_all",)

    def __init__(self) -> None:
        self._all: dict[Endpoint, Candidate] = {}

    def __len__(self) -> int:
        return len(self._all)

    def get(self, endpoint: Endpoint) -> Candidate | None:
        """What is known of this endpoint."""
        return self._all.get(endpoint)

    def tell(self, endpoints: Iterable[Endpoint], now: float, keep: Endpoint | None = None) -> bool:
        """The netmap says these, and no others; whether one is new."""
        return self._say("told", list(endpoints)[:MAX_TOLD], now, keep)

    def call(self, endpoints: Iterable[Endpoint], now: float, keep: Endpoint | None = None) -> bool:
        """The peer says these, and no others; whether one is new."""
        return self._say("called", endpoints, now, keep)

    def _say(self, by: str, endpoints: Iterable[Endpoint], now: float, keep: Endpoint | None) -> bool:
        for candidate in self._all.values():
            setattr(candidate, by, False)
        is_new = False
        for endpoint in endpoints:
            is_new |= endpoint not in self._all
            setattr(self._all.setdefault(endpoint, Candidate(endpoint)), by, True)
        self.prune(now, keep)
        return is_new

    def hear(self, endpoint: Endpoint, now: float, keep: Endpoint | None = None) -> Candidate | None:
        """A ping of the peer came from there; None where there is no room to remember it."""
        candidate = self._all.get(endpoint)
        if candidate is None:
            self.prune(now, keep)
            if len(self._learnt()) >= MAX_LEARNT:
                return None
            candidate = self._all[endpoint] = Candidate(endpoint)
        candidate.heard_at = now
        return candidate

    def prune(self, now: float, keep: Endpoint | None = None) -> None:
        """Forget those that nobody speaks of any more, but not `keep`: that is where packets go."""
        self._all = {
            endpoint: candidate
            for endpoint, candidate in self._all.items()
            if endpoint == keep or candidate.is_known(now)
        }
        learnt = self._learnt()
        if len(learnt) > MAX_LEARNT:  # the peer pinged from where it said it was, and does not say so any more
            learnt.sort(key=lambda candidate: (candidate.endpoint == keep, candidate.heard_at))
            for candidate in learnt[:-MAX_LEARNT]:
                del self._all[candidate.endpoint]

    def _learnt(self) -> list[Candidate]:
        """Those that only pings told of."""
        return [candidate for candidate in self._all.values() if not (candidate.told or candidate.called)]

    def by_turn(self) -> list[Candidate]:
        """All, those first that were not pinged for longest."""
        return sorted(self._all.values(), key=lambda candidate: candidate.pinged_at)

    def forget_answers(self) -> None:
        """What was found out holds no more: the network is another one."""
        for candidate in self._all.values():
            candidate.latency_s, candidate.pinged_at = None, -inf


def may_be_pinged(endpoint: Endpoint, *, loopback: bool) -> bool:
    """Whether one peer at this endpoint is possible. `loopback`: whether we ourselves are reached there."""
    try:
        packed = pack(endpoint[0])
    except ValueError:
        return False
    if not endpoint[1] or any(prefix.covers(packed) for prefix in _NOBODY):
        return False
    return loopback or not is_loopback(packed)


def is_loopback(packed: bytes) -> bool:
    """Whether a packed address is this machine's own."""
    return any(prefix.covers(packed) for prefix in _LOOPBACK)


def is_link_local(packed: bytes) -> bool:
    """Whether a packed address is good on one wire only."""
    return any(prefix.covers(packed) for prefix in _LINK_LOCAL)


def is_better(one: Endpoint, one_latency_s: float, other: Endpoint, other_latency_s: float) -> bool:
    """Whether the path to `one` is to be taken rather than that to `other`."""
    if one == other:
        return False
    points, other_points = _points(one), _points(other)
    slow = max(one_latency_s, other_latency_s)
    if slow > 0:
        gain = int(100 - 100 * min(one_latency_s, other_latency_s) / slow)
        if one_latency_s < other_latency_s:
            points += gain
        else:
            other_points += gain
    if points <= 1 and other_points == 0:
        return False  # a difference that the next ping may turn round
    return points > other_points


def _points(endpoint: Endpoint) -> int:
    packed = pack(endpoint[0])
    points = IPV6_POINTS if len(packed) == 16 else 0
    for prefixes, worth in ((_LOOPBACK, LOOPBACK_POINTS), (_LINK_LOCAL, LINK_LOCAL_POINTS), (_PRIVATE, PRIVATE_POINTS)):
        if any(prefix.covers(packed) for prefix in prefixes):
            return points + worth
    return points
