"""The netmap told as messages: what came, what it changed."""

from __future__ import annotations

import json
import time
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tsns.control.netmap import NetMap, NetMapChange
from tsns.control.nodes import prefixes
from tsns.error import ProtocolError
from tsns.proto.addresses import Prefix
from tsns.proto.types import NULL, MapResponse, Node, decode

NOW = 1_800_000_000.0
NO_KEY = "nodekey:" + 64 * "0"
NEVER = "0001-01-01T00:00:00Z"


def key(number: int) -> str:
    return f"nodekey:{number:064x}"


def node(number: int, **members: Any) -> dict[str, Any]:
    address = f"100.64.{number >> 8}.{number & 255}/32"
    return {"ID": number, "Name": f"n{number}.example.test.", "Key": key(number), "Addresses": [address], **members}


def message(**members: Any) -> MapResponse:
    return decode(json.dumps(members).encode(), MapResponse)


def apply(netmap: NetMap, **members: Any) -> NetMapChange:
    return netmap.apply(message(**members), NOW)


def ids(nodes: tuple[Node, ...]) -> list[int]:
    return [node.id for node in nodes]


@pytest.fixture
def netmap() -> NetMap:
    """Ourselves as node 1, and peers 2 and 3."""
    netmap = NetMap()
    apply(netmap, Node=node(1), Peers=[node(2), node(3, HomeDERP=7, Online=True)])
    return netmap


def test_the_first_message_of_all_says_everything() -> None:
    netmap = NetMap()
    change = apply(netmap, Node=node(1), Peers=[node(2)], Domain="example.test")
    assert change.first
    assert change.self_changed
    assert change.derp_map
    assert change.rules
    assert change.dns
    assert change.users
    assert change.health
    assert change.lock
    assert ids(change.added) == [2]
    assert netmap.domain == "example.test"


def test_a_stream_begins_with_our_node(netmap: NetMap) -> None:
    with pytest.raises(ProtocolError, match="lacks our own node"):
        apply(NetMap(), Peers=[node(2)])
    netmap.begin_stream()
    for members in ({}, {"Node": node(1, Key=NO_KEY)}):
        with pytest.raises(ProtocolError):
            apply(netmap, **members, Peers=[node(4)])
    assert set(netmap.peers) == {2, 3}


# --- peers -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("empty", [None, []])
def test_no_peers_mean_no_change(netmap: NetMap, empty: list[Any] | None) -> None:
    change = apply(netmap, Peers=empty, PeersChanged=empty, PeersRemoved=empty, PeersChangedPatch=empty)
    assert not change
    assert set(netmap.peers) == {2, 3}


def test_a_complete_list_replaces_and_leaves_the_lists_beside_it_unread(netmap: NetMap) -> None:
    three = netmap.peers[3]
    change = apply(
        netmap,
        Peers=[node(3, HomeDERP=7, Online=True), node(4)],
        PeersRemoved=[4],
        PeersChanged=[node(5)],
        OnlineChange={"3": False},
        PeersChangedPatch=[{"NodeID": 4, "DERPRegion": 9}],
    )
    assert ids(change.removed) == [2]
    assert ids(change.added) == [4]
    assert change.added[0].home_derp == 9, "patches do apply"
    assert change.changed == ()
    assert netmap.peers[3] is three


def test_upserts_and_removals(netmap: NetMap) -> None:
    before = netmap.peers[2]
    change = apply(netmap, PeersRemoved=[3, 99], PeersChanged=[node(2, Tags=["tag:a"]), node(4)])
    assert ids(change.removed) == [3]
    assert ids(change.added) == [4]
    assert change.changed == ((before, netmap.peers[2]),)
    assert netmap.peers[2].tags == ["tag:a"]
    assert before.tags is None


def test_a_peer_that_comes_again_unchanged_is_no_change(netmap: NetMap) -> None:
    before = netmap.peers[3]
    again = node(
        3, HomeDERP=7, DERP="127.3.3.40:7", Online=True, Tags=None, AllowedIPs=None, Endpoints=[], KeyExpiry=NEVER
    )
    assert not apply(netmap, PeersChanged=[again | {"Hostinfo": {"OS": "plan9"}}])
    assert netmap.peers[3] is before


