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
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

from tsns.netns import attachment_filter, attachment_routes, device_table, port_range, sock_diag
from tsns.netns.child import in_network, told_in_network
from tsns.netns.device_table import LOOPBACK, SCOPE_HOST, Address
from tsns.netns.namespace import (
    DNS_KINDS,
    LEAVING_S,
    dns_socket,
    keep_tun_silent,
    once_free,
    set_sysctl,
    set_up_tun,
)
from tsns.netns.routes import give_addresses, tun_index
from tsns.netns.tun import TUN_NAME, open_tun
from tsns.proto.addresses import SERVICE_V4, SERVICE_V6, Prefix, pack, unpack

# What is put on loopback; what is sent elsewhere does not get such an address as its source.
_SERVICES: Final = (Address(LOOPBACK, SERVICE_V4, 32, SCOPE_HOST), Address(LOOPBACK, SERVICE_V6, 128))
# What is there when it is up.
_OWN_OF_LOOPBACK: Final = (
    Address(LOOPBACK, pack("127.0.0.1"), 8, SCOPE_HOST),
    Address(LOOPBACK, pack("::1"), 128, SCOPE_HOST),
)
_LOOPBACK_HAS_NO_IPV6: Final = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"

LETTING_GO_S: Final = 0.3  # an engine that has just been told to has closed its descriptors by then

# In `before`, which is JSON.
_PORTS: Final = "ports"  # the first and the last that flows begin from
_LOOPBACK_HAD: Final = "loopback"  # those of our addresses on it that were there
_LOOPBACK_UP: Final = "loopback_up"


class Made(NamedTuple):
    """What an attachment consists of, as descriptors, and what `remove` has to give back."""

    tun: int
    diag: int  # see `sock_diag`
    dns: list[int]  # a UDP and a TCP socket for each of the service's addresses that the namespace can have
    before: dict[str, Any]
    names: int = -1  # with `docker_names` an unbound UDP socket that reaches Docker's resolver, 127.0.0.11, past ours


def make(
    namespace: int,
    *,
    exclusive: bool,
    docker_names: bool,
    before: Mapping[str, Any] | None = None,
    own: Sequence[Prefix] = (),
    led: Sequence[Prefix] = (),
    exit_node: bool = False,
) -> Made:
    """Make an attachment in the namespace behind a descriptor; OSError with the reason.

    With `docker_names` there is Docker's resolver, whose
    place MagicDNS takes. `before` is what an earlier one was told that was killed here; without it whatever fails has changed nothing, with
    it what stood still stands. EBUSY: somebody else has attached it, and `remove` would be theirs to call.
    """

    def job() -> tuple[list[int], str]:
        found = dict(before) if before else {}
        fds = _make(found, exclusive=exclusive, docker_names=docker_names, leads=lead_too if own else None)
        return fds, json.dumps(found)

    def lead_too() -> None:
        _lead(own, led, exit_node=exit_node, exclusive=exclusive)

    fds, told = told_in_network(namespace, job)
    names = fds.pop() if docker_names and not exclusive else -1
    tun, diag, *dns = fds
    return Made(tun, diag, dns, json.loads(told), names)


def lead(namespace: int, own: Sequence[Prefix], led: Sequence[Prefix], *, exit_node: bool, exclusive: bool) -> None:
    """Give the TUN exactly these addresses, and the tailnet's ranges and `led`. OSError with the reason.

    With `exit_node` nothing goes out but by the TUN, whether `led` has a way there or not: but to the namespace's own networks, and from
    its own addresses, at which others reach it.
    """

    def job() -> list[int]:
        _lead(own, led, exit_node=exit_node, exclusive=exclusive)
        return []

    in_network(namespace, job)


def remove(namespace: int, before: Mapping[str, Any], *, abandoned: bool = False) -> None:
    """Take away what `make` and `lead` have done, as far as it is there; the TUN goes with its descriptors. OSError with the reason.

    `before` is empty where `make` did not come to its end, and an attachment is `abandoned` when its keeper is gone. A TUN is then not
    ours, but another node's, and so is all else.
    """
    in_network(namespace, lambda: _remove(before, abandoned=abandoned or not before))


def ports_before(before: Mapping[str, Any]) -> range | None:
    """From which ports flows began; None where that was not asked."""
    found = before.get(_PORTS)
    return range(found[0], found[1] + 1) if found else None


