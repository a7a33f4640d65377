"""What the labels of containers ask for (ring 2; no input or output).

    tsns.enable=true                    the rest counts
    tsns.to=NAME                        share this node; else it has its own, named after it, of which the following speak:
    tsns.hostname, tsns.login-server, tsns.exit-node, tsns.accept-routes, tsns.tags
    tsns.auth-key-file=/PATH            on this machine; a key itself is refused, since labels are everybody's to read
    tsns.exclusive=true                 nothing but the tailnet

A container whose labels are wrong is left alone, and what is wrong is said once.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, Final, NamedTuple

from tsns import settings
from tsns.attach import target
from tsns.attach.engines import Container
from tsns.attach.wishes import Wish
from tsns.error import UserError
from tsns.node.places import check_name
from tsns.proto.text import one_line
from tsns.settings import SETTINGS, Flag

PREFIX: Final = "tsns."
ENABLE: Final = "tsns.enable"
TO: Final = "tsns.to"
EXCLUSIVE: Final = "tsns.exclusive"
KEY_FILE: Final = "tsns.auth-key-file"
OF_A_NODE: Final[Mapping[str, str]] = {  # and which setting each is
    "tsns.hostname": "hostname",
    "tsns.login-server": "login-server",
    "tsns.exit-node": "exit-node",
    "tsns.accept-routes": "accept-routes",
    "tsns.tags": "advertise-tags",
}
KNOWN: Final = (ENABLE, TO, *OF_A_NODE, KEY_FILE, EXCLUSIVE)
KEYS_BEGIN: Final = ("tskey-", "hskey-")
MAX_COMPLAINTS: Final = 10  # of one container
MAX_REMEMBERED: Final = 1000  # containers of which something was said
MAX_VALUE_CHARS: Final = 100
_FLAGS: Final[Mapping[str, Flag]] = {flag.name: flag for flag in SETTINGS}


class Read(NamedTuple):
    """One container's labels. With complaints there is no wish."""

    wish: Wish | None
    complaints: tuple[str, ...] = ()


def is_ours(label: str) -> bool:
    """Whether a label of this name speaks to us."""
    return label.startswith(PREFIX)


def read(container: Container) -> Read:
    """What a container's labels ask for, without a look at anything else."""
    given = {name: value for name, value in container.labels.items() if is_ours(name)}
    complaints = [_unknown(name) for name in given if name not in KNOWN]
    values: dict[str, Any] = {}
    for name in KNOWN:
        if name not in given:
            continue
        if any(begin in given[name].lower() for begin in KEYS_BEGIN):
            complaints.append(
                f"label {name} holds an auth key, which everybody can read there: revoke it, and use {KEY_FILE}"
            )
            continue
        try:
            values[name] = _value(name, given[name])
        except ValueError as error:
            complaints.append(f"label {name}: {one_line(given[name], MAX_VALUE_CHARS)!r} is wrong: {error}")
        except UserError as error:
            complaints.append(f"label {name}: {error.message}: {error.hint}")
    if values.get(ENABLE) is False and not complaints:
        return Read(None)
    if given and ENABLE not in given:
        complaints.append(f"there is no label {ENABLE}=true, without which the others mean nothing")
    if TO in values and (extra := [name for name in (*OF_A_NODE, KEY_FILE) if name in values]):
        complaints.append(f"label {extra[0]} says nothing beside {TO}: that node is as it is")
    if container.network_mode == "host":
        complaints.append("it uses the host's own network, and cannot be attached")
    if complaints or not values.get(ENABLE):
        said = [f"{container.name}: {complaint}" for complaint in complaints[:MAX_COMPLAINTS]]
        return Read(None, tuple(said))
    try:
        return Read(_wish(container, values))
    except UserError as error:
        return Read(None, (f"{container.name}: {error.message}: {error.hint}",))


def _wish(container: Container, values: Mapping[str, Any]) -> Wish:
    fields = {_FLAGS[setting].field: values[name] for name, setting in OF_A_NODE.items() if name in values}
    return Wish(
        key=target.key_of_container(container, "name"),
        kind=container.kind,
        id=container.id,
        name=container.name,
        by="name",
        node=values.get(TO) or target.node_name(container.name),
        own=TO not in values,
        exclusive=values.get(EXCLUSIVE, False),
        settings=fields,
        auth_key_file=values.get(KEY_FILE, ""),
        labels=True,
    )


def _value(name: str, text: str) -> Any:
    """Of one label; ValueError or UserError for what makes no sense."""
    if name in {ENABLE, EXCLUSIVE}:
        return settings.read_bool(text)
    if name == TO:
        return check_name(text)
    if name == KEY_FILE:
        if not text.startswith("/"):
            raise ValueError("it is the path of a file on this machine, from / on")
        return text
    flag = _FLAGS[OF_A_NODE[name]]
    value = settings.read_bool(text) if flag.is_switch else flag.read(text)
    return list(value) if isinstance(value, tuple) else value  # as it comes back from the disk


def _unknown(name: str) -> str:
    import difflib

    if "key" in name.lower() or "secret" in name.lower():
        return (
            f"label {one_line(name, MAX_VALUE_CHARS)}: no secrets in labels, which everybody can read: use {KEY_FILE}"
        )
    near = difflib.get_close_matches(name, KNOWN, n=1)
    return f"there is no label {one_line(name, MAX_VALUE_CHARS)}" + (f"; is {near[0]} meant?" if near else "")


class Labels:
    """Remembers what has been said."""

    def __init__(self) -> None:
        self._said: dict[str, tuple[str, ...]] = {}  # by the container's id

    def wish(
        self, container: Container, wanted: Sequence[Wish], running: Collection[str]
    ) -> tuple[Wish | None, tuple[str, ...]]:
        """A wish that is new, or another than the present one of this container; and what has not been said before.

        `wanted` are all present wishes, `running` the nodes that run. What a person has wished for stands above labels.
        """
        found, complaints = read(container)
        if found is not None:
            present = next((each for each in wanted if each.key == found.key or each.id == found.id), None)
            if present is not None and (not present.labels or present == found._replace(id=present.id)):
                found = None
            elif found.own and present is None and found.node in {*running, *(each.node for each in wanted)}:
                there = f"{container.name}: there is a node {found.node} already"
                complaints = (f"{there}: share it with {TO}={found.node}, or give the container another name",)
                found = None
        return found, self._news(container.id, complaints)

    def _news(self, id_: str, complaints: tuple[str, ...]) -> tuple[str, ...]:
        if not complaints or self._said.get(id_) == complaints:
            return ()
        if len(self._said) >= MAX_REMEMBERED:
            self._said.clear()
        self._said[id_] = complaints
        return complaints