def test_one_message_is_one_change_of_a_peer(netmap: NetMap) -> None:
    before = netmap.peers[2]
    change = apply(
        netmap,
        PeersRemoved=[2],
        PeersChanged=[node(2)],
        OnlineChange={"2": True},
        PeersChangedPatch=[{"NodeID": 2, "DERPRegion": 4}, {"NodeID": 2, "DERPRegion": 5}, {"NodeID": 77, "Cap": 1}],
    )
    assert change.changed == ((before, netmap.peers[2]),)
    assert (netmap.peers[2].online, netmap.peers[2].home_derp) == (True, 5)


def test_seen_and_online(netmap: NetMap) -> None:
    apply(netmap, PeerSeenChange={"2": True}, OnlineChange={"2": False})
    assert (netmap.peers[2].last_seen, netmap.peers[2].online) == ("2027-01-15T08:00:00+00:00", False)
    apply(netmap, PeerSeenChange={"2": False})
    assert (netmap.peers[2].last_seen, netmap.peers[2].online) == (None, False)


def test_patches(netmap: NetMap) -> None:
    disco = "discokey:" + 64 * "d"
    full = {"Cap": 5, "Key": key(22), "DiscoKey": disco, "KeySignature": "AA==", "KeyExpiry": "2030-01-01T00:00:00Z"}
    apply(netmap, PeersChangedPatch=[{"NodeID": 2, "Endpoints": ["192.0.2.1:1"], "CapMap": {"x": [1]}, **full}])
    peer = netmap.peers[2]
    assert (peer.cap, peer.key, peer.disco_key, peer.key_signature) == (5, key(22), disco, "AA==")
    assert (peer.endpoints, peer.key_expiry) == (["192.0.2.1:1"], "2030-01-01T00:00:00Z")
    assert peer.cap_map is not None
    assert bytes(peer.cap_map["x"]) == b"[1]"

    unchanged = {"NodeID": 2, "DERPRegion": 0, "Cap": None, "Endpoints": None, "CapMap": None, "Key": None}
    assert not apply(netmap, PeersChangedPatch=[unchanged])
    apply(netmap, PeersChangedPatch=[{"NodeID": 2, "Endpoints": [], "CapMap": {}, "KeyExpiry": NEVER}])
    peer = netmap.peers[2]
    assert (peer.endpoints, peer.cap_map, peer.key_expiry) == (None, None, None)


def test_damaged_peers_are_left_out_and_counted(netmap: NetMap) -> None:
    change = apply(
        netmap,
        PeersChanged=[
            node(0),
            node(-4),
            node(4, Key=None),
            node(5, Key=NO_KEY),
            node(6, Key="nodekey:xyz"),
            node(7, DiscoKey="discokey:12"),
            node(8, DiscoKey="discokey:" + 64 * "0"),
        ],
        PeersChangedPatch=[{"NodeID": 2, "Key": "junk", "Online": True}, {"NodeID": 3, "DiscoKey": "junk"}],
    )
    assert ids(change.added) == [7, 8]
    assert [peer.disco_key for peer in change.added] == [None, None]
    assert netmap.peers[2].key == key(2)
    assert netmap.skipped == {
        "peer without an id": 2,
        "peer without a good key": 3,
        "damaged disco key": 2,
        "patch with a damaged key": 1,
    }


def test_nodes_are_normalised() -> None:
    netmap = NetMap()
    apply(
        netmap,
        Node=node(
            1, Capabilities=["https://tailscale.com/cap/is-admin"], Hostinfo={"OS": "linux"}, MachineAuthorized=True
        ),
        Peers=[
            node(2, DERP="127.3.3.40:12", AllowedIPs=None, Hostinfo={"OS": "linux"}),
            node(3, AllowedIPs=["10.0.0.0/8"], UnsignedPeerAPIOnly=True, HomeDERP=-1),
            node(4, AllowedIPs=[], DERP="127.3.3.40:x"),
            node(5, Addresses=None),
        ],
    )
    itself = netmap.self_node
    assert itself is not None
    assert itself.cap_map is not None
    assert list(itself.cap_map) == ["https://tailscale.com/cap/is-admin"]
    assert itself.machine_authorized is True
    assert bytes(itself.hostinfo) == b'{"OS": "linux"}'
    two, three, four, five = netmap.peers.values()
    assert (two.home_derp, two.allowed_ips, two.hostinfo) == (12, ["100.64.0.2/32"], NULL)
    assert (three.allowed_ips, three.home_derp) == (["100.64.0.3/32"], None)
    assert (four.allowed_ips, four.home_derp) == ([], None)
    assert (five.addresses, five.allowed_ips) == ([], [])


