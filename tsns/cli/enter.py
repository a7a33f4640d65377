"""`tsns run`, `tsns exec`, `tsns shell` and `tsns up`: get a node, and become the command inside it (ring 2, standard library only).

Nothing here may import typer, asyncio, pyroute2, cryptography, docker or subprocess: each would cost every `run` its time. A test watches.
"""

from __future__ import annotations

import contextlib
import os
from typing import Final, NoReturn

from tsns import auth_key, settings
from tsns.attach import process
from tsns.cli import terminal
from tsns.cli.arguments import Parsed
from tsns.error import UsageError
from tsns.node import client
from tsns.node.places import Places, check_name, places

ONLY_TAILNET: Final = "only the tailnet is reachable; see --exit-node, --with-internet"
_TOLD_FILE: Final = ".told-only-tailnet"


def _tell_once(where: Places) -> None:
    """The first time on a terminal: what a command inside can reach."""
    if not os.isatty(2):
        return
    told = where.state / _TOLD_FILE
    with contextlib.suppress(OSError):
        where.state.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.close(os.open(told, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        terminal.say(ONLY_TAILNET)


def _waiting(what: str, parsed: Parsed) -> terminal.Progress:
    return terminal.Progress(what, quiet=bool(parsed.given.get("quiet")), verbosity=int(parsed.given.get("verbose", 0)))


def run(parsed: Parsed) -> NoReturn:
    """Become the command in a node's namespace. UserError as far as it does not get there."""
    given, environ = parsed.given, os.environ
    if not parsed.command:
        raise UsageError(
            "there is no command to run", "write `tsns run -- COMMAND`, for example `tsns run -- curl http://web/`"
        )
    name = str(given.get("name", "")) or settings.random_name()
    lasting = "name" in given
    if lasting and not given["name"]:
        raise UsageError("--name is empty", "write --name NAME, or leave it out for a node of this command alone")
    if not lasting and given.get("ephemeral") is False:
        raise UsageError("a run without --name is always ephemeral", "give the node a name with --name NAME")
    where = places(environ)
    check_name(name)
    process.find_program(parsed.command[0], os.environ)  # a slip is told before anything is made
    config = settings.node_config(
        name,
        given,
        environ,
        remembered=client.saved_settings(name, where) if lasting else None,
        ephemeral=not lasting,
    )
    auth_key.forget(os.environ)
    with _waiting(f"starting the node {name}", parsed) as progress:
        entry = client.start(config, where, progress, lasting=lasting)
    if not given.get("quiet") and not (config.exit_node or config.with_internet):
        _tell_once(where)
    process.run_in(entry, parsed.command, keep_caps=bool(given.get("keep-caps")))


def shell(parsed: Parsed) -> NoReturn:
    """Become the caller's shell in the namespace of a node that runs."""
    if not parsed.words:
        raise UsageError("there is no node's name", "write `tsns shell NAME`; `tsns ls` shows the names")
    parsed.command = [process.Caller.from_environment(os.environ).shell or os.environ.get("SHELL", "/bin/sh")]
    execute(parsed)


def execute(parsed: Parsed) -> NoReturn:
    """Become the command in the namespace of a node that runs. UserError as far as it does not get there."""
    if not parsed.words:
        raise UsageError("there is no node's name", "write `tsns exec NAME -- COMMAND`; `tsns ls` shows the names")
    if not parsed.command:
        raise UsageError("there is no command to execute", f"write `tsns exec {parsed.words[0]} -- COMMAND`")
    where = places(os.environ)
    name = check_name(parsed.words[0])
    process.find_program(parsed.command[0], os.environ)  # a slip is told before anything is made
    auth_key.forget(os.environ)
    with _waiting(f"joining the node {name}", parsed) as progress:
        entry = client.join(name, where, progress)
    process.run_in(entry, parsed.command, keep_caps=bool(parsed.given.get("keep-caps")))


def up(parsed: Parsed) -> int:
    """Make, start or change a lasting node, and leave it running."""
    given, environ = parsed.given, os.environ
    if not parsed.words:
        raise UsageError(
            "there is no node's name", "write `tsns up NAME`, with a name of your choice: a-z, 0-9 and hyphens"
        )
    where = places(environ)
    name = check_name(parsed.words[0])
    config = settings.node_config(name, given, environ, remembered=client.saved_settings(name, where))
    auth_key.forget(os.environ)
    with _waiting(f"starting the node {name}", parsed) as progress:
        entry = client.start(config, where, progress, lasting=True)
        entry.close()
    if not given.get("quiet"):
        known = filter(None, [entry.dns_name, *entry.addresses])
        terminal.say(f"{name} is up: {' '.join(known)} ({progress.seconds:.1f} s)")
    return 0


def main(command: str, parsed: Parsed) -> int:
    """Do one of these; only `up` returns."""
    match command:
        case "run":
            run(parsed)
        case "exec":
            execute(parsed)
        case "shell":
            shell(parsed)
        case _:
            return up(parsed)
