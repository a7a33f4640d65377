"""A TUN and everything that belongs to it in a namespace of somebody else's, such as a container's, and how it is taken away again (ring 1).

    make     the TUN, loopback with MagicDNS's addresses and sockets, what stands (`attachment_routes`, `attachment_filter`)
    lead     addresses and routes of the tailnet, at each netmap and when the namespace has other networks
    remove   all of it goes, and what was there before is there again

All of it may be done again over what a keeper that was killed has left there: the same comes of it. Nothing else in the namespace is changed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import socket
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tsns.netns import attachment_filter, attachment_routes, netlink, port_range, sock_diag
from tsns.netns.child import in_network, told_in_network
from tsns.netns.namespace import (
    DNS_KINDS,
    LEAVING_S,
    LOOPBACK_INDEX,
    dns_socket,
    keep_tun_silent,
    once_free,
    set_sysctl,
    set_up_tun,
)
from tsns.netns.routes import IFA_F_NODAD, give_addresses, tun_index
from tsns.netns.tun import TUN_NAME, open_tun
from tsns.proto.addresses import SERVICE_V4_TEXT, SERVICE_V6_TEXT, Prefix

if TYPE_CHECKING:
    from pyroute2 import IPRoute

_SERVICES: Final = {socket.AF_INET: f"{SERVICE_V4_TEXT}/32", socket.AF_INET6: f"{SERVICE_V6_TEXT}/128"}
_OWN_OF_LOOPBACK: Final = ("127.0.0.1/8", "::1/128")  # which come with its being up
_SCOPE_HOST: Final = 254  # what is sent elsewhere does not get such an address as its source
_LOOPBACK_HAS_NO_IPV6: Final = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"
_IFF_UP: Final = 1

# In `before`, which is JSON.
_PORTS: Final = "ports"  # the first and the last that flows begin from
_LOOPBACK: Final = "loopback"  # those of our addresses on it that were there
_LOOPBACK_UP: Final = "loopback_up"


class Made(NamedTuple):
    """What an attachment consists of, as descriptors, and what `remove` has to give back."""

    tun: int
    diag: int  # see `sock_diag`
    dns: list[int]  # a UDP and a TCP socket for each of the service's addresses that the namespace can have
    before: dict[str, Any]


def make(
    namespace: int,
    *,
    ports: tuple[int, int] | None,
    exclusive: bool,
    docker_names: bool,
    before: Mapping[str, Any] | None = None,
) -> Made:
    """Make an attachment in the namespace behind a descriptor; OSError with the reason.

    `ports` are the first and the last that flows begin from, None: those that they do. With `docker_names` there is Docker's resolver, whose
    place MagicDNS takes. `before` is what an earlier one was told that was killed here; without it whatever fails has changed nothing, with
    it what stood still stands. EBUSY: somebody else has attached it, and `remove` would be theirs to call.
    """

    def job() -> tuple[list[int], str]:
        fds, found = _make(ports, exclusive=exclusive, docker_names=docker_names, before=before)
        return fds, json.dumps(found)

    fds, told = told_in_network(namespace, job)
    tun, diag, *dns = fds
    return Made(tun, diag, dns, json.loads(told))


def lead(namespace: int, own: Sequence[Prefix], led: Sequence[Prefix], *, exit_node: bool, exclusive: bool) -> None:
    """Give the TUN exactly these addresses, and the tailnet's ranges and `led`. OSError with the reason.

    With `exit_node` nothing goes out but by the TUN, whether `led` has a way there or not: but to the namespace's own networks, and from
    its own addresses, at which others reach it.
    """
    in_network(namespace, lambda: _lead(own, led, exit_node=exit_node, exclusive=exclusive))


def remove(namespace: int, before: Mapping[str, Any]) -> None:
    """Take away what `make` and `lead` have done, as far as it is there; the TUN goes with its descriptors. OSError with the reason.

    `before` is empty where `make` did not come to its end.
    """
    in_network(namespace, lambda: _remove(before))


def docker_dns_sockets(namespace: int, count: int) -> list[int]:
    """Unbound UDP sockets that reach Docker's resolver, 127.0.0.11, past `docker_names`. OSError with the reason."""
    return in_network(namespace, lambda: attachment_filter.marked_sockets(count))


def ports_before(before: Mapping[str, Any]) -> range | None:
    """From which ports flows began; None where that was not asked."""
    found = before.get(_PORTS)
    return range(found[0], found[1] + 1) if found else None