def test_prefixes_leave_out_what_is_none() -> None:
    assert prefixes(["100.64.0.1/32", "", "junk", "10.0.0.0/33"]) == (Prefix.parse("100.64.0.1"),)
    assert prefixes(None) == ()


# --- streams -----------------------------------------------------------------------------------------------------------


def test_a_new_stream_costs_its_differences_only(netmap: NetMap) -> None:
    rules = {"base": [{"SrcIPs": ["*"], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]}]}
    apply(
        netmap, PacketFilters=rules, DERPMap={"Regions": {"1": {"RegionID": 1}}}, Health=["ill"], TKAInfo={"Head": "x"}
    )
    kept, old_rules, regions = netmap.peers[3], netmap.rules, netmap.derp_map
    netmap.begin_stream()
    assert set(netmap.peers) == {2, 3}, "nothing happens before the stream's first message"
    change = apply(
        netmap,
        Node=node(1),
        PeersChanged=[node(3, HomeDERP=7, Online=True), node(4)],
        PacketFilters=rules,
        DERPMap={"Regions": {"1": {"RegionID": 1}}},
    )
    assert ids(change.removed) == [2]
    assert ids(change.added) == [4]
    assert change == NetMapChange(first=True, removed=change.removed, added=change.added, health=True, lock=True)
    assert netmap.peers[3] is kept
    assert netmap.rules is old_rules
    assert netmap.derp_map is regions
    assert (netmap.health, netmap.locked) == ((), False)


def test_what_a_new_stream_does_not_mention_is_gone(netmap: NetMap) -> None:
    apply(netmap, PacketFilter=[{"SrcIPs": ["*"]}], DNSConfig={"Proxied": True}, UserProfiles=[{"ID": 1}], Domain="x")
    apply(netmap, DERPMap={"Regions": {"1": {}}})
    netmap.begin_stream()
    change = apply(netmap, Node=node(1))
    assert ids(change.removed) == [2, 3]
    assert change.rules
    assert change.dns
    assert change.users
    assert change.derp_map
    assert (netmap.rules, netmap.dns, netmap.user_profiles, netmap.domain) == ((), None, {}, "")
    assert netmap.derp_map.regions == {}


# --- everything else ---------------------------------------------------------------------------------------------------


def test_our_own_node_is_replaced_whole(netmap: NetMap) -> None:
    assert apply(netmap, Node=node(1, Name="new.example.test.")) == NetMapChange(first=False, self_changed=True)
    assert netmap.self_node is not None
    assert netmap.self_node.name == "new.example.test."
    assert not apply(netmap, Node=node(1, Name="new.example.test."))


def rule(source: str) -> dict[str, Any]:
    return {"SrcIPs": [source], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]}


def sources(netmap: NetMap) -> list[str]:
    return [source for rule in netmap.rules for source in rule.src_ips or ()]


def test_packet_filters(netmap: NetMap) -> None:
    assert apply(netmap, PacketFilters={"b": [rule("2")], "a": [rule("1")]}) == NetMapChange(first=False, rules=True)
    assert sources(netmap) == ["1", "2"], "in the order of their names"
    assert not apply(netmap, PacketFilters={"b": [rule("2")]})
    assert not apply(netmap, PacketFilters={}, PacketFilter=None)
    apply(netmap, PacketFilter=[rule("0")])
    assert sources(netmap) == ["1", "2", "0"], "the unnamed one is called base"
    apply(netmap, PacketFilters={"a": None, "b": []})
    assert sources(netmap) == ["0"]
    apply(netmap, PacketFilters={"c": [rule("3")], "*": None})
    assert sources(netmap) == ["3"]
    assert apply(netmap, PacketFilters={"*": None, "base": []}).rules
    assert netmap.rules == ()
    apply(netmap, PacketFilter=[rule("9")])
    apply(netmap, PacketFilter=[])
    assert netmap.rules == ()


