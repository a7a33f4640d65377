"""Targets of the packet filter: packets that peers and programs make up, and rules that control does."""

from __future__ import annotations

import json
from typing import Any, Final

import msgspec

from tests.fuzz.material import Instructions, step
from tsns.filter.grants import Grants
from tsns.filter.opening import Openings
from tsns.filter.packet_filter import MAX_FLOWS, MAX_VERDICTS, PacketFilter
from tsns.filter.rules import RuleSet
from tsns.proto import packets
from tsns.proto.addresses import Prefix, pack
from tsns.proto.types import FilterRule, decode

US, PEER, STRANGER = pack("100.64.0.1"), pack("100.64.0.2"), pack("192.0.2.9")
US6, PEER6 = pack("fd7a:115c:a1e0::1"), pack("fd7a:115c:a1e0::2")
LOCAL: Final = [Prefix(US, 32), Prefix(US6, 128), Prefix.parse("10.7.0.0/16")]
PORTS: Final = (0, 1, 22, 53, 1024, 65535)

SSH: dict[str, Any] = {"SrcIPs": ["100.64.0.2"], "DstPorts": [{"IP": "100.64.0.1", "Ports": {"First": 22, "Last": 22}}]}
RULES: Final[list[list[dict[str, Any]]]] = [
    [SSH, {"SrcIPs": ["cap:friend", "fd7a::/16"], "DstPorts": [{"IP": "*", "Ports": {"First": 0, "Last": 65535}}]}],
    [{**SSH, "IPProto": [6, 17, 47, 300, -1]}, {**SSH, "SrcIPs": ["100.64.0.0-100.64.3.9", "::1-ffff::8", "*"]}],
    [{**SSH, "SrcBits": [8]}],
    [{**SSH, "DstPorts": [{"IP": "10.0.0.0/8", "Bits": 8, "Ports": {"First": 9, "Last": 1}}]}],
    [{"SrcIPs": ["*"], "CapGrant": [{"Dsts": ["100.64.0.0/10", "x"], "Caps": ["a"], "CapMap": {"b": [1], "c": None}}]}],
]
FORMER: Final = tuple(msgspec.json.decode(json.dumps(RULES[0]), type=list[FilterRule]))


def filter_rules(data: bytes) -> None:
    """Rules as control writes them: compiled, in force, and asked."""
    rules = decode(data, list[FilterRule])
    compiled = RuleSet.of(rules)
    compiled.look_up(lambda _: [Prefix(PEER, 32), Prefix.parse("fd7a::/16")], [Prefix(STRANGER, 32)])
    for source, here in ((PEER, US), (PEER6, US6), (STRANGER, US), (US6, PEER6)):
        anything = compiled.permits_any(source, here)
        for protocol in (1, 6, 17, 47, 255):
            ports = [compiled.permits(protocol, source, here, port) for port in PORTS]
            assert anything or not any(ports)
            if compiled.permits_all_ports(protocol, source, here):
                assert all(ports)
    if compiled.rejected:
        assert not compiled.permits_any(PEER, US)
    Grants(rules).of(PEER, US)
    _in_force(rules)


def _in_force(rules: list[FilterRule]) -> None:
    """In the place of others, which let a peer in: as long as they are being read, those count."""
    judge = PacketFilter()
    syn = packets.build(6, PEER, US, b"\x10\0\0\x16" + bytes(8) + b"\x50\x02\x10\0" + bytes(4))
    judge.update(FORMER, LOCAL, shields_up=False, capability_holders=lambda _: ())
    for _ in judge.updating(tuple(rules), LOCAL, shields_up=False, capability_holders=lambda _: ()):
        assert judge.inbound(syn) is None
    assert (judge.inbound(syn) is None) == judge.rules.permits(6, PEER, US, 22)


def filter_rules_seeds() -> list[bytes]:
    """Each form that a rule may have."""
    return [json.dumps(rules, separators=(",", ":")).encode() for rules in RULES]


def packet_filter(data: bytes) -> None:
    """A dialogue of packets, judged both ways, whole and by their heads alone."""
    judge, by_head, openings = PacketFilter(), PacketFilter(), Openings()
    instructions = Instructions(data)
    assert judge.inbound(data) is not None  # nothing passes before there are rules
    for each in (judge, by_head):
        each.update(FORMER, LOCAL, shields_up=False, capability_holders=lambda _: [Prefix(PEER, 32)])
    for what, piece in instructions.steps(8):
        head, size, jailed = piece[: packets.HEAD_BYTES], len(piece), bool(what & 2)
        if what & 1:
            verdict = judge.outbound(piece, jailed=jailed)
            assert verdict == by_head.outbound(head, size, jailed=jailed)
            openings.note(head, size)
            assert verdict is not None or not packets.is_tsmp(piece)
        else:
            verdict = judge.inbound(piece, jailed=jailed)
            assert verdict == by_head.inbound(head, size, jailed=jailed)
            _check_let_in(piece, passes=verdict is None)
            reject = packets.parse_tsmp(piece)
            if isinstance(reject, packets.TsmpReject) and (reset := openings.refused(reject)):
                assert packets.parse(reset) is not None
    assert len(judge._flows._known) <= MAX_FLOWS
    assert len(judge._verdicts) <= MAX_VERDICTS


def _check_let_in(piece: bytes, *, passes: bool) -> None:
    """What passes is whole, and is for us."""
    fields = packets.decode(piece)
    if fields is None:
        assert not passes or not piece
        return
    quoted = packets.quoted(piece, fields) if fields[7] != packets.NO_ICMP else None
    if quoted is not None:
        assert len(quoted[1]) == len(quoted[2]) == len(fields[2])
    is_later_fragment = fields[8]
    if passes and not is_later_fragment:
        assert any(prefix.covers(fields[3]) for prefix in LOCAL)


def packet_filter_seeds() -> list[bytes]:
    """Questions and answers, errors about them, first and later fragments, extension headers, connections and their refusal."""
    ask = packets.build(17, US, PEER, b"\x10\0\0\x35\0\x08\0\0")
    answer = packets.build(17, PEER, US, b"\0\x35\x10\0\0\x08\0\0")
    ask6 = packets.build(17, US6, PEER6, b"\x10\0\0\x35\0\x08\0\0")
    error = packets.build(1, STRANGER, US, b"\3\3" + bytes(6) + ask)
    error6 = packets.build(58, PEER6, US6, b"\2\0" + bytes(6) + ask6)
    syn = packets.build(6, US, PEER, b"\x10\0\0\x16" + bytes(8) + b"\x50\x02\x10\0" + bytes(4))
    parsed = packets.parse(syn)
    assert parsed is not None
    refusal = packets.tsmp_reject(parsed, packets.RejectReason.ACL)
    first = answer[:6] + b"\x20\0" + answer[8:]
    later = answer[:6] + b"\0\x0a" + answer[8:]
    overlapping = answer[:6] + b"\0\1" + answer[8:]
    first6 = packets.build(44, PEER6, US6, b"\x11\0\0\1\0\0\0\7\0\x35\x10\0\0\x08\0\0")
    later6 = packets.build(44, PEER6, US6, b"\x11\0\0\x58\0\0\0\7" + bytes(16))
    behind = packets.build(60, PEER6, US6, b"\x11\0" + bytes(6) + b"\0\x35\x10\0\0\x08\0\0")
    return [
        step(1, ask) + step(2, answer) + step(0, answer) + step(0, error),
        step(1, ask6) + step(0, error6),
        step(1, syn) + step(0, refusal) + step(0, refusal),
        *(step(0, each) + step(1, each) for each in (first, later, overlapping, first6, later6, behind)),
    ]
