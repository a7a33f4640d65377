"""MagicDNS: the tailnet's names, answered from the netmap (ring 0).

Source: net/dns/resolver and the DNS part of ipn/ipnlocal of Tailscale's module. How a question is answered, first line that applies:

    not a query, or not even a header        dropped: an answer to an answer would be a loop
    another opcode than QUERY                NOTIMP
    unreadable                               FORMERR
    `.onion`                                 NXDOMAIN (RFC 7686: such names must not leave the machine)
    the service's own name, 4via6 names      their addresses
    an extra record, a node, its subdomains  the first address of the family asked for; nothing for other types; NOTIMP for NS, SOA,
                                             AXFR and HINFO
    an address's reverse name                the name, if it is a node's or an extra record's
    Bonjour's probes for browse domains      NXDOMAIN
    under a domain of the tailnet            NXDOMAIN
    another class than IN, zone transfers    REFUSED
    all else                                 is for other servers: `Elsewhere` says which

Tailscale hides the IPv6 address of a node that also has IPv4, because a host may come without IPv6. A namespace of tsns has both
families if its node has addresses of both, so here a family is hidden only where the node itself has none of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from tsns.dns.configuration import Configuration, Rule, configuration
from tsns.dns.hosts import Host, HostTable, extra_hosts, host_of
from tsns.dns.message import (
    Answer,
    Code,
    FormatError,
    Kind,
    Query,
    Record,
    address_record,
    is_query,
    pointer_record,
    read_header,
    read_query,
    refusal,
    render,
)
from tsns.dns.names import ROOT, ancestors, key_of, parent, reversed_address, via_address
from tsns.proto.addresses import SERVICE_V4, SERVICE_V6
from tsns.proto.types import DNSConfig, Node

SERVICE_NAME: Final = "magicdns.localhost-tailscale-daemon"
MAX_RENDERED: Final = 2048
MAX_RENDERED_QUERY_BYTES: Final = 320  # a name of the longest, and EDNS; an answer of ours is hardly longer

_SERVICE: Final = Host(0, key_of(SERVICE_NAME), SERVICE_V4, SERVICE_V6)
_ONION: Final = key_of("onion")
_BONJOUR: Final = tuple(key_of(f"{probe}._dns-sd._udp")[:-1] for probe in ("b", "db", "r", "dr", "lb"))
_UNIMPLEMENTED: Final = frozenset({Kind.NS, Kind.SOA, Kind.AXFR, Kind.HINFO})
_TRANSFERS: Final = frozenset({Kind.AXFR, Kind.IXFR})


@dataclass(frozen=True, slots=True)
class Elsewhere:
    """A question that other servers answer, and the rule that says who."""

    query: Query
    rule: Rule


class Resolver:
    """Answers questions about the netmap's names; it knows none before the first `update`.

    The same query, but for its id, gets the same answer until something changes; so what was found out lately is kept.
    """

    def __init__(self) -> None:
        self._nodes = HostTable()
        self._extra = HostTable()
        self._self: Host | None = None
        self._search: list[bytes] = []
        self._rendered: dict[tuple[bytes, bool], bytes | Elsewhere] = {}  # by query, both without their ids
        self.configuration = Configuration()

    def update(self, *, self_node: Node | None, peers: Iterable[Node], config: DNSConfig | None) -> None:
        """Know these names and no others."""
        self._nodes = HostTable()
        self._self = None
        self.configure(self_node=self_node, config=config)
        for peer in peers:
            self.update_peer(None, peer)

    def configure(
        self,
        *,
        self_node: Node | None,
        config: DNSConfig | None,
        exit_node: Node | None = None,
        host: Sequence[str] = (),
        accept: bool = True,
    ) -> bool:
        """Change what is said of ourselves and of the whole tailnet; the peers stay. Whether others are asked now.

        `host` are the host's name servers, where they may be asked. Unless we `accept` control's configuration, nodes and extra
        records have their names, and that is all.
        """
        self._rendered.clear()
        if self._self is not None:
            self._nodes.remove(self._self)
        self._self = host_of(self_node) if self_node is not None else None
        if self._self is not None:
            self._nodes.add(self._self)
        self._extra = HostTable()
        for extra in extra_hosts((config.extra_records if config else None) or ()):
            self._extra.add(extra)
        self._search = [key_of(domain) for domain in search_domains(config if accept else None)]
        former, self.configuration = (
            self.configuration,
            configuration(config if accept else None, self_node, exit_node, host),
        )
        return former != self.configuration

    def update_peer(self, old: Node | None, new: Node | None) -> None:
        """Change one peer: None is a peer that was not there, or is there no more."""
        if old is not None and new is not None and _is_called_the_same(old, new):
            return
        former = host_of(old) if old is not None else None
        present = host_of(new) if new is not None else None
        if former == present:
            return
        self._rendered.clear()
        if former is not None:
            self._nodes.remove(former)
        if present is not None:
            self._nodes.add(present)

    def answer(self, query: bytes, *, over_tcp: bool = False) -> bytes | Elsewhere | None:
        """The answer to one message, or who has it; None where there must be none. Never raises, whatever the bytes."""
        known = self._rendered.get((query[2:], over_tcp))
        if isinstance(known, bytes):
            return query[:2] + known
        if known is not None:
            return Elsewhere(replace(known.query, id=int.from_bytes(query[:2], "big")), known.rule)
        header = read_header(query)
        if header is None:
            return None
        ident, flags = header
        if not is_query(flags):
            return refusal(ident, flags, Code.NOTIMP)
        try:
            question = read_query(query)
        except FormatError:
            return refusal(ident, flags, Code.FORMERR)
        answer = self._answer(question)
        if answer is None:
            elsewhere = Elsewhere(question, self.configuration.rule_for(question.key))
            self._remember(query, over_tcp, elsewhere)
            return elsewhere
        data = render(question, answer, over_tcp=over_tcp)
        self._remember(query, over_tcp, data[2:])
        return data

    def complete(self, query: bytes, *, over_tcp: bool = False) -> bytes | None:
        """The answer for a name that the tailnet's search domains make a node's; None where none of them does.

        For askers whose C library does not look for short names with search domains, as musl's with `ndots:0`.
        """
        header = read_header(query)
        if header is None or not is_query(header[1]):
            return None
        try:
            question = read_query(query)
        except FormatError:
            return None
        for domain in self._search if question.is_internet else ():
            key = question.key[:-1] + domain
            host = self._extra.named(key) or self._node_named(key)
            if host is not None:
                return render(question, self._of_host(question, host), over_tcp=over_tcp)
        return None

    def _remember(self, query: bytes, over_tcp: bool, found: bytes | Elsewhere) -> None:
        if len(query) <= MAX_RENDERED_QUERY_BYTES:
            if len(self._rendered) >= MAX_RENDERED:
                self._rendered.clear()
            self._rendered[query[2:], over_tcp] = found

    def _answer(self, query: Query) -> Answer | None:
        if not query.is_internet:
            return Answer(Code.REFUSED)
        answer = self._ours(query)
        return Answer(Code.REFUSED) if answer is None and query.kind in _TRANSFERS else answer

    def _ours(self, query: Query) -> Answer | None:
        key = query.key
        if key.endswith(_ONION) and any(name == _ONION for name in ancestors(key)):
            return self._negative(key, Code.NXDOMAIN)
        if key == _SERVICE.key:
            return self._of_host(query, _SERVICE)
        via = via_address(key)
        if via is not None:
            return self._of_host(query, Host(0, key, None, via))
        host = self._extra.named(key) or self._node_named(key)
        if host is not None:
            return self._of_host(query, host)
        address = reversed_address(key)
        host = self._at(address) if address is not None else None
        if host is not None:
            records = (pointer_record(host.key),) if query.kind in {Kind.PTR, Kind.ANY} else ()
            return self._positive(query, records)
        if query.kind == Kind.PTR and key.startswith(_BONJOUR):
            return self._negative(key, Code.NXDOMAIN)
        zone = self.configuration.zone_of(key)
        if zone is not None:
            # A domain exists itself, even where no node has its name.
            return self._negative(key, Code.NOERROR if key == zone else Code.NXDOMAIN)
        return None

    def _node_named(self, key: bytes) -> Host | None:
        host = self._nodes.named(key)
        if host is None:
            above = (self._nodes.named(name) for name in ancestors(parent(key)) if name != ROOT)
            host = next((found for found in above if found is not None and found.answers_below), None)
        if host is None or self._self is None:
            return host
        reachable = replace(
            host, v4=host.v4 if self._self.v4 is not None else None, v6=host.v6 if self._self.v6 is not None else None
        )
        return reachable if reachable.addresses else host

    def _at(self, address: bytes) -> Host | None:
        if address in {SERVICE_V4, SERVICE_V6}:
            return _SERVICE
        return self._nodes.at(address) or self._extra.at(address)

    def _of_host(self, query: Query, host: Host) -> Answer:
        if query.kind in _UNIMPLEMENTED:
            return Answer(Code.NOTIMP, authoritative=True)
        address: bytes | None = None
        if query.kind == Kind.A:
            address = host.v4
        elif query.kind == Kind.AAAA:
            address = host.v6
        elif query.kind == Kind.ANY:
            address = host.addresses[0]
        return self._positive(query, () if address is None else (address_record(address),))

    def _positive(self, query: Query, records: tuple[Record, ...]) -> Answer:
        return Answer(records=records, authoritative=True) if records else self._negative(query.key, Code.NOERROR)

    def _negative(self, key: bytes, code: Code) -> Answer:
        return Answer(code, authoritative=True, zone=self.configuration.zone_of(key) or parent(key))


def _is_called_the_same(old: Node, new: Node) -> bool:
    return old.name == new.name and old.addresses == new.addresses and old.cap_map == new.cap_map


def search_domains(config: DNSConfig | None) -> list[str]:
    """The domains to complete short names with, without final dots; what is no name in DNS is left out."""
    found: dict[str, None] = {}
    for domain in (config.domains if config else None) or ():
        try:
            key_of(domain)
        except ValueError:
            continue
        if not any(char.isspace() or not char.isprintable() for char in domain):
            found[domain.removesuffix(".")] = None
    return list(found)
