"""What control's DNSConfig comes to, as tables."""

from __future__ import annotations

import msgspec
import pytest
from msgspec import Raw

from tsns.dns.configuration import MAX_UPSTREAMS, Configuration, configuration
from tsns.dns.names import key_of
from tsns.proto.types import DNSConfig, DNSRecord, Hostinfo, Node, Resolver, Service

ME = Node(id=1, name="me.corp.ts.net.", addresses=["100.64.0.1/32", "fd7a:115c:a1e0::1/128"])
HOST = ("192.168.1.1", "192.168.1.2")


def hostinfo(**ports: int) -> Raw:
    services = [Service(proto=name.replace("_", "-"), port=port) for name, port in ports.items()]
    return Raw(msgspec.json.encode(Hostinfo(services=services)))


EXIT = Node(
    id=2,
    name="exit.corp.ts.net.",
    addresses=["100.64.0.2/32", "fd7a:115c:a1e0::2/128"],
    cap=100,
    hostinfo=hostinfo(peerapi4=58436, peerapi6=58437),
)
OLD_EXIT = msgspec.structs.replace(EXIT, cap=25)
PROXY_BY_NAME = msgspec.structs.replace(OLD_EXIT, hostinfo=hostinfo(peerapi4=1, peerapi_dns_proxy=1))
NO_PEER_API = msgspec.structs.replace(EXIT, hostinfo=hostinfo())
WIREGUARD_ONLY = Node(
    id=3,
    addresses=["100.64.0.3/32"],
    is_wireguard_only=True,
    exit_node_dns_resolvers=[Resolver(addr="10.64.0.1")],
)
GLOBAL = [Resolver(addr="192.0.2.1"), Resolver(addr="192.0.2.2")]
FLAGGED = [*GLOBAL, Resolver(addr="100.64.0.9", use_with_exit_node=True)]
FALLBACK = [Resolver(addr="192.0.2.9")]
EXIT_DNS = "http://100.64.0.2:58436/dns-query"


def asked(found: Configuration, name: str) -> list[str] | str:
    """Who is asked for a name; or "local"."""
    rule = found.rule_for(key_of(name))
    return "local" if rule.local else [one.text for one in rule.upstreams]


# --- routes ---------------------------------------------------------------------------------------------------------

ROUTES = DNSConfig(
    proxied=True,
    resolvers=GLOBAL,
    routes={
        "corp.ts.net.": None,
        "ts.net.": [Resolver(addr="192.0.2.30")],
        "deep.corp.ts.net": [Resolver(addr="192.0.2.31")],
        "Example.COM.": [Resolver(addr="192.0.2.32"), Resolver(addr="192.0.2.33")],
        "closed.example.com": [],
        "1.64.100.in-addr.arpa": [Resolver(addr="192.0.2.34")],
        "broken.example": [Resolver(addr="tls://192.0.2.1")],
        "not..a.name": [Resolver(addr="192.0.2.35")],
    },
    extra_records=[
        DNSRecord(name="alone.example.org", value="10.0.0.1"),
        DNSRecord(name="db.corp.ts.net", value="10.0.0.2"),
    ],
)


@pytest.mark.parametrize(
    ("name", "servers"),
    [
        ("web.corp.ts.net", "local"),
        ("corp.ts.net", "local"),
        ("other.ts.net", ["192.0.2.30"]),
        ("x.deep.corp.ts.net", ["192.0.2.31"]),
        ("deep.corp.ts.net", ["192.0.2.31"]),
        ("www.example.com", ["192.0.2.32", "192.0.2.33"]),
        ("x.closed.example.com", "local"),
        ("notexample.com", ["192.0.2.1", "192.0.2.2"]),
        ("alone.example.org", "local"),
        ("x.alone.example.org", "local"),
        ("example.org", ["192.0.2.1", "192.0.2.2"]),
        ("9.0.64.100.in-addr.arpa", "local"),
        ("9.1.64.100.in-addr.arpa", ["192.0.2.34"]),
        ("9.0.168.192.in-addr.arpa", ["192.0.2.1", "192.0.2.2"]),
        ("x.broken.example", []),  # nobody, and not the default servers either
    ],
)
def test_the_longest_suffix_counts(name: str, servers: list[str] | str) -> None:
    found = configuration(ROUTES, ME)
    assert asked(found, name) == servers
    assert found.skipped == 2
    assert found.suffix == key_of("corp.ts.net")


def test_a_route_for_everything() -> None:
    found = configuration(DNSConfig(resolvers=GLOBAL, routes={".": [Resolver(addr="192.0.2.3")]}), ME)
    assert asked(found, "example.com") == ["192.0.2.3"]
    closed = configuration(DNSConfig(resolvers=GLOBAL, routes={".": []}), ME)
    assert asked(closed, "example.com") == "local"


