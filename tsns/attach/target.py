"""What a person names, as descriptors that cannot come to mean something else (ring 2).

A process's number is used again after its end. So its pidfd is taken first, then its namespaces, and then it is asked whether it still lives:
if it does, they are its.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tsns.attach.engines import Container
from tsns.error import UserError
from tsns.netns import linux
from tsns.node.attaching import Target

MAX_RESOLV_BYTES: Final = 64 << 10
DOCKERS_RESOLVER: Final = "127.0.0.11"
SHORT_ID: Final = 12  # characters of a container's id, as its engine shows it
MAX_NAME: Final = 63  # characters of a node's name
OWN_NETWORK: Final = Path("/proc/self/ns/net")


class Opened(NamedTuple):
    """A target, and what its resolv.conf says."""

    target: Target
    search: tuple[str, ...] = ()
    options: str = ""
    docker_names: bool = False


@contextlib.contextmanager
def open_container(container: Container, key: str) -> Iterator[Opened]:
    """A container that runs; UserError where it cannot be attached."""
    if not container.running or not container.pid:
        raise UserError(
            f"the container {container.name} is not running", f"start it with `{container.kind} start {container.name}`"
        )
    if container.network_mode == "host":
        raise UserError(
            f"the container {container.name} uses the host's own network",
            "give it a network of its own, or put the program on the tailnet with `tsns run`",
        )
    with _opened(container.pid, key, container.kind, container.id, container.name) as target:
        resolv = _read(Path(container.resolv_path)) if container.resolv_path else _resolv_in(container.pid)
        yield Opened(target, *parse_resolv(resolv))


@contextlib.contextmanager
def open_pid(pid: int) -> Iterator[Opened]:
    """The namespaces of a process; UserError where it cannot be attached."""
    try:
        name = Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        raise UserError(f"there is no process {pid}", "`ps` shows their numbers") from None
    with _opened(pid, f"pid-{pid}", "pid", str(pid), f"{name}-{pid}") as target:
        yield Opened(target, *parse_resolv(_resolv_in(pid)))


@contextlib.contextmanager
def open_netns(path: str) -> Iterator[Opened]:
    """A network namespace that has a path; UserError where there is none."""
    absolute = os.path.abspath(path)
    try:
        network = os.open(absolute, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UserError(
            f"{path} cannot be opened: {os.strerror(error.errno or 0)}", "`ip netns` lists those of /run/netns"
        ) from None
    try:
        if not linux.is_network_namespace(network):
            raise UserError(f"{path} is no network namespace", "`ip netns` lists those of /run/netns")
        _refuse_own(network, path)
        yield Opened(Target(key_of_path(absolute), "netns", absolute, os.path.basename(absolute), 0, network))
    finally:
        os.close(network)


@contextlib.contextmanager
def _opened(pid: int, key: str, kind: str, id_: str, name: str) -> Iterator[Target]:
    fds: list[int] = []
    try:
        try:
            fds.append(os.pidfd_open(pid))
            fds += [os.open(f"/proc/{pid}/ns/{which}", os.O_RDONLY | os.O_CLOEXEC) for which in ("net", "mnt")]
            signal.pidfd_send_signal(fds[0], 0)
        except PermissionError:
            raise UserError(f"{name} is not yours", "try it with sudo") from None
        except OSError:
            raise UserError(f"{name} has just ended", "try it again when it runs") from None
        _refuse_own(fds[1], name)
        yield Target(key, kind, id_, name, pid, netns=fds[1], pidfd=fds[0], mounts=fds[2])
    finally:
        for fd in fds:
            os.close(fd)


def _refuse_own(network: int, name: str) -> None:
    if os.path.samestat(os.fstat(network), OWN_NETWORK.stat()):
        raise UserError(
            f"{name} uses the host's own network",
            "only what has a network namespace of its own can be attached; restart it with `tsns run`",
        )


def key_of_container(container: Container, by: str) -> str:
    """By which the attachment of a container is known: whoever follows a name means any container that has it."""
    said = safe(container.name) if by == "name" else container.id[:SHORT_ID]
    return f"{container.kind}-{said}"


def key_of_path(path: str) -> str:
    """The same for a path."""
    return f"netns-{safe(path.strip('/'))}"


def safe(text: str) -> str:
    """Only characters that a file's name may have."""
    return re.sub(r"[^A-Za-z0-9_.-]", "-", text)[:100]


def node_name(text: str) -> str:
    """A node's name, which is a DNS label, made of somebody's name; UserError where nothing is left of it."""
    label = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:MAX_NAME].strip("-")
    if not label:
        raise UserError(f"no node can be named after {text!r}", "name one with --to NAME")
    return label


def parse_resolv(text: str) -> tuple[tuple[str, ...], str, bool]:
    """Of a resolv.conf: its search domains, its options, and whether Docker's resolver is its name server (resolv.conf(5))."""
    search: tuple[str, ...] = ()
    options: list[str] = []
    servers: list[str] = []
    for line in text.splitlines():
        match line.split():
            case ["search" | "domain", *domains]:
                search = tuple(domains)  # the last one counts
            case ["options", *more]:
                options += more
            case ["nameserver", server, *_]:
                servers.append(server)
    return search, " ".join(options), DOCKERS_RESOLVER in servers


def _resolv_in(pid: int) -> str:
    """A process's own /etc/resolv.conf, whatever its links say: they are followed in its root."""
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return ""
    try:
        file = linux.open_in_root(root, "etc/resolv.conf", os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    finally:
        os.close(root)
    with open(file, "rb") as opened:
        return opened.read(MAX_RESOLV_BYTES).decode(errors="replace")


def _read(path: Path) -> str:
    try:
        with open(path, "rb") as file:
            return file.read(MAX_RESOLV_BYTES).decode(errors="replace")
    except OSError:
        return ""
