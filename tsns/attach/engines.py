"""Container engines: Docker, and Podman through the same interface (ring 2; the only importer of Docker's library).

Which engine: DOCKER_HOST or Docker's own socket, and Podman's sockets of root and of the caller. An engine that does not answer is none.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final, NamedTuple, Self

from tsns.error import UserError

TIMEOUT_S: Final = 10
DOCKER_SOCKET: Final = "/var/run/docker.sock"
PODMAN_SOCKET: Final = "/run/podman/podman.sock"
USERS_PODMAN_SOCKET: Final = "podman/podman.sock"  # under XDG_RUNTIME_DIR
LOCAL: Final = "unix://"  # the processes of an engine elsewhere are not here
ACTIONS: Final = ("start", "die", "rename", "destroy", "unpause", "connect", "disconnect")
NET_ADMIN: Final = ("NET_ADMIN", "CAP_NET_ADMIN", "ALL")


class Container(NamedTuple):
    """One container as its engine shows it."""

    kind: str  # of its engine: "docker" or "podman"
    id: str
    name: str
    pid: int  # of its first process on this machine; 0 while it does not run
    running: bool
    paused: bool
    network_mode: str
    labels: Mapping[str, str]
    started_at: str
    resolv_path: str  # of the file that is its resolv.conf, on this machine; empty where the engine says nothing
    net_admin: bool  # whether it may change its own network


class Event(NamedTuple):
    """Something has become of a container."""

    action: str
    id: str
    name: str
    at: float  # Unix time


class Engine:
    """One engine's interface. Its errors are UserError; the library's own come from `events`, whose end is the engine's."""

    def __init__(self, kind: str, url: str) -> None:
        import docker  # takes a third of a second, which is nobody else's

        self.kind = kind
        self.url = url
        self._docker = docker
        self._client: Any = docker.DockerClient(base_url=url, timeout=TIMEOUT_S, version="auto")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of its socket."""
        self._client.close()

    def containers(self, wanted: Callable[[Mapping[str, str], str], bool] = lambda *_: True) -> list[Container]:
        """All that run, or those that are wanted by their labels and network modes: each is a question of its own."""
        with self._told():
            listed = [
                item.id
                for item in self._client.containers.list(sparse=True)
                if wanted(
                    item.attrs.get("Labels") or {},
                    str((item.attrs.get("HostConfig") or {}).get("NetworkMode", "")),
                )
            ]
            return [found for id_ in listed if (found := self._look(id_))]

    def container(self, name: str) -> Container | None:
        """The one of this name, or whose id begins so; None where there is none."""
        with self._told():
            return self._look(name)

    def events(self, since: float) -> Iterator[Event]:
        """What has become of containers since then (Unix time), without end."""
        wanted = {"type": ["container", "network"], "event": list(ACTIONS)}
        for item in self._client.events(since=since, decode=True, filters=wanted):
            about = item.get("Actor", {})
            attributes = about.get("Attributes", {})
            of_network = item.get("Type") == "network"
            yield Event(
                str(item.get("Action", "")),
                str(attributes.get("container") if of_network else about.get("ID", "")),
                "" if of_network else str(attributes.get("name", "")),
                float(item.get("timeNano", 0)) / 1e9,
            )

    def _look(self, name: str) -> Container | None:
        try:
            found = self._client.api.inspect_container(name)
        except self._docker.errors.NotFound:
            return None
        state, host, config = found["State"], found.get("HostConfig") or {}, found.get("Config") or {}
        running = bool(state.get("Running"))
        added = [str(name).upper() for name in host.get("CapAdd") or ()]
        return Container(
            kind=self.kind,
            id=str(found["Id"]),
            name=str(found["Name"]).lstrip("/"),
            pid=int(state.get("Pid") or 0) if running else 0,
            running=running,
            paused=bool(state.get("Paused")),
            network_mode=str(host.get("NetworkMode") or ""),
            labels={str(key): str(value) for key, value in (config.get("Labels") or {}).items()},
            started_at=str(state.get("StartedAt", "")),
            resolv_path=str(found.get("ResolvConfPath") or ""),
            net_admin=bool(host.get("Privileged")) or any(name in NET_ADMIN for name in added),
        )

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        import requests  # the library's own

        try:
            yield
        except (self._docker.errors.DockerException, requests.RequestException, OSError) as error:
            raise UserError(f"{self.kind} at {self.url} does not answer: {error}", "is its daemon running?") from None


def connect(kind: str, url: str) -> Engine:
    """The engine at this address. UserError where it does not answer."""
    import docker

    try:
        return Engine(kind, url)
    except docker.errors.DockerException as error:
        raise UserError(
            f"no container engine answers ({url}: {error})", "is its daemon running, and may you use it? try sudo"
        ) from None


def engines(environ: Mapping[str, str]) -> list[Engine]:
    """Those that answer. UserError where none does, with what is missing."""
    told = environ.get("DOCKER_HOST", "")
    if told and not told.startswith(LOCAL):
        raise UserError(
            f"DOCKER_HOST is {told}, and containers elsewhere are not within reach", "run tsns on that machine"
        )
    found, refused = [], []
    for kind, url in addresses(environ):
        try:
            found.append(connect(kind, url))
        except UserError as error:
            refused.append(error)
    if found:
        return found
    if refused:
        raise refused[0]
    raise UserError("there is no container engine", "start Docker or `podman system service`, or set DOCKER_HOST")


def addresses(environ: Mapping[str, str]) -> list[tuple[str, str]]:
    """Kinds and addresses of those that could be there."""
    runtime = environ.get("XDG_RUNTIME_DIR", "")
    sockets = [("podman", PODMAN_SOCKET)]
    if runtime:
        sockets.append(("podman", f"{runtime}/{USERS_PODMAN_SOCKET}"))
    told = environ.get("DOCKER_HOST", "")
    if not told:
        sockets.insert(0, ("docker", DOCKER_SOCKET))
    present = [(kind, f"unix://{path}") for kind, path in sockets if os.path.exists(path)]
    named = [("podman" if "podman" in told else "docker", told)] if told.startswith(LOCAL) else []
    return [*named, *present]
