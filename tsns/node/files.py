"""The files of a node that its keeper writes: identity, settings, netmap cache, and what commands inside see (ring 1)."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tsns import state
from tsns.config import SECRETS, NodeConfig
from tsns.control.dial import Server
from tsns.error import UserError
from tsns.netns import mounts
from tsns.node import resolv
from tsns.node.places import NodePlaces
from tsns.state import Identity

IDENTITY_NAME: Final = "identity.json"
SETTINGS_NAME: Final = "settings.json"
CACHE_NAME: Final = "netmap.cache"
PORT_NAME: Final = "port"
CLOCK_NAME: Final = "clock"  # an empty file: its time is what it says
MAX_PORT: Final = 65_535
MAX_CACHE_BYTES: Final = 64 << 20  # of a netmap
READABLE_MODE: Final = 0o644
# Secrets, and what comes from the environment of a single call: not remembered, and no reason to start the engine anew.
NO_SETTING: Final = frozenset({*SECRETS, "timeout_s", "tls_roots", "no_proxy", "owner_uid"})


class NodeFiles:
    """One node's files; only those of a lasting node outlive its keeper."""

    def __init__(self, places: NodePlaces, *, lasting: bool) -> None:
        self._places = places
        self._lasting = lasting
        self.home = places.home(lasting=lasting)

    def load_identity(self, server: str) -> Identity:
        """Who the node is; UserError where it is at home on another server, or damaged.

        Somebody new is kept before control hears of them: a kill in the first login must not leave two nodes behind.
        """
        identity = state.load(self.home / IDENTITY_NAME)
        if identity is None:
            identity = Identity.generate()
            with contextlib.suppress(OSError):  # said when the login is kept
                self.save_identity(identity.dump())
        if identity.control_url not in (None, server, str(Server.parse(server))):
            raise belongs_elsewhere(self._places.name, str(identity.control_url))
        return identity

    def save_identity(self, data: bytes) -> None:
        """Keep who the node is; OSError, ValueError or UserError."""
        state.save(self.home / IDENTITY_NAME, data)

    def forget(self, *, keep_log: bool) -> None:
        """Remove what is kept of a node that control never knew."""
        if keep_log:
            for name in (IDENTITY_NAME, SETTINGS_NAME, CLOCK_NAME, PORT_NAME):
                (self.home / name).unlink(missing_ok=True)
        else:
            shutil.rmtree(self.home, ignore_errors=True)

    def save_settings(self, config: NodeConfig) -> None:
        """Remember how the node was made; that the disk is full is said by the identity's own saving."""
        if self._lasting:
            with contextlib.suppress(OSError):
                state.save(self.home / SETTINGS_NAME, json.dumps(settings(config)).encode())

    def latest_time(self) -> float:
        """The latest wall clock (Unix time) that a run of this node has noted; 0 where none has."""
        try:
            return (self.home / CLOCK_NAME).stat().st_mtime
        except OSError:
            return 0.0

    def note_time(self, now: float) -> None:
        """Note the wall clock, unless it went back: peers refuse handshakes whose time stamps do."""
        latest = max(now, self.latest_time())
        with contextlib.suppress(OSError):  # a full disk is said by the identity's own saving
            (self.home / CLOCK_NAME).touch(mode=state.FILE_MODE)
            os.utime(self.home / CLOCK_NAME, (latest, latest), follow_symlinks=False)

    def last_port(self) -> int:
        """The UDP port that the node had last; 0 where it is not known."""
        try:
            text = (self.home / PORT_NAME).read_text()
        except (OSError, ValueError):
            return 0
        return int(text) if text.isascii() and text.isdigit() and len(text) <= 5 and int(text) <= MAX_PORT else 0

    def note_port(self, port: int) -> None:
        """Keep the UDP port for the next start: peers that have not heard of it go on sending to the old one."""
        if self._lasting and port != self.last_port():
            with contextlib.suppress(OSError):  # nor is it worth the wait for the disk that `state.save` makes
                fd = os.open(
                    self.home / PORT_NAME, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, state.FILE_MODE
                )
                with open(fd, "w") as file:
                    file.write(str(port))

    def open_cache(self) -> int:
        """A descriptor of the netmap that was last seen; -1 where there is none."""
        try:
            return os.open(self.home / CACHE_NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return -1

    def save_cache(self, memory: int) -> str:
        """Keep a netmap for a start without control; what is in it is the engine's business. Gives the error's text.

        It is sealed memory, so that nobody can change it or make us wait for it while it is read.
        """
        if not self._lasting:
            return "the node is not to last"
        try:
            if not fcntl.fcntl(memory, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE:
                return "it is not sealed"
            size = os.fstat(memory).st_size
            if size > MAX_CACHE_BYTES:
                return "it is too large"
            data = os.pread(memory, size, 0)
            state.save(self.home / CACHE_NAME, data)
        except (OSError, UserError) as error:
            return str(error)
        return ""

    def write_resolv(self, search: list[str], *, magic_dns: bool) -> None:
        """What commands inside see as resolv.conf."""
        domains = resolv.checked_search(search) if magic_dns else []
        write_in_place(self._places.resolv, resolv.render(domains, magic_dns=magic_dns))

    def write_nsswitch(self) -> None:
        """What commands inside see as nsswitch.conf: the host's, less its ways around DNS."""
        host = Path(mounts.NSSWITCH_PATH)
        write_in_place(self._places.nsswitch, mounts.nsswitch(host.read_text() if host.exists() else ""))


def belongs_elsewhere(name: str, server: str) -> UserError:
    """The error for a node that is asked to change its tailnet."""
    return UserError(
        f"the node {name} belongs to {server}", f"use another name, or `tsns rm {name}` to forget its identity"
    )


def refused_change(present: NodeConfig, wanted: NodeConfig) -> UserError | None:
    """What speaks against a running node's becoming another one; None where nothing does."""
    if wanted.login_server != present.login_server:
        return belongs_elsewhere(wanted.name, present.login_server)
    if wanted.map_root != present.map_root:
        return UserError(
            f"the node {wanted.name} runs, and --map-root is for its start",
            f"stop it with `tsns down {wanted.name}`, then start it anew",
        )
    return None


def settings(config: NodeConfig) -> Mapping[str, Any]:
    """What is remembered of a lasting node's configuration; no secret among it."""
    return {key: value for key, value in config.to_message().items() if key not in NO_SETTING}


def write_in_place(path: Path, text: str) -> None:
    """Not by another file: commands inside have this very one mounted. Not for nothing either: for a moment it is empty."""
    with contextlib.suppress(OSError, ValueError):
        if path.read_text() == text:
            return
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, READABLE_MODE)
    with open(fd, "w") as file:
        file.write(text)
    path.chmod(READABLE_MODE)
