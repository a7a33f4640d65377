"""Mutations without any guide: the sample that CI runs, and all there is where atheris cannot be had."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import Final

MAX_MUTATIONS: Final = 4  # of one case
NUMBERS: Final = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x10000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


class Mutator:
    """Makes cases out of cases; the same ones for the same seed."""

    def __init__(self, cases: Sequence[bytes], words: Sequence[bytes], max_bytes: int, seed: int) -> None:
        self._cases = list(cases) or [b""]
        self._words = list(words) or [b"\0"]
        self._max_bytes = max_bytes
        self._random = random.Random(seed)

    def __iter__(self) -> Iterator[bytes]:
        """Cases without end."""
        chance = self._random
        while True:
            case = bytearray(chance.choice(self._cases))
            for _ in range(chance.randint(1, MAX_MUTATIONS)):
                self._mutate(case)
            yield bytes(case[: self._max_bytes])

    def _mutate(self, case: bytearray) -> None:
        chance = self._random
        at = chance.randint(0, len(case))
        size = min(chance.choice((1, 1, 2, 4, 8, 32)), len(case) - at)
        match chance.randrange(9):
            case 0 if at < len(case):
                case[at] ^= 1 << chance.randrange(8)
            case 1:
                case[at : at + size] = chance.randbytes(size)
            case 2:
                del case[at : at + size]
            case 3:
                case[at:at] = chance.randbytes(chance.choice((1, 2, 4, 16)))
            case 4:
                case[at:at] = chance.choice(self._words)
            case 5:
                word = chance.choice(self._words)
                case[at : at + len(word)] = word
            case 6:
                number = chance.choice(NUMBERS).to_bytes(4, chance.choice(("big", "little")))
                number = number[-chance.choice((1, 2, 4)) :]
                case[at : at + len(number)] = number
            case 7:
                other = chance.choice(self._cases)
                case[at:] = other[chance.randint(0, len(other)) :]
            case _:
                case[at:at] = case[at : at + size] * chance.choice((1, 2, 50))
