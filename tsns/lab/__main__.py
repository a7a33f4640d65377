"""`python -m tsns.lab`: a lab as a process, until SIGTERM or SIGINT (ring 1).

When it serves it prints one line of JSON: `url`, `auth_key` (reusable), `ephemeral_auth_key` (reusable, for nodes that vanish), `pid`.
Visiting a login URL approves the login. With `--stdin` it takes line commands (`commands`), and ends with its input.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import signal
import sys

from tsns.lab import commands
from tsns.lab.lab import Lab
from tsns.lab.registrar import Mode


def main() -> int:
    """Run a lab; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m tsns.lab", description="A whole tailnet on this machine.")
    parser.add_argument("--address", default="127.0.0.1", help="where to serve (default: %(default)s)")
    parser.add_argument("--port", type=int, default=0, help="control's port (default: any)")
    parser.add_argument("--regions", type=int, default=1, help="how many DERP regions (default: %(default)s)")
    parser.add_argument("--mode", choices=[mode.value for mode in Mode], default=Mode.HEADSCALE.value)
    parser.add_argument("--stdin", action="store_true", help="take commands from stdin, and end when it is closed")
    parser.add_argument("--verbose", action="store_true", help="log all details to stderr")
    arguments = parser.parse_args()
    level = logging.DEBUG if arguments.verbose else logging.INFO
    logging.basicConfig(level=level, stream=sys.stderr, format="%(asctime)s %(name)s: %(message)s")
    logging.getLogger("hpack").setLevel(logging.INFO)
    try:
        asyncio.run(_serve(arguments))
    except OSError as error:
        print(f"error: cannot serve at {arguments.address}: {error.strerror or error}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


async def _serve(arguments: argparse.Namespace) -> None:
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, over.set)
    lab = Lab(arguments.address, port=arguments.port, regions=arguments.regions, mode=Mode(arguments.mode))
    async with lab:
        ready = {
            "url": lab.url,
            "auth_key": lab.auth_key(),
            "ephemeral_auth_key": lab.auth_key(ephemeral=True),
            "pid": os.getpid(),
        }
        print(json.dumps(ready), flush=True)  # noqa: T201
        listening = asyncio.create_task(_listen(lab, over), name="line commands") if arguments.stdin else None
        await over.wait()
        if listening is not None:
            listening.cancel()
            await asyncio.wait([listening])


async def _listen(lab: Lab, over: asyncio.Event) -> None:
    """Do what stdin says, until its end."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=commands.MAX_LINE_BYTES)
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    try:
        await commands.serve(lab, reader, _print)
    except ValueError:  # a line without an end
        pass
    finally:
        transport.close()
        over.set()


def _print(line: bytes) -> None:
    sys.stdout.buffer.write(line)
    sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.exit(main())
