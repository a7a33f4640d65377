"""Asks other servers on behalf of the programs inside (ring 0).

A question is *pending* from the first who asks it until its answer, or until EFFORT_S are over; whoever asks the same meanwhile waits
with it. All servers of its rule are asked at once, and the first good answer counts. Each server has a *course* of steps:

    UDP --truncated, failed, or HEDGE_S without an answer--> TCP
    HTTP at its first address --failed, or HEDGE_S--> HTTP at the next one

    outputs:   Begin(step)   --the edge asks-->  `receive` with what came, or `failed`
               End           the edge needs not go on with it
               Answered      for one asker

A course is over when a server has answered with anything but NOERROR and NXDOMAIN, or when all its steps have failed. When all courses
are over, the code that all servers agree on is the answer, else SERVFAIL. Source: net/dns/resolver/forwarder.go of Tailscale's module.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Final

import dns.rcode

from tsns.agenda import Agenda
from tsns.counters import Counters
from tsns.dns.cache import Cache
from tsns.dns.configuration import Rule
from tsns.dns.message import Answer, Code, FormatError, Query, render
from tsns.dns.replies import Question, Reply, dress, question_of, read_reply, wire_of
from tsns.dns.upstreams import Transport, Upstream, Way
from tsns.proto.addresses import unpack

MAX_IN_FLIGHT: Final = 256  # askers that wait
MAX_ATTEMPTS: Final = 512  # steps under way, each with a socket
MAX_STRAYS: Final = 16  # datagrams to one socket that are no answer
EFFORT_S: Final = 10.0  # for a question
HEDGE_S: Final = 2.0  # from one step to the next
_HIGHEST_PLAIN_CODE: Final = 15


class Count(enum.StrEnum):
    """What became of questions to other servers."""

    ASKED = "asked of other servers"
    CACHED = "answered from the cache"
    SHARED = "waited for an answer that another asker waits for"
    ANSWERED = "answered by other servers"
    FAILED = "failed at all servers"
    TIMED_OUT = "not answered in time"
    REFUSED = "refused: no server may be asked"
    TOO_MANY = "refused: too many at once"
    STRAY = "datagrams that were no answer"


@dataclass(frozen=True, slots=True)
class Step:
    """One way to ask a server."""

    upstream: Upstream
    transport: Transport
    address: bytes
    way: Way


@dataclass(frozen=True, slots=True)
class Begin:
    """Ask like this; what comes back belongs to this number."""

    number: int
    step: Step
    data: bytes


@dataclass(frozen=True, slots=True)
class End:
    """Nobody waits for this step any more."""

    number: int


@dataclass(frozen=True, slots=True)
class How:
    """Where an answer comes from; `reason` where it is none."""

    code: Code
    rule: Rule
    resolver: str = ""
    transport: Transport | None = None
    way: Way | None = None
    cached: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer for one asker."""

    asker: int
    data: bytes
    how: How


Output = Begin | End | Answered


@dataclass(slots=True)
class _Course:
    """How far the asking of one server has come."""

    steps: list[Step]  # still to be begun
    under_way: set[int] = field(default_factory=set)
    next_at: float = inf  # then the next step begins, whatever the last one does


@dataclass(slots=True, eq=False)
class _Pending:
    question: Question
    rule: Rule
    ident: int
    ends_at: float
    generation: int
    askers: list[tuple[int, Query, bool]]  # number, query, whether it came by TCP
    courses: list[_Course]
    failures: list[tuple[Code | None, str]] = field(default_factory=list)
    scheduled_at: float = inf


@dataclass(slots=True)
class _Attempt:
    pending: _Pending
    course: _Course
    step: Step
    strays: int = 0