def test_derp_map(netmap: NetMap) -> None:
    regions = {"1": {"RegionCode": "a", "Nodes": [{"Name": "1a"}]}, "2": None, "-1": {"RegionCode": "b"}}
    change = apply(netmap, DERPMap={"Regions": regions, "HomeParams": {"RegionScore": {"1": 0.5}}})
    assert change == NetMapChange(first=False, derp_map=True)
    assert list(netmap.derp_map.regions or {}) == [1]
    assert not apply(netmap, DERPMap={"Regions": None, "HomeParams": None})
    assert not apply(netmap, DERPMap={"Regions": None, "HomeParams": {"RegionScore": None}})
    assert apply(netmap, DERPMap={"Regions": None, "HomeParams": {"RegionScore": {}}}).derp_map
    assert list(netmap.derp_map.regions or {}) == [1]
    assert apply(netmap, DERPMap={"Regions": {}}).derp_map
    assert netmap.derp_map.regions == {}


def test_dns_users_and_domain(netmap: NetMap) -> None:
    assert apply(netmap, DNSConfig={"Proxied": True, "Routes": {"x.": None}}) == NetMapChange(first=False, dns=True)
    assert not apply(netmap, DNSConfig=None, Domain="")
    assert apply(netmap, DNSConfig={}).dns
    assert netmap.dns is not None
    assert netmap.dns.proxied is None
    assert apply(netmap, UserProfiles=[{"ID": 1, "LoginName": "a"}]) == NetMapChange(first=False, users=True)
    assert not apply(netmap, UserProfiles=[{"ID": 1, "LoginName": "a"}])
    assert apply(netmap, UserProfiles=[{"ID": 2, "LoginName": "b"}]).users
    assert [user.login_name for user in netmap.user_profiles.values()] == ["a", "b"]
    apply(netmap, Domain="a\x1b[2J\n" + 999 * "b")
    assert netmap.domain.startswith("a [2J b")
    assert len(netmap.domain) == 200


def test_health(netmap: NetMap) -> None:
    assert apply(netmap, Health=["one\ntwo"]) == NetMapChange(first=False, health=True)
    assert list(netmap.health) == ["one two"]
    assert not apply(netmap, Health=None)
    apply(netmap, DisplayMessages={"z": {"Title": "T", "Text": "last"}, "a": {"Text": "first"}})
    assert list(netmap.health) == ["first", "T: last"], "display messages beat the old list"
    apply(netmap, DisplayMessages={"a": None})
    assert list(netmap.health) == ["T: last"]
    assert not apply(netmap, DisplayMessages={})
    apply(netmap, DisplayMessages={"b": {"Text": "only"}, "*": None})
    assert list(netmap.health) == ["only"]
    apply(netmap, DisplayMessages={"*": None})
    assert list(netmap.health) == ["one two"]
    apply(netmap, Health=[])
    assert list(netmap.health) == []


def test_tailnet_lock(netmap: NetMap) -> None:
    assert not netmap.locked
    assert apply(netmap, TKAInfo={"Head": "abc"}) == NetMapChange(first=False, lock=True)
    assert netmap.locked
    assert not apply(netmap, Domain="")
    assert netmap.locked
    assert apply(netmap, TKAInfo={"Head": "abc", "Disabled": True}).lock
    assert not netmap.locked


