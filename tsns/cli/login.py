"""`login` and `logout`: another proof of who a running node is, or none (ring 2)."""

from __future__ import annotations

import os
import time
from typing import Annotated, Any, Final

import typer

from tsns import settings
from tsns.cli import output, tables, terminal
from tsns.cli.options import Json, Quiet, Verbose, waiting
from tsns.config import DEFAULT_TIMEOUT_S, Secret
from tsns.error import UserError
from tsns.node import client
from tsns.node.places import Places, check_name, places

POLL_S: Final = 0.1
_LOGIN: Final = "/tsns/v1/login"

Name = Annotated[str, typer.Argument(metavar="NAME", help="A running node")]


def login(
    name: Name,
    *,
    auth_key: Annotated[
        str | None,
        typer.Option(
            "--auth-key",
            "--authkey",
            metavar="KEY",
            help="Auth key: itself, file:PATH, or - for one line of standard input [env: TS_AUTHKEY, TS_AUTH_KEY]; "
            "without one, the login URL is printed",
            show_default=False,
        ),
    ] = None,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, help="How long to wait; with a URL, an hour")
    ] = DEFAULT_TIMEOUT_S,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> int:
    """Log a running node in anew.

    It keeps its namespace and, until the new login is there, the one that it has.
    """
    where = places(os.environ)
    check_name(name)
    given = {} if auth_key is None else {"auth-key": auth_key}
    key = settings.login_key(name, given, os.environ)
    with waiting(f"the node {name} to log in", quiet, verbose) as progress:
        client.query(name, where, _LOGIN, {"auth_key": key.reveal() if isinstance(key, Secret) else None})
        try:
            _await(name, where, progress, timeout)
        except BaseException:
            _cancel(name, where)
            raise
    found = client.query(name, where, "/tsns/v1/status")
    itself = found.get("self") or {}
    if as_json:
        known = {"dns_name": itself.get("dns_name"), "addresses": itself.get("addresses") or []}
        output.answer({"name": name, "state": found.get("state"), **known})
    elif not quiet:
        words = filter(None, [itself.get("dns_name"), *tables.addresses(itself, version=None)])
        terminal.say(f"{name} is logged in: {' '.join(map(str, words))} ({progress.seconds:.1f} s)")
    return 0


def _await(name: str, where: Places, progress: terminal.Progress, timeout_s: float) -> None:
    """Wait until control has accepted the login; UserError where it will not."""
    deadline = time.monotonic() + timeout_s
    shown = ""
    while True:
        now: dict[str, Any] = client.query(name, where, _LOGIN)
        if now.get("error"):
            raise UserError(str(now["error"]), str(now.get("hint") or f"see `tsns logs {name}`"))
        url, state = str(now.get("login_url") or ""), now.get("state")
        if url and url != shown:
            shown = url
            deadline = time.monotonic() + client.LOGIN_PATIENCE_S
            progress(f"{terminal.FOR_THE_PERSON}, open {url}")
            progress("somebody to log in")
        if not now.get("pending"):
            if state == "running":
                return
            if state == "needs-approval":
                progress("an administrator of the tailnet to approve this node")
        if time.monotonic() > deadline:
            raise UserError(
                f"the node {name} was not logged in within {timeout_s:.0f} s; its state is {state}",
                f"see `tsns logs {name}`, or allow more with --timeout",
            )
        time.sleep(POLL_S)


def _cancel(name: str, where: Places) -> None:
    """Nobody waits any more."""
    try:
        client.query(name, where, f"{_LOGIN}/cancel", {})
    except UserError:
        pass  # the node itself is gone


def logout(name: Name, *, as_json: Json = False, quiet: Quiet = False, verbose: Verbose = 0) -> int:
    """Take a running node out of its tailnet.

    Its namespace stays, cut off, until `tsns login`.
    """
    where = places(os.environ)
    check_name(name)
    with waiting(f"the node {name} to log out", quiet, verbose):
        found = client.query(name, where, "/tsns/v1/logout", {}, timeout_s=client.STOP_PATIENCE_S)
    if as_json:
        output.answer({"name": name, "state": found.get("state")})
    return 0
