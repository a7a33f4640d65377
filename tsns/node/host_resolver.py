"""What the host's resolver files say, followed when they change (ring 1, standard library only).

Programs of the host replace these files whole, by another of the same name; so their directories are watched. Where the system gives no
more inotify instances, the files are looked at every few seconds.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from tsns.netns.inotify import Inotify
from tsns.netns.mounts import NSSWITCH_PATH, RESOLV_PATH
from tsns.node.watch import Watch
from tsns.proto.addresses import SERVICE_V4, SERVICE_V6, Prefix, pack, unpack

RESOLVED_PATH: Final = "/run/systemd/resolve/resolv.conf"  # the servers behind systemd-resolved's own 127.0.0.53
MAX_SERVERS: Final = 4  # of one file; the C library reads three
MAX_FILE_BYTES: Final = 64 << 10
POLL_S: Final = 5.0
_NO_SERVERS: Final = tuple(
    Prefix.parse(text) for text in ("0.0.0.0/8", "169.254.0.0/16", "224.0.0.0/3", "::/128", "fe80::/10", "ff00::/8")
)

log = logging.getLogger(__name__)


def name_servers(text: str) -> list[str]:
    """The servers that a resolv.conf names, those left out that mean nothing without an interface."""
    found: dict[str, None] = {}
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = pack(words[1])
        except ValueError:
            continue
        if not any(prefix.covers(address) for prefix in _NO_SERVERS):
            found[unpack(address)] = None
    return list(found)[:MAX_SERVERS]


class HostResolver:
    """The host's files and the servers in them. `on_change` is called when one was changed or replaced."""

    def __init__(
        self,
        watch: Watch,
        on_change: Callable[[], None],
        paths: Sequence[str] = (RESOLV_PATH, NSSWITCH_PATH, RESOLVED_PATH),
    ) -> None:
        self._watch = watch
        self._on_change = on_change
        self._paths = paths
        self._seen: list[object] = []
        self._names: set[str] = set()  # of the files, and of those that links lead to
        self._inotify: Inotify | None = None
        self.servers: list[str] = []  # that the host's programs ask
        self.addresses: list[str] = []  # of all servers that a program may know

    def start(self) -> None:
        """Look, and follow."""
        try:
            self._inotify = Inotify()
            self._watch.reader(self._inotify.fd, self._on_event)
        except OSError as error:
            log.info("the host's resolver files are looked at every %.0f s: %s", POLL_S, error)
            self._poll()
        self._look()

    def _on_event(self) -> None:
        assert self._inotify is not None  # watched
        if self._inotify.read() & self._names and self._look():
            self._on_change()

    def _poll(self) -> None:
        if self._seen and self._look():
            self._on_change()
        self._watch.at("host resolver", time.monotonic() + POLL_S, self._poll)

    def _look(self) -> bool:
        """Read what there is; whether it has changed."""
        places = {each for path in self._paths for each in (path, os.path.realpath(path))}
        self._names = {os.path.basename(place) for place in places}
        if self._inotify is not None:  # before the look, so that nothing happens unseen in between
            for directory in map(os.path.dirname, places):
                try:
                    self._inotify.add(directory)
                except OSError:
                    continue  # it is not there; when it comes, resolv.conf is made to lead there
        texts = [_read(path) for path in self._paths]
        seen: list[object] = [(text, _identity(path)) for text, path in zip(texts, self._paths, strict=True)]
        if seen == self._seen:
            return False
        self._seen = seen
        resolv, _, resolved = texts
        self.servers = [text for text in name_servers(resolv) if pack(text) not in {SERVICE_V4, SERVICE_V6}]
        self.addresses = _merged(self.servers, name_servers(resolved))
        return True


def _merged(*lists: Iterable[str]) -> list[str]:
    """All of them once, the service's own left out."""
    found = dict.fromkeys(text for texts in lists for text in texts)
    return [text for text in found if pack(text) not in {SERVICE_V4, SERVICE_V6}][:MAX_SERVERS]


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read(MAX_FILE_BYTES)
    except OSError:
        return ""


def _identity(path: str) -> tuple[int, int] | None:
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
