"""`status`, `ip`, `ping`, `whois`, `logs`: what one asks a node (ring 2)."""

from __future__ import annotations

import itertools
import os
import sys
import time
from pathlib import Path
from typing import Annotated, Final, NoReturn

import typer

from tsns.cli import output, tables, terminal
from tsns.cli.options import Json, NodeName, Quiet, Verbose, the_node, waiting, where_is
from tsns.error import UsageError, UserError
from tsns.node import client
from tsns.node.places import Places

WATCH_S: Final = 2.0
POLL_S: Final = 0.2
FOLLOW_S: Final = 0.25
PING_INTERVAL_S: Final = 1.0
ANSWER_SLACK_S: Final = 2.0  # what a node may take longer than the ping it waits for
LOG_READ_BYTES: Final = 64 << 10
_CLEAR: Final = "\x1b[H\x1b[2J"


def status_of(name: str, where: Places) -> tables.Object:
    """A node's status, also of one that is known and stopped. UserError where there is no such node, or it does not answer."""
    if name in client.names(where):
        return client.query(name, where, "/tsns/v1/status")
    if name in client.known(where):
        return tables.stopped(name)
    raise UserError(f"there is no node {name}", "see `tsns ls`, or make it with `tsns up`")


def status(
    name: NodeName = None,
    *,
    as_json: Json = False,
    peers: Annotated[bool, typer.Option("--peers/--no-peers", help="Show the peers")] = True,
    active: Annotated[bool, typer.Option("--active", help="Only peers with a session")] = False,
    watch: Annotated[bool, typer.Option("--watch", help="Show it anew every two seconds, until Ctrl-C")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Wait until the node is running")] = False,
    timeout: Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0, help="How long --wait waits")] = 60.0,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> int:
    """Show a node and its peers.

    Exit status 1 when it is not running.
    """
    if watch and (as_json or wait):
        raise UsageError("--watch goes with neither --json nor --wait", "leave one of them out")
    where = where_is(name)
    if wait:
        name = _wait_until_running(name, where, timeout, quiet, verbose)
    name = the_node(name, where, "status")
    if watch:
        _watch(name, where, peers=peers, active=active)
    with waiting(f"the node {name} to answer", quiet, verbose):
        found = status_of(name, where)
    if as_json:
        output.answer(_selected(found, peers=peers, active=active))
    else:
        output.lines(tables.status_lines(found, time.time(), peers=peers, active=active))
        if verbose:
            output.lines(tables.inner_lines(found))
    return 0 if found["state"] in tables.RUNNING_STATES else 1


def _selected(found: tables.Object, *, peers: bool, active: bool) -> tables.Object:
    chosen = found.get("peers") or [] if peers else []
    if active:
        chosen = [peer for peer in chosen if tables.is_active(peer, time.time())]
    return {**found, "peers": chosen}


def _watch(name: str, where: Places, *, peers: bool, active: bool) -> NoReturn:
    clear = _CLEAR if terminal.is_fancy(sys.stdout.fileno()) else ""
    while True:
        lines = tables.status_lines(status_of(name, where), time.time(), peers=peers, active=active)
        output.lines([clear + "\n".join(lines)])
        time.sleep(WATCH_S)


def _wait_until_running(name: str | None, where: Places, timeout_s: float, quiet: bool, verbose: int) -> str:
    deadline = time.monotonic() + timeout_s
    with waiting(f"the node {name} to run" if name else "a node to run", quiet, verbose):
        while True:
            try:
                found = the_node(name, where, "status")
                if status_of(found, where)["state"] == "running":
                    return found
            except UsageError:
                raise
            except UserError:
                pass  # not there yet
            if time.monotonic() > deadline:
                raise UserError(
                    f"{name or 'no node'} is not running after {timeout_s:.0f} s",
                    f"see `tsns logs {name or 'NAME'}`, or allow more with --timeout",
                )
            time.sleep(POLL_S)


