"""The netmap: what control has told of the tailnet, kept current from full and partial messages (ring 0).

Source: tailcfg.MapResponse and control/controlclient (map.go) of Tailscale's module. A stream starts from nothing with its first message,
which must hold our own node; what it then does not mention is gone. Until that message has come the netmap of the stream before stays as
it is, so that a new stream costs no more than the differences.

    begin_stream() --> FIRST --a message with Node--> FOLLOWING --> any message changes what it mentions

Null and absent mean "unchanged"; what empty means is said where it matters. The netmap is changed in place, but its nodes are never: a
changed node is another object. Nodes are normalised, so that two of them are equal exactly when they mean the same.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import msgspec

from tsns.control.nodes import is_node_key, normalised, normalised_self
from tsns.error import ProtocolError
from tsns.keys import DiscoPublic
from tsns.proto.text import one_line
from tsns.proto.types import (
    NULL,
    DERPMap,
    DERPRegion,
    DisplayMessage,
    DNSConfig,
    FilterRule,
    MapResponse,
    Node,
    PeerChange,
    TKAInfo,
    UserProfile,
    parse_time,
)

CLOCK_TOLERANCE_S: Final = 60.0  # a smaller difference to control's clock is not worth believing
SANE_TIME: Final = 1673373066.0  # January 2023: a clock that says earlier is wrong, and expires nobody
MAX_HEALTH_MESSAGES: Final = 32
BASE_FILTER: Final = "base"


@dataclass(frozen=True, slots=True)
class NetMapChange:
    """What one message changed. A key may move from one peer to another: deal with `removed` before `changed` and `added`."""

    first: bool  # the first message of its stream; with the first of all, every flag below is set
    self_changed: bool = False
    added: tuple[Node, ...] = ()
    removed: tuple[Node, ...] = ()
    changed: tuple[tuple[Node, Node], ...] = ()  # (old, new)
    derp_map: bool = False
    rules: bool = False
    dns: bool = False  # or the tailnet's name
    users: bool = False
    health: bool = False
    lock: bool = False

    def peers(self) -> Iterator[tuple[Node | None, Node | None]]:
        """All changes of peers as (old, new), those that go first: what they leave may be another's then."""
        yield from ((node, None) for node in self.removed)
        yield from self.changed
        yield from ((None, node) for node in self.added)

    def __bool__(self) -> bool:
        """Whether there is anything to do."""
        flags = self.derp_map or self.rules or self.dns or self.users or self.health or self.lock
        return self.first or self.self_changed or flags or bool(self.added or self.removed or self.changed)


