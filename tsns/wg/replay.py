"""The window that refuses transport counters seen before (ring 0).

Source: RFC 6479. A ring of 128 words of 64 bits remembers which of the last 8128 counters were seen; the word being
filled is the one that is not part of the window, so that moving forward clears whole words and never shifts.
"""

from __future__ import annotations

from typing import Final

REJECT_AFTER_MESSAGES: Final = 2**64 - 2**13 - 1  # WireGuard paper 6.1
WORD_BITS: Final = 64
WORDS: Final = 128
WINDOW: Final = (WORDS - 1) * WORD_BITS


class ReplayWindow:
    """Which counters of one session have arrived. Ask `may_accept` before decryption, `accept` only after it."""

    __slots__ = ("_last", "_words")

    def __init__(self) -> None:
        self._last = 0
        self._words = [0] * WORDS

    def may_accept(self, counter: int) -> bool:
        """Whether this counter is neither too old, nor too great, nor seen; remembers nothing."""
        if counter > self._last:
            return counter < REJECT_AFTER_MESSAGES
        if self._last - counter > WINDOW:
            return False
        return not self._words[(counter >> 6) % WORDS] >> (counter & 63) & 1

    def may_accept_run(self, first: int, count: int) -> bool:
        """Whether these consecutive counters are all greater than any that was seen, and not too great; remembers nothing."""
        # Only before the first one of all is the last one, 0, not seen.
        return first >= self._last and self.may_accept(first) and first + count <= REJECT_AFTER_MESSAGES

    def accept_run(self, first: int, count: int) -> None:
        """Take the consecutive counters of authenticated messages, for which `may_accept_run` holds."""
        words, end = self._words, first + count
        last_block = (end - 1) >> 6
        for stale in range(max((self._last >> 6) + 1, last_block - WORDS + 1), last_block + 1):
            words[stale % WORDS] = 0
        self._last = end - 1
        while first < end:
            block = first >> 6
            stop = min(end, (block + 1) << 6)
            words[block % WORDS] |= ((1 << (stop - first)) - 1) << (first & 63)
            first = stop

    def accept(self, counter: int) -> bool:
        """Take the counter of an authenticated message; False where it has to be refused."""
        if counter >= REJECT_AFTER_MESSAGES:
            return False
        words = self._words
        block = counter >> 6
        if counter > self._last:
            first = (self._last >> 6) + 1
            for stale in range(max(first, block - WORDS + 1), block + 1):
                words[stale % WORDS] = 0
            self._last = counter
        elif self._last - counter > WINDOW:
            return False
        bit = 1 << (counter & 63)
        if words[block % WORDS] & bit:
            return False
        words[block % WORDS] |= bit
        return True
