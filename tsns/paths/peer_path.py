"""The way to one peer: its candidates, the probes, and the best path (ring 0).

Source: wgengine/magicsock/endpoint.go of Tailscale's module for the rules that both sides have to keep; the times of this machine are
shorter where that costs the other side little.

               a pong to our ping              the path is silent and pings stay unanswered, or TRUST_S without a pong
    RELAYED ----------------------> DIRECT ------------------------------------------------------> DOUBTED
       ^                              ^       WireGuard by UDP               by UDP and by relay     |  |
       |                              +----------------------------- a pong -------------------------+  |
       +-------------------------------------------- GIVE_UP_S without a pong --------------------------+

Only a pong to our own ping makes a path, for only that shows both directions. While packets are sent and there is no good direct path,
rounds of pings go to all candidates, the first ones in quick succession; each asks the peer by relay to do the same, since a NAT or a
firewall lets in what looks like an answer. An idle peer is left in peace, and what is known of its path is doubted when it wakes.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Final

from tsns.bucket import Bucket
from tsns.paths.candidates import Candidate, Candidates, is_better
from tsns.proto.addresses import Endpoint, endpoint_text
from tsns.ways import BothPaths, DerpPath, Path, UdpPath, derp_path

ACTIVE_S: Final = 45.0  # after the last packet sent to it a peer is idle
HEARTBEAT_S: Final = 3.0
TRUST_S: Final = 6.5  # after a pong
GIVE_UP_S: Final = 11.5  # after a pong: upstream's trust and its patience with a ping
SILENCE_S: Final = 1.0  # packets go by this path and nothing has come for so long: is it still there?
PATIENCE_S: Final = (0.4, 2.0)  # with a ping that asks so, at least and at most
PATIENCE_LATENCIES: Final = 4.0  # and in between, by the path's latency
PINGS_BEFORE_DOUBT: Final = 2
ROUND_GAPS_S: Final = (0.2, 0.4, 0.8, 1.6)  # between the first rounds: a peer may only just be told of us
FRESH_ROUNDS: Final = frozenset(
    {3, 6}
)  # of a search in vain: our own endpoints are looked up again, should our NAT have begun anew
ROUND_S: Final = 5.0
UPGRADE_S: Final = 60.0  # between rounds that look for something better than what works
GOOD_LATENCY_S: Final = 0.005  # nothing better is looked for
MIN_PING_SPACING_S: Final = 0.15  # to one candidate
MIN_CALL_SPACING_S: Final = 0.2  # between rounds that the peer asks for, if it names nothing new
PROBES_PER_S: Final = 20.0  # of our own accord, besides those that ask the best path
PROBES_BURST: Final = 100.0
ASKED_PROBES_PER_S: Final = 10.0  # that the peer wants
ASKED_PROBES_BURST: Final = 100.0
MAX_CHANGES: Final = 20  # remembered


class Kind(enum.StrEnum):
    """How packets go."""

    NONE = "none"
    RELAYED = "relayed"
    DIRECT = "direct"
    DOUBTED = "direct and relayed"


@dataclass(frozen=True, slots=True)
class Change:
    """The path has become another one, and why. `endpoint` is that of its direct part."""

    at: float
    kind: Kind
    endpoint: Endpoint | None
    reason: str

    def __str__(self) -> str:
        where = f" by {endpoint_text(self.endpoint)}" if self.endpoint else ""
        return f"{self.kind}{where}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Probe:
    """Ping the peer at this endpoint."""

    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class Call:
    """Ask the peer, by relay, to ping us too. `fresh`: pings go unanswered, perhaps because our NAT has another port for us by now."""

    fresh: bool = False


Wish = Probe | Call | Change


class PeerPath:
    """The path to one peer. Times are `now`'s; a pong is told with the endpoint that its ping was sent to."""

    __slots__ = (
        "_asked_probes",
        "_asked_round_at",
        "_best_heard_at",
        "_candidates",
        "_doubted_at",
        "_heartbeat_at",
        "_patience_ends",
        "_pong_at",
        "_probes",
        "_relay",
        "_round_at",
        "_rounds",
        "_searched_at",
        "_sent_at",
        "_unanswered",
        "best",
        "changes",
        "kind",
        "latency_s",
    )

    def __init__(self, now: float) -> None:
        self.kind = Kind.NONE
        self.best: Endpoint | None = None
        self.latency_s: float | None = None  # of the best
        self.changes: collections.deque[Change] = collections.deque(maxlen=MAX_CHANGES)
        self._relay: int | None = None
        self._candidates = Candidates()
        self._probes = Bucket(PROBES_PER_S, PROBES_BURST, now)
        self._asked_probes = Bucket(ASKED_PROBES_PER_S, ASKED_PROBES_BURST, now)
        self._sent_at = -inf
        self._pong_at = -inf  # from the best
        self._doubted_at = -inf
        self._best_heard_at = -inf  # anything authentic from the best
        self._unanswered = 0  # pings to the best since its last pong
        self._patience_ends = inf  # with the last of them
        self._heartbeat_at = inf
        self._rounds = 0  # of this search
        self._round_at = inf
        self._searched_at = -inf
        self._asked_round_at = -inf

    @property
    def path(self) -> Path | None:
        """Where packets go to now."""
        relay = None if self._relay is None else derp_path(self._relay)
        if self.best is None:
            return relay
        direct = UdpPath(self.best)
        return BothPaths(direct, relay) if self.kind is Kind.DOUBTED and relay else direct

    def is_active(self, now: float) -> bool:
        """Whether packets are sent."""
        return now - self._sent_at <= ACTIVE_S

    def is_searching(self, now: float) -> bool:
        """Whether packets are sent without a direct path that is trusted."""
        return self.kind is not Kind.DIRECT and self.is_active(now)

    def ways_to_ask(self, now: float) -> list[UdpPath | DerpPath]:
        """How a person's ping is to go: by the path that is trusted, else by all there are."""
        if self.kind is Kind.DIRECT and self.best is not None and now - self._pong_at <= TRUST_S:
            return [UdpPath(self.best)]
        relay = [] if self._relay is None else [derp_path(self._relay)]
        return [*(UdpPath(candidate.endpoint) for candidate in self._candidates.by_turn()), *relay]

    # --- what is known of the peer ---------------------------------------------------------------------------------

    def tell(self, endpoints: Iterable[Endpoint], relay: int | None, now: float) -> list[Wish]:
        """The netmap says where the peer may be, and the region of its relay (None: none)."""
        wishes: list[Wish] = []
        is_new = self._candidates.tell(endpoints, now, keep=self.best)
        self._relay = relay
        if self.best is None:
            self.kind = Kind.NONE if relay is None else Kind.RELAYED
        if is_new and self.is_searching(now):
            self._search(now, wishes)
        return wishes

    def begin_anew(self, reason: str, now: float) -> list[Wish]:
        """The network, or the peer's process, is another one: what was found out is to be found out again."""
        wishes: list[Wish] = []
        self._candidates.forget_answers()
        self._pong_at = -inf
        if self.is_active(now):
            self._doubt(reason, now, wishes)
        return wishes

    # --- the seam --------------------------------------------------------------------------------------------------

    def on_activity(self, now: float) -> list[Wish]:
        """Packets are about to be sent to the peer."""
        self._sent_at = now
        if self.kind is Kind.DIRECT:
            if now - self._pong_at > TRUST_S:
                wishes: list[Wish] = []
                self._beat(now)
                self._doubt("it was idle" if self._unanswered == 0 else "no pong in time", now, wishes)
                return wishes
            if now - self._best_heard_at > SILENCE_S and self._patience_ends == inf:
                wishes = []
                self._ask_best(now, wishes)
                self._beat(now)
                return wishes
            self._beat(now)
        else:
            self._beat(now)
            if self._round_at == inf:
                wishes = []
                self._search(now, wishes)
                return wishes
        return []

    def _beat(self, now: float) -> None:
        if self._heartbeat_at == inf:
            self._heartbeat_at = now + HEARTBEAT_S

    # --- what comes ------------------------------------------------------------------------------------------------

    def heard(self, endpoint: Endpoint, now: float) -> list[Wish]:
        """Something authentic came from there. It proves one direction only, and so changes no path."""
        if endpoint == self.best:
            self._best_heard_at = now
        return []

    def heard_by_relay(self, now: float) -> list[Wish]:
        """The peer has begun a handshake by relay: the path that we trust it does not know, or no more (another process, another place)."""
        wishes: list[Wish] = []
        if self.kind is Kind.DIRECT:
            self._doubt("the peer begins anew by relay", now, wishes)
        return wishes

    def receive_ping(self, endpoint: Endpoint, now: float) -> list[Wish]:
        """The peer has pinged us from there (and is answered by others)."""
        wishes: list[Wish] = []
        known = self._candidates.get(endpoint)
        is_first = known is None or now - known.heard_at >= MIN_PING_SPACING_S
        candidate = self._candidates.hear(endpoint, now, keep=self.best)
        self.heard(endpoint, now)
        if candidate is not None and self.is_searching(now):
            if is_first:  # its NAT lets us in, now; what we sent there a moment ago likely came too early
                candidate.pinged_at = -inf
            self._probe(candidate, self._asked_probes, now, wishes)
        return wishes

    def receive_call(self, endpoints: Iterable[Endpoint], now: float) -> list[Wish]:
        """The peer has asked us by relay to ping it there. It is not asked in return."""
        wishes: list[Wish] = []
        is_new = self._candidates.call(endpoints, now, keep=self.best)
        if self.kind is Kind.DIRECT and self.is_active(now) and self._patience_ends == inf:
            self._ask_best(now, wishes)  # it looks for a path: does ours still lead there?
        if is_new or now - self._asked_round_at >= MIN_CALL_SPACING_S:
            self._asked_round_at = now
            self._probe_all(self._asked_probes, now, wishes)
        return wishes

    def receive_pong(self, endpoint: Endpoint, latency_s: float, now: float) -> list[Wish]:
        """A ping that was sent to this endpoint is answered."""
        wishes: list[Wish] = []
        candidate = self._candidates.get(endpoint)
        if candidate is None:
            return wishes  # nobody speaks of it any more
        candidate.latency_s = latency_s
        trusted = self.kind is Kind.DIRECT and now - self._pong_at <= TRUST_S
        if endpoint == self.best:
            if self.kind is Kind.DOUBTED:
                self._change(Kind.DIRECT, endpoint, f"it answers again, after {_ms(latency_s)}", now, wishes)
        elif not trusted or self.best is None or self.latency_s is None:
            self._change(Kind.DIRECT, endpoint, f"it answers, after {_ms(latency_s)}", now, wishes)
        elif is_better(endpoint, latency_s, self.best, self.latency_s):
            reason = f"better: {_ms(latency_s)} instead of {_ms(self.latency_s)}"
            self._change(Kind.DIRECT, endpoint, reason, now, wishes)
        else:
            return wishes
        self.latency_s = latency_s
        self._pong_at = self._best_heard_at = now
        self._unanswered = 0
        self._patience_ends = self._round_at = inf
        return wishes

    # --- time ------------------------------------------------------------------------------------------------------

    def tick(self, now: float) -> list[Wish]:
        """Let time pass."""
        wishes: list[Wish] = []
        active = self.is_active(now)
        if now >= self._patience_ends:
            self._patience_ends = inf
            if self._unanswered >= PINGS_BEFORE_DOUBT:
                self._doubt(f"{self._unanswered} pings unanswered", now, wishes)
            else:
                self._ask_best(now, wishes)
        if self.kind is Kind.DIRECT and active and now - self._pong_at > TRUST_S:
            self._doubt("no pong in time", now, wishes)
        if now >= self._give_up_at():
            self._change(Kind.RELAYED, None, "it does not answer", now, wishes)
        if now >= self._heartbeat_at:
            self._heartbeat_at = now + HEARTBEAT_S if active else inf
            if active and self.kind is Kind.DIRECT:
                self._on_heartbeat(now, wishes)
        if now >= self._round_at:
            if active and self.kind is not Kind.DIRECT:
                self._round(now, wishes)
            else:
                self._round_at = inf
        return wishes

    def _give_up_at(self) -> float:
        """When a path in doubt is given up: some time after its last pong, or if that is long ago after we began to ask again."""
        if self.kind is not Kind.DOUBTED or self._relay is None:
            return inf
        return max(self._pong_at, self._doubted_at - TRUST_S) + GIVE_UP_S

    def deadline(self) -> float:
        """When `tick` is due; infinity when never."""
        return min(self._patience_ends, self._heartbeat_at, self._round_at, self._give_up_at())

    def _on_heartbeat(self, now: float, wishes: list[Wish]) -> None:
        if (self.latency_s or 0) > GOOD_LATENCY_S and now - self._searched_at >= UPGRADE_S:
            self._searched_at = now
            self._probe_all(self._probes, now, wishes)
            wishes.append(Call())
        if self._patience_ends == inf:
            self._ask_best(now, wishes)

    # --- probes ----------------------------------------------------------------------------------------------------

    def _search(self, now: float, wishes: list[Wish]) -> None:
        self._rounds = 0
        self._round(now, wishes)

    def _round(self, now: float, wishes: list[Wish]) -> None:
        self._searched_at = now
        gap_s = ROUND_GAPS_S[self._rounds] if self._rounds < len(ROUND_GAPS_S) else ROUND_S
        self._rounds += 1
        self._round_at = now + gap_s
        self._probe_all(self._probes, now, wishes)
        if self._relay is not None:
            wishes.append(Call(fresh=self.kind is Kind.DOUBTED or self._rounds in FRESH_ROUNDS))

    def _probe_all(self, bucket: Bucket, now: float, wishes: list[Wish]) -> None:
        self._candidates.prune(now, keep=self.best)
        for candidate in self._candidates.by_turn():
            self._probe(candidate, bucket, now, wishes)

    def _probe(self, candidate: Candidate, bucket: Bucket, now: float, wishes: list[Wish]) -> None:
        if now - candidate.pinged_at >= MIN_PING_SPACING_S and bucket.take(now):
            candidate.pinged_at = now
            wishes.append(Probe(candidate.endpoint))

    def _ask_best(self, now: float, wishes: list[Wish]) -> None:
        """Ping the best path and count: it has to answer. No more often than patience ends."""
        candidate = None if self.best is None else self._candidates.get(self.best)
        assert candidate is not None
        candidate.pinged_at = now
        wishes.append(Probe(candidate.endpoint))
        self._unanswered += 1
        low_s, high_s = PATIENCE_S
        self._patience_ends = now + min(max(PATIENCE_LATENCIES * (self.latency_s or 0), low_s), high_s)

    # --- changes ---------------------------------------------------------------------------------------------------

    def _doubt(self, reason: str, now: float, wishes: list[Wish]) -> None:
        """Send both ways until a path has shown itself again, and look for one."""
        self._patience_ends = inf
        if self.kind is Kind.DIRECT:
            self._doubted_at = now
            self._change(Kind.DOUBTED, self.best, reason, now, wishes)
        self._search(now, wishes)

    def _change(self, kind: Kind, endpoint: Endpoint | None, reason: str, now: float, wishes: list[Wish]) -> None:
        self.kind, self.best = kind, endpoint
        if endpoint is None:
            self.latency_s = None
        change = Change(now, kind, endpoint, reason)
        self.changes.append(change)
        wishes.append(change)


def _ms(seconds: float) -> str:
    return f"{1000 * seconds:.1f} ms"
