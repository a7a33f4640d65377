"""The client's side of a node: find it or start it, wait until it is ready, ask it, stop it (ring 1, standard library only).

start: connect to NAME.ctl --refused, absent--> the server forks a keeper --"busy": another was faster--> connect again
       "progress", "login" ... "ready" with the namespace's descriptor, or "error"

Where there is no server, it is started (`warm_server`); where one cannot be had, a keeper of its own: slower, otherwise the same.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from tsns.config import NodeConfig
from tsns.error import UserError
from tsns.node import messages, warm_server
from tsns.node.messages import Message
from tsns.node.places import DEFAULT_RUN, NodePlaces, Places, make_run_directory, places

__all__ = [
    "Entry",
    "Places",
    "change",
    "forget",
    "join",
    "known",
    "names",
    "places",
    "query",
    "saved_settings",
    "start",
    "stop",
]

BUSY_RETRY_S: Final = 0.02
BUSY_PATIENCE_S: Final = 10.0
STOP_PATIENCE_S: Final = 15.0
LOGIN_PATIENCE_S: Final = 3600.0  # a person is at work; control's URL ends sooner
QUERY_TIMEOUT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 64 << 20  # the status of a tailnet of 10,000 nodes has 5 MB
FIRST_ANSWER_S: Final = 4.0  # a server that takes longer to fork is stuck
SILENT_TRIES: Final = 1  # then we do without the server


class Entry(NamedTuple):
    """What a process needs to enter a node's namespace. `entered` tells the keeper whom to watch, `close` that nobody will come."""

    name: str
    connection: socket.socket
    namespace_fd: int
    resolv: str
    nsswitch: str
    dns_name: str = ""
    addresses: tuple[str, ...] = ()

    def entered(self) -> None:
        """Say that we are inside now."""
        messages.send(self.connection, {"ask": "entered"})

    def close(self) -> None:
        """Give the entry up."""
        self.connection.close()
        os.close(self.namespace_fd)


def start(config: NodeConfig, where: Places, progress: Callable[[str], None], *, lasting: bool = True) -> Entry:
    """Find the node of this name or make it, and wait until it is ready.

    A lasting node stays until it is stopped; another ends with the last process inside. `progress` hears what is waited for.
    UserError when it cannot be; the node is then gone again unless it ran before.
    """
    node = where.node(config.name)
    make_run_directory(where.run)
    request = {
        "ask": "run",
        "config": config.to_message(),
        "lasting": lasting,
        "run": str(where.run),
        "state": str(where.state),
    }
    patience = time.monotonic() + BUSY_PATIENCE_S
    silent = 0
    while time.monotonic() < patience:
        connection = _connect(node)
        asks_server = connection is None and silent < SILENT_TRIES
        if connection is None:
            connection = (warm_server.connect(where) if asks_server else None) or warm_server.spawn_keeper(where)
        try:
            messages.send(connection, request)
            return _await_ready(connection, config.name, config.timeout_s, progress)
        except (_BusyError, ConnectionError) as error:
            connection.close()
            if asks_server and not (isinstance(error, _BusyError) and error.answered):
                silent += 1
            time.sleep(BUSY_RETRY_S)  # its keeper is just coming or going
        except BaseException:
            connection.close()
            raise
    raise UserError(f"the node {config.name} neither starts nor ends", f"see `tsns logs {config.name}`")


def join(name: str, where: Places, progress: Callable[[str], None] = lambda _: None, timeout_s: float = 60.0) -> Entry:
    """An entry to a node that runs; UserError when it does not."""
    return _ask_and_await(name, where, {"ask": "join"}, progress, timeout_s)


def change(
    name: str,
    where: Places,
    settings: Mapping[str, Any],
    progress: Callable[[str], None] = lambda _: None,
    timeout_s: float = 60.0,
) -> None:
    """Have a node that runs go by other settings; UserError when it does not run, or cannot."""
    _ask_and_await(name, where, {"ask": "set", "settings": dict(settings)}, progress, timeout_s).close()


def _ask_and_await(
    name: str, where: Places, message: Message, progress: Callable[[str], None], timeout_s: float
) -> Entry:
    """Ask a node that runs for something, after which it is ready again."""
    connection = connect(name, where)
    try:
        messages.send(connection, message)
        return _await_ready(connection, name, timeout_s, progress)
    except _BusyError:
        connection.close()
        raise _not_running(name) from None
    except BaseException:
        connection.close()
        raise


def connect(name: str, where: Places) -> socket.socket:
    """A connection to the keeper of a node that runs; UserError when it does not."""
    connection = _connect(where.node(name))
    if connection is None:
        raise _not_running(name)
    return connection


class _BusyError(Exception):
    """The one who was asked is not the one to ask; `answered` tells whether there was anybody at all."""

    def __init__(self, *, answered: bool) -> None:
        super().__init__()
        self.answered = answered


