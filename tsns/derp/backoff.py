"""How long to wait before a relay is tried again (ring 0).

Source: util/backoff of Tailscale's module for the curve: the square of the failures in a row, with jitter. A relay that has said that it
restarts is given the time it asked for, and then tried often, because it is known to come back.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BACKOFF_UNIT_S: Final = 0.01  # times the square of the number of failures in a row
BACKOFF_MAX_S: Final = 5.0
JITTER: Final = (0.5, 1.5)
RESTART_WAIT_MAX_S: Final = 60.0  # what a relay may ask for before it restarts
RESTART_TRY_MAX_S: Final = 300.0
RESTART_PAUSE_S: Final = 1.0  # between attempts while it restarts
RESTART_JITTER: Final = (1.0, 1.25)


class Backoff:
    """The pauses of one relay; `uniform(low, high)` gives random numbers."""

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self._failures = 0
        self._restart: tuple[float, float] | None = None
        self._restarting_until: float | None = None

    def fail(self) -> None:
        """An attempt or a connection has failed."""
        self._failures += 1

    def reset(self) -> None:
        """The relay works: what was does not count any more."""
        self._failures = 0
        self._restarting_until = None

    def expect_restart(self, reconnect_in_s: float, try_for_s: float) -> None:
        """The relay is about to go away, and has said for how long, and how long to try after that."""
        self._restart = min(reconnect_in_s, RESTART_WAIT_MAX_S), min(try_for_s, RESTART_TRY_MAX_S)

    def pause_s(self, now: float) -> float:
        """How long to wait from now on."""
        if self._restart is not None:
            (wait_s, try_s), self._restart = self._restart, None
            wait_s *= self._uniform(*RESTART_JITTER)
            self._restarting_until = now + wait_s + try_s
            return wait_s
        usual_s = min(self._failures**2 * BACKOFF_UNIT_S, BACKOFF_MAX_S) * self._uniform(*JITTER)
        if self._restarting_until is not None and now < self._restarting_until:
            return min(usual_s, RESTART_PAUSE_S)
        return usual_s
