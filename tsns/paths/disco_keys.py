"""Whose disco keys they are (ring 0).

A key is a process's, and a process that logs in anew is another node: the netmap may know both, with one disco key. And nobody stops a node
from claiming the key of another one, though it cannot use it.
"""

from __future__ import annotations

from tsns.keys import DiscoPublic, NodePublic


class DiscoKeys:
    """Which nodes have which disco key."""

    def __init__(self) -> None:
        self._owners: dict[DiscoPublic, tuple[NodePublic, ...]] = {}  # who was named last comes last

    def name(self, key: DiscoPublic | None, node: NodePublic) -> None:
        """The node has this key, says the netmap or itself."""
        if key is None:
            return
        before = self._owners.setdefault(key, (node,))
        if before != (node,):
            self._owners[key] = (*self._others(key, node), node)

    def unname(self, key: DiscoPublic | None, node: NodePublic) -> None:
        """The node has it no more; the other nodes that may have it keep it."""
        if key is None:
            return
        others = self._others(key, node)
        if others:
            self._owners[key] = others
        else:
            self._owners.pop(key, None)

    def owners(self, key: DiscoPublic) -> tuple[NodePublic, ...]:
        """All nodes that have it, who was named last at the end."""
        return self._owners.get(key, ())

    def _others(self, key: DiscoPublic, node: NodePublic) -> tuple[NodePublic, ...]:
        return tuple(owner for owner in self.owners(key) if owner != node)
