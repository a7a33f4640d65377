"""Long work in steps, between which packets may be looked after (ring 0).

A step is short, a whole may be long: what folds in 10,000 peers `yield`s after each. Who has nothing else to do takes all steps at once.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")

Steps = Generator[None, None, T]


def finish(steps: Steps[T]) -> T:
    """Take all steps at once; returns what they come to, and raises what they raise."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
