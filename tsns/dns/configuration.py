"""What control's DNSConfig comes to: which names are ours, and who is asked for which of the others (ring 0).

Source: dnsConfigForNetmap in ipn/ipnlocal and compileConfig in net/dns of Tailscale's module. The rule with the longest suffix counts:

    a route without servers, MagicDNS's own domains,     local: what is not known there does not exist
      an extra record that is in no route
    a route with servers                                 these are asked
    all else                                             the default servers, the first of these lines that applies:
      an exit node that is a DNS proxy      control's that are flagged for use with it, else the exit node itself; of the routes only
                                            those that are local or flagged likewise
      control's resolvers                   they override whatever the host has
      a WireGuard-only exit node            the resolvers that control names for it
      an exit node                          control's fallback resolvers
      the host's name servers, where they may be asked
      control's fallback resolvers          for the same reason as with an exit node: the host's are out of reach
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from tsns.dns.hosts import extra_hosts, host_of
from tsns.dns.names import ROOT, ancestors, key_of, parent
from tsns.dns.upstreams import Upstream, host_upstream, upstream
from tsns.proto.types import DNSConfig, Node, Resolver, decode_hostinfo

MAX_RULES: Final = 10_000
MAX_UPSTREAMS: Final = 4  # of one rule: all are asked at once
DNS_PROXY_CAPABILITY: Final = 26  # from this version on, a node that is an exit node answers DNS over HTTP
DNS_PROXY_SERVICE: Final = "peerapi-dns-proxy"

TAILNET_REVERSE: Final = (
    *(key_of(f"{second}.100.in-addr.arpa") for second in range(64, 128)),
    key_of("0.e.1.a.c.5.1.1.a.7.d.f.ip6.arpa"),
)


@dataclass(frozen=True, slots=True)
class Rule:
    """Who is asked for the names under a suffix. A local rule asks nobody; another without servers has none that can be used."""

    suffix: bytes
    upstreams: tuple[Upstream, ...] = ()
    local: bool = False


@dataclass(frozen=True, slots=True)
class Configuration:
    """All rules. `origin` says whose the default servers are; `skipped` counts what control wrote and could not be understood."""

    rules: Mapping[bytes, Rule] = field(default_factory=dict)
    default: Rule = field(default_factory=lambda: Rule(ROOT))
    origin: str = ""
    magic_dns: bool = False
    suffix: bytes | None = None  # of the tailnet's names
    skipped: int = 0

    def rule_for(self, key: bytes) -> Rule:
        """The rule with the longest suffix of this name."""
        rules = self.rules
        return next((rules[name] for name in ancestors(key) if name in rules), self.default)

    def zone_of(self, key: bytes) -> bytes | None:
        """The closest of our own domains that this name is in."""
        rule = self.rule_for(key)
        return rule.suffix if rule.local else None

    def upstreams(self) -> Iterable[Upstream]:
        """All servers that some name may be asked from."""
        for rule in (*self.rules.values(), self.default):
            yield from rule.upstreams


class _Reader:
    """Reads control's entries and counts those that are none."""

    def __init__(self) -> None:
        self.skipped = 0

    def key(self, text: str) -> bytes | None:
        try:
            return ROOT if text == "." else key_of(text)
        except ValueError:
            self.skipped += 1
            return None

    def upstreams(self, resolvers: Iterable[Resolver] | None) -> tuple[Upstream, ...]:
        found: dict[Upstream, None] = {}
        for resolver in resolvers or ():
            try:
                one = upstream(resolver)
            except ValueError:
                self.skipped += 1
                continue
            if len(found) < MAX_UPSTREAMS or one in found:
                found[one] = None
            else:
                self.skipped += 1
        return tuple(found)

    def host(self, texts: Iterable[str]) -> tuple[Upstream, ...]:
        found = []
        for text in texts:
            try:
                found.append(host_upstream(text))
            except ValueError:
                self.skipped += 1
        return tuple(found[:MAX_UPSTREAMS])