class NetMap:
    """The tailnet as this node may see it. To be read by anybody, changed by `apply` alone."""

    def __init__(self) -> None:
        self.self_node: Node | None = None
        self.peers: dict[int, Node] = {}
        self.derp_map = DERPMap(regions={})
        self.rules: tuple[FilterRule, ...] = ()  # nothing may come in until control says so
        self.dns: DNSConfig | None = None
        self.user_profiles: dict[int, UserProfile] = {}
        self.domain = ""
        self.health: tuple[str, ...] = ()
        self.tka: TKAInfo | None = None
        self.skipped: Counter[str] = Counter()  # what could not be used, by reason
        self._filters: dict[str, tuple[FilterRule, ...]] = {}
        self._health: list[str] = []
        self._display: dict[str, DisplayMessage] = {}
        self._first = True
        self._clock_skew_s = 0.0

    @property
    def locked(self) -> bool:
        """Whether Tailnet Lock is on: then control's word alone does not make a peer."""
        return self.tka is not None and not self.tka.disabled

    def begin_stream(self) -> None:
        """The next message is the first one of a new stream."""
        self._first = True

    def observe_time(self, control_time: str | None, wall_now: float) -> None:
        """Compare clocks; any message, keep-alives included, may carry control's."""
        time = parse_time(control_time)
        if time is not None:
            skew = time.timestamp() - wall_now
            self._clock_skew_s = skew if abs(skew) > CLOCK_TOLERANCE_S else 0.0

    def apply(self, response: MapResponse, wall_now: float) -> NetMapChange:
        """Fold in one message that is not a keep-alive.

        ProtocolError, with nothing changed, where a stream begins without our node or our node has no key.
        """
        first = self._first
        if first and response.node is None:
            raise ProtocolError("the first map message lacks our own node")
        itself = None if response.node is None else normalised_self(response.node)
        initial = self.self_node is None
        self.observe_time(response.control_time, wall_now)

        edit = _PeerEdit(self.peers)
        self._apply_peers(response, edit, wall_now, fresh=first)
        added, removed, changed = edit.difference()

        self_changed = itself is not None and itself != self.self_node
        if self_changed:
            self.self_node = itself
        self._first = False
        return NetMapChange(
            first=first,
            self_changed=self_changed,
            added=added,
            removed=removed,
            changed=changed,
            users=self._apply_users(response, fresh=first) or initial,
            derp_map=self._apply_derp_map(response, fresh=first) or initial,
            rules=self._apply_rules(response, fresh=first) or initial,
            dns=self._apply_dns(response, fresh=first) or initial,
            health=self._apply_health(response, fresh=first) or initial,
            lock=self._apply_lock(response, fresh=first) or initial,
        )

    def expired(self, node: Node, wall_now: float) -> bool:
        """Whether a node's key is no longer good; `wall_now` is our own clock in seconds since 1970."""
        if node.expired:
            return True
        expiry = self.expiry(node)
        return expiry is not None and wall_now + self._clock_skew_s >= SANE_TIME and expiry <= wall_now

    def expiry(self, node: Node) -> float | None:
        """When, by our own clock, a node's key expires; None: never."""
        expiry = parse_time(node.key_expiry)
        return None if expiry is None else expiry.timestamp() - self._clock_skew_s

    def next_expiry(self, wall_now: float) -> float | None:
        """When, by our own clock, the next key of a peer or of ours expires. Looks at every node: not for every message."""
        nodes = self.peers.values() if self.self_node is None else (self.self_node, *self.peers.values())
        times = (parse_time(node.key_expiry) for node in nodes if node.key_expiry and not node.expired)
        local = (time.timestamp() - self._clock_skew_s for time in times if time is not None)
        return min((time for time in local if time > wall_now), default=None)

    def holders(self, capability: str) -> Iterator[Node]:
        """The peers that hold this node capability."""
        return (node for node in self.peers.values() if node.cap_map and capability in node.cap_map)

    # --- the parts of a message, in the order in which they count --------------------------------------------------

    def _apply_peers(self, response: MapResponse, edit: _PeerEdit, wall_now: float, *, fresh: bool) -> None:
        if response.peers or fresh:  # an empty list is no reset, except that a new stream is one
            edit.clear()
            self._put_peers(response.peers or (), edit)
        if not response.peers:
            for number in response.peers_removed or ():
                edit.put(number, None)
            self._put_peers(response.peers_changed or (), edit)
            for number, seen in (response.peer_seen_change or {}).items():
                last_seen = datetime.fromtimestamp(wall_now, UTC).isoformat() if seen else None
                edit.patch(number, {"last_seen": last_seen})
            for number, online in (response.online_change or {}).items():
                edit.patch(number, {"online": online})
        for patch in response.peers_changed_patch or ():
            self._patch_peer(patch, edit)

    def _put_peers(self, nodes: Iterable[Node], edit: _PeerEdit) -> None:
        for node in nodes:
            if node.id <= 0:
                self.skipped["peer without an id"] += 1
            elif not is_node_key(node.key):
                self.skipped["peer without a good key"] += 1
            else:
                edit.put(node.id, self._normalised_peer(node))

    def _normalised_peer(self, node: Node) -> Node:
        node.hostinfo = NULL  # the bulk of many messages, and it would hold on to all of the message
        node.capabilities = None
        self._check_disco_key(node)
        return normalised(node)

    def _check_disco_key(self, node: Node) -> None:
        try:
            if DiscoPublic.parse_optional(node.disco_key) is None:
                node.disco_key = None
        except ValueError:
            self.skipped["damaged disco key"] += 1
            node.disco_key = None

    def _patch_peer(self, patch: PeerChange, edit: _PeerEdit) -> None:
        fields = {
            name: value
            for name in ("cap", "cap_map", "endpoints", "key", "key_signature", "disco_key", "online", "last_seen")
            if (value := getattr(patch, name)) is not None
        }
        if patch.derp_region:
            fields["home_derp"] = patch.derp_region
        if patch.key_expiry is not None:  # year 1: it no longer expires
            fields["key_expiry"] = patch.key_expiry
            fields["expired"] = None
        if patch.key is not None and not is_node_key(patch.key):
            self.skipped["patch with a damaged key"] += 1
            return
        node = edit.patched(patch.node_id, fields)
        if node is not None:
            self._check_disco_key(node)
            edit.put(patch.node_id, normalised(node))

    def _apply_users(self, response: MapResponse, *, fresh: bool) -> bool:
        before = self.user_profiles
        profiles = {profile.id: profile for profile in response.user_profiles or ()}
        if not fresh:
            if all(before.get(number) == profile for number, profile in profiles.items()):
                return False
            profiles = before | profiles
        self.user_profiles = profiles
        return profiles != before

    def _apply_derp_map(self, response: MapResponse, *, fresh: bool) -> bool:
        before = self.derp_map
        old = DERPMap(regions={}) if fresh else before
        new = response.derp_map
        if new is None:
            self.derp_map = old
        else:
            if new.regions is None:
                regions, omit = old.regions, old.omit_default_regions
            else:
                regions, omit = _regions(new.regions), new.omit_default_regions
            home = new.home_params
            if home is None or home.region_score is None:
                home = old.home_params
            self.derp_map = DERPMap(regions=regions, omit_default_regions=omit, home_params=home)
        if self.derp_map == before:
            self.derp_map = before
        return self.derp_map is not before

    def _apply_rules(self, response: MapResponse, *, fresh: bool) -> bool:
        filters = {} if fresh else self._filters
        if response.packet_filter is not None:
            filters = filters | {BASE_FILTER: _rules(response.packet_filter)}
        if response.packet_filters is not None:
            named = response.packet_filters
            filters = {} if "*" in named and named["*"] is None else dict(filters)
            for name, listed in named.items():
                if listed is None:
                    filters.pop(name, None)
                else:
                    filters[name] = _rules(listed)
        if filters is self._filters:
            return False
        self._filters = filters
        before = self.rules
        rules = tuple(rule for name in sorted(filters) for rule in filters[name])
        if rules != before:
            self.rules = rules
        return self.rules is not before

    def _apply_dns(self, response: MapResponse, *, fresh: bool) -> bool:
        before = self.dns, self.domain
        if response.dns_config is not None or fresh:
            self.dns = response.dns_config
        if response.domain or fresh:
            self.domain = one_line(response.domain or "")
        return (self.dns, self.domain) != before

    def _apply_health(self, response: MapResponse, *, fresh: bool) -> bool:
        if fresh:
            self._health, self._display = [], {}
        if response.health is not None:
            self._health = response.health
        messages = response.display_messages
        if messages:
            if "*" in messages and messages["*"] is None:
                self._display = {}
            for name, message in messages.items():
                if message is None:
                    self._display.pop(name, None)
                else:
                    self._display[name] = message
        before = self.health
        shown = [_shown(self._display[name]) for name in sorted(self._display)] or [*map(one_line, self._health)]
        self.health = tuple(shown[:MAX_HEALTH_MESSAGES])
        return self.health != before

    def _apply_lock(self, response: MapResponse, *, fresh: bool) -> bool:
        before = self.locked
        if response.tka_info is not None or fresh:  # no word about it in the first message: it is off
            self.tka = response.tka_info
        return self.locked != before


