"""A lab in a thread of the test's own process, so that the test can tell it what to do badly."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from tests.netns.nodes import LabProcess
from tsns.lab.lab import Lab

TIMEOUT_S: Final = 20.0

Result = TypeVar("Result")


class SteeredLab:
    """A lab at work; `do` and `wait` call something with it, in its own loop."""

    def __init__(self, **options: Any) -> None:
        self._lab = Lab(**options)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lab")
        self._thread.start()
        self.wait(lambda lab: lab.start())
        self.process = self.do(lambda lab: LabProcess(lab.url, lab.auth_key(), lab.auth_key(ephemeral=True)))

    def do(self, what: Callable[[Lab], Result]) -> Result:
        """The result of this call."""

        async def call(lab: Lab) -> Result:
            return what(lab)

        return self.wait(call)

    def wait(self, what: Callable[[Lab], Coroutine[Any, Any, Result]]) -> Result:
        """The same for a coroutine."""
        return asyncio.run_coroutine_threadsafe(what(self._lab), self._loop).result(TIMEOUT_S)

    def close(self) -> None:
        """End it; a second time does nothing."""
        if self._thread.is_alive():
            self.wait(lambda lab: lab.close())
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(TIMEOUT_S)
            self._loop.close()

    def nodes(self) -> list[str]:
        """The names of the tailnet's nodes."""
        return self.do(lambda lab: sorted(node.name for node in lab.tailnet.nodes.values()))


@contextmanager
def steered_lab(**options: Any) -> Iterator[SteeredLab]:
    """A lab that ends with the block."""
    lab = SteeredLab(**options)
    try:
        yield lab
    finally:
        lab.close()
