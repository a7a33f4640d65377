"""A program for the machine at home that keeps a UDP port mapped, and the test's handle on it.

The program (`python -m tests.netns.port_mapper PORT`) echoes what comes to the port, takes lines from standard input (`changed`: the
network; `state`: say what is known; `close`) and says lines of JSON. It is as poor as an engine: no rights, and no imports any more.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, cast

from tests.interop.rig.home import Home
from tests.interop.rig.internet import Daemon
from tsns.netns import linux
from tsns.netns.underlay import Underlay
from tsns.node import warm
from tsns.node.portmapping import PortMapping
from tsns.proto.addresses import Endpoint

ROOT: Final = Path(__file__).parents[2]
OUR_PORT: Final = 41673
ANSWER_S: Final = 10.0  # on a busy machine
NOBODY: Final = 65534


class Mapper:
    """The program that keeps a port mapped, on the machine at home."""

    def __init__(self, daemon: Daemon) -> None:
        self._daemon = daemon

    def tell(self, line: str) -> None:
        assert self._daemon.process.stdin
        self._daemon.process.stdin.write(line + "\n")
        self._daemon.process.stdin.flush()

    def says(self) -> dict[str, Any]:
        """The next line that it says."""
        output = self._daemon.process.stdout
        assert output
        assert select.select([output], [], [], ANSWER_S)[0], f"it says nothing; its log: {self._daemon.said()[-2000:]}"
        said = json.loads(output.readline())
        assert isinstance(said, dict)
        return said

    def state(self) -> dict[str, Any]:
        self.tell("state")
        return self.says()

    def until(self, **wanted: object) -> dict[str, Any]:
        """Its state once that has these values."""
        deadline = time.monotonic() + ANSWER_S
        while not wanted.items() <= (state := self.state()).items():
            assert time.monotonic() < deadline, f"{state}, and not {wanted}"
            time.sleep(0.05)
        return state

    def close(self) -> dict[str, Any]:
        self.tell("close")
        said = self.says()
        assert warm.LATE.partition("%")[0] not in self._daemon.said(), self._daemon.said()
        return said


@contextlib.contextmanager
def mapper(home: Home, port: int = OUR_PORT) -> Iterator[Mapper]:
    """The program, started."""
    words = (sys.executable, "-m", "tests.netns.port_mapper", str(port))
    with home.machine.popen(*words, environment={"PYTHONPATH": str(ROOT)}, conversation=True, log="mapper") as daemon:
        yield Mapper(daemon)


# --- the program itself --------------------------------------------------------------------------------------------


class Echo(asyncio.DatagramProtocol):
    """Sends back what it gets."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, addr: Endpoint) -> None:
        self.transport.sendto(data, addr)


def say(**what: object) -> None:
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def main(port: int) -> None:
    loop = asyncio.get_running_loop()
    echo, _ = await loop.create_datagram_endpoint(Echo, local_addr=("0.0.0.0", port))
    mapping = PortMapping(Underlay(), port=port, on_mapped=lambda external: say(mapped=external))
    running = asyncio.create_task(mapping.run())
    lines = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(lines), sys.stdin)
    while (line := (await lines.readline()).decode().strip()) not in ("", "close"):
        if line == "changed":
            mapping.network_changed()
        else:
            say(external=mapping.external, have=mapping.have, pmp=mapping.pmp, pcp=mapping.pcp, upnp=mapping.upnp)
    began = time.monotonic()
    await mapping.close()
    took_s = time.monotonic() - began
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    echo.close()
    left = [task.get_name() for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    say(closed_s=took_s, left=left)


if __name__ == "__main__":
    logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
    warm.load()
    linux.drop_all_rights(NOBODY, os.getppid())
    warm.watch_imports()
    asyncio.run(main(int(sys.argv[1])))
