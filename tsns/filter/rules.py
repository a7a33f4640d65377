"""The packet filter's rules, compiled: from control's texts to something that can be asked for every packet (ring 0).

Source: tailcfg.FilterRule and wgengine/filter of Tailscale's module. Rules only ever allow, so whatever is not understood is left
out, which can only make the filter stricter, and counted.

A rule makes one *entry* for each range of ports in it, and a flow is permitted by an entry that covers its source, its destination, its port
and its protocol. For each of these an index knows which entries do, so that the number of rules hardly matters.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Final

from tsns.filter.addresses import Span, parse_spans, span
from tsns.filter.index import Group, NodeIndex, nodes, set_of
from tsns.proto.addresses import Prefix
from tsns.proto.packets import Protocol
from tsns.proto.types import FilterRule

CapabilityHolders = Callable[[str], Iterable[Prefix]]  # the addresses of the nodes that have this capability

CAPABILITY_MARK: Final = "cap:"
MAX_PORT: Final = 0xFFFF
MAX_RANGE_NODES: Final = 1 << 17  # of the indices that ranges of addresses may take: one of IPv6 needs up to 254
MAX_SOURCES_SEEN: Final = 256  # whose entries are remembered
MAX_PLACES: Final = 1 << 22  # that entries may take in the indices of addresses
DEFAULT_PROTOCOLS: Final = frozenset({int(p) for p in (Protocol.TCP, Protocol.UDP, Protocol.ICMP, Protocol.ICMPV6)})

_PORT_BITS: Final = 16
_FAMILIES: Final = (4, 16)  # bytes of an address


class RuleSet:
    """All permissions of one filter. An empty one permits nothing.

    `skipped` entries were not understood; where `rejected`, nothing at all is to be trusted, and nothing permitted. `capabilities` are those
    that sources name: who holds them `look_up` is told.
    """

    __slots__ = (
        "_all_ports",
        "_by_capability",
        "_by_protocol",
        "_destinations",
        "_holders",
        "_is_ancient",
        "_lets_unsigned_in",
        "_ports",
        "_sources",
        "_sources_seen",
        "capabilities",
        "skipped",
    )

    def __init__(self) -> None:
        self._be(_Reader())

    @classmethod
    def of(cls, rules: Iterable[FilterRule]) -> RuleSet:
        """Compile rules, all at once."""
        compiled = cls()
        for _ in compiled.compile(rules):
            pass
        return compiled

    def compile(self, rules: Iterable[FilterRule]) -> Generator[None, None, None]:
        """Become these rules, in steps: thousands take longer than packets should wait. Until the end, nothing changes.

        Void as a whole are rules of which one has the oldest form, as its meaning would be a guess.
        """
        reader = _Reader()
        for rule in rules:
            if not reader.read(rule):
                reader = _Reader()
                reader.is_ancient = True
                break
            yield
        yield from reader.seal()
        self._be(reader)

    def _be(self, reader: _Reader) -> None:
        self._is_ancient = reader.is_ancient
        self._lets_unsigned_in = False
        self.skipped = reader.skipped
        self._sources, self._destinations, self._ports = reader.sources, reader.destinations, reader.ports
        self._by_protocol, self._all_ports = reader.by_protocol, reader.all_ports
        self._by_capability = reader.by_capability  # who holds one is an index of their numbers in this list
        self.capabilities = frozenset(name for name, _ in self._by_capability)
        self._holders = _indices()
        self._sources_seen: dict[bytes, int] = {}

    @property
    def rejected(self) -> bool:
        """Whether the rules are void: see `RuleSet` and `look_up`."""
        return self._is_ancient or self._lets_unsigned_in

    def look_up(self, capability_holders: CapabilityHolders, unsigned: Iterable[Prefix] = ()) -> None:
        """Learn who holds the capabilities by now, and whom nobody has signed.

        Rules that let in peers which nobody has signed are void as a whole: control is not to be trusted then.
        """
        self._sources_seen.clear()
        self._holders = _indices()
        for number, (name, entries) in enumerate(self._by_capability):
            if entries:
                for prefix in capability_holders(name):
                    for group in _groups(self._holders, span(prefix)):
                        group.append(number)
        for index in self._holders.values():
            for _ in index.seal(len(self._by_capability)):
                pass
        self._lets_unsigned_in = any(
            found[len(first)].overlaps(int.from_bytes(first, "big"), int.from_bytes(last, "big"))
            for first, last in map(span, unsigned)
            for found in (self._sources, self._holders)
        )

    def permits(self, protocol: int, source: bytes, destination: bytes, port: int) -> bool:
        """Whether a flow of TCP, UDP or SCTP to this port may begin."""
        found = self._between(source, destination) & self._by_protocol.get(protocol, 0)
        return bool(found and found & self._ports.covering(port))

    def permits_any(self, source: bytes, destination: bytes) -> bool:
        """Whether anything at all may go from here to there: that much allows a ping."""
        return bool(self._between(source, destination))

    def permits_all_ports(self, protocol: int, source: bytes, destination: bytes) -> bool:
        """Whether a protocol without ports is allowed: it must be listed, and all ports with it."""
        return bool(self._between(source, destination) & self._by_protocol.get(protocol, 0) & self._all_ports)

    def _between(self, source: bytes, destination: bytes) -> int:
        """The entries for these addresses."""
        if self._lets_unsigned_in:
            return 0
        found = self._destinations[len(destination)].covering(int.from_bytes(destination, "big"))
        return found and found & self._of_source(source)

    def _of_source(self, source: bytes) -> int:
        """The entries for this source. Most packets are of a few."""
        entries = self._sources_seen.get(source)
        if entries is None:
            value, family = int.from_bytes(source, "big"), len(source)
            entries = self._sources[family].covering(value)
            held = self._holders[family].covering(value)
            while held:
                number = held.bit_length() - 1
                entries |= self._by_capability[number][1]
                held ^= 1 << number
            if len(self._sources_seen) >= MAX_SOURCES_SEEN:
                self._sources_seen.clear()
            self._sources_seen[source] = entries
        return entries


def _indices() -> dict[int, NodeIndex]:
    return {size: NodeIndex(8 * size) for size in _FAMILIES}


def _groups(indices: dict[int, NodeIndex], wanted: Span) -> list[Group]:
    """Where the index of its family keeps what is said about these addresses."""
    first, last = wanted
    index = indices[len(first)]
    found = nodes(int.from_bytes(first, "big"), int.from_bytes(last, "big"), 8 * len(first))
    return [index.group(node) for node in found]


class _Reader:
    """Reads rules into indices, and counts what it had to leave out. A text that comes again is not read again."""

    def __init__(self) -> None:
        self.skipped = 0
        self.is_ancient = False
        self.sources = _indices()
        self.destinations = _indices()
        self.ports = NodeIndex(_PORT_BITS)
        self.by_protocol: dict[int, int] = {}  # this and the next two are there when all is sealed
        self.by_capability: list[tuple[str, int]] = []
        self.all_ports = 0
        self._entries = 0
        self._with_all_ports: Group = []
        self._capabilities: dict[str, Group] = {}
        self._by_protocols: dict[frozenset[int], Group] = {}
        self._source_groups: dict[str, Sequence[Group]] = {}
        self._destination_groups: dict[str, Sequence[Group]] = {}
        self._port_groups: dict[tuple[int, int], Sequence[Group]] = {}
        self._range_nodes = 0
        self._places = 0

    def seal(self) -> Generator[None, None, None]:
        """Get everything ready, when all rules have been read, and forget the rest: that takes its time, too."""
        for index in (*self.sources.values(), *self.destinations.values(), self.ports):
            yield from index.seal(self._entries)
        for protocols, group in self._by_protocols.items():
            entries = set_of(group)
            for protocol in protocols:
                self.by_protocol[protocol] = self.by_protocol.get(protocol, 0) | entries
            yield
        self.all_ports = set_of(self._with_all_ports)
        for name, group in self._capabilities.items():
            self.by_capability.append((name, set_of(group)))
            yield
        for known in (self._source_groups, self._destination_groups, self._port_groups):
            known.clear()
            yield

    def read(self, rule: FilterRule) -> bool:
        """Take one rule; False where it has the oldest form."""
        if rule.src_bits:
            return False
        if not rule.dst_ports:
            return True  # of a grant of capabilities, which permits no packet
        by_ports: dict[tuple[int, int], list[Group]] = {}
        known = self._destination_groups
        for entry in rule.dst_ports:
            if entry.bits is not None:
                return False
            range_ = entry.ports
            ports = (range_.first, range_.last) if range_ is not None else (0, 0)  # Go's zero value
            text = entry.ip or ""
            groups = known.get(text) or self._of_destination(text)
            if ports in by_ports:
                by_ports[ports] += groups
            else:
                by_ports[ports] = [*groups]
        sources: list[Group] = []
        known = self._source_groups
        for text in rule.src_ips or ():
            sources += known.get(text) or self._of_source(text)
        protocols = self._protocols(rule.ip_proto)
        if sources and protocols is not None:
            for ports, destinations in by_ports.items():
                if destinations:
                    self._enter(protocols, sources, destinations, ports)
        return True

    def _enter(self, protocols: Group, sources: list[Group], destinations: list[Group], ports: tuple[int, int]) -> None:
        self._places += len(sources) + len(destinations)
        if self._places > MAX_PLACES:
            self.skipped += 1
            return
        number = self._entries
        self._entries = number + 1
        protocols.append(number)
        for group in sources:
            group.append(number)
        for group in destinations:
            group.append(number)
        for group in self._port_groups.get(ports) or self._of_ports(ports):
            group.append(number)
        if ports[0] <= 0 and ports[1] >= MAX_PORT:
            self._with_all_ports.append(number)

    def _protocols(self, listed: list[int] | None) -> Group | None:
        """Where entries with these protocols are kept; None where there are none."""
        protocols = DEFAULT_PROTOCOLS
        if listed:
            protocols = frozenset(number for number in listed if 0 <= number <= 0xFF)
            self.skipped += sum(not 0 <= number <= 0xFF for number in listed)
        return self._by_protocols.setdefault(protocols, []) if protocols else None

    def _of_ports(self, ports: tuple[int, int]) -> Sequence[Group]:
        first, last = max(ports[0], 0), min(ports[1], MAX_PORT)
        found = nodes(first, last, _PORT_BITS) if first <= last else ()
        groups = self._port_groups[ports] = [self.ports.group(node) for node in found]
        return groups

    def _of_source(self, text: str) -> Sequence[Group]:
        if text.startswith(CAPABILITY_MARK):
            groups: Sequence[Group] = [self._capabilities.setdefault(text.removeprefix(CAPABILITY_MARK), [])]
        else:
            groups = self._of_addresses(text, self.sources)
        self._source_groups[text] = groups
        return groups

    def _of_destination(self, text: str) -> Sequence[Group]:
        groups = self._destination_groups[text] = self._of_addresses(text, self.destinations)
        return groups

    def _of_addresses(self, text: str, indices: dict[int, NodeIndex]) -> Sequence[Group]:
        """Where the indices keep what is said about these addresses; nowhere, where the text is not understood."""
        is_range = "-" in text
        try:
            if not is_range or self._range_nodes <= MAX_RANGE_NODES:
                groups = [group for found in parse_spans(text) for group in _groups(indices, found)]
                self._range_nodes += is_range * len(groups)
                return groups
        except ValueError:
            pass
        self.skipped += 1
        return ()