# --- expiry ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("members", "control_time", "now", "expired"),
    [
        ({"KeyExpiry": "2027-01-15T08:00:01Z"}, None, NOW, False),
        ({"KeyExpiry": "2027-01-15T08:00:00Z"}, None, NOW, True),
        ({"KeyExpiry": NEVER}, None, NOW, False),
        ({"KeyExpiry": "soon"}, None, NOW, False),
        ({"Expired": True}, None, NOW, True),
        ({"KeyExpiry": "2027-01-15T08:00:30Z"}, "2027-01-15T08:00:59Z", NOW, False),
        ({"KeyExpiry": "2027-01-15T08:00:30Z"}, "2027-01-15T08:01:01Z", NOW, True),
        ({"KeyExpiry": "2027-01-15T07:00:00Z"}, "2027-01-15T06:00:00Z", NOW, False),
        ({"KeyExpiry": "2020-01-01T00:00:00Z"}, None, 1_600_000_000.0, False),
    ],
    ids=[
        "later",
        "now",
        "never",
        "no time",
        "said",
        "near clocks",
        "our clock is late",
        "ours is early",
        "no sane clock",
    ],
)
def test_expiry(members: dict[str, Any], control_time: str | None, now: float, expired: bool) -> None:
    netmap = NetMap()
    netmap.apply(message(Node=node(1), Peers=[node(2, **members)], ControlTime=control_time), now)
    assert netmap.expired(netmap.peers[2], now) is expired


def test_a_renewed_key_is_good_again(netmap: NetMap) -> None:
    apply(netmap, PeersChanged=[node(2, Expired=True)])
    assert netmap.expired(netmap.peers[2], NOW)
    apply(netmap, PeersChangedPatch=[{"NodeID": 2, "Key": key(22), "KeyExpiry": NEVER}])
    assert not netmap.expired(netmap.peers[2], NOW)


def test_holders_of_a_capability(netmap: NetMap) -> None:
    apply(netmap, PeersChangedPatch=[{"NodeID": 3, "CapMap": {"x": None}}])
    assert ids(tuple(netmap.holders("x"))) == [3]


# --- size --------------------------------------------------------------------------------------------------------------


def test_a_delta_among_ten_thousand_peers_is_cheap() -> None:
    netmap = NetMap()
    apply(netmap, Node=node(1), Peers=[node(number) for number in range(2, 10_002)])
    took = []
    for online in 10 * [True, False]:
        patch = message(PeersChangedPatch=[{"NodeID": 5000, "Online": online}])
        start = time.perf_counter()
        change = netmap.apply(patch, NOW)
        took.append(time.perf_counter() - start)
        assert len(change.changed) == 1
    assert min(took) < 0.001, "seconds; a look at every peer would take longer"


def test_nothing_holds_on_to_the_message() -> None:
    netmap = NetMap()
    filler = {"Filler": 10_000 * "x"}
    response = message(
        Node=node(1, CapMap={"a": [1]}),
        Peers=[node(2, CapMap={"b": [2]}, Hostinfo=filler)],
        PacketFilter=[{"SrcIPs": ["*"], "CapGrant": [{"Dsts": ["1.2.3.4/32"], "CapMap": {"c": [3]}}]}],
    )
    grants = (response.packet_filter or [])[0].cap_grant or []
    raws = [(response.node or Node()).cap_map, (response.peers or [])[0].cap_map, grants[0].cap_map]
    originals = [next(iter((raw or {}).values())) for raw in raws]
    netmap.apply(response, NOW)
    assert netmap.self_node is not None
    kept = [netmap.self_node.cap_map, netmap.peers[2].cap_map, (netmap.rules[0].cap_grant or [])[0].cap_map]
    for before, after in zip(originals, kept, strict=True):
        [copy] = (after or {}).values()
        assert bytes(copy) == bytes(before)
        assert copy is not before


json_value = st.recursive(
    st.none() | st.booleans() | st.integers(-1, 4) | st.sampled_from(["", "*", "junk", NO_KEY, key(2), NEVER]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["1", "2", "*", "ID", "Key"]), inner, max_size=3)
    ),
    max_leaves=6,
)
MEMBERS = [field.encode_name for field in msgspec.structs.fields(MapResponse)]


@given(st.dictionaries(st.sampled_from(MEMBERS), json_value, max_size=6))
def test_no_message_raises_anything_but_protocol_errors(members: dict[str, Any]) -> None:
    netmap = NetMap()
    apply(netmap, Node=node(1), Peers=[node(2), node(3)])
    try:
        apply(netmap, **members)
    except ProtocolError:
        return
    assert all(peer.id == number for number, peer in netmap.peers.items())
