"""Settings that a running node takes over as it is, without another engine (ring 1).

    client --set, run--> keeper --configure--> engine: can it be? --configured--> keeper adopts them: files, namespace
                         client <--its answer-- keeper <--settled-- engine: routes and names are as the settings want them

One change at a time. With an engine that ends meanwhile, whoever waits hears that it did.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

from tsns.config import NodeConfig
from tsns.node.clients import Client
from tsns.node.messages import Message

LIVE: Final = frozenset(
    {
        "accept_dns",
        "accept_routes",
        "advertise_exit_node",
        "advertise_routes",
        "exit_node",
        "exit_node_allow_lan_access",
        "hostname",
        "shields_up",
        "with_internet",
    }
)
_BUSY: Final = {"error": "the node is just taking over other settings", "hint": "try again in a moment"}
_SEE_LOG: Final = "see `tsns logs`"


def difference(old: NodeConfig, new: NodeConfig) -> dict[str, Any]:
    """The live settings in which the two differ, with their new values, as JSON has them."""
    before, after = old.to_message(), new.to_message()
    return {key: after[key] for key in LIVE if before[key] != after[key]}


def changed(config: NodeConfig, settings: Mapping[str, Any]) -> NodeConfig:
    """The same node with other settings; TypeError or ValueError where they are none."""
    return NodeConfig.from_message({**config.to_message(), **settings})


class LiveChanges:
    """The keeper's side of it. `adopt(settings)` may raise OSError; `done(client)` is called when all is as the settings want it."""

    def __init__(
        self,
        *,
        tell_engine: Callable[[Message], None],
        adopt: Callable[[Mapping[str, Any]], None],
        reply: Callable[[Client, Message], None],
        done: Callable[[Client], None],
    ) -> None:
        self._tell_engine = tell_engine
        self._adopt = adopt
        self._reply = reply
        self._done = done
        self._asked: tuple[Client, Mapping[str, Any]] | None = None
        self._adopted = False

    def ask(self, client: Client, settings: Mapping[str, Any]) -> None:
        """A client wants these settings."""
        if self._asked is not None:
            self._reply(client, _BUSY)
            return
        self._asked, self._adopted = (client, settings), False
        self._tell_engine({"configure": settings})

    def configured(self, error: str, hint: str) -> None:
        """The engine has taken them over, or cannot."""
        if self._asked is None or self._adopted:
            return
        client, settings = self._asked
        if not error:
            self._adopted = True
            try:
                self._adopt(settings)
            except OSError as failure:
                error, hint = f"the namespace cannot be changed: {failure}", _SEE_LOG
        if error:
            self._asked = None
            self._reply(client, {"error": error, "hint": hint})

    def settled(self) -> None:
        """All is as they want it."""
        if self._asked is not None and self._adopted:
            (client, _), self._asked = self._asked, None
            self._done(client)

    def engine_ended(self, how: str) -> None:
        """Nobody is there to say what became of them; what was adopted counts for the next engine."""
        if self._asked is None:
            return
        (client, _), self._asked = self._asked, None
        if self._adopted:
            self._done(client)
        else:
            self._reply(client, {"error": f"the node's engine ended ({how})", "hint": _SEE_LOG})
