"""What may leave a namespace by its way to the host's network, as a filter on the TAP device that leads there (ring 0).

Source: linux/filter.h and linux/bpf_common.h (classic BPF), if_tun.h. The kernel runs it on each Ethernet frame before whoever holds the
device's descriptor can read it, and who is inside has no hold of it: neither SO_BINDTODEVICE nor packet sockets come round it.

    ARP                                     pass: it ends at the other end of the device
    IPv4, IPv6 to a forbidden network       drop
    IPv6 link-local and multicast           ICMPv6 passes, which finds neighbours
    where only some networks may be reached the others drop
    anything else that is not IP            drop
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from typing import Final

from tsns.proto.addresses import Prefix

MAX_INSTRUCTIONS: Final = 4096  # BPF_MAXINSNS
INSTRUCTION: Final = struct.Struct("=HBBI")  # code, jump if true, jump if false, value

_LOAD_HALF: Final = 0x28  # from a fixed offset, as are the next two
_LOAD_WORD: Final = 0x20
_LOAD_BYTE: Final = 0x30
_AND: Final = 0x54
_IF_EQUAL: Final = 0x15
_RETURN: Final = 0x06
_JUMP: Final = 0x05
_PASS: Final = (_RETURN, 0, 0, 0xFFFFFFFF)
_DROP: Final = (_RETURN, 0, 0, 0)
_ETHERTYPE_AT: Final = 12
_ARP: Final = 0x0806
_IPV4: Final = 0x0800
_IPV6: Final = 0x86DD
_V4_DESTINATION_AT: Final = 14 + 16
_V6_NEXT_HEADER_AT: Final = 14 + 6
_V6_DESTINATION_AT: Final = 14 + 24
_ICMPV6: Final = 58
_FARTHEST: Final = 250  # comparisons that jump to one place: a jump is 8 bits wide
_NEIGHBOURS: Final = (Prefix.parse("fe80::/10"), Prefix.parse("ff00::/8"))

_Code = list[tuple[int, int, int, int]]


def compiled(forbidden: Iterable[Prefix], only: Sequence[Prefix] | None = None) -> bytes:
    """The program; `only` are the networks to which alone packets may go. ValueError where it gets too long for the kernel."""
    networks = sorted(set(forbidden), key=lambda prefix: (prefix.bits, prefix.network))
    v4 = _judged([prefix for prefix in networks if len(prefix.network) == 4], _of(only, 4), _V4_DESTINATION_AT)
    neighbours: _Code = []
    for prefix in _NEIGHBOURS:
        verdict: _Code = [(_LOAD_BYTE, 0, 0, _V6_NEXT_HEADER_AT), (_IF_EQUAL, 0, 1, _ICMPV6), _PASS, _DROP]
        neighbours += _matched(prefix, _V6_DESTINATION_AT, verdict)
    among = [prefix for prefix in networks if len(prefix.network) == 16 and prefix not in _NEIGHBOURS]
    v6 = neighbours + _judged(among, _of(only, 16), _V6_DESTINATION_AT)
    code: _Code = [
        (_LOAD_HALF, 0, 0, _ETHERTYPE_AT),
        (_IF_EQUAL, 0, 1, _ARP),
        _PASS,
        (_IF_EQUAL, 0, 1, _IPV4),
        (_JUMP, 0, 0, 3),
        (_IF_EQUAL, 0, 1, _IPV6),
        (_JUMP, 0, 0, 1 + len(v4)),
        _DROP,
        *v4,
        *v6,
    ]
    if len(code) > MAX_INSTRUCTIONS:
        raise ValueError(f"there are too many routes for the way to the internet ({len(networks)})")
    return b"".join(INSTRUCTION.pack(*step) for step in code)


def closed() -> bytes:
    """The program that lets nothing pass."""
    return INSTRUCTION.pack(*_DROP)


def _of(only: Sequence[Prefix] | None, size: int) -> list[Prefix] | None:
    return None if only is None else [prefix for prefix in only if len(prefix.network) == size]


def _judged(forbidden: Sequence[Prefix], only: Sequence[Prefix] | None, at: int) -> _Code:
    """What becomes of packets of one family, whose destination is at this offset."""
    code = _any_matched(forbidden, at, _DROP) + _any_matched(only or (), at, _PASS)
    return [*code, _PASS if only is None else _DROP]


def _any_matched(prefixes: Sequence[Prefix], at: int, verdict: tuple[int, int, int, int]) -> _Code:
    code: _Code = []
    by_bits: dict[int, list[int]] = {}  # of those that one word tells
    for prefix in prefixes:
        if 0 < prefix.bits <= 32:
            by_bits.setdefault(prefix.bits, []).append(int.from_bytes(prefix.network[:4], "big"))
        else:
            code += _matched(prefix, at, [verdict])
    for bits, words in by_bits.items():
        code.append((_LOAD_WORD, 0, 0, at))
        if bits < 32:
            code.append((_AND, 0, 0, 0xFFFFFFFF << (32 - bits) & 0xFFFFFFFF))
        for start in range(0, len(words), _FARTHEST):
            some = words[start : start + _FARTHEST]
            code += [(_IF_EQUAL, len(some) - index, 0, word) for index, word in enumerate(some)]
            code += [(_JUMP, 0, 0, 1), verdict]
    return code


def _matched(prefix: Prefix, at: int, verdict: _Code) -> _Code:
    """Do this with what goes to the network, and go on with the rest."""
    code: _Code = []
    words = struct.unpack(f">{len(prefix.network) // 4}I", prefix.network)
    tests: list[_Code] = []
    for number, word in enumerate(words):
        bits = min(max(prefix.bits - 32 * number, 0), 32)
        if bits:
            mask: _Code = [(_AND, 0, 0, 0xFFFFFFFF << (32 - bits) & 0xFFFFFFFF)] if bits < 32 else []
            tests.append([(_LOAD_WORD, 0, 0, at + 4 * number), *mask, (_IF_EQUAL, 0, 0, word)])
    rest = len(verdict)
    for test in reversed(tests):
        kind, yes, _, word = test[-1]
        code = [*test[:-1], (kind, yes, rest, word), *code]
        rest += len(test)
    return [*code, *verdict]
