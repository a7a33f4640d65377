"""How a client has a container, or another namespace, given a node's tailnet (ring 1, standard library only)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from tsns.error import UserError
from tsns.node import client, messages
from tsns.node.messages import Message
from tsns.node.places import Places

ANSWER_S: Final = 20.0
KINDS: Final = ("docker", "podman", "pid", "netns")
KEY: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")  # a part of file names


class Target(NamedTuple):
    """What is to be attached. The descriptors are the caller's to close; -1 where there is none."""

    key: str  # by which it is known from now on: letters, digits, dots, hyphens
    kind: str  # "docker", "podman", "pid" or "netns"
    id: str  # of a container; or the path of a namespace
    name: str  # for people
    pid: int
    netns: int
    pidfd: int = -1
    mounts: int = -1  # its mount namespace: without one its resolv.conf stays as it is


class Manner(NamedTuple):
    """How it is to be attached."""

    exclusive: bool = False  # nothing but the tailnet
    docker_names: bool = False  # a single label is asked of the container engine's own resolver first
    publish: tuple[str, ...] = ()  # "tcp/8080": what comes to this port is for this target, whoever else listens
    search: tuple[str, ...] = ()  # its own search domains
    options: str = ""  # of its own resolv.conf


class Attached(NamedTuple):
    """What came of it."""

    key: str
    dns_name: str
    addresses: tuple[str, ...]
    warning: str = ""  # what does not work, for a person


class Attachment(NamedTuple):
    """What a node says of a target that is attached."""

    key: str
    kind: str
    id: str
    name: str
    pid: int


def attach(node: str, where: Places, target: Target, manner: Manner) -> Attached:
    """Attach a target to a running node, which has to be ready; UserError where that cannot be.

    The same target again is refreshed: its own addresses may be others, or its resolv.conf.
    """
    fds = [target.netns, *([target.pidfd, target.mounts] if target.pidfd >= 0 else [])]
    message = {
        "ask": "attach",
        **{name: getattr(target, name) for name in ("key", "kind", "id", "name", "pid")},
        **manner._asdict(),
    }
    answer = _ask(node, where, message, "attached", [fd for fd in fds if fd >= 0])["attached"]
    addresses = tuple(str(address) for address in answer.get("addresses", ()))
    return Attached(target.key, str(answer.get("dns_name", "")), addresses, str(answer.get("warning", "")))


def detach(node: str, where: Places, key: str) -> bool:
    """Give a target back what was there; False where it was not attached. UserError where the node does not run, or cannot."""
    return _ask(node, where, {"ask": "detach", "key": key}, "detached")["found"] is True


def attachments(node: str, where: Places, timeout_s: float = ANSWER_S) -> list[Attachment]:
    """What is attached to a running node; UserError where it does not run."""
    listed = _ask(node, where, {"ask": "attachments"}, "attachments", timeout_s=timeout_s)["attachments"]
    return [Attachment(*(each[name] for name in Attachment._fields)) for each in listed]


def undo(node: str, where: Places, key: str) -> bool:
    """Give a target back what was there when the node's keeper was killed; False where there is nothing to give back.

    UserError where the node runs, or it cannot be.
    """
    from tsns.node import attachment_records, leftovers  # with pyroute2

    places = where.node(node)
    held = leftovers.lock(places.lock)
    if held is None:
        raise UserError(f"the node {node} runs", f"`tsns detach` asks it, or stop it with `tsns down {node}`")
    try:
        undone, records = False, attachment_records.load(places.attached)
        for record in [record for record in records if record.key == key]:
            if attachment_records.undo(record):
                attachment_records.save(places.attached, [each for each in records if each.key != key])
                undone = True
    except OSError as error:
        raise UserError(f"it cannot be detached: {error}", "try it again, or restart the container") from None
    finally:
        os.close(held)
    return undone


def _ask(
    node: str, where: Places, message: Message, expected: str, fds: Sequence[int] = (), timeout_s: float = ANSWER_S
) -> dict[str, Any]:
    connection = client.connect(node, where)
    with connection:
        connection.settimeout(timeout_s)
        try:
            messages.send(connection, message, fds)
            while True:
                answer, given = messages.receive(connection)
                for fd in given:
                    os.close(fd)
                if "error" in answer:
                    raise UserError(str(answer["error"]), str(answer.get("hint", "")))
                if expected in answer:
                    return answer
        except (TimeoutError, EOFError, OSError, ValueError):
            raise UserError(f"the node {node} does not answer", f"see `tsns logs {node}`") from None
