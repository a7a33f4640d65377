"""`serve`: the warmed server in the foreground, for those who want to hold it themselves (ring 2)."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from tsns.cli import terminal
from tsns.cli.options import Quiet, Verbose
from tsns.error import UserError
from tsns.node import warm_server
from tsns.node.places import make_run_directory, places


def serve(
    stop: Annotated[bool, typer.Option("--stop", help="End the servers that run; nodes go on")] = False,
    idle: Annotated[
        float, typer.Option("--idle", min=0, help="End after so many seconds without a client; 0: never")
    ] = 0,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> int:
    """Hold the process from which nodes are started; commands start one by themselves otherwise."""
    del verbose
    where = places(os.environ)
    if stop:
        stopped = warm_server.stop(where)
        if not quiet:
            terminal.say("the server has ended" if stopped else "no server is running")
        return 0 if stopped else 1
    make_run_directory(where.run)
    starting = warm_server.start_lock(where)
    path = warm_server.socket_path(where)
    listener = warm_server.listen(path)
    os.close(starting)
    if listener is None:
        raise UserError("a server is running already", "end it with `tsns serve --stop`, or leave it: it does the same")

    from tsns.node import server  # imports all that a node needs

    if not quiet:
        terminal.say(f"serving at {path}")
    server.serve(listener, where, path, idle or None)
    return 0
