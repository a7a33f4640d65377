"""A netmap on paper is the netmap, and what is not one is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.control.cache import HEADER, dump, is_worth_saving, load
from tsns.control.netmap import NetMap
from tsns.error import ProtocolError
from tsns.keys import NodePublic
from tsns.proto.types import (
    DERPMap,
    DERPRegion,
    DNSConfig,
    FilterRule,
    MapResponse,
    NetPortRange,
    Node,
    PeerChange,
    PortRange,
    TKAInfo,
    UserProfile,
    decode,
)

NOW = 1_800_000_000.0
OURS = NodePublic(b"\x01" * 32)


def node(number: int) -> Node:
    text = (
        f'{{"ID":{number},"Key":"nodekey:{bytes([number] * 32).hex()}","Name":"n{number}.test.","HomeDERP":1,'
        f'"Addresses":["100.64.0.{number}/32"],"CapMap":{{"x":[1]}},"Hostinfo":{{"OS":"linux"}},"Online":true}}'
    )
    return decode(text.encode(), Node)


def netmap() -> NetMap:
    found = NetMap()
    found.apply(
        MapResponse(
            node=node(1),
            peers=[node(2), node(3)],
            derp_map=DERPMap(regions={1: DERPRegion(region_code="one")}),
            packet_filters={
                "b": [FilterRule(src_ips=["*"])],
                "a": [
                    FilterRule(
                        src_ips=["100.64.0.2"], dst_ports=[NetPortRange(ip="*", ports=PortRange(first=1, last=2))]
                    )
                ],
            },
            dns_config=DNSConfig(proxied=True, domains=["test"]),
            user_profiles=[UserProfile(id=7, login_name="me")],
            domain="test",
        ),
        NOW,
    )
    return found


def content(found: NetMap) -> bytes:
    data = dump(found)
    assert data is not None
    return data


def test_what_was_saved_is_what_was_there() -> None:
    """A stream that says the same afterwards changes nothing."""
    before, after = netmap(), NetMap()
    assert after.apply(load(content(before), OURS), NOW).first
    for name in ("self_node", "peers", "derp_map", "rules", "dns", "user_profiles", "domain", "locked"):
        assert getattr(after, name) == getattr(before, name), name
    after.begin_stream()
    change = after.apply(load(content(before), OURS), NOW)
    assert change.first
    assert not is_worth_saving(change)
    assert (change.changed, change.users) == ((), False)


def test_a_lock_is_kept() -> None:
    """Else a start without control would let unsigned peers in."""
    found = netmap()
    found.apply(MapResponse(tka_info=TKAInfo(head="A" * 52)), NOW)
    again = NetMap()
    again.apply(load(content(found), OURS), NOW)
    assert again.locked


def test_nothing_is_nothing() -> None:
    assert dump(NetMap()) is None


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not a netmap"),
        (b"tsns netmap 2\n", "not a netmap"),
        (HEADER, "incomplete"),
        (HEADER + b"\x00\x00\x00\x00", "announces 0 bytes"),
        (HEADER + b"\x02\x00\x00\x00{}", "incomplete"),
        (HEADER + b"\x02\x00\x00\x00{[", "MapResponse"),
    ],
)
def test_what_is_no_netmap(data: bytes, reason: str) -> None:
    with pytest.raises(ProtocolError, match=reason):
        load(data, OURS)


def test_another_node_key_makes_it_void() -> None:
    with pytest.raises(ProtocolError, match="another node key"):
        load(content(netmap()), NodePublic(b"\x02" * 32))


@given(st.integers(0, 2000), st.binary(max_size=8))
def test_damage_is_told(place: int, garbage: bytes) -> None:
    data = bytearray(content(netmap()))
    data[place : place + len(garbage)] = garbage
    try:
        load(bytes(data), OURS)
    except ProtocolError:
        pass


def test_what_is_worth_saving() -> None:
    found = netmap()
    for message, worth in (
        (MapResponse(online_change={2: False}), False),
        (MapResponse(health=["oh"]), False),
        (MapResponse(peers_changed_patch=[PeerChange(node_id=2, derp_region=2)]), True),
        (MapResponse(peers_removed=[3]), True),
        (MapResponse(domain="other"), True),
        (MapResponse(packet_filters={"b": None}), True),
    ):
        assert is_worth_saving(found.apply(message, NOW)) is worth, message