class Forwarder:
    """Questions to other servers. `way` says from where a server's address is asked, None where it must not be."""

    def __init__(
        self,
        random: Callable[[int], bytes],
        way: Callable[[Upstream, bytes], Way | None],
        *,
        forbidden: str = "out of reach",
    ) -> None:
        self._random = random
        self._way = way
        self._forbidden = forbidden  # why a server that has no way is not asked
        self._pending: dict[Question, _Pending] = {}
        self._attempts: dict[int, _Attempt] = {}
        self._agenda: Agenda[_Pending] = Agenda()
        self._askers = 0
        self._numbers = 0
        self._generation = 0
        self.cache = Cache()
        self.counters = Counters()

    def forget(self) -> None:
        """Other servers may be asked from now on: what is kept, and what is being asked for, is nobody's later."""
        self._generation += 1
        self.cache.clear()
        self._pending = {}

    def ask(self, query: Query, rule: Rule, asker: int, now: float, *, over_tcp: bool) -> list[Output]:
        """Answer this asker (a number of the caller's) now or later."""
        question = question_of(query)
        kept = self.cache.get(question, now)
        if kept is not None:
            self.counters.add(Count.CACHED)
            data = dress(kept.reply, query, int(now - kept.since), over_tcp=over_tcp)
            return [Answered(asker, data, How(Code(kept.reply.code), rule, kept.resolver, cached=True))]
        if self._askers >= MAX_IN_FLIGHT:
            self.counters.add(Count.TOO_MANY)
            return [_refused(asker, query, over_tcp, How(Code.SERVFAIL, rule, reason="too many questions at once"))]
        pending = self._pending.get(question)
        if pending is not None:
            self._askers += 1
            self.counters.add(Count.SHARED)
            pending.askers.append((asker, query, over_tcp))
            return []
        courses = [_Course(steps) for one in rule.upstreams if (steps := self._steps(one))]
        if not courses:
            self.counters.add(Count.REFUSED)
            names = ", ".join(one.text for one in rule.upstreams)
            reason = f"{names}: {self._forbidden}" if names else "there is no server for this name"
            return [_refused(asker, query, over_tcp, How(Code.REFUSED, rule, names, reason=reason))]
        self._askers += 1
        self.counters.add(Count.ASKED)
        pending = _Pending(
            question=question,
            rule=rule,
            ident=int.from_bytes(self._random(2), "big"),
            ends_at=now + EFFORT_S,
            generation=self._generation,
            askers=[(asker, query, over_tcp)],
            courses=courses,
        )
        self._pending[question] = pending
        outputs: list[Output] = []
        for course in courses:
            self._begin_next(pending, course, now, outputs)
        return self._settled(pending, outputs)

    def receive(self, number: int, data: bytes, now: float) -> list[Output]:
        """What came back for this step."""
        attempt = self._attempts.get(number)
        if attempt is None:
            return []
        pending, step = attempt.pending, attempt.step
        try:
            reply = read_reply(data, pending.question, pending.ident)
        except FormatError as error:
            if step.transport is not Transport.UDP:
                return self.failed(number, f"its answer cannot be used: {error}", now)
            self.counters.add(Count.STRAY)
            attempt.strays += 1
            return [] if attempt.strays < MAX_STRAYS else self.failed(number, "it talks nonsense", now)
        if reply.truncated:
            return self.failed(number, "its answer is too long", now)
        if reply.code in {Code.NOERROR, Code.NXDOMAIN}:
            return self._finish(pending, reply, step, now)
        attempt.course.steps.clear()  # it has answered: asking in another way would not change its mind
        return self._over(number, Code.make(reply.code), f"it says {dns.rcode.to_text(Code.make(reply.code))}", now)

    def failed(self, number: int, reason: str, now: float) -> list[Output]:
        """Nothing comes back for this step."""
        return self._over(number, None, reason, now)

    def tick(self, now: float) -> list[Output]:
        """Do what is due."""
        outputs: list[Output] = []
        for pending in self._agenda.due(now):
            if now >= pending.ends_at:
                self.counters.add(Count.TIMED_OUT)
                pending.failures.append((None, f"no answer within {EFFORT_S:.0f} s"))
                self._give_up(pending, outputs)
                continue
            for course in pending.courses:
                if course.next_at <= now:
                    self._begin_next(pending, course, now, outputs)
            self._settled(pending, outputs)
        return outputs

    def deadline(self) -> float | None:
        """When `tick` has something to do; None while nothing is pending."""
        return self._agenda.deadline()

    @property
    def in_flight(self) -> int:
        """How many askers wait."""
        return self._askers

    # --- courses

    def _steps(self, one: Upstream) -> list[Step]:
        return [
            Step(one, transport, address, way)
            for address in one.addresses
            if (way := self._way(one, address)) is not None
            for transport in one.transports
        ]

    def _begin_next(self, pending: _Pending, course: _Course, now: float, outputs: list[Output]) -> None:
        step = course.steps.pop(0)
        course.next_at = now + HEDGE_S if course.steps else inf
        if len(self._attempts) >= MAX_ATTEMPTS:
            course.steps.clear()
            course.next_at = inf
            pending.failures.append((None, "too many servers are asked at once"))
            return
        self._numbers += 1
        self._attempts[self._numbers] = _Attempt(pending, course, step)
        course.under_way.add(self._numbers)
        outputs.append(Begin(self._numbers, step, wire_of(pending.question, pending.ident)))

    def _over(self, number: int, code: Code | None, reason: str, now: float) -> list[Output]:
        """A step has come to nothing."""
        attempt = self._attempts.pop(number, None)
        if attempt is None:
            return []
        pending, course, step = attempt.pending, attempt.course, attempt.step
        course.under_way.discard(number)
        outputs: list[Output] = [End(number)]
        if course.steps:
            self._begin_next(pending, course, now, outputs)
        elif code is not None or not course.under_way:
            for other in course.under_way:
                del self._attempts[other]
                outputs.append(End(other))
            course.under_way.clear()
            course.next_at = inf
            pending.failures.append((code, f"{step.upstream.text} ({unpack(step.address)}): {reason}"))
        return self._settled(pending, outputs)

    def _settled(self, pending: _Pending, outputs: list[Output]) -> list[Output]:
        """Give up where no course goes on; else see to it that the next thing is done in time."""
        if any(course.under_way for course in pending.courses):
            due = min([pending.ends_at, *(course.next_at for course in pending.courses)])
            if due != pending.scheduled_at:
                self._agenda.drop(pending)
                self._agenda.schedule(pending, due)
            return outputs
        self.counters.add(Count.FAILED)
        self._give_up(pending, outputs)
        return outputs

    # --- ends

    def _finish(self, pending: _Pending, reply: Reply, step: Step, now: float) -> list[Output]:
        self.counters.add(Count.ANSWERED)
        if pending.generation == self._generation:
            self.cache.put(pending.question, reply, step.upstream.text, now)
        outputs: list[Output] = []
        self._close(pending, outputs)
        how = How(Code(reply.code), pending.rule, step.upstream.text, step.transport, step.way)
        for asker, query, over_tcp in pending.askers:
            outputs.append(Answered(asker, dress(reply, query, 0, over_tcp=over_tcp), how))
        return outputs

    def _give_up(self, pending: _Pending, outputs: list[Output]) -> None:
        self._close(pending, outputs)
        codes = {code for code, _ in pending.failures}
        agreed = codes.pop() if len(codes) == 1 else None
        if agreed is not None and agreed > _HIGHEST_PLAIN_CODE:
            agreed = None  # about the EDNS of our own question
        reasons = "; ".join(dict.fromkeys(reason for _, reason in pending.failures))
        how = How(agreed or Code.SERVFAIL, pending.rule, reason=reasons)
        for asker, query, over_tcp in pending.askers:
            outputs.append(_refused(asker, query, over_tcp, how))

    def _close(self, pending: _Pending, outputs: list[Output]) -> None:
        """Nothing of it goes on."""
        self._agenda.drop(pending)
        if self._pending.get(pending.question) is pending:
            del self._pending[pending.question]
        self._askers -= len(pending.askers)
        for course in pending.courses:
            for number in course.under_way:
                del self._attempts[number]
                outputs.append(End(number))
            course.under_way.clear()
            course.steps.clear()


def _refused(asker: int, query: Query, over_tcp: bool, how: How) -> Answered:
    return Answered(asker, render(query, Answer(how.code), over_tcp=over_tcp), how)
