"""How the lab's control server words its messages: the forms that servers use for the same thing (pure).

Source: tailcfg.MapResponse and what Tailscale's and Headscale's servers send. Go writes null, empty or nothing for the same list, and a
client has to take each of them.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from tsns.proto.types import MapResponse, encode

# Lists and maps that mean "no change" when they are null or empty.
NEUTRAL_LISTS: Final = ("Peers", "PeersChanged", "PeersRemoved", "PeersChangedPatch", "UserProfiles")
NEUTRAL_MAPS: Final = ("PeerSeenChange", "OnlineChange", "DisplayMessages", "PacketFilters")
# Those that mean it only when they are null.
NULLABLE: Final = (
    "PacketFilter",
    "Health",
    "DNSConfig",
    "TKAInfo",
    "PingRequest",
    "Node",
    "DERPMap",
    "ControlDialPlan",
)
NODE_LISTS: Final = ("Tags", "Endpoints", "PrimaryRoutes", "Capabilities")
NODES: Final = ("Peers", "PeersChanged")


class Nothing(enum.StrEnum):
    """What stands for a list without entries."""

    ABSENT = "absent"
    NULL = "null"
    EMPTY = "empty"


@dataclass(slots=True)
class Dialect:
    """The forms in use; by default Headscale's."""

    nothing: Nothing = Nothing.ABSENT
    patches: bool = True  # changes of peers as PeersChangedPatch where possible, else as PeersChanged
    online_change: bool = False  # online and offline by OnlineChange and PeerSeenChange, else by patch
    peers_changed_first: bool = False  # the first message brings the peers in PeersChanged
    allowed_ips_null: bool = False  # null AllowedIPs where they are the addresses
    star_filter: bool = False  # `"*": null` goes before the rules
    legacy_filter: bool = False  # PacketFilter instead of PacketFilters
    legacy_derp: bool = False  # "127.3.3.40:1" instead of HomeDERP
    partial_derp_map: bool = False  # later messages bring a DERPMap without regions, and the first one a null region
    unknown_members: bool = False
    duplicate_ids: bool = False  # each peer stands twice in its list, the outdated one first

    def encode(self, response: MapResponse, *, first: bool) -> bytes:
        """The message as JSON."""
        if self in (Dialect(), Dialect(patches=False)):
            return encode(response)
        message: dict[str, Any] = msgspec.json.decode(encode(response))
        if response.keep_alive is None:
            self._reword(message, first=first)
        return msgspec.json.encode(message)

    def _reword(self, message: dict[str, Any], *, first: bool) -> None:
        own = [message["Node"]] if "Node" in message else []
        for node in [*message.get("Peers", []), *message.get("PeersChanged", []), *own]:
            self._reword_node(node)
        if self.peers_changed_first and first:
            message["PeersChanged"] = message.pop("Peers", [])
        if self.duplicate_ids:
            for name in NODES:
                if message.get(name):
                    message[name] = [{**node, "HomeDERP": 1234} for node in message[name]] + message[name]
        if self.star_filter and "PacketFilters" in message:
            message["PacketFilters"] = {"*": None, **message["PacketFilters"]}
        if self.legacy_filter and "PacketFilters" in message:
            message["PacketFilter"] = message.pop("PacketFilters")["base"]
        if self.partial_derp_map:
            if first:
                message["DERPMap"]["Regions"]["65000"] = None
            else:
                message.setdefault("DERPMap", {"HomeParams": {"RegionScore": None}, "Regions": None})
        if self.online_change:
            self._split_off_online(message)
        if self.unknown_members:
            message["FromTheFuture"] = {"Members": [1, {"Deep": None}], "More": "text"}
        self._fill(message, NEUTRAL_LISTS, [])
        self._fill(message, NEUTRAL_MAPS, {})
        if self.nothing is not Nothing.ABSENT:
            for name in NULLABLE:
                message.setdefault(name, None)

    def _reword_node(self, node: dict[str, Any]) -> None:
        if self.allowed_ips_null and node.get("AllowedIPs") == node.get("Addresses"):
            node["AllowedIPs"] = None
        if self.legacy_derp and "HomeDERP" in node:
            node["DERP"] = f"127.3.3.40:{node.pop('HomeDERP')}"
        if self.unknown_members:
            node["FromTheFuture"] = [{"Nested": True}]
        self._fill(node, NODE_LISTS, [])

    def _split_off_online(self, message: dict[str, Any]) -> None:
        rest = []
        for patch in message.get("PeersChangedPatch", []):
            if "Online" in patch:
                online = patch.pop("Online")
                message.setdefault("OnlineChange", {})[str(patch["NodeID"])] = online
                message.setdefault("PeerSeenChange", {})[str(patch["NodeID"])] = True
                patch.pop("LastSeen", None)
            if len(patch) > 1:
                rest.append(patch)
        message.pop("PeersChangedPatch", None)
        if rest:
            message["PeersChangedPatch"] = rest

    def _fill(self, target: dict[str, Any], names: tuple[str, ...], empty: Any) -> None:
        if self.nothing is Nothing.ABSENT:
            return
        for name in names:
            if not target.get(name):
                target[name] = None if self.nothing is Nothing.NULL else type(empty)()
