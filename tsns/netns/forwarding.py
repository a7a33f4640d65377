"""A namespace that carries its peers' packets on to whatever else it is connected with (ring 1).

Source: Documentation/networking/ip-sysctl.rst; linux/netfilter/nf_tables.h. All of it lies inside the node's namespace: the host forwards nothing
and has no rule. What peers may send is decided by the packet filter, before it comes to this:

    forward       from the TUN: pass, marked;  answers: pass;  anything else: drop
    postrouting   marked, and not back into the TUN: with this namespace's own address as the source
"""

from __future__ import annotations

import contextlib
import struct
from typing import Any, Final

from tsns.netns.child import in_network
from tsns.netns.namespace import set_sysctl
from tsns.netns.tun import TUN_NAME

TABLE: Final = "tsns"
MARK: Final = 0x7473
SRCNAT_PRIORITY: Final = 100
_INET: Final = 1  # NFPROTO_INET
_ACCEPT: Final = 1
_DROP: Final = 0
_RELATED_AND_ESTABLISHED: Final = 2 | 4
_IFNAME_BYTES: Final = 16
_META_MARK: Final = 3
_META_INPUT_NAME: Final = 6
_META_OUTPUT_NAME: Final = 7
_CT_STATE: Final = 0
_REG_VERDICT: Final = 0
_REG: Final = 1
_MISSING: Final = "the kernel lacks nf_tables or its masquerade (modules nf_tables, nft_masq, nft_ct)"


def apply(namespace: int, *, wanted: bool) -> None:
    """Forward, or no longer. OSError with the reason."""
    in_network(namespace, _start if wanted else _stop)


def _start() -> list[int]:
    with contextlib.suppress(OSError):
        _remove()
    _add()
    _forward("1")
    return []


def _stop() -> list[int]:
    _forward("0")
    with contextlib.suppress(OSError):
        _remove()
    return []


def _forward(value: str) -> None:
    set_sysctl("net/ipv4/ip_forward", value)
    set_sysctl("net/ipv6/conf/all/forwarding", value)


def _remove() -> None:
    _nft(lambda nft: nft.table("del", name=TABLE))


def _add() -> None:
    def rules(nft: Any) -> None:
        nft.table("add", name=TABLE)
        nft.chain("add", table=TABLE, name="forward", hook="forward", type="filter", policy=_DROP)
        from_tun = [*_device(_META_INPUT_NAME, equal=True), *_set_mark(), _verdict(_ACCEPT)]
        nft.rule("add", table=TABLE, chain="forward", expressions=(from_tun,))
        nft.rule("add", table=TABLE, chain="forward", expressions=([*_answers(), _verdict(_ACCEPT)],))
        nft.chain(
            "add", table=TABLE, name="postrouting", hook="postrouting", type="nat", priority=SRCNAT_PRIORITY, policy=1
        )
        out = [*_marked(), *_device(_META_OUTPUT_NAME, equal=False), _expression("masq", ())]
        nft.rule("add", table=TABLE, chain="postrouting", expressions=(out,))

    _nft(rules)


def _nft(work: Any) -> None:
    from pyroute2.netlink.exceptions import NetlinkError
    from pyroute2.nftables.main import NFTables

    try:
        with NFTables(nfgen_family=_INET) as nft:
            work(nft)
    except NetlinkError as error:
        raise OSError(error.code, f"{error.args[1] if len(error.args) > 1 else error}: {_MISSING}") from None


def _expression(name: str, attributes: Any) -> dict[str, Any]:
    data = [(f"NFTA_{name.upper()}_{key}", value) for key, value in attributes]
    return {"attrs": [("NFTA_EXPR_NAME", name), ("NFTA_EXPR_DATA", {"attrs": data})]}


def _value(data: bytes) -> dict[str, Any]:
    return {"attrs": [("NFTA_DATA_VALUE", data)]}


def _compare(data: bytes, *, equal: bool) -> dict[str, Any]:
    return _expression("cmp", (("SREG", _REG), ("OP", 0 if equal else 1), ("DATA", _value(data))))


def _device(key: int, *, equal: bool) -> list[dict[str, Any]]:
    name = TUN_NAME.encode().ljust(_IFNAME_BYTES, b"\0")
    return [_expression("meta", (("DREG", _REG), ("KEY", key))), _compare(name, equal=equal)]


def _set_mark() -> list[dict[str, Any]]:
    return [
        _expression("immediate", (("DREG", _REG), ("DATA", _value(struct.pack("=I", MARK))))),
        _expression("meta", (("KEY", _META_MARK), ("SREG", _REG))),
    ]


def _marked() -> list[dict[str, Any]]:
    return [
        _expression("meta", (("DREG", _REG), ("KEY", _META_MARK))),
        _compare(struct.pack("=I", MARK), equal=True),
    ]


def _answers() -> list[dict[str, Any]]:
    mask, nothing = struct.pack("=I", _RELATED_AND_ESTABLISHED), bytes(4)
    return [
        _expression("ct", (("DREG", _REG), ("KEY", _CT_STATE))),
        _expression(
            "bitwise", (("SREG", _REG), ("DREG", _REG), ("LEN", 4), ("MASK", _value(mask)), ("XOR", _value(nothing)))
        ),
        _compare(nothing, equal=False),
    ]


def _verdict(code: int) -> dict[str, Any]:
    data = {"attrs": [("NFTA_DATA_VERDICT", {"attrs": [("NFTA_VERDICT_CODE", code)]})]}
    return _expression("immediate", (("DREG", _REG_VERDICT), ("DATA", data)))
