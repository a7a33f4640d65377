"""The control protocol's JSON, as typed structs (ring 0).

Source: tailcfg of Tailscale's module. The other side is Go, so the rules of its encoding/json hold: unknown members are ignored, and null,
absent and empty often mean the same; where they differ, the field's reader says so (`control.netmap`). Hence almost every field is
optional, `None` stands for both null and absent, and texts (keys, prefixes, times) stay texts until somebody needs the value: parsing
20,000 prefixes takes longer than all the JSON of a tailnet of 10,000 nodes.

`decode` and `encode` are the only ways in and out.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import msgspec
from msgspec import Raw, Struct, field

from tsns.error import ProtocolError

CAPABILITY_VERSION: Final = 131  # what we claim unless told otherwise: the newest that promises nothing we lack
CAPABILITY_VERSION_MIN: Final = 113
CAPABILITY_VERSION_MAX: Final = 145
DEFAULT_DERP_PORT: Final = 443
DEFAULT_STUN_PORT: Final = 3478
LOGOUT_EXPIRY: Final = "1970-01-01T00:02:03Z"  # "expire this key now", as Go's client says it

NULL: Final = Raw(b"null")  # a Raw member that is not there: msgspec knows no optional Raw

T = TypeVar("T")


class Wire(Struct, kw_only=True, omit_defaults=True, rename="pascal", gc=False):
    """A JSON object of the protocol: members in PascalCase, defaults left out.

    Such objects are trees, so the garbage collector need not look at them: 10,000 nodes would keep it busy for longer than packets may wait.
    """


# --- nodes ---------------------------------------------------------------------------------------------------------


class Service(Wire):
    """Something that a node serves (tailcfg.Service)."""

    proto: str | None = None
    port: int | None = None
    description: str | None = None


class NetInfo(Wire):
    """What a node knows of its network; without `preferred_derp` nobody can reach it by relay."""

    mapping_varies_by_dest_ip: bool | None = field(default=None, name="MappingVariesByDestIP")
    working_ipv6: bool | None = field(default=None, name="WorkingIPv6")
    os_has_ipv6: bool | None = field(default=None, name="OSHasIPv6")
    working_udp: bool | None = field(default=None, name="WorkingUDP")
    upnp: bool | None = field(default=None, name="UPnP")
    pmp: bool | None = field(default=None, name="PMP")
    pcp: bool | None = field(default=None, name="PCP")
    have_port_map: bool | None = field(default=None, name="HavePortMap")
    preferred_derp: int | None = field(default=None, name="PreferredDERP")
    derp_latency: dict[str, float] | None = field(default=None, name="DERPLatency")  # seconds, by "REGION-v4"


class Hostinfo(Wire):
    """What a node tells of itself."""

    ipn_version: str | None = field(default=None, name="IPNVersion")
    backend_log_id: str | None = field(default=None, name="BackendLogID")
    os: str | None = field(default=None, name="OS")
    os_version: str | None = field(default=None, name="OSVersion")
    hostname: str | None = None
    app: str | None = None
    machine: str | None = None
    go_arch: str | None = None
    userspace: bool | None = None
    userspace_router: bool | None = None
    no_logs_no_support: bool | None = None
    shields_up: bool | None = None
    request_tags: list[str] | None = None
    routable_ips: list[str] | None = field(default=None, name="RoutableIPs")
    services: list[Service] | None = None
    net_info: NetInfo | None = None


class Node(Wire):
    """A node of the tailnet, as control describes it: ourselves or a peer."""

    id: int = field(default=0, name="ID")
    stable_id: str | None = field(default=None, name="StableID")
    name: str | None = None  # FQDN, usually with a final dot
    user: int | None = None
    sharer: int | None = None
    key: str | None = None
    key_expiry: str | None = None
    key_signature: str | None = None
    machine: str | None = None
    disco_key: str | None = None
    addresses: list[str] | None = None
    allowed_ips: list[str] | None = field(default=None, name="AllowedIPs")  # None: the addresses
    endpoints: list[str] | None = None
    derp: str | None = field(default=None, name="DERP")  # legacy: "127.3.3.40:REGION"
    home_derp: int | None = field(default=None, name="HomeDERP")
    hostinfo: Raw = NULL  # large, and seldom read: `decode_hostinfo`
    created: str | None = None
    cap: int | None = None
    tags: list[str] | None = None
    primary_routes: list[str] | None = None
    last_seen: str | None = None
    online: bool | None = None  # None: unknown
    machine_authorized: bool | None = None
    capabilities: list[str] | None = None  # legacy form of cap_map
    cap_map: dict[str, Raw] | None = None
    unsigned_peer_api_only: bool | None = field(default=None, name="UnsignedPeerAPIOnly")
    expired: bool | None = None
    self_node_v4_masq_addr_for_this_peer: str | None = field(default=None, name="SelfNodeV4MasqAddrForThisPeer")
    self_node_v6_masq_addr_for_this_peer: str | None = field(default=None, name="SelfNodeV6MasqAddrForThisPeer")
    is_wireguard_only: bool | None = field(default=None, name="IsWireGuardOnly")
    is_jailed: bool | None = None
    exit_node_dns_resolvers: list[Resolver] | None = field(default=None, name="ExitNodeDNSResolvers")


class PeerChange(Wire):
    """A patch of one peer; None leaves a field alone."""

    node_id: int = field(default=0, name="NodeID")
    derp_region: int | None = field(default=None, name="DERPRegion")
    cap: int | None = None
    cap_map: dict[str, Raw] | None = None
    endpoints: list[str] | None = None
    key: str | None = None
    key_signature: str | None = None
    disco_key: str | None = None
    online: bool | None = None
    last_seen: str | None = None
    key_expiry: str | None = None


class UserProfile(Wire):
    """A person, or the stand-in for tagged devices."""

    id: int = field(default=0, name="ID")
    login_name: str | None = None
    display_name: str | None = None
    profile_pic_url: str | None = field(default=None, name="ProfilePicURL")


# --- DERP, DNS, packet filter --------------------------------------------------------------------------------------


class DERPNode(Wire):
    """One relay of a region."""

    name: str | None = None
    region_id: int | None = field(default=None, name="RegionID")
    host_name: str | None = None
    cert_name: str | None = None
    ipv4: str | None = field(default=None, name="IPv4")  # empty: by DNS; no address at all ("none"): family disabled
    ipv6: str | None = field(default=None, name="IPv6")
    derp_port: int | None = field(default=None, name="DERPPort")
    stun_port: int | None = field(default=None, name="STUNPort")  # -1: no STUN
    stun_only: bool | None = field(default=None, name="STUNOnly")
    insecure_for_tests: bool | None = None
    stun_test_ip: str | None = field(default=None, name="STUNTestIP")
    can_port80: bool | None = field(default=None, name="CanPort80")


class DERPRegion(Wire):
    """Relays that mesh among themselves."""

    region_id: int | None = field(default=None, name="RegionID")
    region_code: str | None = None
    region_name: str | None = None
    avoid: bool | None = None
    no_measure_no_home: bool | None = None
    nodes: list[DERPNode] | None = None


class DERPHomeParams(Wire):
    """How control weighs the regions."""

    region_score: dict[int, float] | None = None


class DERPMap(Wire):
    """All relays, by region. Null regions do occur."""

    home_params: DERPHomeParams | None = None
    regions: dict[int, DERPRegion | None] | None = None
    omit_default_regions: bool | None = field(default=None, name="omitDefaultRegions")


class Resolver(Wire):
    """Where DNS questions may be sent: an address, address and port, or a URL."""

    addr: str | None = None
    bootstrap_resolution: list[str] | None = None
    use_with_exit_node: bool | None = None


class DNSRecord(Wire):
    """A record that control adds to the tailnet's names."""

    name: str | None = None
    type: str | None = None  # "", "A" or "AAAA"
    value: str | None = None


