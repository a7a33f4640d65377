"""What a person wants attached, on disk: it outlives containers, nodes and this machine's restart (ring 2, standard library only).

STATE/.attached/KEY.json, one for each; KEY.lock is held while it is attached or detached. No secret is in it: a node that has to be made anew gets its key from where the wish says.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from tsns import state
from tsns.node.attaching import KEY
from tsns.node.places import Places

DIRECTORY: Final = ".attached"  # no node's name begins with a dot
MAX_BYTES: Final = 64 << 10
MAX_WISHES: Final = 1000
LOCK_MODE: Final = 0o600

log = logging.getLogger(__name__)


class Wish(NamedTuple):
    """One target, and how it is to be attached."""

    key: str
    kind: str  # "docker", "podman", "pid" or "netns"
    id: str  # of the container that was last attached; or the path of a namespace
    name: str
    by: str  # "id" or "name": whether another container of the same name is this one, made anew
    node: str
    own: bool  # the node is there for this alone, and goes with it
    exclusive: bool = False
    publish: tuple[str, ...] = ()
    settings: dict[str, Any] = {}  # noqa: RUF012 (never changed); the node's, as a message of `NodeConfig` without secrets
    auth_key_file: str = ""  # where the node's key is read from when it has to log in
    labels: bool = False  # it comes from labels, and goes with them
    pause: bool = False  # nothing in the container runs while it is being attached
    wait_file: str = ""  # made inside when the tailnet is there
    started: int = 0  # of a process: when it began, in the kernel's ticks, since its number may be another one's later


def directory(where: Places) -> Path:
    """Where they are."""
    return where.state / DIRECTORY


def files(where: Places) -> list[Path]:
    """One for each wish; none where the caller may not look."""
    try:
        return sorted(directory(where).glob("*.json"))[:MAX_WISHES]
    except OSError:
        return []


def load(where: Places) -> list[Wish]:
    """All of them. What is no wish is left alone, and said."""
    found = []
    for path in files(where):
        try:
            found.append(_read(path))
        except (OSError, ValueError, TypeError, KeyError) as error:
            log.warning("%s is no attachment: %s", path, error)
    return found


def find(where: Places, key: str) -> Wish | None:
    """The one of this key."""
    try:
        return _read(directory(where) / f"{key}.json")
    except (OSError, ValueError, TypeError, KeyError):
        return None


def save(where: Places, wish: Wish) -> None:
    """Keep it. OSError or UserError."""
    if not KEY.fullmatch(wish.key):
        raise ValueError(f"{wish.key!r} is no key")
    state.make_private_directory(where.state)
    state.make_private_directory(directory(where))
    state.save(directory(where) / f"{wish.key}.json", json.dumps(wish._asdict()).encode())


@contextlib.contextmanager
def held(where: Places, key: str, *, wait: bool = True) -> Iterator[bool]:
    """Nobody else attaches or detaches this meanwhile. Without `wait` it may be that somebody just does: False."""
    state.make_private_directory(where.state)
    state.make_private_directory(directory(where))
    path = directory(where) / f"{key}.lock"
    fd = _locked(path, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    try:
        yield fd >= 0
    finally:
        if fd >= 0:
            if not (directory(where) / f"{key}.json").exists():
                path.unlink(missing_ok=True)
            os.close(fd)


def _locked(path: Path, how: int) -> int:
    """A descriptor that holds this lock; -1 where another does. A file that was unlinked meanwhile does not count."""
    while True:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, LOCK_MODE)
        try:
            fcntl.flock(fd, how)
            if path.exists() and os.path.samestat(os.stat(path), os.fstat(fd)):
                return fd
        except BlockingIOError:
            os.close(fd)
            return -1
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def of_node(where: Places, node: str) -> list[Wish]:
    """Those that a node serves."""
    return [wish for wish in load(where) if wish.node == node]


def remove(where: Places, key: str) -> None:
    """Want it no more."""
    (directory(where) / f"{key}.json").unlink(missing_ok=True)


def _read(path: Path) -> Wish:
    with open(path, "rb") as file:
        values = json.loads(file.read(MAX_BYTES))
    wish = Wish(**{**values, "publish": tuple(map(str, values["publish"]))})
    texts = (wish.key, wish.kind, wish.id, wish.name, wish.by, wish.node, wish.auth_key_file, wish.wait_file)
    if not all(isinstance(text, str) for text in texts) or not isinstance(wish.settings, dict):
        raise TypeError("a text is something else")
    if type(wish.started) is not int:
        raise TypeError("a number is something else")
    if wish.key != path.stem or not KEY.fullmatch(wish.key):
        raise ValueError("its key is another one than its name")
    return wish
