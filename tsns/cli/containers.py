"""`attach` and `detach`: what runs already, on a tailnet (ring 2)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import Annotated, Any, Final

import typer

from tsns import auth_key, settings
from tsns.attach import container, follow, target, wishes
from tsns.attach.engines import Container, engines
from tsns.attach.target import Opened
from tsns.attach.wishes import Wish
from tsns.cli import arguments, output, terminal
from tsns.cli.options import Json, Quiet, Verbose, waiting, with_flags
from tsns.config import NodeConfig
from tsns.error import UsageError, UserError
from tsns.node import client
from tsns.node.attaching import Attached
from tsns.node.files import settings as remembered_settings
from tsns.node.places import Places, check_name, places
from tsns.settings import Given

TargetName = Annotated[str | None, typer.Argument(metavar="TARGET", help="A running container: its name or id")]
Pid = Annotated[int | None, typer.Option("--pid", metavar="PID", help="Instead: the namespace of this process")]
Netns = Annotated[
    str | None, typer.Option("--netns", metavar="PATH", help="Instead: the network namespace at this path")
]
To = Annotated[str | None, typer.Option("--to", metavar="NAME", help="Share this node, instead of one of its own")]
Exclusive = Annotated[bool, typer.Option("--exclusive", help="Nothing but the tailnet: its own networks are cut off")]
Publish = Annotated[
    list[str] | None,
    typer.Option(
        "--publish", "-p", metavar="[tcp/|udp/]PORT", help="What comes to this port of the node is for this target"
    ),
]
Recreate = Annotated[
    bool, typer.Option("--recreate", help="Attach any later container of the same name, too, not just this one")
]
Pause = Annotated[bool, typer.Option("--pause", help="Stop what runs in the container while it is being attached")]
WaitFile = Annotated[
    str | None,
    typer.Option("--wait-file", metavar="PATH", help="Make this file in the container when the tailnet is there"),
]
_EXCLUSIVE_WARNING: Final = "it may change its own network (NET_ADMIN), and so undo --exclusive"


@with_flags(arguments.ATTACH_FLAGS)
def attach(
    given: Given,
    name: TargetName = None,
    pid: Pid = None,
    netns: Netns = None,
    to: To = None,
    exclusive: Exclusive = False,
    publish: Publish = None,
    recreate: Recreate = False,
    pause: Pause = False,
    wait_file: WaitFile = None,
    as_json: Json = False,
) -> int:
    """Put a running container on a tailnet, without making it anew.

    It has a node of its own, named after it, or shares one (--to). It stays attached when it is restarted, until `tsns detach`.
    """
    _one_of(name, pid, netns, "attach")
    where, quiet, verbose = places(os.environ), bool(given.get("quiet")), int(given.get("verbose", 0))
    with (
        waiting("the target", quiet, verbose) as progress,
        _found(name, pid, netns, by="name" if recreate else "id") as found,
    ):
        opened, by, warning = found
        present = next((wish for wish in wishes.load(where) if _means(wish, opened.target.key, opened.target.id)), None)
        node = check_name(to) if to else (present.node if present else target.node_name(opened.target.name))
        config = None if to else _config(node, given, where, present)
        if to and any(given.get(flag.name) is not None for flag in settings.SETTINGS):
            raise UsageError("with --to the node is as it is", f"change it with `tsns set {to}`")
        wish = Wish(
            key=present.key if present else opened.target.key,
            kind=opened.target.kind,
            id=opened.target.id,
            name=opened.target.name,
            by=by,
            node=node,
            own=not to,
            exclusive=exclusive,
            publish=tuple(map(published, publish or ())),
            settings=dict(remembered_settings(config)) if config else {},
            auth_key_file=_key_file(given),
            pause=pause,
            wait_file=wait_file or "",
            started=container.began(opened.target.pid) if opened.target.kind == "pid" else 0,
        )
        auth_key.forget(os.environ)
        with wishes.held(where, wish.key):  # the follower looks on
            attached = _attach(where, wish, opened, progress, config, present)
    follow.ensure(where, os.environ)
    if not quiet:
        for text in filter(None, [attached.warning, warning if exclusive else ""]):
            terminal.say(f"warning: {text}")
    _report(wish, attached, progress.seconds, as_json=as_json, quiet=quiet)
    return 0


def _attach(
    where: Places,
    wish: Wish,
    opened: Opened,
    progress: terminal.Progress,
    config: NodeConfig | None,
    present: Wish | None,
) -> Attached:
    started = wish.own and wish.node not in client.names(where)
    wishes.save(where, wish)
    try:
        attached = container.attach(where, wish, opened, os.environ, progress, config)
    except BaseException:
        if present is None:
            wishes.remove(where, wish.key)
            if started:
                with contextlib.suppress(UserError):  # it has not even begun
                    client.stop(wish.node, where)
        raise
    return attached


def _report(wish: Wish, attached: Attached, seconds: float, *, as_json: bool, quiet: bool) -> None:
    if as_json:
        answer: dict[str, Any] = {"node": wish.node, "kind": wish.kind, "id": wish.id, "name": wish.name}
        output.answer({**answer, "dns_name": attached.dns_name, "addresses": list(attached.addresses)})
    elif not quiet:
        known = " ".join(filter(None, [attached.dns_name, *attached.addresses]))
        terminal.say(f"{wish.name} is on the tailnet as {known} ({seconds:.1f} s)")


def detach(
    name: TargetName = None, pid: Pid = None, netns: Netns = None, quiet: Quiet = False, verbose: Verbose = 0
) -> int:
    """Take a container off its tailnet, and give back what was there before."""
    _one_of(name, pid, netns, "detach")
    where = places(os.environ)
    said = name or (f"pid-{pid}" if pid is not None else target.key_of_path(os.path.abspath(netns or "")))
    wish = next(
        (wish for wish in wishes.load(where) if said in {wish.name, wish.key} or _means(wish, said, said)), None
    )
    if wish is None:
        raise UserError(f"{name or pid or netns} is not attached", "`tsns ls` shows what is")
    with waiting(f"detaching {wish.name}", quiet, verbose), wishes.held(where, wish.key):
        container.detach(where, wish)
    return 0


def _one_of(name: str | None, pid: int | None, netns: str | None, command: str) -> None:
    if [name, pid, netns].count(None) != 2:
        raise UsageError("say one target", f"write `tsns {command} CONTAINER`, or --pid PID, or --netns PATH")


def _means(wish: Wish, key: str, id_: str) -> bool:
    """Whether a wish is about this target."""
    return wish.key == key or (wish.kind in {"docker", "podman"} and len(id_) >= 4 and wish.id.startswith(id_))


@contextlib.contextmanager
def _found(name: str | None, pid: int | None, netns: str | None, by: str) -> Iterator[tuple[Opened, str, str]]:
    """The target, what is followed of it, and what a person should know about it."""
    if pid is not None:
        with target.open_pid(pid) as opened:
            yield opened, "id", ""
    elif netns is not None:
        with target.open_netns(netns) as opened:
            yield opened, "id", ""
    else:
        found = engines(os.environ)
        try:
            engine, named = container.find(found, name or "")
            owner = container.owner_of(engine, named)
            if owner.id != named.id:
                terminal.say(f"{named.name} uses the network of {owner.name}: that one is attached, and so are both")
            with target.open_container(owner, target.key_of_container(owner, by)) as opened:
                yield opened, by, _warning(owner)
        finally:
            for engine in found:
                engine.close()


def _warning(owner: Container) -> str:
    return f"{owner.name}: {_EXCLUSIVE_WARNING}" if owner.net_admin else ""


def _config(node: str, given: Given, where: Places, present: Wish | None) -> NodeConfig:
    """The settings of a node of the target's own. UserError where one of that name is somebody else's."""
    if node in client.names(where) and (present is None or not present.own):
        raise UserError(
            f"there is a node {node} already", f"share it with `--to {node}`, or give the container another name"
        )
    return settings.node_config(node, given, os.environ, remembered=client.saved_settings(node, where))


def _key_file(given: Given) -> str:
    """Where the node's key may be read again."""
    text = str(given.get("auth-key", ""))
    return os.path.abspath(text.removeprefix("file:")) if text.startswith("file:") else ""


def published(text: str) -> str:
    """`80` or `tcp/80` as the keeper wants it; UsageError for what is no port."""
    protocol, slash, port = text.rpartition("/")
    kind = protocol if slash else "tcp"
    if kind not in {"tcp", "udp"} or not (port.isascii() and port.isdigit() and 0 < int(port) < 1 << 16):
        raise UsageError(f"{text!r} is no port", "write 80, tcp/80 or udp/53")
    return f"{kind}/{int(port)}"