def ip(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="The node; may be left out while only one runs")
    ] = None,
    peer: Annotated[
        str | None, typer.Argument(metavar="PEER", help="Show a peer's addresses instead of its own")
    ] = None,
    *,
    only4: Annotated[bool, typer.Option("-4", help="Only the IPv4 address")] = False,
    only6: Annotated[bool, typer.Option("-6", help="Only the IPv6 address")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> int:
    """Show the addresses of a node or of a peer."""
    if only4 and only6:
        raise UsageError("-4 and -6 exclude each other", "leave both out to see all addresses")
    where = where_is(name)
    if name and not peer and name not in {*client.names(where), *client.known(where)} and len(client.names(where)) == 1:
        name, peer = None, name  # with a single node, the only word is a peer's
    name = the_node(name, where, "ip")
    with waiting(f"the node {name} to answer", quiet, verbose):
        found = running(name, where)
    whose = tables.find_peer(found, peer) if peer else found.get("self")
    if whose is None:
        raise UserError(f"{name} has no peer {peer}", f"see `tsns status {name}`")
    addresses = tables.addresses(whose, version=4 if only4 else 6 if only6 else None)
    if as_json:
        output.answer({"name": str(whose.get("name") or ""), "addresses": addresses})
    else:
        output.lines(addresses)
    return 0 if addresses else 1


def running(name: str, where: Places) -> tables.Object:
    """The status of a node that runs; UserError where it does not."""
    found = status_of(name, where)
    if found["state"] not in tables.RUNNING_STATES:
        raise UserError(
            f"the node {name} is not running: its state is {found['state']}",
            f"see `tsns status {name}`, or start it with `tsns up {name}`",
        )
    return found


def ping(
    name: NodeName = None,
    peer: Annotated[str | None, typer.Argument(metavar="PEER", help="A peer's name or address")] = None,
    *,
    count: Annotated[
        int, typer.Option("-c", metavar="N", min=0, max=100_000, help="How many at most; 0: until Ctrl-C")
    ] = 10,
    until_direct: Annotated[
        bool | None,
        typer.Option(
            "--until-direct/--no-until-direct",
            help="End with the first pong by a direct path, and fail if none comes [default: end with it]",
        ),
    ] = None,
    tsmp: Annotated[bool, typer.Option("--tsmp", help="Ask the peer's node through the tunnel")] = False,
    icmp: Annotated[bool, typer.Option("--icmp", help="Ask the peer's system through the tunnel")] = False,
    timeout: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.01, max=60, help="How long to wait for each")
    ] = 5.0,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> int:
    """Ping a peer, and see by which path it answers.

    Exit status 1 when nothing came back, or with --until-direct nothing by a direct path.
    """
    del verbose
    if tsmp and icmp:
        raise UsageError("--tsmp and --icmp exclude each other", "choose one, or neither to see each path tried")
    if name and not peer:
        name, peer = None, name  # the only word is the peer's
    if not peer:
        raise UsageError("there is nobody to ping", "write `tsns ping NAME PEER`")
    where = where_is(name)
    node = the_node(name, where, "ping")
    asked = {"peer": peer, "timeout_s": timeout, "kind": "tsmp" if tsmp else "icmp" if icmp else "disco"}
    answered = direct = False
    for number in itertools.count(1):
        began = time.monotonic()
        answer = client.query(node, where, "/tsns/v1/ping", asked, timeout_s=timeout + ANSWER_SLACK_S)
        if as_json:
            output.answer({"ok": False, "seconds": None, "path": None, **answer}, on_one_line=True)
        elif not quiet:
            output.lines([tables.ping_line(peer, answer)])
        answered = answered or bool(answer.get("ok"))
        direct = bool(answer.get("ok")) and (answer.get("path") or {}).get("kind") == "direct"
        if number == count or (direct and until_direct is not False):
            break
        time.sleep(max(0.0, PING_INTERVAL_S - (time.monotonic() - began)))
    if until_direct and answered and not direct:
        raise UserError(
            f"no pong of {peer} came by a direct path", "see `tsns netcheck`, or go by the relay: it works as well"
        )
    return 0 if (direct if until_direct else answered) else 1


def whois(
    name: NodeName = None,
    who: Annotated[
        str | None, typer.Argument(metavar="IP|PEER", help="An address, with a port or without, or a peer's name")
    ] = None,
    *,
    as_json: Json = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> int:
    """Show whose address that is, and what the tailnet's rules let them do with applications here."""
    if name and not who:
        name, who = None, name  # the only word is who it is about
    where = where_is(name)
    if not who:
        raise UsageError("there is nobody to ask about", "write `tsns whois NAME IP`")
    node = the_node(name, where, "whois")
    with waiting(f"the node {node} to answer", quiet, verbose):
        answer = client.query(node, where, "/tsns/v1/whois", {"who": who})
    if as_json:
        output.answer(answer)
    else:
        output.lines(tables.whois_lines(answer))
    return 0


def logs(
    name: NodeName = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what is written from now on, until Ctrl-C")
    ] = False,
    quiet: Quiet = False,
    verbose: Verbose = 0,
) -> int:
    """Show a node's own log."""
    del quiet, verbose
    where = where_is(name)
    path = log_path(the_node(name, where, "logs"), where)
    _copy(path.with_name(f"{path.name}.1"), 0)
    place = _copy(path, 0)
    while follow:
        time.sleep(FOLLOW_S)
        place = _copy_new(path, place)
    return 0


def log_path(name: str, where: Places) -> Path:
    """Where a node's log lies; UserError where there is none that may be read."""
    node = where.node(name)
    for lasting in (False, True):
        path = node.home(lasting=lasting) / "log"
        try:
            path.open("rb").close()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except PermissionError:
            raise UserError(f"the log of {name} is not yours to read", "try again with sudo") from None
        return path
    raise UserError(f"there is no log of a node {name}", "see `tsns ls`")


def _copy(path: Path, place: int) -> tuple[int, int]:
    """Write the file from this place on to standard output; returns the file's inode and the place reached."""
    try:
        with open(path, "rb") as file:
            file.seek(place)
            while data := file.read(LOG_READ_BYTES):
                place += len(data)
                sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return os.fstat(file.fileno()).st_ino, place
    except FileNotFoundError:
        return 0, 0


def _copy_new(path: Path, seen: tuple[int, int]) -> tuple[int, int]:
    """What was written since; a file that was put aside meanwhile is read to its end first."""
    inode, place = seen
    try:
        now = path.stat()
    except FileNotFoundError:
        return seen  # put aside this very moment, or the node is gone
    if now.st_ino == inode:
        return _copy(path, place) if now.st_size > place else seen
    aside = path.with_name(f"{path.name}.1")
    if inode and aside.exists() and aside.stat().st_ino == inode:
        _copy(aside, place)
    return _copy(path, 0)
