"""What the follower does to one container, in a child of its own: attach it, or give it up (ring 2).

The outcome is one JSON object: `dns_name` and `addresses` of what is attached now; `{"busy": true}` where a person is at it, or `{"error": ..., "hint": ...}`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

from tsns import settings
from tsns.attach import container, wishes
from tsns.attach.reconciliation import Attach, Forget
from tsns.attach.wishes import Wish
from tsns.config import NodeConfig
from tsns.error import TsnsError, UserError
from tsns.node import client
from tsns.node.places import Places
from tsns.proto.text import one_line

MAX_LINE_CHARS: Final = 1000
_ASKS_FOR_LOGIN: Final = "to log in"  # how `client.start` says that a person has to open a URL

Outcome = dict[str, Any]


def do(action: Attach | Forget, where: Places, environ: Mapping[str, str], *, fresh: bool) -> Outcome:
    """Do it, and say what came of it. `fresh`: its wish is new, and may have another idea of its node's settings."""
    try:
        with wishes.held(where, action.wish.key, wait=False) as ours:
            if not ours:
                return {"busy": True}
            if isinstance(action, Forget):
                container.detach(where, action.wish)
            else:
                return _attach(action, where, environ, fresh=fresh)
    except UserError as error:
        return {"error": error.message, "hint": error.hint}
    except (TsnsError, OSError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}", "hint": "see `tsns logs`"}
    return {}


def _attach(action: Attach, where: Places, environ: Mapping[str, str], *, fresh: bool) -> Outcome:
    wish = action.wish
    before = wishes.find(where, wish.key)
    if before is None:
        return {}  # it has just been detached
    with container.opened(wish, lambda: action.container) as found:  # type: ignore[arg-type, return-value]
        attached = container.attach(
            where, wish, found, environ, _by_nobody(wish), _config(wish, where, environ, fresh=fresh)
        )
    if wishes.find(where, wish.key) is None:  # `tsns down` has come in between
        with contextlib.suppress(UserError):
            container.detach(where, wish)
    elif wish != before:
        wishes.save(where, wish)
    return {"dns_name": attached.dns_name, "addresses": list(attached.addresses)}


def _config(wish: Wish, where: Places, environ: Mapping[str, str], *, fresh: bool) -> NodeConfig | None:
    """The settings of a node that labels describe: they stand above those that it had. None: as it is, or was."""
    if not wish.labels or not wish.own or not (fresh or wish.node not in client.names(where)):
        return None
    given = {"auth-key": f"file:{wish.auth_key_file}"} if wish.auth_key_file else {}
    remembered = {**client.saved_settings(wish.node, where), **wish.settings}
    remembered.pop("name", None)
    return settings.node_config(wish.node, given, environ, remembered=remembered)


def _by_nobody(wish: Wish) -> Callable[[str], None]:
    """Nobody is there who could log in; to wait for them would take an hour."""

    def progress(text: str) -> None:
        if text.startswith(_ASKS_FOR_LOGIN):
            raise UserError(f"its node {wish.node} has to be logged in by a person", f"run `tsns up {wish.node}`")

    return progress


def to_line(outcome: Outcome) -> bytes:
    """For a pipe."""
    return json.dumps(outcome).encode()


def from_line(line: bytes) -> Outcome:
    """What `to_line` made, with texts for a person."""
    outcome = json.loads(line)
    return {key: one_line(value, MAX_LINE_CHARS) if isinstance(value, str) else value for key, value in outcome.items()}