def configuration(
    config: DNSConfig | None, self_node: Node | None, exit_node: Node | None = None, host: Sequence[str] = ()
) -> Configuration:
    """The rules of a node. `exit_node` is the one in use; `host` are the host's name servers, none where they may not be asked."""
    if config is None:
        reader = _Reader()
        servers = reader.host(host)
        return Configuration(default=Rule(ROOT, servers), origin="the host" if servers else "", skipped=reader.skipped)
    reader = _Reader()
    itself = host_of(self_node) if self_node is not None else None
    suffix = parent(itself.key) if itself is not None and parent(itself.key) != ROOT else None
    routes = config.routes or {}
    defaults, origin = _defaults(reader, config, self_node, exit_node, host)
    if origin == _EXIT_NODE:
        routes = {
            name: _flagged(resolvers) for name, resolvers in routes.items() if not resolvers or _flagged(resolvers)
        }
    rules: dict[bytes, Rule] = {}
    if config.proxied:
        rules = {name: Rule(name, local=True) for name in (*TAILNET_REVERSE, *([suffix] if suffix else []))}
    for text, resolvers in routes.items():
        key = reader.key(text)
        if key is not None and len(rules) < MAX_RULES:
            rules[key] = Rule(key, reader.upstreams(resolvers), local=not resolvers)
    for host_entry in extra_hosts(config.extra_records or ()):
        if not any(name in rules for name in ancestors(host_entry.key)):
            rules[host_entry.key] = Rule(host_entry.key, local=True)
    return Configuration(rules, Rule(ROOT, defaults), origin, bool(config.proxied), suffix, reader.skipped)


_EXIT_NODE: Final = "the exit node"
_CONTROL: Final = "control"
_FALLBACK: Final = "control's fallback"
_HOST: Final = "the host"


def _defaults(
    reader: _Reader, config: DNSConfig, self_node: Node | None, exit_node: Node | None, host: Sequence[str]
) -> tuple[tuple[Upstream, ...], str]:
    """The default servers, and whose they are."""
    proxy = _proxy_of(exit_node, self_node) if exit_node is not None else None
    if proxy is not None:
        return reader.upstreams(_flagged(config.resolvers)) or reader.upstreams([proxy]), _EXIT_NODE
    choices: list[tuple[Iterable[Resolver] | None, str]] = [(config.resolvers, _CONTROL)]
    if exit_node is not None:
        if exit_node.is_wireguard_only:
            choices.append((exit_node.exit_node_dns_resolvers, _CONTROL))
        choices.append((config.fallback_resolvers, _FALLBACK))
    for resolvers, origin in choices:
        servers = reader.upstreams(resolvers)
        if servers:
            return servers, origin
    if exit_node is None:
        servers = reader.host(host)
        if servers:
            return servers, _HOST
        servers = reader.upstreams(config.fallback_resolvers)
        if servers:
            return servers, _FALLBACK
    return (), ""


def _flagged(resolvers: Iterable[Resolver] | None) -> list[Resolver]:
    return [resolver for resolver in resolvers or () if resolver.use_with_exit_node]


def _proxy_of(exit_node: Node, self_node: Node | None) -> Resolver | None:
    """The exit node's own DNS over HTTP; None where it offers none."""
    services = decode_hostinfo(exit_node).services or ()
    ports = {service.proto: service.port for service in services if service.proto}
    if (exit_node.cap or 0) < DNS_PROXY_CAPABILITY and DNS_PROXY_SERVICE not in ports:
        return None
    own = {":" in address for address in (self_node.addresses if self_node else None) or ()}
    for service, is_v6 in (("peerapi4", False), ("peerapi6", True)):
        address = next((text for text in exit_node.addresses or () if (":" in text) == is_v6), None)
        port = ports.get(service)
        if is_v6 in own and address is not None and port:
            bare = address.partition("/")[0]
            return Resolver(addr=f"http://{f'[{bare}]' if is_v6 else bare}:{port}/dns-query")
    return None
