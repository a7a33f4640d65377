"""The nf_tables of an attachment: `--exclusive`, and who is asked for names (ring 1).

    inet tsns       exclusive: what is neither loopback nor the tailnet is dropped, on devices that come later, too
    netdev tsns     exclusive: nor does anything else leave by the devices that there are, of packet sockets (CAP_NET_RAW) or ARP
    ip tsns-names   questions to Docker's resolver, 127.0.0.11, go to MagicDNS: some programs know it by heart, and it asks the
                    host's name servers from outside. Only sockets with NAMES_MARK, which are ours, reach it

All of this is in the namespace of whoever calls.
"""

from __future__ import annotations

import contextlib
import socket
from typing import Final

from tsns.netns import conntrack, nftables
from tsns.netns.nftables import ACCEPT, DNAT_PRIORITY, DROP, EGRESS, FORWARD, INET, INPUT, IPV4, NETDEV, OUTPUT, Change
from tsns.netns.tun import TUN_NAME
from tsns.proto.addresses import SERVICE_V4, pack

EXCLUSIVE_TABLE: Final = "tsns"
NAMES_TABLE: Final = "tsns-names"
NAMES_MARK: Final = 0x74736E73
DOCKER_RESOLVER: Final = "127.0.0.11"
_DNS_PORT: Final = 53
_BEFORE_DOCKER: Final = DNAT_PRIORITY - 10
_LOOPBACK: Final = "lo"
_EXCLUSIVE: Final = (INET, EXCLUSIVE_TABLE)
_DEVICES: Final = (NETDEV, EXCLUSIVE_TABLE)
_NAMES: Final = (IPV4, NAMES_TABLE)


def apply(*, exclusive: bool, redirects: bool) -> bool:
    """Have these tables, and not the others; whether questions are redirected, which not every kernel can. OSError with the reason.

    A table that was there is there until the new one is.
    """
    present = nftables.tables()
    if exclusive:
        try:
            nftables.transact(*_exclusive(replaces=_EXCLUSIVE in present))
        except OSError as error:
            raise OSError(
                error.errno, f"there is no way to be exclusive: {nftables.MISSING} ({error.strerror})"
            ) from None
    if redirects:
        try:
            nftables.transact(*_names(replaces=_NAMES in present))
        except OSError:
            redirects = False
        else:
            _forget_questions()
    if exclusive:
        close_devices()
    _delete(present - ({_EXCLUSIVE, _DEVICES} if exclusive else set()) - ({_NAMES} if redirects else set()))
    return redirects


def remove() -> None:
    """Take both tables away, where they are. OSError with the reason."""
    _delete(nftables.tables())


def close_devices() -> None:
    """Exclusive: let nothing leave by the devices that have come since, as far as the kernel has a hook there."""
    closed = nftables.chains(*_DEVICES)
    names = {f"{name}-{index}": name for index, name in socket.if_nameindex() if name not in {_LOOPBACK, TUN_NAME}}
    chains = [
        nftables.chain(*_DEVICES, chain, EGRESS, device=device, policy=DROP)
        for chain, device in names.items()
        if chain not in closed
    ]
    if chains:
        with contextlib.suppress(OSError):  # before Linux 5.16; the other table holds what has no rights
            nftables.transact(nftables.table(*_DEVICES), *chains)


def _delete(tables: set[tuple[int, str]]) -> None:
    ours = tables & {_EXCLUSIVE, _DEVICES, _NAMES}
    if ours:
        nftables.transact(*(change for table in ours for change in nftables.no_table(*table)))
    if _NAMES in ours:
        _forget_questions()


def marked_sockets(count: int) -> list[int]:
    """UDP sockets that reach Docker's resolver past the redirection. OSError with the reason."""
    sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) for _ in range(count)]
    for sock in sockets:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_MARK, NAMES_MARK)
    return [sock.detach() for sock in sockets]


def _exclusive(*, replaces: bool) -> list[Change]:
    changes = [*_table(_EXCLUSIVE, replaces=replaces)]
    for name, hook, by in (
        ("input", INPUT, nftables.came_by),
        ("forward", FORWARD, None),
        ("output", OUTPUT, nftables.goes_by),
    ):
        changes.append(nftables.chain(INET, EXCLUSIVE_TABLE, name, hook, policy=DROP))
        if by is not None:
            changes += [
                nftables.rule(INET, EXCLUSIVE_TABLE, name, by(device), nftables.verdict(ACCEPT))
                for device in (_LOOPBACK, TUN_NAME)
            ]
    return changes


def _names(*, replaces: bool) -> list[Change]:
    chain = nftables.chain(IPV4, NAMES_TABLE, "output", OUTPUT, kind="nat", priority=_BEFORE_DOCKER)
    questions = [
        nftables.rule(
            IPV4,
            NAMES_TABLE,
            "output",
            nftables.to_address(pack(DOCKER_RESOLVER)),
            nftables.to_port(protocol, _DNS_PORT),
            nftables.marked(NAMES_MARK, equal=False),
            nftables.send_to(SERVICE_V4, _DNS_PORT),
        )
        for protocol in (socket.IPPROTO_UDP, socket.IPPROTO_TCP)
    ]
    return [*_table(_NAMES, replaces=replaces), chain, *questions]


def _table(table: tuple[int, str], *, replaces: bool) -> tuple[Change, ...]:
    return nftables.new_table(*table) if replaces else (nftables.table(*table),)


def _forget_questions() -> None:
    """Whoever has just asked somebody asks whom they should with the next packet."""
    with contextlib.suppress(OSError):  # else it is so from when they have been silent for a while
        conntrack.forget(pack(DOCKER_RESOLVER))
