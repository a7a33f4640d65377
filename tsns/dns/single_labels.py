"""Names of one label in a container: asked of its own engine's resolver first, then completed by the tailnet's search domains (ring 0).

A container's neighbours have such names (`db`), which only the resolver of Docker or Podman inside its network namespace knows. They go on
working as before, so they come before a node of the tailnet that is called the same. All other names are the tailnet's resolver's alone.

    ask(query)    --> Send(to the container's resolver)            another name than of one label: Pass
    receive(data) --> Answer; where that knows no such name, Pass with `completed` true
    tick(now)     --> Pass for those that nobody has answered
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from tsns.dns.message import HEADER_BYTES, Code, is_query, read_header

PATIENCE_S: Final = 1.0  # Docker's own answers come at once; what takes longer was asked of servers outside
MAX_ASKED: Final = 256
_ID_BYTES: Final = 2
_RESPONSE: Final = 0x80
_CODE: Final = 0x0F
_ONE: Final = b"\0\1"  # question
_QUESTIONS: Final = slice(4, 6)


Asker = TypeVar("Asker")  # whatever the owner needs to answer somebody


@dataclass(frozen=True, slots=True)
class Send:
    """A question for the container's resolver."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Answer(Generic[Asker]):
    """What to reply to who asked."""

    asker: Asker
    data: bytes


@dataclass(frozen=True, slots=True)
class Pass(Generic[Asker]):
    """A question for the tailnet's resolver. `denied` is the container's resolver's own answer that there is no such name."""

    asker: Asker
    query: bytes
    completed: bool  # whether it is a single label, to be completed by search domains
    denied: bytes | None = None


Output = Send | Answer[Asker] | Pass[Asker]


@dataclass(frozen=True, slots=True)
class _Asked(Generic[Asker]):
    asker: Asker
    query: bytes
    until: float


class SingleLabels(Generic[Asker]):
    """The questions of one container. `random` gives so many bytes."""

    def __init__(self, random: Callable[[int], bytes]) -> None:
        self._random = random
        self._asked: dict[bytes, _Asked[Asker]] = {}  # by id, the earliest first

    def ask(self, query: bytes, asker: Asker, now: float) -> list[Output[Asker]]:
        """A question of the container's."""
        if not is_single_label(query):
            return [Pass(asker, query, completed=False)]
        ident = self._random(_ID_BYTES)
        if ident in self._asked or len(self._asked) >= MAX_ASKED:
            return [Pass(asker, query, completed=True)]
        self._asked[ident] = _Asked(asker, query, now + PATIENCE_S)
        return [Send(ident + query[_ID_BYTES:])]

    def receive(self, data: bytes) -> list[Output[Asker]]:
        """An answer of the container's resolver."""
        if len(data) < HEADER_BYTES or not data[2] & _RESPONSE:
            return []
        asked = self._asked.pop(data[:_ID_BYTES], None)
        if asked is None:
            return []
        answer = asked.query[:_ID_BYTES] + data[_ID_BYTES:]
        code = data[3] & _CODE
        if code == Code.NOERROR:  # even without an address: there is such a name
            return [Answer(asked.asker, answer)]
        return [Pass(asked.asker, asked.query, completed=True, denied=answer)]

    def tick(self, now: float) -> list[Output[Asker]]:
        """Go on without those that have not been answered."""
        late = [ident for ident, asked in self._asked.items() if asked.until <= now]
        return [Pass(asked.asker, asked.query, completed=True) for asked in map(self._asked.pop, late)]

    def deadline(self) -> float | None:
        """When `tick` is due."""
        return next((asked.until for asked in self._asked.values()), None)


def is_single_label(query: bytes) -> bool:
    """Whether this is a query for a name of one label."""
    header = read_header(query)
    if header is None or not is_query(header[1]) or query[_QUESTIONS] != _ONE:
        return False
    rest = query[HEADER_BYTES:]
    length = rest[0] if rest else 0
    return 0 < length < 0x40 and len(rest) > length + 1 and rest[length + 1] == 0
