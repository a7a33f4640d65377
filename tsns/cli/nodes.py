"""`run`, `exec`, `up`, `down`, `rm`, `ls`: commands that make, end and list nodes (ring 2)."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Annotated

import typer

from tsns import settings
from tsns.attach import follow, wishes
from tsns.cli import arguments, enter, output, tables, terminal
from tsns.cli.arguments import Parsed
from tsns.cli.options import Json, Quiet, Verbose, waiting, with_flags
from tsns.cli.queries import status_of
from tsns.error import UsageError, UserError
from tsns.node import client
from tsns.node.places import Places, check_name, places, roots_places
from tsns.settings import Given

Names = Annotated[list[str], typer.Argument(metavar="NAME", help="The nodes")]
Command = Annotated[list[str] | None, typer.Argument(metavar="-- COMMAND", help="The command and its arguments")]


@with_flags(arguments.RUN_FLAGS)
def run(given: Given, command: Command = None) -> int:
    """Put a command on a tailnet, and nothing else.

    Without --name the node is made for this command and goes with it.
    """
    enter.run(Parsed(given=dict(given), command=command or []))


@with_flags(arguments.EXEC_FLAGS)
def execute(
    given: Given, name: Annotated[str, typer.Argument(metavar="NAME", help="A running node")], command: Command = None
) -> int:
    """Run a command inside a running node."""
    enter.execute(Parsed(given=dict(given), words=[name], command=command or []))


@with_flags(arguments.EXEC_FLAGS)
def shell(given: Given, name: Annotated[str, typer.Argument(metavar="NAME", help="A running node")]) -> int:
    """Open a shell inside a running node."""
    enter.shell(Parsed(given=dict(given), words=[name]))


@with_flags(arguments.UP_FLAGS)
def up(
    given: Given,
    name: Annotated[str, typer.Argument(metavar="NAME", help="A name of your choice: a-z, 0-9 and hyphens")],
) -> int:
    """Make, start or change a lasting node."""
    return enter.up(Parsed(given=dict(given), words=[name]))


@with_flags(arguments.SET_FLAGS)
def change(given: Given, name: Annotated[str, typer.Argument(metavar="NAME", help="A running node")]) -> int:
    """Change a running node.

    What goes on inside goes on. Most settings disturb no connection; others make it pause, as `tsns up` with them would.
    """
    wanted = settings.changes(given)
    if not wanted:
        raise UsageError("there is nothing to change", "write `tsns set NAME --exit-node PEER`, for example")
    where = places(os.environ)
    check_name(name)
    with waiting(
        f"the node {name} to take that over", bool(given.get("quiet")), int(given.get("verbose", 0))
    ) as progress:
        client.change(name, where, wanted, progress)
    return 0


def _each(names: list[str], action: Callable[[str], None], verbose: int) -> int:
    """Do it to all of them, whatever becomes of the single one; 1 if one of them failed."""
    status = 0
    for name in dict.fromkeys(names):
        try:
            action(name)
        except UserError as error:
            status = max(status, terminal.report(error, verbose, owns_status=False))
    return status


def down(
    names: Annotated[list[str] | None, typer.Argument(metavar="NAME", help="The nodes")] = None,
    logout: Annotated[bool, typer.Option("--logout", help="Also remove them from their tailnets")] = False,
    everything: Annotated[bool, typer.Option("--all", help="All that are running")] = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> int:
    """Stop nodes; their identities stay."""
    if bool(names) == everything:
        raise UsageError("say which nodes, or --all", "write `tsns down NAME`; `tsns ls` shows the names")
    where = places(os.environ)
    for name in names or ():
        check_name(name)

    def stop(name: str) -> None:
        with waiting(f"stopping the node {name}", quiet, verbose):
            _detach_all(where, name)
            client.stop(name, where, logout=logout)

    return _each(names or client.names(where), stop, verbose)


def remove(names: Names, quiet: Quiet = False, verbose: Verbose = 0) -> int:
    """Log nodes out and forget them."""
    where = places(os.environ)
    for name in names:
        check_name(name)

    def forget(name: str) -> None:
        with waiting(f"removing the node {name}", quiet, verbose) as progress:
            _detach_all(where, name)
            client.forget(name, where, progress)

    return _each(names, forget, verbose)


def _detach_all(where: Places, name: str) -> None:
    """What shares a node does not bring it back: its end gives everything back by itself."""
    for wish in wishes.of_node(where, name):
        wishes.remove(where, wish.key)


def list_nodes(as_json: Json = False, quiet: Quiet = False, verbose: Verbose = 0) -> int:
    """List the nodes of this machine, running or stopped."""
    follow.ensure(places(os.environ), os.environ)  # which nothing does after a restart of the machine
    homes: dict[str, Places] = {}
    for where in filter(
        None, (roots_places(os.environ), places(os.environ))
    ):  # of two of one name the caller's own counts
        homes |= dict.fromkeys((*client.names(where), *client.known(where)), where)
    with waiting("the nodes to answer", quiet, verbose):
        nodes = [tables.listed(_status_or_guess(name, where, verbose)) for name, where in sorted(homes.items())]
    if as_json:
        output.answer({"nodes": nodes})
    elif nodes:
        output.lines(tables.node_list(nodes))
    elif not quiet:
        terminal.say("there are no nodes yet; `tsns up NAME` makes one")
    return 0


def _status_or_guess(name: str, where: Places, verbose: int) -> tables.Object:
    """One node that does not answer must not hide the others: its engine may just be starting, or it may be somebody else's."""
    try:
        return status_of(name, where)
    except UserError as error:
        if verbose:
            terminal.say(f"{name}: {error.message}")
        return {**tables.stopped(name), "state": "starting"}
