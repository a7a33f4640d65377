"""The wire types against what Go's encoding/json may send: null, absent, empty and unknown members."""

from __future__ import annotations

import json
import typing
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.error import ProtocolError
from tsns.proto import types
from tsns.proto.types import (
    NULL,
    DERPMap,
    DNSConfig,
    EarlyNoise,
    FilterRule,
    Hostinfo,
    MapRequest,
    MapResponse,
    NetInfo,
    Node,
    PeerChange,
    RegisterAuth,
    RegisterRequest,
    RegisterResponse,
    Wire,
    decode,
    decode_hostinfo,
    encode,
    parse_time,
)

EVERY_TYPE: list[type[Wire]] = [
    kind for kind in vars(types).values() if isinstance(kind, type) and issubclass(kind, Wire) and kind is not Wire
]

# One Node as a server writes it: every kind of absence that Go knows, and members that nobody here has heard of.
NODE: dict[str, Any] = {
    "ID": 6_917_529_027_641_081_857,
    "StableID": "nABC",
    "Name": "web.corp.ts.net.",
    "User": 9_007_199_254_740_993,
    "Key": "nodekey:" + "00" * 32,
    "KeyExpiry": "0001-01-01T00:00:00Z",
    "Machine": "",
    "DiscoKey": None,
    "Addresses": ["100.64.0.2/32", "fd7a:115c:a1e0::2/128"],
    "AllowedIPs": None,
    "Endpoints": [],
    "DERP": "127.3.3.40:7",
    "HomeDERP": 7,
    "Hostinfo": {"OS": "linux", "Hostname": "web", "Services": None, "FromTheFuture": {"deep": [1, {}]}},
    "Tags": None,
    "CapMap": {"dns-subdomain-resolve": None, "https://example.com/cap": [{"any": "json"}]},
    "Online": None,
    "ComputedName": "web",
    "IsWireGuardOnly": False,
}


def test_a_node() -> None:
    node = decode(json.dumps(NODE).encode(), Node)
    assert (node.id, node.user) == (6_917_529_027_641_081_857, 9_007_199_254_740_993)
    assert (node.stable_id, node.name, node.home_derp, node.derp) == ("nABC", "web.corp.ts.net.", 7, "127.3.3.40:7")
    assert node.addresses == ["100.64.0.2/32", "fd7a:115c:a1e0::2/128"]
    assert (node.allowed_ips, node.endpoints, node.tags) == (None, [], None)
    assert (node.disco_key, node.machine, node.online) == (None, "", None)
    assert node.is_wireguard_only is False
    assert set(node.cap_map or {}) == {"dns-subdomain-resolve", "https://example.com/cap"}
    hostinfo = decode_hostinfo(node)
    assert (hostinfo.os, hostinfo.hostname, hostinfo.services) == ("linux", "web", None)


@pytest.mark.parametrize("kind", EVERY_TYPE)
def test_every_type_has_an_empty_form(kind: type[Wire]) -> None:
    empty = decode(b"{}", kind)
    assert decode(b'{"Something": {"of": ["the", "future", null, 1e400]}}', kind) == empty
    assert decode(b" \n{ } \t", kind) == empty


@pytest.mark.parametrize("kind", EVERY_TYPE)
def test_null_is_the_same_as_absent_wherever_absence_is_known(kind: type[Wire]) -> None:
    for field in msgspec.structs.fields(kind):
        if field.default is None:
            assert decode(json.dumps({field.encode_name: None}).encode(), kind) == decode(b"{}", kind), field.name


@pytest.mark.parametrize("kind", EVERY_TYPE)
def test_every_list_and_map_may_be_empty(kind: type[Wire]) -> None:
    for field in msgspec.structs.fields(kind):
        for part in typing.get_args(field.type):
            container = typing.get_origin(part)
            if container in {list, dict}:
                value = decode(json.dumps({field.encode_name: container()}).encode(), kind)
                assert getattr(value, field.name) == container()


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            Hostinfo,
            """IPNVersion BackendLogID OS OSVersion Hostname App Machine GoArch Userspace UserspaceRouter NoLogsNoSupport
            ShieldsUp RequestTags RoutableIPs Services NetInfo""",
        ),
        (
            NetInfo,
            "MappingVariesByDestIP WorkingIPv6 OSHasIPv6 WorkingUDP UPnP PMP PCP HavePortMap PreferredDERP DERPLatency",
        ),
        (PeerChange, "NodeID DERPRegion Cap CapMap Endpoints Key KeySignature DiscoKey Online LastSeen KeyExpiry"),
        (FilterRule, "SrcIPs SrcBits DstPorts IPProto CapGrant"),
        (EarlyNoise, "nodeKeyChallenge"),
        (DERPMap, "HomeParams Regions omitDefaultRegions"),
        (RegisterResponse, "User Login NodeKeyExpired MachineAuthorized AuthURL NodeKeySignature Error"),
        (
            DNSConfig,
            "Resolvers Routes FallbackResolvers Domains Proxied ExtraRecords CertDomains ExitNodeFilteredSet",
        ),
    ],
)
def test_members_are_named_as_in_go(kind: type[Wire], names: str) -> None:
    assert [field.encode_name for field in msgspec.structs.fields(kind)] == names.split()