def _make(
    before: dict[str, Any],
    *,
    exclusive: bool,
    docker_names: bool,
    leads: Callable[[], object] | None,
) -> list[int]:
    """`before` is filled in where it is empty."""
    again = bool(before)
    deadline = time.monotonic() + (LEAVING_S if again else LETTING_GO_S)
    try:
        tun = once_free(open_tun, deadline)  # first, since only one can have it
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise OSError(error.errno, f"there is a {TUN_NAME} already: another node is attached there") from None
    if not again:
        before.update(_look())
    try:
        redirected = attachment_filter.apply(exclusive=exclusive, redirects=docker_names and not exclusive)
        attachment_routes.stand(exclusive=exclusive, without_resolver=exclusive or (docker_names and not redirected))
        attachment_routes.have_rules(attachment_routes.rules(_answering(), exclusive=exclusive))
        keep_tun_silent()
        set_sysctl(f"net/ipv6/conf/{TUN_NAME}/disable_ipv6", "0")
        set_up_tun()
        dns = _serve_names(deadline)
        names = attachment_filter.marked_sockets(1) if docker_names and not exclusive else []
        if leads is not None:
            leads()
        return [tun, sock_diag.open_socket(), *dns, *names]
    except BaseException:
        if not again:
            with contextlib.suppress(OSError):
                _remove(before)
        raise


def _look() -> dict[str, Any]:
    """What is to be given back. Whatever a keeper has left that was killed in the midst of it was not there before."""
    left = bool(attachment_routes.present_rules())
    kept = {*_OWN_OF_LOOPBACK, *(() if left else _SERVICES)} & device_table.addresses()
    ports = port_range.present()
    return {
        _PORTS: [ports.start, ports.stop - 1],
        _LOOPBACK_HAD: sorted(unpack(each.packed) for each in kept),
        _LOOPBACK_UP: device_table.is_up(LOOPBACK),
    }


def _answering() -> list[Prefix]:
    """The addresses whose answers an earlier attachment has left to go their own way: `lead` says whether they still do."""
    rules = attachment_routes.present_rules()
    return [rule.source for rule in rules if rule.priority == attachment_routes.ANSWERS_RULE and rule.source]


def _serve_names(deadline: float) -> list[int]:
    """MagicDNS's addresses and sockets, as far as loopback may have them."""
    device_table.set_up(LOOPBACK)
    services = [each for each in _SERVICES if len(each.packed) == 4 or _loopback_has_ipv6()]
    device_table.change(services, ())
    try:
        sockets = [
            once_free(partial(dns_socket, kind, unpack(each.packed)), deadline)
            for each in services
            for kind in DNS_KINDS
        ]
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        raise OSError(
            error.errno, "a name server in there has port 53 of all addresses; have it listen at its own alone"
        ) from None
    return [sock.detach() for sock in sockets]


def _loopback_has_ipv6() -> bool:
    try:
        with open(_LOOPBACK_HAS_NO_IPV6) as file:
            return file.read().strip() == "0"
    except FileNotFoundError:
        return False


def _lead(own: Sequence[Prefix], led: Sequence[Prefix], *, exit_node: bool, exclusive: bool) -> None:
    if exclusive:
        attachment_filter.close_devices()
    tun = tun_index()
    give_addresses(tun, own)
    answering = attachment_routes.own_addresses(but=(LOOPBACK, tun)) if exit_node else []
    attachment_routes.have_rules(attachment_routes.rules(answering, exclusive=exclusive))
    attachment_routes.lead(tun, own, led, everything=exit_node or exclusive)


def _remove(before: Mapping[str, Any], *, abandoned: bool = False) -> list[int]:
    if abandoned and any(name == TUN_NAME for _, name in socket.if_nameindex()):
        return []
    attachment_routes.remove_all()
    ports = ports_before(before)
    if ports is not None:
        port_range.choose(ports)
    ours = set(_SERVICES)
    if not before.get(_LOOPBACK_UP, True):
        device_table.set_up(LOOPBACK, up=False)
        ours.update(_OWN_OF_LOOPBACK)
    had = before.get(_LOOPBACK_HAD, ())
    present = device_table.addresses()
    device_table.change((), [each for each in ours & present if unpack(each.packed) not in had])
    attachment_filter.remove()  # last: what was forbidden is until all else is as it was
    return []