def _await_ready(connection: socket.socket, name: str, timeout_s: float, progress: Callable[[str], None]) -> Entry:
    deadline = time.monotonic() + timeout_s
    waits_for, answered = "its keeper", False
    while True:
        patience_s = deadline - time.monotonic()
        connection.settimeout(max(0.001, patience_s if answered else min(patience_s, FIRST_ANSWER_S)))
        try:
            message, fds = messages.receive(connection)
        except TimeoutError:
            if not answered and time.monotonic() < deadline:
                raise _BusyError(answered=False) from None
            raise UserError(
                f"the node {name} was not ready within {timeout_s:.0f} s: {waits_for}",
                f"see `tsns logs {name}`, or allow more with --timeout",
            ) from None
        except (EOFError, ConnectionError, ValueError):
            raise _BusyError(answered=answered) from None
        answered = True
        match message:
            case {"ready": True, "resolv": str(resolv), "nsswitch": str(nsswitch)} if fds:
                connection.settimeout(None)
                addresses = tuple(str(address) for address in message.get("addresses", ()))
                return Entry(name, connection, fds[0], resolv, nsswitch, str(message.get("dns_name", "")), addresses)
            case {"progress": str(text)}:
                waits_for = text
                progress(text)
            case {"login": str(url)}:
                waits_for = f"login at {url}"
                deadline = time.monotonic() + LOGIN_PATIENCE_S
                progress(f"to log in, open {url}")
            case {"error": str(error), "hint": str(hint)}:
                raise UserError(error, hint)
            case {"stopped": True}:
                raise UserError(f"the node {name} ended before it was ready: {waits_for}", f"see `tsns logs {name}`")
            case _:  # "busy", or the words of another version
                raise _BusyError(answered=True)


def stop(name: str, where: Places, *, logout: bool = False) -> None:
    """Stop a running node and wait until everything of it is removed; UserError when it does not run."""
    connection = connect(name, where)
    with connection:
        messages.send(connection, {"ask": "stop", "logout": logout})
        connection.settimeout(STOP_PATIENCE_S)
        try:
            while not messages.receive(connection)[0].get("stopped"):
                pass
        except (EOFError, ConnectionError):
            pass  # it is gone, which was the wish
        except TimeoutError:
            raise UserError(f"the node {name} does not end", f"see `tsns logs {name}`") from None


def forget(name: str, where: Places, progress: Callable[[str], None]) -> None:
    """Log a node out and remove all that is kept of it; UserError when there is no such node."""
    import shutil  # not needed by `run`

    node = where.node(name)
    if name in names(where):
        stop(name, where, logout=True)
    elif name in known(where):
        _log_out_stopped(name, where, progress)
    else:
        raise UserError(f"there is no node {name}", "see `tsns ls`")
    shutil.rmtree(node.lasting, ignore_errors=True)


def _log_out_stopped(name: str, where: Places, progress: Callable[[str], None]) -> None:
    """Control learns of the logout from the node itself, so the node has to run for it."""
    try:
        config = NodeConfig.from_message({"name": name, **saved_settings(name, where)})
        start(config, where, progress).close()
        stop(name, where, logout=True)
    except UserError as error:
        progress(f"{name} could not be logged out ({error.message}): it is forgotten here only")


def saved_settings(name: str, where: Places) -> Mapping[str, Any]:
    """The settings with which a lasting node was last made; empty where there are none."""
    try:
        settings = json.loads((where.node(name).lasting / "settings.json").read_bytes())
    except (OSError, ValueError):
        return {}
    return settings if isinstance(settings, dict) else {}


def names(where: Places) -> list[str]:
    """The running nodes."""
    return [name for name in where.running() if _alive(where.node(name))]


def known(where: Places) -> list[str]:
    """The lasting nodes, running or not."""
    return where.known()


def query(
    name: str, where: Places, path: str, body: Message | None = None, timeout_s: float = QUERY_TIMEOUT_S
) -> Message:
    """Ask the node's LocalAPI: GET, or POST with a body. UserError when the node does not run, is not ours, or refuses."""
    from http.client import HTTPConnection, HTTPException  # not needed by `run`

    node = where.node(name)
    connection = HTTPConnection("local-tsns", timeout=timeout_s)
    connection.sock = _unix_socket(node.api, socket.SOCK_STREAM, timeout_s)
    if connection.sock is None:
        raise _not_running(name)
    try:
        connection.request("GET" if body is None else "POST", path, None if body is None else json.dumps(body))
        response = connection.getresponse()
        answer = json.loads(response.read(MAX_ANSWER_BYTES))
    except (OSError, HTTPException, ValueError):
        raise UserError(f"the node {name} does not answer", f"see `tsns logs {name}`") from None
    finally:
        connection.close()
    if response.status != 200 or not isinstance(answer, dict):
        raise UserError(str(answer.get("error", "refused")), str(answer.get("hint", f"see `tsns status {name}`")))
    return answer


def _not_running(name: str) -> UserError:
    if os.geteuid() != 0 and DEFAULT_RUN.joinpath(f"{name}.ctl").exists():
        return UserError(f"you have no node {name} that runs, but root has one", "try again with sudo")
    return UserError(f"the node {name} is not running", f"start it with `tsns up {name}`, or see `tsns ls`")


def _alive(node: NodePlaces) -> bool:
    try:
        connection = _connect(node)
    except UserError:
        return True  # somebody is there, only not for us
    if connection is None:
        return False
    connection.close()
    return True


def _connect(node: NodePlaces) -> socket.socket | None:
    return _unix_socket(node.control, socket.SOCK_SEQPACKET, None)


def _unix_socket(path: Path, kind: int, timeout_s: float | None) -> socket.socket | None:
    """A connection to this socket; None when nobody listens; UserError when it is not ours."""
    try:
        directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    connection = socket.socket(socket.AF_UNIX, kind)
    connection.settimeout(timeout_s)
    try:
        connection.connect(messages.address_of(path.name, directory))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except PermissionError:
        connection.close()
        raise UserError(
            f"the node {path.stem} is not yours", "it was made by another user: try again with sudo"
        ) from None
    finally:
        os.close(directory)
    return connection
