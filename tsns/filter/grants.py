"""What the tailnet's rules let peers do with applications here: capabilities, and values that only the applications understand (ring 0).

Source: tailcfg.CapGrant, and CapsWithValues in wgengine/filter of Tailscale's module. Rules with grants permit no packets. As there, a source
`cap:NAME` gets none of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from msgspec import Raw

from tsns.filter.addresses import AddressSet, Span, parse_spans
from tsns.proto.addresses import Prefix
from tsns.proto.types import CapGrant, FilterRule


@dataclass(frozen=True, slots=True)
class _Grant:
    sources: AddressSet
    destinations: tuple[Prefix, ...]
    capabilities: tuple[str, ...]
    values: Mapping[str, Raw]  # each a JSON list, or null


class Grants:
    """All grants of one set of rules."""

    __slots__ = ("_grants",)

    def __init__(self, rules: Iterable[FilterRule] = ()) -> None:
        self._grants: list[_Grant] = []
        for rule in rules:
            if rule.cap_grant:
                sources = AddressSet(_spans(rule.src_ips or ()))
                self._grants += (_read(sources, grant) for grant in rule.cap_grant)

    def of(self, source: bytes, destination: bytes) -> dict[str, list[Raw]]:
        """The capabilities of this source towards this address of ours, each with all that was granted for it, as JSON lists."""
        found: dict[str, list[Raw]] = {}
        for grant in self._grants:
            if source in grant.sources and any(prefix.covers(destination) for prefix in grant.destinations):
                for name in grant.capabilities:
                    found.setdefault(name, [])
                for name, values in grant.values.items():
                    found.setdefault(name, []).append(values)
        return found


def _read(sources: AddressSet, grant: CapGrant) -> _Grant:
    names = tuple(name for name in grant.caps or () if name)
    values = {name: value for name, value in (grant.cap_map or {}).items() if name}
    return _Grant(sources, tuple(_prefixes(grant.dsts or ())), names, values)


def _spans(texts: Sequence[str]) -> Iterable[Span]:
    for text in texts:
        try:
            yield from parse_spans(text)
        except ValueError:
            continue


def _prefixes(texts: Sequence[str]) -> Iterable[Prefix]:
    for text in texts:
        try:
            yield Prefix.parse(text)
        except ValueError:
            continue
