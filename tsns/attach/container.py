"""Attaching and detaching, as the command and the follower do it (ring 2)."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from tsns import settings
from tsns.attach import freeze, target, wishes
from tsns.attach.engines import Container, Engine
from tsns.attach.target import Opened
from tsns.attach.wishes import Wish
from tsns.config import NodeConfig
from tsns.error import UserError
from tsns.netns import linux
from tsns.node import attaching, client
from tsns.node.attaching import Attached, Manner
from tsns.node.places import Places

MAX_OWNERS: Final = 8  # containers that use one another's networks

log = logging.getLogger(__name__)


def find(engines: list[Engine], name: str) -> tuple[Engine, Container]:
    """The container of this name or id, and its engine. UserError where there is none."""
    for engine in engines:
        container = engine.container(name)
        if container is not None:
            return engine, container
    raise UserError(f"there is no container {name}", f"`{engines[0].kind} ps` lists those that run")


def owner_of(engine: Engine, container: Container) -> Container:
    """Whose network a container uses: mostly its own. UserError where that is gone."""
    for _ in range(MAX_OWNERS):
        kind, _, other = container.network_mode.partition(":")
        if kind != "container":
            return container
        owner = engine.container(other)
        if owner is None or not owner.running:
            raise UserError(
                f"the container {container.name} uses the network of another one, which is gone",
                f"start that one, then {container.name} again",
            )
        container = owner
    raise UserError(f"the containers of {container.name} use one another's networks", "give one of them its own")


@contextlib.contextmanager
def opened(wish: Wish, find_container: Callable[[], Container]) -> Iterator[Opened]:
    """What is wished for, as it is now. UserError where it cannot be attached."""
    if wish.kind == "pid":
        with target.open_pid(int(wish.id)) as found:
            if not is_same_process(wish):
                raise UserError(f"the process {wish.name} has ended", "another one has its number now")
            yield found
    elif wish.kind == "netns":
        with target.open_netns(wish.id) as found:
            yield found
    else:
        with target.open_container(find_container(), wish.key) as found:
            yield found


def is_same_process(wish: Wish) -> bool:
    """Whether the process that is wished for is still there."""
    try:
        return wish.started in {0, began(int(wish.id))}
    except OSError:
        return False


def began(pid: int) -> int:
    """When a process began, in the kernel's ticks; OSError where there is none of this number."""
    from tsns.node.attachment_records import started  # with much else that only a node needs

    return started(pid)


def attach(
    where: Places,
    wish: Wish,
    found: Opened,
    environ: Mapping[str, str],
    progress: Callable[[str], None] = lambda _: None,
    config: NodeConfig | None = None,
) -> Attached:
    """Attach it, and start its node where that does not run, with `config` where there is one. UserError where that cannot be."""
    if config is not None or wish.node not in client.names(where):
        if not wish.own and wish.node not in client.known(where):
            raise UserError(f"there is no node {wish.node}", f"make it with `tsns up {wish.node}`")
        client.start(config or _config_of(wish, where, environ), where, progress).close()
    manner = Manner(
        exclusive=wish.exclusive,
        docker_names=found.docker_names,
        publish=wish.publish,
        search=found.search,
        options=found.options,
    )
    with freeze.frozen(found.target.pid) if wish.pause else contextlib.nullcontext():
        attached = attaching.attach(wish.node, where, found.target._replace(key=wish.key), manner)
        if wish.wait_file:
            _make_file(found.target.pid, wish.wait_file)
    return attached


def _make_file(pid: int, path: str) -> None:
    """An empty file in a container, which its program waits for. UserError where that cannot be."""
    try:
        root = os.open(f"/proc/{pid}/root", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.close(linux.open_in_root(root, path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o644))
        finally:
            os.close(root)
    except OSError as error:
        raise UserError(
            f"{path} cannot be made in the container: {os.strerror(error.errno or 0)}",
            "name a file where the container may write, such as one on a tmpfs",
        ) from None


def detach(where: Places, wish: Wish) -> bool:
    """Give everything back, and stop the node where it was there for this alone; False where it was not attached. UserError where that cannot be."""
    running = wish.node in client.names(where)
    if running:
        was_attached = attaching.detach(wish.node, where, wish.key)
        if wish.own:
            client.stop(wish.node, where)
    else:
        was_attached = attaching.undo(wish.node, where, wish.key)
    wishes.remove(where, wish.key)
    return was_attached


def _config_of(wish: Wish, where: Places, environ: Mapping[str, str]) -> NodeConfig:
    """How a node is started again."""
    given: dict[str, str | bool | int] = {"auth-key": f"file:{wish.auth_key_file}"} if wish.auth_key_file else {}
    remembered = {**wish.settings, **client.saved_settings(wish.node, where)}
    remembered.pop("name", None)
    return settings.node_config(wish.node, given, environ, remembered=remembered)
