"""Where a node's packets may go beyond the addresses of its peers: subnets behind them, and an exit node (ring 1, without input or output).

netmap, settings --> which exit node --> peering: allowed IPs
                           `-----------> the keeper: routes of the namespace
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from tsns.config import NodeConfig
from tsns.control.netmap import NetMap, NetMapChange
from tsns.error import UserError
from tsns.keys import NodePublic
from tsns.netns.routes import MAX_ROUTES
from tsns.node.condition import Condition
from tsns.node.exit_node import AUTO, Choice, Latency, choose, full_name, offering
from tsns.node.offers import offer_of, offers_exit
from tsns.node.peering import Peering
from tsns.proto.addresses import Prefix
from tsns.proto.types import Node
from tsns.steps import Steps

EXIT_NODE: Final = "exit node"  # what warnings are about
ROUTES: Final = "routes"

log = logging.getLogger(__name__)


class Routing:
    """Follows netmap and settings. `latency(region)` are the netcheck's; `changed` is called when the namespace's routes may be others."""

    def __init__(
        self,
        peering: Peering,
        condition: Condition,
        config: NodeConfig,
        *,
        latency: Latency,
        changed: Callable[[], None],
    ) -> None:
        self._peering = peering
        self._condition = condition
        self._config = config
        self._latency = latency
        self._changed = changed
        self._choice = Choice()
        self._guessed = False  # whether `auto:any` was answered before anything was measured
        self._prefixes: list[Prefix] | None = []
        self._routes: list[str] = []

    def applying(self, netmap: NetMap, change: NetMapChange, wall_now: float) -> Steps[list[NodePublic]]:
        """Follow one difference; see `Peering.applying`."""
        begun_anew = yield from self._peering.applying(netmap, change, wall_now)
        if change.first or change.added or change.removed or change.changed:
            self._follow(netmap, wall_now)
        return begun_anew

    def configure(self, config: NodeConfig, netmap: NetMap | None, wall_now: float) -> None:
        """Go by other settings from now on; UserError, with nothing changed, where the exit node cannot be one."""
        if netmap is None:
            self._config = config
            return
        if config.exit_node != self._config.exit_node:
            choice = self._chosen(config.exit_node, netmap, wall_now)
            if choice.is_mistake:
                raise UserError(choice.complaint, choice.hint)
        self._config = config
        self._follow(netmap, wall_now)

    def recheck(self, netmap: NetMap, wall_now: float) -> None:
        """A key may have run out."""
        self._follow(netmap, wall_now)

    def measured(self, netmap: NetMap, wall_now: float) -> None:
        """Latencies are known now: what was chosen without them is chosen once more."""
        if self._guessed:
            self._choice = Choice()
            self._follow(netmap, wall_now)

    def selected(self, netmap: NetMap | None) -> Node | None:
        """The exit node in use, as the netmap has it by now; None where there is none."""
        node = self._choice.node
        return netmap.peers.get(node.id) if netmap is not None and node is not None else None

    @property
    def mistake(self) -> tuple[str, str] | None:
        """What is wrong with the exit node that was asked for, and what to do: no peer is called so, or is an exit node by this name."""
        return (self._choice.complaint, self._choice.hint) if self._choice.is_mistake else None

    @property
    def routes(self) -> Sequence[str]:
        """What is to lead into the tunnel besides the tailnet's own ranges."""
        return self._routes

    def _chosen(self, wanted: str, netmap: NetMap, wall_now: float) -> Choice:
        current = self._choice.node.id if self._choice.node is not None else 0
        return choose(netmap, wanted, current=current, latency=self._latency, wall_now=wall_now)

    def _follow(self, netmap: NetMap, wall_now: float) -> None:
        before, wanted = self._choice, self._config.exit_node
        choice = self._choice = self._chosen(wanted, netmap, wall_now)
        if choice.complaint:
            if choice.complaint != before.complaint:
                log.warning("%s", choice.complaint)
            self._condition.warnings[EXIT_NODE] = ". ".join(filter(None, (choice.complaint, choice.hint)))
        else:
            self._condition.warnings.pop(EXIT_NODE, None)
        number, former = (found.node.id if found.node is not None else 0 for found in (choice, before))
        if number != former:
            log.info("exit node: %s", full_name(choice.node) if choice.node is not None else "none")
            measured = choice.node is not None and self._latency(choice.node.home_derp or 0) is not None
            self._guessed = wanted == AUTO and number != 0 and not measured
            self._prefixes = None  # whatever they are, there is something new
        self._peering.use(netmap, subnets=self._config.accept_routes, exit_node=number, wall_now=wall_now)
        self._find_routes(netmap)

    def _find_routes(self, netmap: NetMap) -> None:
        prefixes = self._peering.routes(netmap)
        if prefixes == self._prefixes:
            return
        self._prefixes = prefixes
        # The exit node's first: if there are too many, they are not among those left out.
        found = sorted(map(str, prefixes), key=lambda text: (not text.endswith("/0"), text))
        if len(found) > MAX_ROUTES:
            text = f"peers offer {len(found)} routes, more than {MAX_ROUTES}: some are left out"
            log.warning("%s", text)
            self._condition.warnings[ROUTES] = text
        else:
            self._condition.warnings.pop(ROUTES, None)
        self._routes = found[:MAX_ROUTES]
        self._changed()

    # --- for people

    def of_peer(self, node: Node) -> dict[str, Any]:
        """What status says of a peer's routes."""
        chosen = self._choice.node
        return {
            "routes": [str(prefix) for prefix in offer_of(node).subnets],
            "accepted_routes": [str(prefix) for prefix in self._peering.subnets_of(node)],
            "exit_node_option": offers_exit(node),
            "exit_node": chosen is not None and node.id == chosen.id,
        }

    def status(self, netmap: NetMap | None) -> dict[str, Any] | None:
        """What status says of the exit node; None where none is asked for."""
        if not self._config.exit_node:
            return None
        node = self.selected(netmap)
        return {
            "wanted": self._config.exit_node,
            "name": full_name(node) if node is not None else "",
            "online": node.online if node is not None else None,
            "allow_lan_access": self._config.exit_node_allow_lan_access,
        }

    @staticmethod
    def exit_nodes(netmap: NetMap) -> Sequence[Node]:
        """All peers that offer to be one."""
        return sorted(offering(netmap), key=lambda node: (node.name or "", node.id))
