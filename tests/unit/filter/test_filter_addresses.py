"""Sets of addresses: what their texts mean, and that they hold exactly that."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.filter.addresses import AddressSet, Span, parse_spans
from tsns.proto.addresses import pack


def spans(*texts: str) -> AddressSet:
    return AddressSet(span for text in texts for span in parse_spans(text))


@pytest.mark.parametrize(
    ("text", "inside", "outside"),
    [
        ("*", ["0.0.0.0", "255.255.255.255", "::", "ffff::1"], []),
        ("100.64.0.1", ["100.64.0.1"], ["100.64.0.2", "::"]),
        ("100.64.0.0/10", ["100.64.0.0", "100.127.255.255"], ["100.63.255.255", "100.128.0.0", "6440::"]),
        ("0.0.0.0/0", ["0.0.0.0", "255.255.255.255"], ["::", "::1.2.3.4"]),
        ("::/0", ["::", "ffff::"], ["1.2.3.4"]),
        ("100.64.0.5-100.64.1.2", ["100.64.0.5", "100.64.0.255", "100.64.1.2"], ["100.64.0.4", "100.64.1.3"]),
        ("fd7a::1-fd7a::ff", ["fd7a::1", "fd7a::80", "fd7a::ff"], ["fd7a::", "fd7a::100"]),
        ("100.64.0.5-100.64.0.5", ["100.64.0.5"], ["100.64.0.4", "100.64.0.6"]),
    ],
)
def test_what_a_text_means(text: str, inside: list[str], outside: list[str]) -> None:
    addresses = spans(text)
    assert [address for address in inside if pack(address) not in addresses] == []
    assert [address for address in outside if pack(address) in addresses] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "**",
        "100.64.0.1/10",
        "fd7a::1/48",
        "100.64.0.0/33",
        "100.64.0.0/",
        "100.64.0.0/-1",
        "100.64.0.9-100.64.0.1",
        "100.64.0.1-fd7a::1",
        "100.64.0.1-",
        "-",
        "1.2.3.4-1.2.3.5-1.2.3.6",
        "cap:admin",
        "host.ts.net",
        "fe80::1%eth0",
        "100.64.0.1:22",
        "1" * 1000,
    ],
)
def test_what_means_nothing(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_spans(text)


def test_nothing_is_in_nothing() -> None:
    empty = AddressSet(())
    assert not empty
    assert pack("0.0.0.0") not in empty


small = st.integers(0, 30).map(lambda number: bytes((10, 0, 0, number)))
small_spans = st.tuples(small, small).map(lambda pair: (min(pair), max(pair)))


@given(st.lists(small_spans, max_size=8))
def test_a_set_holds_what_its_spans_hold(parts: list[Span]) -> None:
    addresses = AddressSet(parts)
    for number in range(32):
        address = bytes((10, 0, 0, number))
        assert (address in addresses) == any(first <= address <= last for first, last in parts)


@given(st.ip_addresses(), st.ip_addresses(), st.ip_addresses())
def test_a_range_agrees_with_ipaddress(
    low: ipaddress.IPv4Address | ipaddress.IPv6Address,
    high: ipaddress.IPv4Address | ipaddress.IPv6Address,
    probe: ipaddress.IPv4Address | ipaddress.IPv6Address,
) -> None:
    if low.version != high.version or int(low) > int(high):
        with pytest.raises(ValueError, match="range"):
            parse_spans(f"{low}-{high}")
        return
    expected = probe.version == low.version and int(low) <= int(probe) <= int(high)
    assert (probe.packed in spans(f"{low}-{high}")) == expected
