"""Takes steps in slices of the event loop's time, so that packets never wait long for the netmap (ring 1)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeVar

from tsns.steps import Steps, finish, take

SLICE_S: Final = 0.001  # and then everything else has its turn

T = TypeVar("T")


async def in_slices(steps: Steps[T], *, even_if_cancelled: bool = False) -> T:
    """Take all steps, and leave the loop to others after each slice.

    A cancellation ends the work where it is; with `even_if_cancelled`, after the rest has been done at once.
    """
    while (done := take(steps, _slice_end())) is None:
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:
            if even_if_cancelled:
                finish(steps)
            raise
    return done[0]


def _slice_end() -> Callable[[], bool]:
    """Whether a slice that begins now is over."""
    until = time.monotonic() + SLICE_S
    return lambda: time.monotonic() >= until
