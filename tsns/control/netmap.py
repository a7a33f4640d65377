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

from tsns.control.nodes import is_node_key, normalised, normalised_self
from tsns.control.peer_edit import PeerEdit
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
from tsns.steps import Steps, finish

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
        return finish(self.applying(response, wall_now))

    def applying(self, response: MapResponse, wall_now: float) -> Steps[NetMapChange]:
        """The same in short steps: one message at a time. Peers, rules and all else are as they were until the last of them."""
        first = self._first
        if first and response.node is None:
            raise ProtocolError("the first map message lacks our own node")
        itself = None if response.node is None else normalised_self(response.node)
        initial = self.self_node is None
        self.observe_time(response.control_time, wall_now)

        edit = PeerEdit(self.peers)
        yield from self._apply_peers(response, edit, wall_now, fresh=first)
        added, removed, changed = yield from edit.difference()
        users = yield from self._users(response, fresh=first)
        filters = yield from self._rule_lists(response, fresh=first)

        self.peers = edit.result()
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
            users=self._apply_users(users) or initial,
            derp_map=self._apply_derp_map(response, fresh=first) or initial,
            rules=self._apply_rules(filters) or initial,
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

    def holders(self, capability: str) -> Iterator[Node]:
        """The peers that hold this node capability."""
        return (node for node in self.peers.values() if node.cap_map and capability in node.cap_map)

    # --- the parts of a message, in the order in which they count --------------------------------------------------

    def _apply_peers(self, response: MapResponse, edit: PeerEdit, wall_now: float, *, fresh: bool) -> Steps[None]:
        if response.peers or fresh:  # an empty list is no reset, except that a new stream is one
            edit.clear()
            yield from self._put_peers(response.peers or (), edit)
        if not response.peers:
            for number in response.peers_removed or ():
                edit.put(number, None)
            yield from self._put_peers(response.peers_changed or (), edit)
            for number, seen in (response.peer_seen_change or {}).items():
                last_seen = datetime.fromtimestamp(wall_now, UTC).isoformat() if seen else None
                edit.patch(number, {"last_seen": last_seen})
                yield
            for number, online in (response.online_change or {}).items():
                edit.patch(number, {"online": online})
                yield
        for patch in response.peers_changed_patch or ():
            self._patch_peer(patch, edit)
            yield

    def _put_peers(self, nodes: Iterable[Node], edit: PeerEdit) -> Steps[None]:
        for node in nodes:
            if node.id <= 0:
                self.skipped["peer without an id"] += 1
            elif not is_node_key(node.key):
                self.skipped["peer without a good key"] += 1
            else:
                edit.put(node.id, self._normalised_peer(node))
            yield

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

    def _patch_peer(self, patch: PeerChange, edit: PeerEdit) -> None:
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
        if fields.keys() <= {"online"}:  # most of what there is to tell, and nothing that could be said in another way
            edit.patch(patch.node_id, fields)
            return
        node = edit.patched(patch.node_id, fields)
        if node is not None:
            self._check_disco_key(node)
            edit.put(patch.node_id, normalised(node))

    def _users(self, response: MapResponse, *, fresh: bool) -> Steps[dict[int, UserProfile]]:
        """All profiles, as they are after this message; the very dictionary of before where nothing has changed."""
        before = self.user_profiles
        profiles: dict[int, UserProfile] = {}
        same = True
        for profile in response.user_profiles or ():
            profiles[profile.id] = profile
            same = same and before.get(profile.id) == profile
            yield
        if same and (not fresh or profiles.keys() == before.keys()):
            return before
        return profiles if fresh else before | profiles

    def _apply_users(self, profiles: dict[int, UserProfile]) -> bool:
        before, self.user_profiles = self.user_profiles, profiles
        return profiles is not before

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

    def _rule_lists(self, response: MapResponse, *, fresh: bool) -> Steps[dict[str, tuple[FilterRule, ...]]]:
        """The named lists of rules, as they are after this message; a list that is as it was is the very tuple that it was."""
        before = self._filters
        filters = {} if fresh else before
        if response.packet_filter is not None:
            filters = filters | {BASE_FILTER: (yield from _rules(response.packet_filter, before.get(BASE_FILTER)))}
        if response.packet_filters is not None:
            named = response.packet_filters
            filters = {} if "*" in named and named["*"] is None else dict(filters)
            for name, listed in named.items():
                if listed is None:
                    filters.pop(name, None)
                else:
                    filters[name] = yield from _rules(listed, before.get(name))
        return filters

    def _apply_rules(self, filters: dict[str, tuple[FilterRule, ...]]) -> bool:
        before, self._filters = self._filters, filters
        if filters.keys() == before.keys() and all(rules is before[name] for name, rules in filters.items()):
            return False
        self.rules = tuple(rule for name in sorted(filters) for rule in filters[name])
        return True

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


def _regions(regions: dict[int, DERPRegion | None]) -> dict[int, DERPRegion | None]:
    """The regions that are there, by their numbers."""
    kept: dict[int, DERPRegion | None] = {}
    for number, region in regions.items():
        if region is not None and number > 0:
            region.region_id = number
            kept[number] = region
    return kept


def _rules(rules: list[FilterRule], before: tuple[FilterRule, ...] | None) -> Steps[tuple[FilterRule, ...]]:
    """The rules as they are kept; `before` itself where they are the same."""
    same = before is not None and len(before) == len(rules)
    for index, rule in enumerate(rules):
        for grant in rule.cap_grant or ():
            if grant.cap_map:
                grant.cap_map = {name: value.copy() for name, value in grant.cap_map.items()}
        same = same and before is not None and before[index] == rule
        yield
    return before if same and before is not None else tuple(rules)


def _shown(message: DisplayMessage) -> str:
    return one_line(": ".join(part for part in (message.title, message.text) if part))
