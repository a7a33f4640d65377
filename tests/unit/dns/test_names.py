"""DNS names as keys, reverse names, 4via6 names."""

from __future__ import annotations

import ipaddress

import dns.name
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.dns.names import ROOT, ancestors, key_of, labels, parent, reverse_key, reversed_address, via_address
from tsns.proto.addresses import pack


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("web", b"\x03web\0"),
        ("web.", b"\x03web\0"),
        ("Web.Corp.TS.net.", b"\x03web\x04corp\x02ts\x03net\0"),
        ("a" * 63, b"?" + b"a" * 63 + b"\0"),
    ],
)
def test_keys(text: str, key: bytes) -> None:
    assert key_of(text) == key


@pytest.mark.parametrize("text", ["", ".", "..", "a..b", ".a", "a" * 64, "höst.ts.net", ".".join(["a" * 63] * 4)])
def test_what_is_no_name(text: str) -> None:
    with pytest.raises(ValueError, match="name"):
        key_of(text)


@given(st.lists(st.from_regex(r"[a-zA-Z0-9_-]{1,63}", fullmatch=True), min_size=1, max_size=3))
def test_a_key_is_the_lower_case_wire_form(parts: list[str]) -> None:
    text = ".".join(parts)
    assert key_of(text) == dns.name.from_text(text).canonicalize().to_wire()
    assert labels(key_of(text)) == [part.lower().encode() for part in parts]


def test_up_the_tree() -> None:
    web, corp, net = key_of("web.corp.net"), key_of("corp.net"), key_of("net")
    assert parent(web) == corp
    assert parent(ROOT) == ROOT
    assert list(ancestors(web)) == [web, corp, net, ROOT]
    assert list(ancestors(ROOT)) == [ROOT]


@given(st.ip_addresses())
def test_reverse_names_there_and_back(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
    key = reverse_key(address.packed)
    assert key == key_of(address.reverse_pointer)
    assert reversed_address(key) == address.packed


@pytest.mark.parametrize(
    "name",
    [
        "web.ts.net",
        "arpa",
        "in-addr.arpa",
        "64.100.in-addr.arpa",
        "1.0.0.64.100.in-addr.arpa",
        "256.0.64.100.in-addr.arpa",
        "01.0.64.100.in-addr.arpa",
        "a.0.64.100.in-addr.arpa",
        "1.0.64.100.in-addr.example",
        "1.ip6.arpa",
        ".".join(["g"] * 32) + ".ip6.arpa",
        ".".join(["11"] * 32) + ".ip6.arpa",
    ],
)
def test_names_that_reverse_nothing(name: str) -> None:
    assert reversed_address(key_of(name)) is None


def test_the_root_reverses_nothing() -> None:
    assert reversed_address(ROOT) is None


@pytest.mark.parametrize(
    ("name", "address"),
    [
        ("192-168-1-2-via-7", "fd7a:115c:a1e0:b1a:0:7:c0a8:102"),  # the site and address of Tailscale's own example
        ("192-168-1-2-via-0x7.corp.ts.net", "fd7a:115c:a1e0:b1a:0:7:c0a8:102"),
        ("10-0-0-1-via-65536.tailscale.net", "fd7a:115c:a1e0:b1a:1:0:a00:1"),
        ("192-168-1-2-via-7.example.com", None),
        ("192-168-1-via-7", None),
        ("192-168-1-300-via-7", None),
        ("192-168-1-2-via-", None),
        ("192-168-1-2-via-x", None),
        ("192-168-1-2-via--1", None),
        ("192-168-1-2-via-1_0", None),
        ("192-168-1-2-via-4294967296", None),
        ("via-7", None),
        ("web", None),
    ],
)
def test_4via6(name: str, address: str | None) -> None:
    assert via_address(key_of(name)) == (None if address is None else pack(address))


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5))
def test_no_labels_raise(parts: list[bytes]) -> None:
    key = b"".join(bytes((len(part),)) + part for part in parts).lower() + ROOT
    assert reversed_address(key) is None or key == reverse_key(reversed_address(key) or b"")
    via_address(key)
