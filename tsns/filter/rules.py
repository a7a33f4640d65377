"""The packet filter's rules, compiled: from control's texts to sets that can be asked for every packet (ring 0).

Source: tailcfg.FilterRule and wgengine/filter of Tailscale's module. Rules only ever allow, so whatever is not understood is left
out, which can only make the filter stricter, and counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from tsns.filter.addresses import AddressSet, Span, parse_spans, span
from tsns.proto.addresses import Prefix
from tsns.proto.packets import Protocol
from tsns.proto.types import FilterRule, NetPortRange

CapabilityHolders = Callable[[str], Iterable[Prefix]]  # the addresses of the nodes that have this capability

CAPABILITY_MARK: Final = "cap:"
MAX_PORT: Final = 0xFFFF
DEFAULT_PROTOCOLS: Final = frozenset({int(p) for p in (Protocol.TCP, Protocol.UDP, Protocol.ICMP, Protocol.ICMPV6)})


@dataclass(frozen=True, slots=True)
class _Destinations:
    """Addresses that share a range of ports, both ends included."""

    first_port: int
    last_port: int
    addresses: AddressSet


@dataclass(frozen=True, slots=True)
class _Rule:
    protocols: frozenset[int]
    sources: AddressSet
    destinations: tuple[_Destinations, ...]


@dataclass(frozen=True, slots=True)
class RuleSet:
    """All permissions of one filter. An empty one permits nothing."""

    rules: tuple[_Rule, ...] = ()
    skipped: int = 0  # entries that were not understood
    rejected: bool = False  # not to be trusted as a whole, hence empty
    capabilities: frozenset[str] = frozenset()  # named by sources: who holds them was looked up when this was compiled

    def permits(self, protocol: int, source: bytes, destination: bytes, port: int) -> bool:
        """Whether a flow of TCP, UDP or SCTP to this port may begin."""
        for rule in self.rules:
            if protocol in rule.protocols and source in rule.sources:
                for to in rule.destinations:
                    if to.first_port <= port <= to.last_port and destination in to.addresses:
                        return True
        return False

    def permits_any(self, source: bytes, destination: bytes) -> bool:
        """Whether anything at all may go from here to there: that much allows a ping."""
        for rule in self.rules:
            if source in rule.sources:
                for to in rule.destinations:
                    if destination in to.addresses:
                        return True
        return False

    def permits_all_ports(self, protocol: int, source: bytes, destination: bytes) -> bool:
        """Whether a protocol without ports is allowed: it must be listed, and all ports with it."""
        for rule in self.rules:
            if protocol in rule.protocols and source in rule.sources:
                for to in rule.destinations:
                    if to.first_port <= 0 and to.last_port >= MAX_PORT and destination in to.addresses:
                        return True
        return False


def compile_rules(
    rules: Sequence[FilterRule], capability_holders: CapabilityHolders, unsigned: Iterable[Prefix] = ()
) -> RuleSet:
    """Read all rules.

    Void as a whole are rules of which one has the oldest form, as its meaning would be a guess, and rules that let in peers
    which nobody has signed: control is not to be trusted then.
    """
    if any(rule.src_bits or any(to.bits is not None for to in rule.dst_ports or ()) for rule in rules):
        return RuleSet(rejected=True)
    reader = _Reader(capability_holders)
    compiled = tuple(found for rule in rules if rule.dst_ports and (found := reader.rule(rule)) is not None)
    capabilities = frozenset(reader.capabilities)
    for first, last in map(span, unsigned):
        if any(rule.sources.overlaps(first, last) for rule in compiled):
            return RuleSet(skipped=reader.skipped, rejected=True, capabilities=capabilities)
    return RuleSet(compiled, reader.skipped, capabilities=capabilities)


class _Reader:
    """Reads rules and counts what it had to leave out."""

    def __init__(self, capability_holders: CapabilityHolders) -> None:
        self._capability_holders = capability_holders
        self.skipped = 0
        self.capabilities: dict[str, tuple[Span, ...]] = {}

    def rule(self, rule: FilterRule) -> _Rule | None:
        protocols = self._protocols(rule.ip_proto)
        sources = AddressSet(self._sources(rule.src_ips or ()))
        destinations = self._destinations(rule.dst_ports or ())
        return _Rule(protocols, sources, destinations) if protocols and sources and destinations else None

    def _protocols(self, listed: list[int] | None) -> frozenset[int]:
        if not listed:
            return DEFAULT_PROTOCOLS
        known = frozenset(number for number in listed if 0 <= number <= 0xFF)
        self.skipped += sum(not 0 <= number <= 0xFF for number in listed)
        return known

    def _sources(self, texts: Iterable[str]) -> Iterable[Span]:
        for text in texts:
            if text.startswith(CAPABILITY_MARK):
                yield from self._holders(text.removeprefix(CAPABILITY_MARK))
            else:
                yield from self._spans(text)

    def _holders(self, capability: str) -> tuple[Span, ...]:
        found = self.capabilities.get(capability)
        if found is None:
            found = tuple(span(prefix) for prefix in self._capability_holders(capability))
            self.capabilities[capability] = found
        return found

    def _destinations(self, entries: Iterable[NetPortRange]) -> tuple[_Destinations, ...]:
        by_ports: dict[tuple[int, int], list[Span]] = {}
        for entry in entries:
            ports = (entry.ports.first, entry.ports.last) if entry.ports else (0, 0)  # Go's zero value
            by_ports.setdefault(ports, []).extend(self._spans(entry.ip or ""))
        return tuple(
            _Destinations(first, last, AddressSet(found)) for (first, last), found in by_ports.items() if found
        )

    def _spans(self, text: str) -> tuple[Span, ...]:
        try:
            return parse_spans(text)
        except ValueError:
            self.skipped += 1
            return ()