class _PeerEdit:
    """The peers while one message is folded in; knows of each one touched what it was before."""

    def __init__(self, peers: dict[int, Node]) -> None:
        self._peers = peers
        self._before: dict[int, Node | None] = {}

    def put(self, number: int, node: Node | None) -> None:
        """Set a peer, or with None remove it."""
        old = self._peers.get(number)
        self._before.setdefault(number, old)
        if node is not None:
            self._peers[number] = node
        elif old is not None:
            del self._peers[number]

    def clear(self) -> None:
        """Remove all."""
        for number in list(self._peers):
            self.put(number, None)

    def patched(self, number: int, fields: dict[str, object]) -> Node | None:
        """A copy of a peer with other fields; None where there is no such peer."""
        node = self._peers.get(number)
        return None if node is None else msgspec.structs.replace(node, **fields)

    def patch(self, number: int, fields: dict[str, object]) -> None:
        """Change fields of a peer that is there."""
        node = self.patched(number, fields)
        if node is not None:
            self.put(number, node)

    def difference(self) -> tuple[tuple[Node, ...], tuple[Node, ...], tuple[tuple[Node, Node], ...]]:
        """Peers added, removed and changed; one that is as it was stays the object that it was."""
        added, removed, changed = [], [], []
        for number, old in self._before.items():
            new = self._peers.get(number)
            if old is None:
                if new is not None:
                    added.append(new)
            elif new is None:
                removed.append(old)
            elif new == old:
                self._peers[number] = old
            else:
                changed.append((old, new))
        return tuple(added), tuple(removed), tuple(changed)


def _regions(regions: dict[int, DERPRegion | None]) -> dict[int, DERPRegion | None]:
    """The regions that are there, by their numbers."""
    kept: dict[int, DERPRegion | None] = {}
    for number, region in regions.items():
        if region is not None and number > 0:
            region.region_id = number
            kept[number] = region
    return kept


def _rules(rules: list[FilterRule]) -> tuple[FilterRule, ...]:
    for rule in rules:
        for grant in rule.cap_grant or ():
            if grant.cap_map:
                grant.cap_map = {name: value.copy() for name, value in grant.cap_map.items()}
    return tuple(rules)


def _shown(message: DisplayMessage) -> str:
    return one_line(": ".join(part for part in (message.title, message.text) if part))
