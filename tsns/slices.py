"""Takes steps in slices of the event loop's time, so that packets never wait long for the netmap (ring 1)."""

from __future__ import annotations

import asyncio
import time
from typing import Final, TypeVar

from tsns.steps import Steps, finish

SLICE_S: Final = 0.001  # and then everything else has its turn

T = TypeVar("T")


async def in_slices(steps: Steps[T], *, even_if_cancelled: bool = False) -> T:
    """Take all steps, and leave the loop to others after each slice.

    A cancellation ends the work where it is; with `even_if_cancelled`, after the rest has been done at once.
    """
    until = time.monotonic() + SLICE_S
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: T = end.value
            return result
        if time.monotonic() >= until:
            try:
                await asyncio.sleep(0)
            except asyncio.CancelledError:
                if even_if_cancelled:
                    finish(steps)
                raise
            until = time.monotonic() + SLICE_S