def test_without_magic_dns_the_tailnets_domain_is_not_ours() -> None:
    found = configuration(DNSConfig(resolvers=GLOBAL), ME)
    assert asked(found, "web.corp.ts.net") == ["192.0.2.1", "192.0.2.2"]
    assert not found.magic_dns


def test_servers_are_bounded_and_told_once() -> None:
    many = [Resolver(addr=f"192.0.2.{number}") for number in (1, 1, 1, *range(2, 20))]
    found = configuration(DNSConfig(resolvers=many), ME)
    assert asked(found, "example.com") == [f"192.0.2.{number}" for number in range(1, MAX_UPSTREAMS + 1)]
    assert found.skipped == 19 - MAX_UPSTREAMS


# --- default servers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("config", "exit_node", "host", "servers", "origin"),
    [
        (DNSConfig(resolvers=GLOBAL, fallback_resolvers=FALLBACK), None, HOST, ["192.0.2.1", "192.0.2.2"], "control"),
        (DNSConfig(fallback_resolvers=FALLBACK), None, HOST, [*HOST], "the host"),
        (DNSConfig(fallback_resolvers=FALLBACK), None, (), ["192.0.2.9"], "control's fallback"),
        (DNSConfig(), None, (), [], ""),
        (None, None, HOST, [*HOST], "the host"),
        (None, None, (), [], ""),
        # an exit node that is a proxy
        (DNSConfig(resolvers=GLOBAL, fallback_resolvers=FALLBACK), EXIT, (), [EXIT_DNS], "the exit node"),
        (DNSConfig(resolvers=FLAGGED), EXIT, HOST, ["100.64.0.9"], "the exit node"),
        (DNSConfig(), PROXY_BY_NAME, (), ["http://100.64.0.2:1/dns-query"], "the exit node"),
        # one that is none
        (DNSConfig(resolvers=FLAGGED), OLD_EXIT, (), ["192.0.2.1", "192.0.2.2", "100.64.0.9"], "control"),
        (DNSConfig(fallback_resolvers=FALLBACK), OLD_EXIT, HOST, ["192.0.2.9"], "control's fallback"),
        (DNSConfig(fallback_resolvers=FALLBACK), NO_PEER_API, HOST, ["192.0.2.9"], "control's fallback"),
        (DNSConfig(), OLD_EXIT, HOST, [], ""),
        # a WireGuard-only one
        (DNSConfig(fallback_resolvers=FALLBACK), WIREGUARD_ONLY, (), ["10.64.0.1"], "control"),
        (DNSConfig(resolvers=GLOBAL), WIREGUARD_ONLY, (), ["192.0.2.1", "192.0.2.2"], "control"),
    ],
)
def test_who_is_asked_for_all_else(
    config: DNSConfig | None, exit_node: Node | None, host: tuple[str, ...], servers: list[str], origin: str
) -> None:
    found = configuration(config, ME, exit_node, host)
    assert asked(found, "example.com") == servers
    assert found.origin == origin


@pytest.mark.parametrize(
    ("own", "url"),
    [
        (["100.64.0.1/32"], EXIT_DNS),
        (["fd7a:115c:a1e0::1/128"], "http://[fd7a:115c:a1e0::2]:58437/dns-query"),
    ],
)
def test_an_exit_node_is_asked_in_a_family_that_we_have(own: list[str], url: str) -> None:
    itself = Node(id=1, name="me.corp.ts.net.", addresses=own)
    assert asked(configuration(DNSConfig(), itself, EXIT), "example.com") == [url]


def test_with_a_proxy_only_routes_that_are_local_or_flagged_stay() -> None:
    config = DNSConfig(
        proxied=True,
        routes={
            "plain.example": [Resolver(addr="192.0.2.1")],
            "mixed.example": [Resolver(addr="192.0.2.1"), Resolver(addr="100.64.0.9", use_with_exit_node=True)],
            "closed.example": None,
        },
    )
    found = configuration(config, ME, EXIT)
    assert asked(found, "x.plain.example") == [EXIT_DNS]
    assert asked(found, "x.mixed.example") == ["100.64.0.9"]
    assert asked(found, "x.closed.example") == "local"
    assert asked(found, "web.corp.ts.net") == "local"
    assert asked(configuration(config, ME, OLD_EXIT), "x.plain.example") == ["192.0.2.1"]


def test_equal_words_of_control_are_the_same_configuration() -> None:
    assert configuration(ROUTES, ME) == configuration(ROUTES, ME)
    assert configuration(ROUTES, ME) != configuration(ROUTES, ME, EXIT)
