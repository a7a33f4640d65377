"""The keeper's part in the names of a node: what commands inside see and ask, whatever the host does meanwhile (ring 1).

    the host's files --changed--> resolv.conf and nsswitch.conf put back where commands see them
                     `----------> its name servers told to the engine --"listeners"--> addresses on loopback, sockets at them
    the engine       --"sockets"--> sockets inside, to ask servers of the tailnet with

The engine names none but the host's own name servers, and gets sockets of two kinds, so many at a time.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tsns.bucket import Bucket
from tsns.netns import mounts, names, namespace
from tsns.node.engine_process import EngineProcess
from tsns.node.files import NodeFiles
from tsns.node.host_resolver import HostResolver
from tsns.node.messages import Message
from tsns.node.places import NodePlaces
from tsns.node.watch import Watch

MAX_SOCKETS: Final = 16  # in one answer
ANSWERS_BURST: Final = 64.0
ANSWERS_PER_S: Final = 16.0
MAX_MOUNT_NAMESPACES: Final = 1000  # of commands inside, looked after at once
_KINDS: Final = {"udp": socket.SOCK_DGRAM, "tcp": socket.SOCK_STREAM}
_FAMILIES: Final = {4: socket.AF_INET, 6: socket.AF_INET6}

log = logging.getLogger(__name__)


class InsideNames:
    """Looks after one node. `made` is told when its namespace is there."""

    def __init__(self, watch: Watch, places: NodePlaces, files: NodeFiles, engine: EngineProcess) -> None:
        self._places = places
        self._files = files
        self._engine = engine
        self._host = HostResolver(watch, self._on_host_change)
        self._made: namespace.Made | None = None
        self._listening: dict[str, list[socket.socket]] = {}
        self._bucket = Bucket(ANSWERS_PER_S, ANSWERS_BURST, time.monotonic())

    def start(self) -> None:
        """Write nsswitch.conf, and follow the host's files from now on."""
        self._files.write_nsswitch()
        self._host.start()

    def made(self, made: namespace.Made) -> None:
        """The namespace is there."""
        self._made = made

    def tell(self) -> None:
        """Let the engine know the host's name servers."""
        self._engine.tell({"give": "nameservers", "servers": self._host.servers, "addresses": self._host.addresses})

    # --- what the engine asks for

    def sockets(self, message: Message) -> None:
        """Sockets of the namespace, unbound."""
        error, fds = "", []
        try:
            fds = self._sockets(message.get("kind"), message.get("family"), message.get("count"))
        except (ValueError, OSError) as problem:
            error = str(problem)
        self._engine.tell({"done": "sockets", "error": error}, fds)
        for fd in fds:
            os.close(fd)

    def _sockets(self, kind: object, family: object, count: object) -> list[int]:
        kinds = [value for name, value in _KINDS.items() if name == kind]
        families = [value for version, value in _FAMILIES.items() if version == family]
        if not kinds or not families or type(count) is not int or not 0 < count <= MAX_SOCKETS:
            raise ValueError("no such sockets")
        if self._made is None:
            raise ValueError("there is no namespace yet")
        if not self._bucket.take(time.monotonic()):
            raise ValueError("too many sockets at once")
        return names.asking_sockets(self._made.namespace, kinds[0], families[0], count)

    def listeners(self, wanted: Sequence[str]) -> None:
        """Answer at these addresses of the host's name servers, and at no others of them."""
        error, fds = "", []
        try:
            self._listen([address for address in self._host.addresses if address in wanted])
            fds = [sock.fileno() for sockets in self._listening.values() for sock in sockets]
        except (ValueError, OSError) as problem:
            error = str(problem)
            log.warning("the host's name servers are not answered for: %s", problem)
        self._engine.tell({"done": "listeners", "error": error, "addresses": list(self._listening)}, fds)

    def _listen(self, wanted: Sequence[str]) -> None:
        if self._made is None:
            raise ValueError("there is no namespace yet")
        if not self._bucket.take(time.monotonic()):
            raise ValueError("too many changes at once")
        former = [address for address in self._listening if address not in wanted]
        for address in former:
            for sock in self._listening.pop(address):
                sock.close()
        if former:
            names.give_up(self._made.namespace, former)
        more = [address for address in wanted if address not in self._listening]
        if more:
            for sock in names.listen(self._made.namespace, more):
                self._listening.setdefault(str(sock.getsockname()[0]), []).append(sock)

    # --- what commands inside see

    def _on_host_change(self) -> None:
        log.info("the host's resolver files have changed; its name servers: %s", " ".join(self._host.servers) or "none")
        with contextlib.suppress(OSError):  # a full disk: commands keep what they have
            self._files.write_nsswitch()
        self.restore()
        self.tell()

    def restore(self) -> None:
        """Put our files back where commands inside see the host's."""
        covers = {
            mounts.RESOLV_PATH: str(self._places.resolv),
            mounts.NSSWITCH_PATH: str(self._places.nsswitch),
        }
        for each in self._mount_namespaces():
            try:
                mounts.inject(covers, each, mask=True)
            except OSError as error:
                log.info("a command inside sees the host's resolver files: %s", error)
            finally:
                os.close(each)

    def _mount_namespaces(self) -> Iterator[int]:
        """Those that commands inside made of the host's, as descriptors: they have the host's /etc, and mounts of their own."""
        if self._made is None:
            return
        seen = {namespace.identity(Path("/proc/self/ns/mnt"))}
        for pid in namespace.inside(namespace.identity(self._made.namespace)):
            try:
                if not os.path.samestat(os.stat(f"/proc/{pid}/root/etc"), os.stat("/etc")):
                    continue  # a container's, say: what is in it is not ours to change
                each = os.open(f"/proc/{pid}/ns/mnt", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                continue  # it ended
            found = namespace.identity(each)
            if found in seen or len(seen) > MAX_MOUNT_NAMESPACES:
                os.close(each)
                continue
            seen.add(found)
            yield each
