"""What the typer commands share: options made from the one table of settings, node names that may be left out (ring 2)."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Optional

import typer

from tsns.cli import terminal
from tsns.error import UsageError, UserError
from tsns.node import client
from tsns.node.places import Places, places, roots_places
from tsns.settings import Flag

PANEL = "Node settings"

Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Say nothing but errors")]
Verbose = Annotated[
    int, typer.Option("--verbose", "-v", count=True, help="Say more; twice: show where an error came from")
]
Json = Annotated[bool, typer.Option("--json", help="Answer with one JSON object")]
NodeName = Annotated[str | None, typer.Argument(metavar="NAME", help="The node; may be left out while only one runs")]


def _parameter(flag: Flag, panel: str | None) -> inspect.Parameter:
    """The flag as a typer parameter. Left out, it is None: the table decides about defaults, not the parser."""
    kind: Any = Optional[str] if flag.takes_value else Optional[bool] if flag.is_switch else int  # noqa: UP045 - as above
    names = [*flag.options]
    if flag.is_switch and flag.field:  # a setting may also have to be switched off
        names[0] = f"--{flag.name}/--no-{flag.name}"
    option = typer.Option(
        *names,
        metavar=flag.metavar or None,
        help=flag.help + (f" [env: {', '.join(flag.environment)}]" if flag.environment else ""),
        count=flag.counts,
        show_default=False,
        rich_help_panel=panel,
    )
    return inspect.Parameter(
        flag.name.replace("-", "_"),
        inspect.Parameter.KEYWORD_ONLY,
        default=0 if flag.counts else None,
        annotation=Annotated[kind, option],
    )


def with_flags(flags: Sequence[Flag]) -> Callable[[Callable[..., int]], Callable[..., int]]:
    """Replace a command's parameter `given` by these flags; it is called with those that were given, by name."""

    def decorate(function: Callable[..., int]) -> Callable[..., int]:
        own = [item for item in inspect.signature(function, eval_str=True).parameters.values() if item.name != "given"]
        added = {flag: _parameter(flag, PANEL if flag.field else None) for flag in flags}

        def command(**values: Any) -> int:
            given = {}
            for flag, parameter in added.items():
                value = values.pop(parameter.name)
                if value is not None and (value or flag.takes_value or flag.field):
                    given[flag.name] = value
            return function(given=given, **values)

        command.__name__ = function.__name__
        command.__doc__ = function.__doc__
        parameters = [item.replace(kind=inspect.Parameter.KEYWORD_ONLY) for item in own] + list(added.values())
        command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        command.__annotations__ = {item.name: item.annotation for item in parameters}
        return command

    return decorate


def where_is(name: str | None) -> Places:
    """The directories in which a node is to be looked for: the caller's own; for an ordinary user also root's, who may have made it for them."""
    own, roots = places(os.environ), roots_places(os.environ)
    if roots is None or (name in {*client.names(own), *client.known(own)} if name else client.names(own)):
        return own
    running = client.names(roots)
    return roots if (name in running if name else running) else own


def the_node(name: str | None, where: Places, command: str) -> str:
    """The node that is meant: the one named, else the only one that runs."""
    if name:
        return where.node(name).name
    running = client.names(where)
    if len(running) == 1:
        return running[0]
    if running:
        raise UsageError(
            f"several nodes are running: {', '.join(running)}", f"say which one: `tsns {command} {running[0]}`"
        )
    raise UserError("no node is running", "start one with `tsns up NAME`; `tsns ls` shows those that are stopped")


def waiting(what: str, quiet: bool, verbose: int) -> terminal.Progress:
    """Says what is waited for, while it is."""
    return terminal.Progress(what, quiet=quiet, verbosity=verbose)
