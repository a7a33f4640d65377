"""The peers of a netmap while one message is folded in (ring 0)."""

from __future__ import annotations

import msgspec

from tsns.proto.types import Node
from tsns.steps import Steps


class PeerEdit:
    """The peers as one message makes them, beside those that are there until it is folded in."""

    def __init__(self, peers: dict[int, Node]) -> None:
        self._peers = peers
        self._cleared = False
        self._after: dict[int, Node | None] = {}

    def put(self, number: int, node: Node | None) -> None:
        """Set a peer, or with None remove it."""
        self._after[number] = node

    def clear(self) -> None:
        """Remove all."""
        self._cleared = True
        self._after.clear()

    def patched(self, number: int, fields: dict[str, object]) -> Node | None:
        """A copy of a peer with other fields; None where there is no such peer."""
        before = None if self._cleared else self._peers.get(number)
        node = self._after.get(number, before)
        return None if node is None else msgspec.structs.replace(node, **fields)

    def patch(self, number: int, fields: dict[str, object]) -> None:
        """Change fields of a peer that is there."""
        node = self.patched(number, fields)
        if node is not None:
            self.put(number, node)

    def difference(self) -> Steps[tuple[tuple[Node, ...], tuple[Node, ...], tuple[tuple[Node, Node], ...]]]:
        """Peers added, removed and changed; one that is as it was stays the object that it was."""
        added, removed, changed = [], [], []
        if self._cleared:
            removed = [node for number, node in self._peers.items() if number not in self._after]
        for number, new in self._after.items():
            old = self._peers.get(number)
            if old is None:
                if new is not None:
                    added.append(new)
            elif new is None:
                removed.append(old)
            elif new == old:
                self._after[number] = old
            else:
                changed.append((old, new))
            yield
        return tuple(added), tuple(removed), tuple(changed)

    def result(self) -> dict[int, Node]:
        """All peers. After `difference`, once."""
        peers = {} if self._cleared else self._peers
        for number, node in self._after.items():
            if node is not None:
                peers[number] = node
            else:
                peers.pop(number, None)
        return peers
