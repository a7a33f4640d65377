"""Keepers that are killed at a chosen step of saving state, as a crash or a power cut would: python -m tests.netns.doomed_keeper.

Each line of standard input is a JSON object: `request` for the keeper, and `step`. The answer is a line, too: "ready" when the keeper
came to the end of its login alive (it is then stopped), "killed" when it did not.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, NoReturn

from tests.netns.nodes import Tsns
from tsns import state
from tsns.config import NodeConfig, Secret
from tsns.node import keeper, messages

COUNTED: Final = frozenset({"open", "fsync", "rename"})


class DoomedCalls:
    """Stands in for `os` in tsns.state. A step lies before and after each call that changes the disk, and amid each write."""

    def __init__(self, step: int) -> None:
        self._left = step

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in COUNTED:
            return real

        def call(*arguments: Any, **options: Any) -> Any:
            if name == "fsync" and stat.S_ISREG((file := os.fstat(arguments[0])).st_mode) and self._is_last_step():
                os.ftruncate(arguments[0], file.st_size // 2)  # the disk got half of it
                _die()
            self._step()
            result = real(*arguments, **options)
            self._step()
            return result

        return call

    def _is_last_step(self) -> bool:
        self._left -= 1
        return self._left == 0

    def _step(self) -> None:
        if self._is_last_step():
            _die()


def _die() -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("survived a SIGKILL")


def _live(request: messages.Message, step: int) -> str:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    pid = os.fork()
    if pid == 0:
        ours.close()
        vars(state)["os"] = DoomedCalls(step)
        keeper.run(theirs)
    theirs.close()
    with ours:
        messages.send(ours, request)
        outcome = _outcome(ours)
    os.waitpid(pid, 0)
    return outcome


def _outcome(connection: socket.socket) -> str:
    try:
        while True:
            message, fds = messages.receive(connection)
            for fd in fds:
                os.close(fd)
            if "ready" in message:
                messages.send(connection, {"ask": "stop"})
                while not messages.receive(connection)[0].get("stopped"):
                    pass
                return "ready"
            if "busy" in message:
                return "busy"
            if "error" in message:
                return str(message["error"])
    except (EOFError, OSError):
        return "killed"


@contextmanager
def doomed_keepers() -> Iterator[Callable[[Tsns, int], str]]:
    """For tests: call it with the step at which a keeper of the node web is to die, and get the outcome."""
    command = [sys.executable, "-m", "tests.netns.doomed_keeper"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:

        def live(tsns: Tsns, step: int) -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            config = NodeConfig(name="web", login_server=tsns.lab.url, auth_key=Secret(tsns.lab.auth_key))
            places = {"run": str(tsns.directories.run), "state": str(tsns.directories.state)}
            request = {"ask": "run", "config": config.to_message(), "lasting": True, **places}
            process.stdin.write(json.dumps({"request": request, "step": step}) + "\n")
            process.stdin.flush()
            return process.stdout.readline().strip()

        yield live


def main() -> None:
    """One keeper for each line."""
    for line in sys.stdin:
        asked = json.loads(line)
        print(_live(asked["request"], asked["step"]), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
