"""The typer application: all commands, their help, their completion (ring 2)."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Annotated, Any, Final

import typer

from tsns import VERSION
from tsns.cli import (
    arguments,
    containers,
    demo,
    exit_nodes,
    login,
    names,
    netcheck,
    nodes,
    output,
    queries,
    serve,
    watch,
)
from tsns.cli.options import Json, Quiet, Verbose
from tsns.config import DEFAULT_CAPABILITY_VERSION
from tsns.error import UsageError

# Public name of one of them; the others moved from click into typer between versions.
_TyperUsageError: Final[type[Exception]] = typer.BadParameter.__mro__[1]
_TyperError: Final[type[Exception]] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name="tsns",
    help="A tailnet for one command or one container, and for nothing else on the machine.",
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["--help", "-h"]},
)
for _name, _function in (
    ("run", nodes.run),
    ("up", nodes.up),
    ("set", nodes.change),
    ("down", nodes.down),
    ("rm", nodes.remove),
    ("exec", nodes.execute),
    ("shell", nodes.shell),
    ("attach", containers.attach),
    ("detach", containers.detach),
    ("watch", watch.watch),
    ("ls", nodes.list_nodes),
    ("status", queries.status),
    ("ip", queries.ip),
    ("ping", queries.ping),
    ("whois", queries.whois),
    ("netcheck", netcheck.netcheck),
    ("logs", queries.logs),
    ("login", login.login),
    ("logout", login.logout),
    ("demo", demo.demo),
    ("serve", serve.serve),
):
    app.command(_name)(_function)
app.add_typer(exit_nodes.app, name="exit-node")
app.add_typer(names.app, name="dns")


def _show_version(wanted: bool) -> None:
    if wanted:
        output.lines([f"tsns {VERSION}"])
        raise typer.Exit


@app.callback()
def tsns(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> None:
    """Hold what stands before a command's name."""


@app.command("version")
def show_version(as_json: Json = False, quiet: Quiet = False, verbose: Verbose = 0) -> int:
    """Show the version."""
    del quiet, verbose  # there is not more or less to say
    if as_json:
        python = ".".join(map(str, sys.version_info[:3]))
        output.answer({"version": VERSION, "capability_version": DEFAULT_CAPABILITY_VERSION, "python": python})
    else:
        _show_version(wanted=True)
    return 0


def main(argv: Sequence[str]) -> int:
    """Do what the command line says; returns the exit status. UsageError where typer does not understand it."""
    output.be_tolerant()
    group: Any = typer.main.get_command(app)
    command = argv[0] if argv else ""
    try:
        words = _prepared(group, command, list(argv[1:])) if command in group.commands else list(argv or ["--help"])
        status = group.main(args=words, prog_name="tsns", standalone_mode=False)
    except typer.Abort:
        raise KeyboardInterrupt from None
    except _TyperError as error:
        raise _plain(error, command if command in group.commands else "") from None
    return status if isinstance(status, int) else 0


def _prepared(group: Any, command: str, argv: list[str]) -> list[str]:
    """Spellings that typer does not know, written in those it does."""
    found = group.commands[command]
    if argv and argv[0] in getattr(found, "commands", ()):
        return [command, *_prepared(found, argv[0], argv[1:])]
    switches = [parameter for parameter in found.params if getattr(parameter, "is_bool_flag", False)]
    long = {option for parameter in switches for option in parameter.opts if option.startswith("--")}
    negatable = {
        option
        for parameter in switches
        if parameter.secondary_opts
        for option in parameter.opts
        if option.startswith("--")
    }
    if command in arguments.NAMES:
        argv = arguments.canonical(command, argv)
    return [command, *arguments.normalise(argv, long, negatable)]


def _plain(error: Any, command: str) -> UsageError:
    """Typer's complaint as our own: one line, and what to do next."""
    helps = f"tsns {command} --help".replace("  ", " ")
    near = sorted(getattr(error, "possibilities", None) or ())
    message = str(error.message or error.format_message()) if near else str(error.format_message())
    message = message.strip().rstrip(".")
    hint = f"did you mean {near[0]}? `{helps}` lists them all" if near else f"see `{helps}`"
    status = UsageError.status if isinstance(error, _TyperUsageError) else 1
    complaint = UsageError(message[:1].lower() + message[1:], hint)
    complaint.status = status
    return complaint