def _make(
    ports: tuple[int, int] | None, *, exclusive: bool, docker_names: bool, before: Mapping[str, Any] | None
) -> tuple[list[int], dict[str, Any]]:
    deadline = time.monotonic() + (LEAVING_S if before else 0.0)
    try:
        tun = once_free(open_tun, deadline)  # first, since only one can have it
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise OSError(error.errno, f"there is a {TUN_NAME} already: another node is attached there") from None
    with netlink.connection() as ip:
        found = dict(before) if before else _look(ip)
        try:
            redirected = attachment_filter.apply(exclusive=exclusive, redirects=docker_names and not exclusive)
            attachment_routes.stand(
                exclusive=exclusive, without_resolver=exclusive or (docker_names and not redirected)
            )
            kept = () if exclusive else attachment_routes.present_rules(ip)
            answers = {rule for rule in kept if rule.priority == attachment_routes.ANSWERS_RULE}
            attachment_routes.have_rules(ip, answers | attachment_routes.rules((), exclusive=exclusive))
            keep_tun_silent()
            set_sysctl(f"net/ipv6/conf/{TUN_NAME}/disable_ipv6", "0")
            set_up_tun(ip)
            dns = _serve_names(ip, deadline)
            if ports is not None:
                port_range.choose(range(ports[0], ports[1] + 1))
            return [tun, sock_diag.open_socket(), *dns], found
        except BaseException:
            if not before:
                with contextlib.suppress(Exception):
                    _remove(found)
            raise


def _look(ip: IPRoute) -> dict[str, Any]:
    """What is to be given back. Whatever a keeper has left that was killed in the midst of it was not there before."""
    left = bool(attachment_routes.present_rules(ip))
    ours = () if left else tuple(_SERVICES.values())
    ports = port_range.present()
    return {
        _PORTS: [ports.start, ports.stop - 1],
        _LOOPBACK: sorted(_on_loopback(ip) & {*ours, *_OWN_OF_LOOPBACK}),
        _LOOPBACK_UP: bool(ip.get_links(LOOPBACK_INDEX)[0]["flags"] & _IFF_UP),
    }


def _on_loopback(ip: IPRoute) -> set[str]:
    return {f"{item.get_attr('IFA_ADDRESS')}/{item['prefixlen']}" for item in ip.get_addr(index=LOOPBACK_INDEX)}


def _serve_names(ip: IPRoute, deadline: float) -> list[int]:
    """MagicDNS's addresses and sockets, as far as loopback may have them."""
    ip.link("set", index=LOOPBACK_INDEX, state="up")
    sockets = []
    for family, address in _SERVICES.items():
        if family == socket.AF_INET6 and not _loopback_has_ipv6():
            continue
        text, _, bits = address.partition("/")
        more = {"scope": _SCOPE_HOST} if family == socket.AF_INET else {}
        netlink.ensure(ip.addr, index=LOOPBACK_INDEX, address=text, prefixlen=int(bits), flags=IFA_F_NODAD, **more)
        try:
            sockets += [once_free(partial(dns_socket, kind, text), deadline) for kind in DNS_KINDS]
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise
            raise OSError(
                error.errno, "a name server in there has port 53 of all addresses; have it listen on its own alone"
            ) from None
    return [sock.detach() for sock in sockets]


def _loopback_has_ipv6() -> bool:
    try:
        with open(_LOOPBACK_HAS_NO_IPV6) as file:
            return file.read().strip() == "0"
    except FileNotFoundError:
        return False


def _lead(own: Sequence[Prefix], led: Sequence[Prefix], *, exit_node: bool, exclusive: bool) -> list[int]:
    with netlink.connection() as ip:
        tun = tun_index(ip)
        give_addresses(ip, tun, own)
        there = attachment_routes.own_addresses(ip, but=(LOOPBACK_INDEX, tun)) if exit_node else []
        attachment_routes.have_rules(ip, attachment_routes.rules(there, exclusive=exclusive))
        attachment_routes.lead(tun, own, led, everything=exit_node or exclusive)
    return []


def _remove(before: Mapping[str, Any]) -> list[int]:
    with netlink.connection() as ip:
        attachment_routes.remove_all(ip)
        ports = ports_before(before)
        if ports is not None:
            port_range.choose(ports)
        was_up = before.get(_LOOPBACK_UP, True)
        ours = {*_SERVICES.values(), *(() if was_up else _OWN_OF_LOOPBACK)}
        if not was_up:
            ip.link("set", index=LOOPBACK_INDEX, state="down")
        for address in (ours - set(before.get(_LOOPBACK, ()))) & _on_loopback(ip):
            text, _, bits = address.partition("/")
            netlink.ensure_gone(ip.addr, index=LOOPBACK_INDEX, address=text, prefixlen=int(bits))
    attachment_filter.remove()  # last: what was forbidden is until all else is as it was
    return []
