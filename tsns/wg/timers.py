"""The timers of one peer (ring 0).

Source: WireGuard paper 6.1 to 6.5 and the timers of its implementations. An unarmed timer is at infinity; `tunnel`
reports what happened and acts on what `due` returns.

    event                              retransmit   keepalive       new handshake     zero keys
    peer comes into use                                                               arm 540 s
    initiation sent                    arm 5 s+j
    handshake complete                 stop
    session derived                                                                   arm 540 s
    anything authentic sent                         stop
    data sent                                                       arm 15 s+j once
    anything authentic received                                     stop
    data received                                   arm 10 s once

A persistent keepalive there is not: nodes of a tailnet keep their paths open by other means.
"""

from __future__ import annotations

import enum
from math import inf
from typing import Final

from tsns.wg.session import REJECT_AFTER_TIME_S

REKEY_TIMEOUT_S: Final = 5.0
REKEY_ATTEMPT_TIME_S: Final = 90.0
MAX_RETRIES: Final = int(REKEY_ATTEMPT_TIME_S / REKEY_TIMEOUT_S)
MAX_JITTER_S: Final = 0.333
KEEPALIVE_TIMEOUT_S: Final = 10.0
NEW_HANDSHAKE_AFTER_S: Final = KEEPALIVE_TIMEOUT_S + REKEY_TIMEOUT_S
LAST_MINUTE_AFTER_S: Final = REJECT_AFTER_TIME_S - KEEPALIVE_TIMEOUT_S - REKEY_TIMEOUT_S
ZERO_KEYS_AFTER_S: Final = 3 * REJECT_AFTER_TIME_S


class Timer(enum.Enum):
    """What has come due."""

    RETRANSMIT = enum.auto()
    KEEPALIVE = enum.auto()
    NEW_HANDSHAKE = enum.auto()
    ZERO_KEYS = enum.auto()


class Timers:
    """Deadlines of one peer, in seconds of the caller's clock."""

    __slots__ = (
        "_needs_another_keepalive",
        "attempts",
        "keepalive",
        "new_handshake",
        "retransmit",
        "sent_last_minute_handshake",
        "zero_keys",
    )

    def __init__(self) -> None:
        self.retransmit = inf
        self.keepalive = inf
        self.new_handshake = inf
        self.zero_keys = inf
        self.attempts = 0
        self.sent_last_minute_handshake = False
        self._needs_another_keepalive = False

    def idle(self, now: float) -> None:
        """The peer has come into use; without a session nothing is kept for it either."""
        self.zero_keys = now + ZERO_KEYS_AFTER_S

    def handshake_complete(self) -> None:
        """A response was processed, or the other side has used the keys of ours."""
        self.retransmit = inf
        self.attempts = 0
        self.sent_last_minute_handshake = False

    def session_derived(self, now: float) -> None:
        """There are new keys, confirmed or not."""
        self.zero_keys = now + ZERO_KEYS_AFTER_S

    def given_up(self) -> None:
        """The peer does not answer."""
        self.retransmit = inf
        self.keepalive = inf

    def sent(self) -> None:
        """Anything authentic went out: a handshake message, a keepalive, data."""
        self.keepalive = inf

    def data_sent(self, now: float, jitter_s: float) -> None:
        """Data went out: the other side owes us a sign of life."""
        if self.new_handshake == inf:
            self.new_handshake = now + NEW_HANDSHAKE_AFTER_S + jitter_s

    def received(self) -> None:
        """Anything authentic came in."""
        self.new_handshake = inf

    def data_received(self, now: float) -> None:
        """Data came in: we owe the other side a sign of life."""
        if self.keepalive == inf:
            self.keepalive = now + KEEPALIVE_TIMEOUT_S
        else:
            self._needs_another_keepalive = True

    def keepalive_sent(self, now: float) -> None:
        """The keepalive that was due went out; data that came in while it was waiting is owed another one."""
        if self._needs_another_keepalive:
            self._needs_another_keepalive = False
            self.keepalive = now + KEEPALIVE_TIMEOUT_S

    def due(self, now: float) -> list[Timer]:
        """What has come due; it is then no longer armed."""
        fired: list[Timer] = []
        if self.zero_keys <= now:  # first: what it erases needs no other care
            self.zero_keys = inf
            fired.append(Timer.ZERO_KEYS)
        if self.retransmit <= now:
            self.retransmit = inf
            fired.append(Timer.RETRANSMIT)
        if self.keepalive <= now:
            self.keepalive = inf
            fired.append(Timer.KEEPALIVE)
        if self.new_handshake <= now:
            self.new_handshake = inf
            fired.append(Timer.NEW_HANDSHAKE)
        return fired