class DNSConfig(Wire):
    """The tailnet's DNS."""

    resolvers: list[Resolver] | None = None
    routes: dict[str, list[Resolver] | None] | None = None
    fallback_resolvers: list[Resolver] | None = None
    domains: list[str] | None = None
    proxied: bool | None = None  # MagicDNS is on
    extra_records: list[DNSRecord] | None = None
    cert_domains: list[str] | None = None
    exit_node_filtered_set: list[str] | None = None


class PortRange(Wire):
    """Ports, both ends included."""

    first: int = 0
    last: int = 0


class NetPortRange(Wire):
    """Destinations of a filter rule."""

    ip: str | None = field(default=None, name="IP")
    bits: int | None = None
    ports: PortRange | None = None


class CapGrant(Wire):
    """Capabilities that a rule grants its sources on some destinations."""

    dsts: list[str] | None = None
    caps: list[str] | None = None
    cap_map: dict[str, Raw] | None = None


class FilterRule(Wire):
    """One permission of the packet filter; rules only ever allow."""

    src_ips: list[str] | None = field(default=None, name="SrcIPs")
    src_bits: list[int] | None = None
    dst_ports: list[NetPortRange] | None = None
    ip_proto: list[int] | None = field(default=None, name="IPProto")
    cap_grant: list[CapGrant] | None = None


# --- login ---------------------------------------------------------------------------------------------------------


class ControlKeys(Wire):
    """The answer of GET /key."""

    legacy_public_key: str | None = field(default=None, name="legacyPublicKey")
    public_key: str | None = field(default=None, name="publicKey")


class EarlyNoise(Wire):
    """What control sends before its HTTP/2 preface."""

    node_key_challenge: str | None = field(default=None, name="nodeKeyChallenge")


class RegisterAuth(Wire):
    """The proof that comes with a registration."""

    auth_key: str | None = None

    def __repr__(self) -> str:
        return "RegisterAuth(...)"


