"""Addresses and prefixes as packed bytes."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tsns.proto.addresses import (
    CGNAT,
    ENDPOINT_BYTES,
    SERVICE_V4,
    SERVICE_V6,
    ULA,
    Endpoint,
    Prefix,
    endpoint_text,
    masked,
    pack,
    pack_endpoint,
    parse_endpoint,
    unmapped,
    unpack,
    unpack_endpoint,
)

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@given(st.ip_addresses())
def test_addresses_there_and_back(address: Address) -> None:
    assert pack(str(address)) == address.packed
    assert pack(unpack(address.packed)) == address.packed


def test_addresses_are_written_the_short_way() -> None:
    assert unpack(pack("FD7A:0115:0000:0000:0000:0000:0000:0001")) == "fd7a:115::1"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1.2.3",
        "1.2.3.4.5",
        "1.2.3.256",
        "1.2.3.-4",
        " 1.2.3.4",
        "1.2.3.4\n",
        "1.2.3.4\0",
        ":",
        "::1::",
        "fe80::1%lo",
        "a",
        "é",
    ],
)
def test_what_is_no_address(text: str) -> None:
    with pytest.raises(ValueError, match="not an IP address"):
        pack(text)


@pytest.mark.parametrize(
    ("text", "network", "bits"),
    [
        ("100.64.0.1", "100.64.0.1", 32),
        ("100.64.0.1/32", "100.64.0.1", 32),
        ("100.64.0.1/10", "100.64.0.0", 10),
        ("1.2.3.4/0", "0.0.0.0", 0),
        ("fd7a::1", "fd7a::1", 128),
        ("fd7a::1/48", "fd7a::", 48),
        ("ffff::/1", "8000::", 1),
        ("::/0", "::", 0),
    ],
)
def test_prefixes(text: str, network: str, bits: int) -> None:
    prefix = Prefix.parse(text)
    assert (prefix.network, prefix.bits) == (pack(network), bits)
    assert str(prefix) == f"{network}/{bits}"
    assert prefix == Prefix.parse(str(prefix))
    assert prefix.is_address == (bits == 8 * len(prefix.network))


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "/8",
        "1.2.3.4/",
        "1.2.3.4/33",
        "1.2.3.4/-1",
        "1.2.3.4/+8",
        "1.2.3.4/ 8",
        "1.2.3.4/8/8",
        "::/129",
        "::/²",
        "::/0000",
        "x/8",
    ],
)
def test_what_is_no_prefix(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        Prefix.parse(text)


def test_host_bits_are_refused_by_those_who_are_strict() -> None:
    assert Prefix.parse("100.64.0.0/10", strict=True) == CGNAT
    assert Prefix.parse("100.64.0.1", strict=True).is_address
    with pytest.raises(ValueError, match="host bits"):
        Prefix.parse("100.64.0.1/10", strict=True)


@given(st.ip_addresses(), st.integers(0, 128), st.ip_addresses())
def test_covers_as_ipaddress_does(base: Address, bits: int, probe: Address) -> None:
    bits = min(bits, base.max_prefixlen)
    network = ipaddress.ip_network(f"{base}/{bits}", strict=False)
    prefix = Prefix.parse(f"{base}/{bits}")
    assert prefix.network == network.network_address.packed == masked(base.packed, bits)
    assert prefix.covers(probe.packed) == (probe in network)
    assert prefix.covers(base.packed)


@pytest.mark.parametrize(
    ("outer", "inner", "covers"),
    [
        ("10.0.0.0/8", "10.1.0.0/16", True),
        ("10.0.0.0/8", "10.0.0.0/8", True),
        ("10.0.0.0/8", "10.0.0.0/7", False),
        ("10.0.0.0/8", "11.0.0.0/16", False),
        ("0.0.0.0/0", "10.0.0.0/8", True),
        ("0.0.0.0/0", "::/0", False),
        ("::/0", "10.0.0.0/8", False),
    ],
)
def test_prefixes_within_prefixes(outer: str, inner: str, covers: bool) -> None:
    assert Prefix.parse(outer).covers_prefix(Prefix.parse(inner)) == covers


def test_the_tailnets_own() -> None:
    assert CGNAT.covers(SERVICE_V4)
    assert ULA.covers(SERVICE_V6)
    assert (unpack(SERVICE_V4), unpack(SERVICE_V6)) == ("100.100.100.100", "fd7a:115c:a1e0::53")


# --- endpoints -----------------------------------------------------------------------------------------------------


@settings(deadline=None)
@given(st.ip_addresses(), st.integers(0, 0xFFFF))
def test_endpoints_there_and_back(address: Address, port: int) -> None:
    plain = getattr(address, "ipv4_mapped", None) or address
    endpoint = (unpack(plain.packed), port)
    packed = pack_endpoint((str(address), port))
    assert len(packed) == ENDPOINT_BYTES
    assert unpack_endpoint(packed) == endpoint
    assert parse_endpoint(endpoint_text((str(address), port))) == endpoint


@pytest.mark.parametrize(
    ("endpoint", "text", "packed"),
    [
        (("1.2.3.4", 567), "1.2.3.4:567", "00000000000000000000ffff010203040237"),
        (("2001::3456", 789), "[2001::3456]:789", "200100000000000000000000000034560315"),
        (("::", 0), "[::]:0", "00" * 18),
        (("255.255.255.255", 65535), "255.255.255.255:65535", "00000000000000000000ffffffffffffffff"),
    ],
)
def test_endpoints(endpoint: Endpoint, text: str, packed: str) -> None:
    assert pack_endpoint(endpoint) == bytes.fromhex(packed)
    assert unpack_endpoint(bytes.fromhex(packed)) == parse_endpoint(text) == endpoint
    assert endpoint_text(endpoint) == text


def test_ipv4_in_the_clothes_of_ipv6_is_ipv4() -> None:
    assert unmapped(pack("::ffff:1.2.3.4")) == pack("1.2.3.4") == unmapped(pack("1.2.3.4"))
    assert unmapped(pack("::fffe:1.2.3.4")) == pack("::fffe:1.2.3.4")
    assert parse_endpoint("[::ffff:1.2.3.4]:5") == ("1.2.3.4", 5)


def test_a_zone_is_left_out_of_18_bytes() -> None:
    assert unpack_endpoint(pack_endpoint(("fe80::1%eth0", 5))) == ("fe80::1", 5)


def test_what_stands_behind_18_bytes_is_passed_over() -> None:
    assert unpack_endpoint(pack_endpoint(("1.2.3.4", 5)) + b"more") == ("1.2.3.4", 5)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":",
        "1.2.3.4",
        "1.2.3.4:",
        ":80",
        "1.2.3.4:-1",
        "1.2.3.4:+1",
        "1.2.3.4: 1",
        "1.2.3.4:65536",
        "1.2.3.4:000080",
        "1.2.3.4:\u00b2",
        "1.2.3.4:5:6",
        "[1.2.3.4]:5",
        "::1:80",
        "[::1]",
        "[::1]:",
        "[::1:80",
        "::1]:80",
        "[fe80::1%eth0]:80",
        "name:80",
        "1.2.3.4\0:80",
    ],
)
def test_what_is_no_endpoint(text: str) -> None:
    with pytest.raises(ValueError, match="is not an"):
        parse_endpoint(text)


@pytest.mark.parametrize("host", ["", "name", "1.2.3", "%eth0"])
def test_what_is_no_address_is_not_packed(host: str) -> None:
    with pytest.raises(ValueError, match="not an IP address"):
        pack_endpoint((host, 1))
