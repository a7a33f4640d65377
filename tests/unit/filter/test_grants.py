"""Capabilities: who has which towards us, and what was granted with them."""

from __future__ import annotations

import pytest
from msgspec import Raw

from tsns.filter.grants import Grants
from tsns.proto.addresses import pack
from tsns.proto.types import CapGrant, FilterRule, NetPortRange, PortRange

US, OTHER = pack("100.64.0.1"), pack("100.64.0.9")
PEER, STRANGER = pack("100.64.0.2"), pack("100.64.0.3")


def granted(*rules: FilterRule, source: bytes = PEER, destination: bytes = US) -> dict[str, list[Raw]]:
    return Grants(rules).of(source, destination)


def grant(*sources: str, to: str = "100.64.0.1/32", caps: list[str] | None = None, **values: str) -> FilterRule:
    found = {name: Raw(text.encode()) for name, text in values.items()}
    return FilterRule(src_ips=list(sources), cap_grant=[CapGrant(dsts=[to], caps=caps, cap_map=found)])


def test_values_of_several_grants_come_together() -> None:
    rules = [grant("*", read="[1]"), grant("100.64.0.2", read="[2,3]", write="null"), grant("100.64.0.9", read="[9]")]
    assert granted(*rules) == {"read": [Raw(b"[1]"), Raw(b"[2,3]")], "write": [Raw(b"null")]}
    assert granted(*rules, source=STRANGER) == {"read": [Raw(b"[1]")]}


def test_the_older_form_has_no_values() -> None:
    assert granted(grant("*", caps=["debug", ""])) == {"debug": []}


@pytest.mark.parametrize(
    ("to", "there"),
    [("100.64.0.1/32", True), ("0.0.0.0/0", True), ("100.64.0.1", True), ("100.64.0.9/32", False), ("::/0", False)],
)
def test_a_grant_is_for_its_destinations(to: str, there: bool) -> None:
    assert bool(granted(grant("*", to=to, caps=["x"]))) is there


@pytest.mark.parametrize(
    "rule", [grant("tag:x", caps=["x"]), grant("cap:y", caps=["x"]), grant("*", to="?", caps=["x"])]
)
def test_what_is_not_understood_grants_nothing(rule: FilterRule) -> None:
    assert granted(rule) == {}


def test_a_rule_for_packets_grants_no_capability() -> None:
    ports = NetPortRange(ip="*", ports=PortRange(first=0, last=65535))
    assert granted(FilterRule(src_ips=["*"], dst_ports=[ports])) == {}