def test_maps_with_numbers_as_keys_and_nulls_as_values() -> None:
    response = decode(
        b'{"DERPMap": {"Regions": {"1": null, "900": {"RegionID": 900, "Nodes": null}}},'
        b' "OnlineChange": {"12": true, "13": false}, "PacketFilters": {"*": null, "base": []},'
        b' "DNSConfig": {"Routes": {"a.": null, "b": [], "c": [{"Addr": "10.0.0.1"}]}}}',
        MapResponse,
    )
    assert response.derp_map is not None
    assert response.derp_map.regions is not None
    assert response.derp_map.regions[1] is None
    assert response.online_change == {12: True, 13: False}
    assert response.packet_filters == {"*": None, "base": []}
    assert response.dns_config is not None
    assert [bool(value) for value in (response.dns_config.routes or {}).values()] == [False, False, True]


def test_absent_and_empty_are_told_apart_where_that_matters() -> None:
    assert decode(b"{}", MapResponse).packet_filter is None
    assert decode(b'{"PacketFilter": []}', MapResponse).packet_filter == []


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{", "{} {}", '{"ID": "1"}', '{"ID": 1.5}', '{"Addresses": [1]}', '"\\ud800"']
)
def test_what_is_no_node_breaks_the_protocol(text: str) -> None:
    with pytest.raises(ProtocolError, match=r"^Node: "):
        decode(text.encode(), Node)


@pytest.mark.parametrize(
    "data", [b'{"Name": "\xff\xfe"}', b'{"Hostinfo":' + b"[" * 100_000, b'{"Nothing":' + b'{"a":' * 100_000]
)
def test_neither_bad_text_nor_depth_does_harm(data: bytes) -> None:
    with pytest.raises(ProtocolError):
        decode(data, Node)


def test_an_error_does_not_repeat_the_values() -> None:
    with pytest.raises(ProtocolError) as caught:
        decode(b'{"Auth": {"AuthKey": ["tskey-auth-secret"]}}', RegisterRequest)
    assert "tskey" not in str(caught.value)
    assert "$.Auth.AuthKey" in str(caught.value)


def test_an_auth_key_is_not_shown() -> None:
    request = RegisterRequest(auth=RegisterAuth(auth_key="tskey-auth-secret"))
    assert "tskey" not in repr(request)
    assert encode(request) == b'{"Auth":{"AuthKey":"tskey-auth-secret"}}'


def test_only_what_is_set_is_sent() -> None:
    assert encode(MapRequest(version=131, node_key="nodekey:x", stream=True)) == (
        b'{"Version":131,"NodeKey":"nodekey:x","Stream":true}'
    )
    assert encode(Node(id=1, online=False)) == b'{"ID":1,"Online":false}'
    assert encode(Node()) == b"{}"


@pytest.mark.parametrize("hostinfo", [b"null", b"{}", b'"text"', b"[1]", b'{"OS": 5}'])
def test_a_hostinfo_that_says_nothing(hostinfo: bytes) -> None:
    assert decode_hostinfo(decode(b'{"Hostinfo": ' + hostinfo + b"}", Node)) == Hostinfo()


def test_no_hostinfo_at_all() -> None:
    assert Node().hostinfo == NULL
    assert decode_hostinfo(Node()) == Hostinfo()


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, None),
        ("", None),
        ("0001-01-01T00:00:00Z", None),
        ("0001-01-01T00:00:00+00:00", None),
        ("yesterday", None),
        ("2026-13-01T00:00:00Z", None),
        ("1970-01-01T00:02:03Z", 123.0),
        ("1970-01-01T01:02:03+01:00", 123.0),
        ("1970-01-01T00:00:01.123456789Z", 1.123456),
        ("1970-01-01T00:02:03", 123.0),
    ],
)
def test_times(text: str | None, seconds: float | None) -> None:
    time = parse_time(text)
    assert (None if time is None else time.timestamp()) == seconds


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_no_bytes_raise_anything_else(data: bytes) -> None:
    for kind in (MapResponse, Node, RegisterResponse):
        try:
            decode(data, kind)
        except ProtocolError:
            continue


@given(st.text(max_size=40))
def test_no_time_raises(text: str) -> None:
    parse_time(text)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 1 << 70) | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@given(st.sampled_from(EVERY_TYPE), st.data())
def test_no_value_in_any_member_raises_anything_else(kind: type[Wire], data: st.DataObject) -> None:
    field = data.draw(st.sampled_from(msgspec.structs.fields(kind)))
    message = json.dumps({field.encode_name: data.draw(json_values)}).encode()
    try:
        value = decode(message, kind)
    except ProtocolError:
        return
    assert decode(encode(value), kind) == value