class RegisterRequest(Wire):
    """POST /machine/register."""

    version: int = 0
    node_key: str = ""
    old_node_key: str | None = None
    nl_key: str | None = field(default=None, name="NLKey")
    auth: RegisterAuth | None = None
    expiry: str | None = None
    followup: str | None = None
    hostinfo: Hostinfo | None = None
    ephemeral: bool | None = None
    node_key_signature: str | None = None


class RegisterResponse(Wire):
    """Its answer; a non-empty `error` makes the rest void."""

    user: UserProfile | None = None
    login: UserProfile | None = None
    node_key_expired: bool | None = None
    machine_authorized: bool | None = None
    auth_url: str | None = field(default=None, name="AuthURL")
    node_key_signature: str | None = None
    error: str | None = None


# --- the netmap stream ---------------------------------------------------------------------------------------------


class MapRequest(Wire):
    """POST /machine/map: the stream, or (with `omit_peers`, without `stream`) a lite update."""

    version: int = 0
    compress: str | None = None
    keep_alive: bool | None = None
    node_key: str = ""
    disco_key: str | None = None
    stream: bool | None = None
    hostinfo: Hostinfo | None = None
    endpoints: list[str] | None = None
    endpoint_types: list[int] | None = None
    omit_peers: bool | None = None
    tka_head: str | None = field(default=None, name="TKAHead")


class PingRequest(Wire):
    """Control asks us for a sign of life."""

    url: str | None = field(default=None, name="URL")
    url_is_noise: bool | None = field(default=None, name="URLIsNoise")
    log: bool | None = None
    types: str | None = None
    ip: str | None = field(default=None, name="IP")
    payload: str | None = None  # base64


class ControlIPCandidate(Wire):
    """One way to dial control."""

    ip: str | None = field(default=None, name="IP")
    ace_host: str | None = field(default=None, name="ACEHost")
    dial_start_delay_sec: float | None = None
    dial_timeout_sec: float | None = None
    priority: int | None = None


class ControlDialPlan(Wire):
    """How control wants to be dialled."""

    candidates: list[ControlIPCandidate] | None = None


class TKAInfo(Wire):
    """The state of Tailnet Lock; present and not disabled means that the tailnet is locked."""

    head: str | None = None
    disabled: bool | None = None


class Debug(Wire):
    """Control's wishes for one process."""

    sleep_seconds: float | None = None
    disable_log_tail: bool | None = None
    exit: int | None = None


class DisplayMessage(Wire):
    """A health message from control."""

    title: str | None = None
    text: str | None = None
    severity: str | None = None


class MapResponse(Wire):
    """One message of the netmap stream."""

    keep_alive: bool | None = None
    ping_request: PingRequest | None = None
    pop_browser_url: str | None = field(default=None, name="PopBrowserURL")
    node: Node | None = None
    derp_map: DERPMap | None = field(default=None, name="DERPMap")
    peers: list[Node] | None = None
    peers_changed: list[Node] | None = None
    peers_removed: list[int] | None = None
    peers_changed_patch: list[PeerChange] | None = None
    peer_seen_change: dict[int, bool] | None = None
    online_change: dict[int, bool] | None = None
    dns_config: DNSConfig | None = field(default=None, name="DNSConfig")
    domain: str | None = None
    packet_filter: list[FilterRule] | None = None
    packet_filters: dict[str, list[FilterRule] | None] | None = None
    user_profiles: list[UserProfile] | None = None
    health: list[str] | None = None
    display_messages: dict[str, DisplayMessage | None] | None = None
    tka_info: TKAInfo | None = field(default=None, name="TKAInfo")
    control_time: str | None = None
    control_dial_plan: ControlDialPlan | None = None
    debug: Debug | None = None


# --- in and out ----------------------------------------------------------------------------------------------------

_decoders: dict[type, msgspec.json.Decoder[Any]] = {}
_encoder: Final = msgspec.json.Encoder()


def decode(data: bytes, kind: type[T]) -> T:
    """Read one JSON object; ProtocolError says where it is wrong, without repeating its values."""
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    try:
        value: T = decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"{kind.__name__}: {error}") from None
    return value


def decode_list(elements: bytes, kind: type[T]) -> list[T]:
    """Read JSON objects with commas between; ProtocolError as `decode`."""
    return decode(b"[" + elements + b"]", list[kind])  # type: ignore[valid-type]


def encode(value: Wire | Sequence[Wire]) -> bytes:
    """Write one JSON object, or a list of them."""
    return _encoder.encode(value)


def decode_hostinfo(node: Node) -> Hostinfo:
    """A node's Hostinfo, an empty one where it has none that can be read."""
    if node.hostinfo == NULL:
        return Hostinfo()
    try:
        return decode(bytes(node.hostinfo), Hostinfo)
    except ProtocolError:
        return Hostinfo()


def parse_time(text: str | None) -> datetime | None:
    """A time of the protocol; None for none, for Go's zero time (year 1) and for what is no time."""
    if not text:
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    if time.year <= 1:
        return None
    return time if time.tzinfo else time.replace(tzinfo=UTC)
