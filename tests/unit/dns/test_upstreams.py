"""How control and the host name DNS servers."""

from __future__ import annotations

import pytest

from tsns.dns.upstreams import Transport, host_upstream, upstream
from tsns.proto.addresses import unpack
from tsns.proto.types import Resolver

PLAIN = (Transport.UDP, Transport.TCP)


@pytest.mark.parametrize(
    ("text", "addresses", "port", "transports", "host", "path"),
    [
        ("192.0.2.1", ["192.0.2.1"], 53, PLAIN, "", ""),
        ("2001:db8::1", ["2001:db8::1"], 53, PLAIN, "", ""),
        ("[2001:db8::1]", ["2001:db8::1"], 53, PLAIN, "", ""),
        ("192.0.2.1:5353", ["192.0.2.1"], 5353, PLAIN, "", ""),
        ("[2001:db8::1]:5353", ["2001:db8::1"], 5353, PLAIN, "", ""),
        (
            "http://100.64.0.9:58436/dns-query",
            ["100.64.0.9"],
            58436,
            (Transport.HTTP,),
            "100.64.0.9",
            "/dns-query",
        ),
        (
            "http://[fd7a:115c:a1e0::9]:58436/dns-query",
            ["fd7a:115c:a1e0::9"],
            58436,
            (Transport.HTTP,),
            "[fd7a:115c:a1e0::9]",
            "/dns-query",
        ),
        (
            "https://dns.google/dns-query",
            ["8.8.8.8", "8.8.4.4", "2001:4860:4860::8888", "2001:4860:4860::8844"],
            443,
            (Transport.HTTPS,),
            "dns.google",
            "/dns-query",
        ),
        (
            "https://DNS.nextdns.io/abc123",
            ["45.90.28.0", "45.90.30.0"],
            443,
            (Transport.HTTPS,),
            "dns.nextdns.io",
            "/abc123",
        ),
        ("https://9.9.9.9/dns-query", ["9.9.9.9"], 443, (Transport.HTTPS,), "9.9.9.9", "/dns-query"),
        # NextDNS knows its customer by the address
        ("2a07:a8c0::ab:cdef", ["2a07:a8c0::ab:cdef"], 443, (Transport.HTTPS,), "dns.nextdns.io", "/abcdef"),
    ],
)
def test_forms(
    text: str, addresses: list[str], port: int, transports: tuple[Transport, ...], host: str, path: str
) -> None:
    found = upstream(Resolver(addr=text))
    assert [unpack(address) for address in found.addresses] == addresses
    assert (found.port, found.transports, found.host, found.path) == (port, transports, host, path)
    assert found.text == text
    assert not found.of_host


def test_control_may_say_where_a_host_is() -> None:
    found = upstream(
        Resolver(addr="https://dns.corp.example/q?x=1", bootstrap_resolution=["10.0.0.1", "nonsense", "fd00::1"])
    )
    assert [unpack(address) for address in found.addresses] == ["10.0.0.1", "fd00::1"]
    assert found.path == "/q?x=1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "dns.google",
        "192.0.2.1:0",
        "192.0.2.1:99999",
        "tls://1.1.1.1",
        "tcp://100.64.0.9",
        "https://unknown.example/dns-query",
        "https:///dns-query",
        "https://dns.google:x/dns-query",
        "https://dns.google/with a blank",
        "https://dns.google/\r\nHost: x",
        "https://dns..google/",
        "https://dns.google/" + "x" * 600,
        "http://dns.google/dns-query",  # in the clear
        "http://192.0.2.1/dns-query",
        "http://192.168.1.1:8080/dns-query",
        # ourselves, nobody, everybody
        "100.100.100.100",
        "fd7a:115c:a1e0::53",
        "http://100.100.100.100/dns-query",
        "127.0.0.1",
        "127.0.0.53:53",
        "0.0.0.0",
        "::",
        "::1",
        "224.0.0.251",
        "255.255.255.255",
        "ff02::fb",
        "fe80::1",
        "::ffff:127.0.0.1",
        "::ffff:100.100.100.100",
    ],
)
def test_what_is_no_server(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (each has words of its own)
        upstream(Resolver(addr=text))


def test_the_hosts_own_servers_are_the_hosts_wherever_they_are() -> None:
    found = host_upstream("127.0.0.53")
    assert (found.of_host, found.port, found.transports) == (True, 53, PLAIN)
