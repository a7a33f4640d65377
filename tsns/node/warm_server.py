"""The client's side of the server: find it, start it, stop it, or do without it (ring 1, standard library only).

A server serves one build, one user and one "host": its socket's name holds all of that, so that another build or another network
namespace gets another server, and nothing ever has to be replaced.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import sys
import zlib
from pathlib import Path
from typing import Final

from tsns.error import UserError
from tsns.node import messages
from tsns.node.places import Places

BACKLOG: Final = 128
SOCKET_PREFIX: Final = "serve-"
LOG_NAME: Final = "server.log"
LOG_MODE: Final = 0o600
STOP_PATIENCE_S: Final = 5.0


def socket_path(where: Places) -> Path:
    """Where the server of this build, user and host listens."""
    package = Path(__file__).parents[1]
    newest = max(_modified(package))
    host = [os.stat(f"/proc/self/ns/{kind}").st_ino for kind in ("net", "mnt")]
    build = repr((sys.prefix, sys.hexversion, str(package), newest, os.geteuid(), host, str(where.state)))
    return where.run / f"{SOCKET_PREFIX}{zlib.crc32(build.encode()):08x}"


def _modified(directory: str | Path) -> list[int]:
    found = [0]
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                found += _modified(entry.path) if entry.name != "__pycache__" else []
            elif entry.name.endswith(".py"):
                found.append(entry.stat().st_mtime_ns)
    return found


def connect(where: Places) -> socket.socket | None:
    """A connection to the server, which is started where there is none; None when that does not work."""
    path = socket_path(where)
    try:
        return _connect(path) or _start(where, path)
    except OSError:
        return None


def _connect(path: Path) -> socket.socket | None:
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        connection.connect(messages.address_of(path.name, directory))
    except (FileNotFoundError, ConnectionRefusedError):
        connection.close()
        return None
    except OSError:
        connection.close()
        raise
    finally:
        os.close(directory)
    return connection


def listen(path: Path) -> socket.socket | None:
    """The server's listening socket; None when a server listens there. The caller holds the start lock."""
    if connection := _connect(path):
        connection.close()
        return None
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    before = os.umask(0o177)  # nobody else's, from its first moment
    try:
        listener.bind(messages.address_of(path.name, directory))
    finally:
        os.umask(before)
        os.close(directory)
    listener.listen(BACKLOG)
    return listener


def start_lock(where: Places) -> int:
    """A descriptor that holds the right to start a server; closing it gives it back."""
    fd = os.open(where.run / "start", os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, LOG_MODE)
    fcntl.flock(fd, fcntl.LOCK_EX)
    return fd


def _start(where: Places, path: Path) -> socket.socket | None:
    """We listen, the server accepts: whoever connects from now on waits in the backlog, and nobody polls for readiness."""
    starting = start_lock(where)
    try:
        listener = listen(path)
        if listener is not None:
            with listener:
                _spawn(listener, where, [str(where.run), str(where.state), str(path)])
        return _connect(path)
    finally:
        os.close(starting)


def stop(where: Places) -> int:
    """End the servers of these directories, those of other builds and hosts among them; nodes go on. Gives how many there were."""
    return sum(_stop(path) for path in sorted(where.run.glob(f"{SOCKET_PREFIX}*")))


def _stop(path: Path) -> bool:
    connection = _connect(path)
    if connection is None:
        path.unlink(missing_ok=True)  # it was killed
        return False
    with connection:
        connection.settimeout(STOP_PATIENCE_S)
        try:
            messages.send(connection, {"ask": "server"})
            message, _ = messages.receive(connection)
            server = os.pidfd_open(int(message["server"]))
        except ProcessLookupError:
            return True
        except (EOFError, OSError, ValueError, KeyError) as error:
            raise UserError(f"the server at {path} does not answer", "end it by hand: see `fuser` or `lsof`") from error
    try:
        signal.pidfd_send_signal(server, signal.SIGTERM)
        select.select([server], [], [], STOP_PATIENCE_S)
    finally:
        os.close(server)
    return True


def spawn_keeper(where: Places) -> socket.socket:
    """A keeper without a server, and the connection to it."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        _spawn(theirs, where, [])
    return ours


def _spawn(inherited: socket.socket, where: Places, arguments: list[str]) -> None:
    from tsns.node import detached  # not where there is a server already

    detached.spawn("tsns.node.server", arguments, inherited.fileno(), where.run / LOG_NAME)
