"""A namespace that carries its peers' packets on to whatever else it is connected with (ring 1).

Source: Documentation/networking/ip-sysctl.rst; linux/netfilter/nf_tables.h. All of it lies inside the node's namespace: the host forwards nothing
and has no rule. What peers may send is decided by the packet filter, before it comes to this:

    forward       from the TUN: pass, marked;  answers: pass;  anything else: drop
    postrouting   marked, and not back into the TUN: with this namespace's own address as the source
"""

from __future__ import annotations

import contextlib
from typing import Final

from tsns.netns import nftables
from tsns.netns.child import in_network
from tsns.netns.namespace import set_sysctl
from tsns.netns.nftables import ACCEPT, DROP, FORWARD, INET, POSTROUTING, SNAT_PRIORITY
from tsns.netns.tun import TUN_NAME

TABLE: Final = "tsns"
MARK: Final = 0x7473
_MISSING: Final = "the kernel lacks nf_tables or its masquerade (modules nf_tables, nft_masq, nft_ct)"


def apply(namespace: int, *, wanted: bool) -> None:
    """Forward, or no longer. OSError with the reason."""
    in_network(namespace, _start if wanted else _stop)


def _start() -> list[int]:
    try:
        nftables.transact(
            *nftables.new_table(INET, TABLE),
            nftables.chain(INET, TABLE, "forward", FORWARD, policy=DROP),
            nftables.rule(
                INET,
                TABLE,
                "forward",
                nftables.came_by(TUN_NAME),
                nftables.set_mark(MARK),
                nftables.verdict(ACCEPT),
            ),
            nftables.rule(INET, TABLE, "forward", nftables.answers(), nftables.verdict(ACCEPT)),
            nftables.chain(INET, TABLE, "postrouting", POSTROUTING, kind="nat", priority=SNAT_PRIORITY),
            nftables.rule(
                INET,
                TABLE,
                "postrouting",
                nftables.marked(MARK),
                nftables.goes_by(TUN_NAME, equal=False),
                nftables.masquerade(),
            ),
        )
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}: {_MISSING}") from None
    _forward("1")
    return []


def _stop() -> list[int]:
    _forward("0")
    with contextlib.suppress(OSError):  # a kernel without it has no table either
        nftables.transact(*nftables.no_table(INET, TABLE))
    return []


def _forward(value: str) -> None:
    set_sysctl("net/ipv4/ip_forward", value)
    set_sysctl("net/ipv6/conf/all/forwarding", value)
