"""The packet filter, told as tables: a packet, the rules in force, the verdict."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tsns.filter.packet_filter import MAX_FLOWS, MAX_VERDICTS, Drop, PacketFilter
from tsns.proto.addresses import Prefix, pack
from tsns.proto.packets import HEAD_BYTES, Protocol, RejectReason, build, echo_reply, echo_request, tsmp_ping
from tsns.proto.types import CapGrant, FilterRule, NetPortRange, PortRange

US, PEER, OTHER = "100.64.0.1", "100.64.0.2", "100.64.0.3"
US6, PEER6 = "fd7a:115c:a1e0::1", "fd7a:115c:a1e0::2"
LAN = "192.168.7.9"  # behind a route that we advertise
LOCAL = [Prefix.parse(text) for text in (US, US6, "192.168.7.0/24")]

SYN, SYN_ACK, ACK, RST = 0x02, 0x12, 0x10, 0x04
ANY_PORT = (0, 65535)


def ip(source: str, destination: str, protocol: int, payload: bytes) -> bytes:
    return build(protocol, pack(source), pack(destination), payload)


def tcp(source: str, destination: str, port: int, flags: int = SYN) -> bytes:
    return ip(source, destination, 6, struct.pack(">HHIIBBHHH", 40000, port, 0, 0, 0x50, flags, 0, 0, 0))


def udp(source: str, destination: str, port: int, source_port: int = 40000) -> bytes:
    return ip(source, destination, 17, struct.pack(">HHHH", source_port, port, 8, 0))


def sctp(source: str, destination: str, port: int, source_port: int = 40000) -> bytes:
    return ip(source, destination, 132, struct.pack(">HHII", source_port, port, 0, 0))


def icmp(source: str, destination: str, kind: int) -> bytes:
    return ip(source, destination, 58 if ":" in source else 1, bytes((kind, 0, 0, 0)))


def icmp_error(source: str, destination: str, about: bytes, kind: int | None = None) -> bytes:
    """An error of this type (port unreachable, if none is given) about a packet, whole or cut off."""
    protocol, unreachable = (58, 1) if ":" in source else (1, 3)
    return ip(source, destination, protocol, bytes((unreachable if kind is None else kind, 4)) + bytes(6) + about)


def fragment(source: str, destination: str, offset: int, protocol: int = 17) -> bytes:
    packet = bytearray(ip(source, destination, protocol, bytes(64)))
    packet[6:8] = struct.pack(">H", offset)
    return bytes(packet)


def rule(
    sources: str | list[str] = "*",
    destinations: str | list[str] = "*",
    ports: tuple[int, int] = ANY_PORT,
    protocols: list[int] | None = None,
) -> FilterRule:
    return FilterRule(
        src_ips=[sources] if isinstance(sources, str) else sources,
        dst_ports=[
            NetPortRange(ip=text, ports=PortRange(first=ports[0], last=ports[1]))
            for text in ([destinations] if isinstance(destinations, str) else destinations)
        ],
        ip_proto=protocols,
    )


ALL = rule(protocols=list(range(1, 256)))
SSH = rule(PEER, US, (22, 22))


def made(*rules: FilterRule, shields_up: bool = False) -> PacketFilter:
    made_filter = PacketFilter()
    made_filter.update(rules, LOCAL, shields_up=shields_up, capability_holders=lambda _: ())
    return made_filter


# --- inbound, line by line -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "rules", "verdict"),
    [
        # keep-alives and rubbish
        (b"", [], None),
        (b"\x45" + bytes(10), [ALL], Drop.MALFORMED),
        (tcp(PEER, US, 22)[:-1], [ALL], Drop.MALFORMED),
        (ip(PEER6, US6, 60, bytes(40)), [ALL], Drop.MALFORMED),
        (fragment(PEER, US, 1), [ALL], Drop.MALFORMED),
        # destinations that are nobody's
        (udp(PEER, "224.0.0.251", 5353), [ALL], Drop.MULTICAST),
        (udp(PEER, "239.255.255.250", 1900), [ALL], Drop.MULTICAST),
        (udp(PEER6, "ff02::fb", 5353), [ALL], Drop.MULTICAST),
        (udp(PEER, "169.254.1.1", 1), [ALL], Drop.LINK_LOCAL),
        (udp(PEER6, "fe80::1", 1), [ALL], Drop.LINK_LOCAL),
        (udp(PEER6, "febf::1", 1), [ALL], Drop.LINK_LOCAL),
        (udp(PEER, "169.254.169.254", 80), [ALL], Drop.NOT_OURS),
        (tcp(PEER, OTHER, 22), [ALL], Drop.NOT_OURS),
        (tcp(PEER, OTHER, 22, ACK), [ALL], Drop.NOT_OURS),
        (icmp(PEER, "192.168.8.1", 0), [ALL], Drop.NOT_OURS),
        # sources that are ours alone
        (udp("100.100.100.100", US, 22, 53), [ALL], Drop.FORGED_SERVICE),
        (tcp("fd7a:115c:a1e0::53", US6, 22, ACK), [ALL], Drop.FORGED_SERVICE),
        # later fragments
        (fragment(PEER, US, 10), [], None),
        (fragment(PEER, "224.0.0.1", 10), [], Drop.MULTICAST),
        # ICMP
        (echo_reply(pack(PEER), pack(US), 1, 1), [], None),
        (echo_reply(pack(PEER6), pack(US6), 1, 1), [], None),
        (icmp_error(PEER, US, tcp(US, PEER, 22), 3), [], None),
        (icmp_error(PEER, US, tcp(US, PEER, 22), 11), [], None),
        (icmp_error(PEER, US, tcp(US, PEER, 22), 12), [], None),
        (icmp_error(PEER6, US6, tcp(US6, PEER6, 22), 1), [], None),
        (icmp_error(PEER6, US6, tcp(US6, PEER6, 22), 2), [], None),
        (icmp_error(PEER6, US6, tcp(US6, PEER6, 22), 3), [], None),
        (icmp_error(PEER6, US6, tcp(US6, PEER6, 22), 4), [], None),
        (icmp(PEER, US, 3), [ALL], Drop.UNASKED_ERROR),
        (icmp(PEER, US, 1), [], Drop.NO_RULE),
        (icmp(PEER, US, 4), [], Drop.NO_RULE),
        (echo_request(pack(PEER), pack(US), 1, 1), [], Drop.NO_RULE),
        (echo_request(pack(PEER6), pack(US6), 1, 1), [SSH], Drop.NO_RULE),
        (echo_request(pack(PEER), pack(US), 1, 1), [SSH], None),
        (echo_request(pack(PEER), pack(LAN), 1, 1), [SSH], Drop.NO_RULE),
        (echo_request(pack(OTHER), pack(US), 1, 1), [SSH], Drop.NO_RULE),
        (echo_request(pack(PEER), pack(US), 1, 1), [rule(PEER, US, protocols=[17])], None),
        # TCP
        (tcp(PEER, US, 22, ACK), [], None),
        (tcp(PEER, US, 22, SYN_ACK), [], None),
        (tcp(PEER, US, 22, RST), [], None),
        (tcp(PEER, US, 22), [], Drop.NO_RULE_TCP_OPEN),
        (tcp(PEER, US, 22), [SSH], None),
        (tcp(PEER, US, 23), [SSH], Drop.NO_RULE_TCP_OPEN),
        (tcp(OTHER, US, 22), [SSH], Drop.NO_RULE_TCP_OPEN),
        (tcp(PEER, LAN, 22), [SSH], Drop.NO_RULE_TCP_OPEN),
        (tcp(PEER, LAN, 22), [rule(PEER, "192.168.7.0/24", (22, 22))], None),
        (tcp(PEER6, US6, 22), [SSH], Drop.NO_RULE_TCP_OPEN),
        (tcp(PEER6, US6, 22), [rule()], None),
        (tcp(PEER, US, 22), [rule(protocols=[17])], Drop.NO_RULE_TCP_OPEN),
        (tcp(PEER, US, 22), [rule(OTHER), SSH], None),
        # UDP and SCTP
        (udp(PEER, US, 53), [], Drop.NO_RULE),
        (udp(PEER, US, 22), [SSH], None),
        (sctp(PEER, US, 22), [SSH], Drop.NO_RULE),
        (sctp(PEER, US, 22), [rule(protocols=[132])], None),
        # TSMP, and what has no line of its own
        (tsmp_ping(pack(PEER), pack(US), bytes(8)), [], None),
        (tsmp_ping(pack(PEER6), pack(US6), bytes(8)), [], None),
        (tsmp_ping(pack(PEER), pack(OTHER), bytes(8)), [], Drop.NOT_OURS),
        (ip(PEER, US, 47, b"GRE"), [rule()], Drop.NO_RULE),
        (ip(PEER, US, 47, b"GRE"), [rule(protocols=[47])], None),
        (ip(PEER, US, 47, b"GRE"), [rule(protocols=[47], ports=(1, 65535))], Drop.NO_RULE),
        (ip(PEER, US, 47, b"GRE"), [rule(OTHER, protocols=[47])], Drop.NO_RULE),
        (ip(PEER, US, 0, b"what"), [ALL], Drop.MALFORMED),
    ],
)
def test_inbound(packet: bytes, rules: list[FilterRule], verdict: Drop | None) -> None:
    assert made(*rules).inbound(packet) == verdict


# --- ICMP errors ---------------------------------------------------------------------------------------------------

ROUTER = "10.9.9.9"  # on the way, behind a peer
ASKS, ANSWERS = udp(US, PEER, 53), udp(PEER, US, 40000, 53)


@pytest.mark.parametrize(
    ("error", "rules", "passes"),
    [
        (icmp_error(PEER, US, ASKS), [], True),
        (icmp_error(ROUTER, US, ASKS), [], True),
        (icmp_error(PEER, US, ASKS[:28]), [], True),  # as little as there may be
        (icmp_error(PEER, US, ASKS[:23]), [], False),
        (icmp_error(PEER, US, b""), [], False),
        (icmp_error(PEER, US, b"\x60" + ASKS[1:]), [], False),
        (icmp_error(PEER, US, udp(US, PEER, 54)), [], False),
        (icmp_error(PEER, US, udp(US, OTHER, 53)), [], False),
        (icmp_error(PEER, LAN, ASKS), [], False),  # it goes to another one than the packet came from
        (icmp_error(PEER, US, ANSWERS), [], False),
        (icmp_error(PEER, US, sctp(US, PEER, 53)), [], False),
        (icmp_error(PEER, US, udp(US, PEER, 40000, 22)), [SSH], True),  # what we say to those who may ask us
        (icmp_error(PEER, US, udp(US, PEER, 40000, 23)), [SSH], False),
        (icmp_error(PEER, US, echo_request(pack(US), pack(PEER), 1, 1)), [], True),
        (icmp_error(PEER, US, ip(US, PEER, 47, b"GRE")), [], True),
        (icmp_error(PEER, US, fragment(US, PEER, 10)), [], True),
        (icmp_error(PEER, US, ip(US, PEER, 0, bytes(8))), [], False),
    ],
)
def test_an_icmp_error_passes_where_an_answer_would(error: bytes, rules: list[FilterRule], passes: bool) -> None:
    subject = made(*rules)
    assert subject.inbound(error) in (None, Drop.UNASKED_ERROR)
    subject.outbound(ASKS)
    assert subject.inbound(error) == (None if passes else Drop.UNASKED_ERROR)


def test_with_shields_up_errors_about_flows_of_ours_pass() -> None:
    about_ours, about_answers = icmp_error(PEER, US, ASKS), icmp_error(PEER, US, udp(US, PEER, 40000, 22))
    up = made(SSH, shields_up=True)
    up.outbound(ASKS)
    jailing = made(SSH)
    jailing.outbound(ASKS, jailed=True)
    for subject, jailed in ((up, False), (jailing, True)):
        assert subject.inbound(about_ours, jailed=jailed) is None
        assert subject.inbound(about_answers, jailed=jailed) is Drop.UNASKED_ERROR


# --- how rules are read --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "passes"),
    [
        (["*"], True),
        ([PEER], True),
        (["100.64.0.0/10"], True),
        (["100.64.0.1-100.64.0.9"], True),
        (["100.64.0.3-100.64.0.9"], False),
        ([PEER6], False),
        (["100.64.0.2/10"], False),
        (["100.64.0.2/10", PEER], True),
        (["cap:friend"], True),
        (["cap:stranger"], False),
        (["tag:prod"], False),
        ([], False),
    ],
)
def test_sources(sources: list[str], passes: bool) -> None:
    holders = {"friend": [Prefix.parse(PEER)], "stranger": []}
    subject = PacketFilter()
    subject.update([rule(sources, US)], LOCAL, shields_up=False, capability_holders=lambda cap: holders[cap])
    assert (subject.inbound(tcp(PEER, US, 22)) is None) == passes


def test_capability_holders_are_asked_once_each_and_named() -> None:
    asked: list[str] = []

    def holders(capability: str) -> list[Prefix]:
        asked.append(capability)
        return [Prefix.parse(PEER)]

    subject = PacketFilter()
    subject.update(
        [rule(["cap:a"], US, (1, 1)), rule(["cap:a", "cap:b"], US, (2, 2))],
        LOCAL,
        shields_up=False,
        capability_holders=holders,
    )
    assert asked == ["a", "b"]
    assert subject.rules.capabilities == {"a", "b"}
    assert subject.inbound(tcp(PEER, US, 2)) is None
    assert asked == ["a", "b"]


@pytest.mark.parametrize(
    ("destination", "passes"),
    [
        (NetPortRange(ip="*", ports=PortRange(first=22, last=22)), True),
        (NetPortRange(ip=US, ports=PortRange(first=20, last=30)), True),
        (NetPortRange(ip="100.64.0.0-100.64.0.5", ports=PortRange(first=22, last=22)), True),
        (NetPortRange(ip=US, ports=PortRange(first=23, last=21)), False),
        (NetPortRange(ip=US, ports=None), False),
        (NetPortRange(ip=None, ports=PortRange(first=22, last=22)), False),
        (NetPortRange(ip="cap:friend", ports=PortRange(first=22, last=22)), False),
        (NetPortRange(ip="100.64.0.1/24", ports=PortRange(first=22, last=22)), False),
    ],
)
def test_destinations(destination: NetPortRange, passes: bool) -> None:
    subject = made(FilterRule(src_ips=["*"], dst_ports=[destination]))
    assert (subject.inbound(tcp(PEER, US, 22)) is None) == passes


@pytest.mark.parametrize(
    ("protocols", "passes"),
    [(None, True), ([], True), ([6], True), ([17], False), ([300], False), ([-1], False), ([6, 300], True)],
)
def test_protocols(protocols: list[int] | None, passes: bool) -> None:
    assert (made(rule(protocols=protocols)).inbound(tcp(PEER, US, 22)) is None) == passes


def test_the_same_tuple_of_rules_is_compiled_once_and_its_holders_are_asked_each_time() -> None:
    rules = (rule(["cap:friend"], US),)
    subject = PacketFilter()
    subject.update(rules, LOCAL, shields_up=False, capability_holders=lambda _: ())
    compiled = subject.rules
    assert subject.inbound(tcp(PEER, US, 22)) is Drop.NO_RULE_TCP_OPEN
    subject.update(rules, LOCAL, shields_up=False, capability_holders=lambda _: [Prefix.parse(PEER)])
    assert subject.rules is compiled
    assert subject.inbound(tcp(PEER, US, 22)) is None
    subject.update((rule(OTHER, US),), LOCAL, shields_up=False, capability_holders=lambda _: ())
    assert subject.inbound(tcp(PEER, US, 22)) is Drop.NO_RULE_TCP_OPEN


def test_rules_are_compiled_in_steps_and_come_into_force_at_the_last() -> None:
    subject = made(SSH)
    steps = subject.updating((rule(OTHER),) * 100, LOCAL, shields_up=False, capability_holders=lambda _: ())
    count = 0
    for _ in steps:
        count += 1
        assert subject.inbound(tcp(PEER, US, 22)) is None
        assert subject.inbound(tcp(OTHER, US, 22)) is Drop.NO_RULE_TCP_OPEN
    assert count >= 100
    assert subject.inbound(tcp(PEER, US, 22)) is Drop.NO_RULE_TCP_OPEN
    assert subject.inbound(tcp(OTHER, US, 22)) is None


def test_what_is_not_understood_is_left_out_and_counted() -> None:
    subject = made(rule(["what", "100.64.0.2/10", PEER], ["who", US], protocols=[6, 999]))
    assert subject.rules.skipped == 4
    assert subject.inbound(tcp(PEER, US, 22)) is None


@pytest.mark.parametrize(
    "ancient",
    [
        FilterRule(src_ips=["*"], src_bits=[10], dst_ports=[NetPortRange(ip=US, ports=PortRange(last=65535))]),
        FilterRule(src_ips=["*"], dst_ports=[NetPortRange(ip=US, bits=0, ports=PortRange(last=65535))]),
    ],
    ids=["SrcBits", "Bits"],
)
def test_one_rule_of_the_oldest_form_voids_them_all(ancient: FilterRule) -> None:
    subject = made(SSH, ancient)
    assert subject.rules.rejected
    assert subject.inbound(tcp(PEER, US, 22)) is Drop.NO_RULE_TCP_OPEN
    assert subject.inbound(tcp(PEER, US, 22, ACK)) is None


def test_a_grant_of_capabilities_permits_nothing() -> None:
    subject = made(FilterRule(src_ips=["*"], cap_grant=[CapGrant(dsts=["0.0.0.0/0"], caps=["all"])]))
    assert subject.inbound(tcp(PEER, US, 22)) is Drop.NO_RULE_TCP_OPEN
    assert subject.inbound(echo_request(pack(PEER), pack(US), 1, 1)) is Drop.NO_RULE


@pytest.mark.parametrize(
    ("unsigned", "void"), [([], False), ([OTHER], False), ([PEER], True), (["100.64.0.0/24"], True)]
)
def test_rules_that_let_in_the_unsigned_are_void(unsigned: list[str], void: bool) -> None:
    subject = PacketFilter()
    subject.update(
        [SSH],
        LOCAL,
        shields_up=False,
        capability_holders=lambda _: (),
        unsigned=[Prefix.parse(text) for text in unsigned],
    )
    assert subject.rules.rejected is void
    assert (subject.inbound(tcp(PEER, US, 22)) is None) is not void


# --- state ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("maker", [udp, sctp])
@pytest.mark.parametrize(("here", "there"), [(US, PEER), (US6, PEER6)])
def test_answers_pass(maker: Callable[[str, str, int, int], bytes], here: str, there: str) -> None:
    subject = made()
    assert subject.inbound(maker(there, here, 40000, 53)) is Drop.NO_RULE
    assert subject.outbound(maker(here, there, 53, 40000)) is None
    assert subject.inbound(maker(there, here, 40000, 53)) is None
    assert subject.inbound(maker(there, here, 40001, 53)) is Drop.NO_RULE
    assert subject.inbound(maker(there, here, 40000, 54)) is Drop.NO_RULE


def test_an_answer_has_the_protocol_of_its_question() -> None:
    subject = made()
    subject.outbound(udp(US, PEER, 53, 40000))
    assert subject.inbound(sctp(PEER, US, 40000, 53)) is Drop.NO_RULE
    assert subject.inbound(udp(OTHER, US, 40000, 53)) is Drop.NO_RULE


def test_flows_survive_an_update_of_the_rules_and_permissions_do_not() -> None:
    subject = made(SSH)
    subject.outbound(udp(US, PEER, 53, 40000))
    assert subject.inbound(tcp(PEER, US, 22)) is None
    subject.update([], LOCAL, shields_up=False, capability_holders=lambda _: ())
    assert subject.inbound(udp(PEER, US, 40000, 53)) is None
    assert subject.inbound(tcp(PEER, US, 22)) is Drop.NO_RULE_TCP_OPEN


def test_the_flow_unused_for_longest_is_forgotten_first() -> None:
    subject = made()
    for port in range(1, MAX_FLOWS + 1):
        subject.outbound(udp(US, PEER, port, 40000))
    assert subject.inbound(udp(PEER, US, 40000, 1)) is None  # used: now the youngest
    subject.outbound(udp(US, PEER, MAX_FLOWS + 1, 40000))
    assert subject.inbound(udp(PEER, US, 40000, 1)) is None
    assert subject.inbound(udp(PEER, US, 40000, 2)) is Drop.NO_RULE
    assert subject.inbound(udp(PEER, US, 40000, 3)) is None


def test_verdicts_are_remembered_within_bounds() -> None:
    subject = made(rule(PEER, US, (2000, 65535)))
    for port in range(1, MAX_VERDICTS + 1000):
        assert (subject.inbound(udp(PEER, US, port)) is None) == (port >= 2000)
    assert subject.inbound(udp(PEER, US, 1)) is Drop.NO_RULE
    assert len(subject._verdicts) <= MAX_VERDICTS


# --- shields up, jailed peers, before the first netmap -------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        (tcp(PEER, US, 22), Drop.SHIELDS_UP_TCP_OPEN),
        (udp(PEER, US, 22), Drop.SHIELDS_UP),
        (echo_request(pack(PEER), pack(US), 1, 1), Drop.SHIELDS_UP),
        (ip(PEER, US, 47, b""), Drop.SHIELDS_UP),
        (tcp(PEER, US, 22, SYN_ACK), None),
        (echo_reply(pack(PEER), pack(US), 1, 1), None),
        (tsmp_ping(pack(PEER), pack(US), bytes(8)), None),
        (tcp(PEER, OTHER, 22), Drop.NOT_OURS),
    ],
)
def test_shields_up_and_jailed_peers_may_only_answer(packet: bytes, verdict: Drop | None) -> None:
    assert made(ALL, shields_up=True).inbound(packet) == verdict
    assert made(ALL).inbound(packet, jailed=True) == verdict


def test_a_jailed_peer_answers_flows_to_jailed_peers() -> None:
    subject = made(ALL)
    assert subject.outbound(udp(US, PEER, 53), jailed=True) is None
    assert subject.inbound(udp(PEER, US, 40000, 53), jailed=True) is None
    assert subject.inbound(udp(PEER, US, 40000, 54), jailed=True) is Drop.SHIELDS_UP
    subject.outbound(udp(US, OTHER, 53))
    assert subject.inbound(udp(OTHER, US, 40000, 53), jailed=True) is Drop.SHIELDS_UP


def test_many_flows_to_jailed_peers_push_out_no_others() -> None:
    subject = made()
    subject.outbound(udp(US, OTHER, 53))
    for port in range(1, 2 * MAX_FLOWS):
        subject.outbound(udp(US, PEER, port), jailed=True)
    assert subject.inbound(udp(OTHER, US, 40000, 53)) is None


@pytest.mark.parametrize(
    "packet",
    [b"", tcp(PEER, US, 22, ACK), echo_reply(pack(PEER), pack(US), 1, 1), tsmp_ping(pack(PEER), pack(US), bytes(8))],
)
def test_nothing_passes_before_the_first_netmap(packet: bytes) -> None:
    subject = PacketFilter()
    assert subject.inbound(packet) is Drop.NO_NETMAP
    assert subject.inbound(packet, jailed=True) is Drop.NO_NETMAP
    assert subject.outbound(packet) is Drop.NO_NETMAP


def test_a_flow_from_before_the_first_netmap_is_none() -> None:
    subject = PacketFilter()
    subject.outbound(udp(US, PEER, 53))
    subject.update([], LOCAL, shields_up=False, capability_holders=lambda _: ())
    assert subject.inbound(udp(PEER, US, 40000, 53)) is Drop.NO_RULE


# --- outbound, and what the sender is told -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("packet", "verdict"),
    [
        (tcp(US, PEER, 22), None),
        (tcp(US6, PEER6, 22), None),
        (udp(US, "8.8.8.8", 53), None),
        (ip(US, PEER, 47, b""), None),
        (fragment(US, PEER, 10), None),
        (echo_request(pack(US), pack(PEER), 1, 1), None),
        (udp(US, "224.0.0.251", 5353), Drop.MULTICAST),
        (icmp(US6, "ff02::2", 133), Drop.MULTICAST),
        (udp(US, "169.254.1.1", 1), Drop.LINK_LOCAL),
        (udp(US, "169.254.169.254", 80), None),
        (udp(US, "100.100.100.100", 53), Drop.SERVICE),
        (echo_request(pack(US6), pack("fd7a:115c:a1e0::53"), 1, 1), Drop.SERVICE),
        (icmp(US6, "fe80::1", 135), Drop.LINK_LOCAL),
        (tsmp_ping(pack(US), pack(PEER), bytes(8)), Drop.TSMP_FROM_HOST),
        (b"", Drop.MALFORMED),
        (bytes(60), Drop.MALFORMED),
    ],
)
def test_outbound(packet: bytes, verdict: Drop | None) -> None:
    assert made().outbound(packet) == verdict


@pytest.mark.parametrize("drop", Drop)
def test_only_a_refused_connection_is_worth_a_reject(drop: Drop) -> None:
    told = {
        Drop.NO_RULE_TCP_OPEN: RejectReason.ACL,
        Drop.NOT_OURS: RejectReason.ACL,
        Drop.SHIELDS_UP_TCP_OPEN: RejectReason.SHIELDS_UP,
    }
    assert drop.reject_reason == told.get(drop)


# --- garbage and scale ---------------------------------------------------------------------------------------------


@given(st.binary(max_size=100), st.booleans())
def test_no_bytes_raise(data: bytes, jailed: bool) -> None:
    subject = made(ALL)
    subject.inbound(data, jailed=jailed)
    subject.outbound(data, jailed=jailed)


texts = st.text(alphabet="0123456789abcdef.:/-*%cap ", max_size=40)


@given(st.lists(texts, max_size=3), st.lists(texts, max_size=3), st.integers(-5, 70000), st.integers(-5, 70000))
def test_no_rule_raises(sources: list[str], destinations: list[str], first: int, last: int) -> None:
    made(rule(sources, destinations, (first, last)))


@given(st.sampled_from([Protocol.TCP, Protocol.UDP, Protocol.ICMP]), st.integers(0, 65535))
def test_an_empty_filter_starts_nothing(protocol: int, port: int) -> None:
    packet = {6: tcp(PEER, US, port), 17: udp(PEER, US, port), 1: echo_request(pack(PEER), pack(US), port, 1)}[protocol]
    assert made().inbound(packet) is not None


# --- the pump's way: heads with sizes ------------------------------------------------------------------------------

LONG = bytes(60)
OPENS, STANDS = (
    tcp(OTHER, US, 22, flags) for flags in (SYN, ACK)
)  # a connection that no rule allows, and one that is there
OPENS6, STANDS6 = (
    ip(PEER6, US6, 6, struct.pack(">HHIIBBHHH", 1, 23, 0, 0, 0x50, flags, 0, 0, 0)) for flags in (SYN, ACK)
)
ALLOWED = ip(PEER, US, 17, struct.pack(">HHHH", 40000, 22, 68, 0) + LONG)
ASKED = ip(US, OTHER, 17, struct.pack(">HHHH", 53, 40000, 68, 0) + LONG)
ANSWERED = ip(OTHER, US, 17, struct.pack(">HHHH", 40000, 53, 68, 0) + LONG)
CLOSELY = st.sampled_from([OPENS, STANDS, OPENS6, STANDS6, ALLOWED, ASKED, ANSWERED])
SMUDGES = st.one_of(st.none(), st.none(), st.tuples(st.integers(0, 59), st.integers(0, 255)))


def smudged(packet: bytes, smudge: tuple[int, int] | None) -> bytes:
    """One byte of the headers may be another."""
    if smudge is None or smudge[0] >= len(packet):
        return packet
    return packet[: smudge[0]] + bytes((smudge[1],)) + packet[smudge[0] + 1 :]


@given(
    st.lists(
        st.tuples(st.sampled_from(["in", "in", "in", "in jailed", "out", "out jailed", "rules"]), CLOSELY, SMUDGES),
        max_size=40,
    )
)
@example([("in", STANDS, None), ("in", OPENS, None)])
@example([("in", STANDS6, None), ("in", OPENS6, None)])
@example([("in", ALLOWED, None), ("in", ALLOWED, (3, 0xFF))])
@example([("in", ALLOWED, None), ("in", ALLOWED, (7, 1))])
@example([("in", ALLOWED, None), ("rules", b"", None), ("rules", b"", None), ("in", ALLOWED, None)])
@example([("out", ASKED, None), ("out jailed", ASKED, None), ("in jailed", ANSWERED, None)])
def test_a_flow_that_has_passed_is_judged_like_any_other(
    steps: list[tuple[str, bytes, tuple[int, int] | None]],
) -> None:
    """What is remembered of the last packet saves time, and changes no verdict."""
    hasty, thorough = made(SSH), made(SSH)
    for number, (step, packet, smudge) in enumerate(steps):
        data = smudged(packet, smudge)
        if step == "rules":
            for subject in (hasty, thorough):
                subject.update(
                    [SSH] if number % 2 else [], LOCAL, shields_up=number % 3 == 0, capability_holders=lambda _: ()
                )
            continue
        jailed = step.endswith("jailed")
        judges = [subject.inbound if step.startswith("in") else subject.outbound for subject in (hasty, thorough)]
        for _ in range(2):
            assert judges[0](data[:HEAD_BYTES], len(data), jailed=jailed) == judges[1](data, jailed=jailed)
