"""Long work in steps, between which packets may be looked after (ring 0).

A step is short, a whole may be long: what folds in 10,000 peers `yield`s after each. Who has nothing else to do takes all steps at once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import TypeVar

T = TypeVar("T")

Steps = Generator[None, None, T]


def take(steps: Steps[T], is_enough: Callable[[], bool]) -> tuple[T] | None:
    """Take steps until it is enough, and None; or to their end, and what they come to. Raises what they raise."""
    try:
        while True:
            next(steps)
            if is_enough():
                return None
    except StopIteration as end:
        return (end.value,)


def finish(steps: Steps[T]) -> T:
    """Take all steps at once; returns what they come to, and raises what they raise."""
    done = take(steps, lambda: False)
    assert done is not None  # it is never enough
    return done[0]
