"""A port mapped by UPnP: discovery, description and SOAP with the gateway, and with nobody else (ring 1).

Only the gateway's own answer to the search counts, and each further connection goes to its address, whatever the texts name.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
import socket
from collections.abc import Mapping
from typing import Final

import h11

from tsns.error import ProtocolError, RetryableError
from tsns.netns.underlay import Underlay, udp_socket
from tsns.paths import upnp
from tsns.paths.home_network import is_of_use
from tsns.paths.portmap import UPNP_S, TryUpnp, UpnpOutcome
from tsns.paths.upnp import Control, Fault, Place
from tsns.proto.addresses import Endpoint, pack

log = logging.getLogger(__name__)

EFFORT_S: Final = UPNP_S - 0.5  # for one attempt
SEARCH_S: Final = upnp.MAX_WAIT_S + 0.3  # for the gateway's first answer
MORE_S: Final = 0.05  # for further ones
REQUEST_S: Final = 1.0  # for one HTTP request, connection included
MAX_DATAGRAMS: Final = 64  # looked at in one search
MAX_PLACES: Final = 4  # descriptions that are read
MAX_ADDITIONS: Final = 5  # requests for one mapping, each in another form
READ_BYTES: Final = 16 << 10
MULTICAST_TTL: Final = 2
LOWEST_RANDOM_PORT: Final = 1024
DESCRIPTION: Final = "tsns"

# The codes of UPnP's errors after which another form may be granted.
INVALID_ACTION: Final = 401
INVALID_ARGUMENTS: Final = 402
CONFLICT: Final = frozenset({718, 729})
SAME_PORT_ONLY: Final = 724
PERMANENT_LEASES_ONLY: Final = 725

_FAILURES: Final = (OSError, TimeoutError, RetryableError, ProtocolError, h11.ProtocolError)


class Upnp:
    """Asks one thing at a time; remembers who gave the mapping, for its end."""

    def __init__(self, underlay: Underlay) -> None:
        self._underlay = underlay
        self._one = asyncio.Lock()
        self._giver: tuple[str, Control] | None = None

    async def map(self, asked: TryUpnp) -> UpnpOutcome:
        """Try to get a mapping, within EFFORT_S."""
        self._found = False
        external: Endpoint | None = None
        try:
            async with asyncio.timeout(EFFORT_S), self._one:
                external = await self._map(asked)
        except _FAILURES as error:
            log.debug("UPnP: no mapping by %s: %s", asked.gateway, str(error) or type(error).__name__)
        return UpnpOutcome(asked, found=self._found, external=external)

    async def release(self, gateway: str, external_port: int) -> None:
        """End the mapping, if it works."""
        try:
            async with self._one:
                if self._giver is None or self._giver[0] != gateway:
                    return
                control, self._giver = self._giver[1], None
                key = {"NewRemoteHost": "", "NewExternalPort": str(external_port), "NewProtocol": "UDP"}
                await self._call(gateway, control, "DeletePortMapping", key)
        except _FAILURES as error:
            log.debug("UPnP: the mapping could not be ended: %s", str(error) or type(error).__name__)

    # --- mapping ---------------------------------------------------------------------------------------------------

    async def _map(self, asked: TryUpnp) -> Endpoint | None:
        for place in await self._search(asked.gateway, asked.own):
            status, document = await self._request(asked.gateway, place, "GET")
            if status != 200:
                continue
            for control in upnp.parse_description(document, place):
                self._found = True
                try:
                    external = await self._map_by(control, asked)
                except Fault as fault:
                    log.debug("UPnP: %s: %s", control.service, fault)
                    continue
                if external is not None:
                    self._giver = (asked.gateway, control)
                    return external
        return None

    async def _map_by(self, control: Control, asked: TryUpnp) -> Endpoint | None:
        """A mapping by this service; None where its line is down. Fault where it gives none."""
        reply = await self._call(asked.gateway, control, "GetExternalIPAddress", {})
        address = reply.get("NewExternalIPAddress", "")
        if not is_of_use((address, asked.port)):
            return None
        return address, await self._add(control, asked)

    async def _add(self, control: Control, asked: TryUpnp) -> int:
        """Make the mapping, in the form that this gateway likes; its external port."""
        port, lifetime_s = asked.wanted_port or asked.port, asked.lifetime_s
        any_port = control.service == upnp.SERVICES[0]
        for _ in range(MAX_ADDITIONS):
            arguments = {
                "NewRemoteHost": "",
                "NewExternalPort": str(port),
                "NewProtocol": "UDP",
                "NewInternalPort": str(asked.port),
                "NewInternalClient": asked.own,
                "NewEnabled": "1",
                "NewPortMappingDescription": DESCRIPTION,
                "NewLeaseDuration": str(lifetime_s),
            }
            action = "AddAnyPortMapping" if any_port else "AddPortMapping"
            try:
                reply = await self._call(asked.gateway, control, action, arguments)
            except Fault as fault:
                if fault.code in {INVALID_ARGUMENTS, PERMANENT_LEASES_ONLY} and lifetime_s:
                    lifetime_s = 0
                elif fault.code in CONFLICT:
                    port = random.randint(LOWEST_RANDOM_PORT, 0xFFFF)  # noqa: S311 (no secret)
                elif fault.code == SAME_PORT_ONLY and port != asked.port:
                    port = asked.port
                elif any_port and fault.code == INVALID_ACTION:
                    any_port = False
                else:
                    raise
                continue
            reserved = reply.get("NewReservedPort", "") if any_port else ""
            return int(reserved) if re.fullmatch("[0-9]{1,5}", reserved) else port
        raise ProtocolError("a gateway that wants each mapping in another form")

    # --- SSDP ------------------------------------------------------------------------------------------------------

    async def _search(self, gateway: str, own: str) -> list[Place]:
        """Where the gateway says that its descriptions are."""
        found: list[Place] = []
        loop = asyncio.get_running_loop()
        with udp_socket(socket.AF_INET, 0) as sock:
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, pack(own))
            sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, MULTICAST_TTL)
            for target, host in (
                (upnp.SEARCH_ALL, gateway),
                (upnp.SEARCH_GATEWAY, upnp.SSDP_GROUP),
                (upnp.SEARCH_ALL, upnp.SSDP_GROUP),
            ):
                try:
                    sock.sendto(upnp.search(target, host), (host, upnp.SSDP_PORT))
                except OSError as error:
                    log.debug("UPnP: no search at %s: %s", host, error)
            try:
                async with asyncio.timeout(SEARCH_S) as patience:
                    for _ in range(MAX_DATAGRAMS):
                        data, source = await loop.sock_recvfrom(sock, upnp.MAX_ANSWER_BYTES + 1)
                        place = upnp.parse_search_answer(data) if source[0] == gateway else None
                        if place is not None and place not in found:
                            if not found:
                                patience.reschedule(loop.time() + MORE_S)
                            found.append(place)
            except TimeoutError:
                pass
        return found[:MAX_PLACES]

    # --- HTTP ------------------------------------------------------------------------------------------------------

    async def _call(
        self, gateway: str, control: Control, action: str, arguments: Mapping[str, str]
    ) -> Mapping[str, str]:
        """A SOAP call; Fault where the gateway says no."""
        headers = [("Content-Type", 'text/xml; charset="utf-8"'), ("SOAPAction", f'"{control.service}#{action}"')]
        body = upnp.call(control.service, action, arguments)
        _, document = await self._request(gateway, control.place, "POST", headers, body)
        return upnp.parse_reply(document, action)

    async def _request(
        self, gateway: str, place: Place, method: str, headers: list[tuple[str, str]] | None = None, body: bytes = b""
    ) -> tuple[int, bytes]:
        """One HTTP request to the gateway and the whole answer: its status and body. No redirection is followed."""
        async with asyncio.timeout(REQUEST_S):
            reader, writer = await self._underlay.open_tcp(gateway, place.port, timeout_s=REQUEST_S)
            try:
                http = h11.Connection(h11.CLIENT)
                head = [("Host", f"{gateway}:{place.port}"), ("Connection", "close"), *(headers or [])]
                if body:
                    head.append(("Content-Length", str(len(body))))
                request = h11.Request(method=method, target=place.path, headers=head)
                writer.write(
                    (http.send(request) or b"")
                    + ((http.send(h11.Data(data=body)) or b"") if body else b"")
                    + (http.send(h11.EndOfMessage()) or b"")
                )
                return await read_answer(http, reader)
            finally:
                writer.transport.abort()


async def read_answer(http: h11.Connection, reader: asyncio.StreamReader) -> tuple[int, bytes]:
    """The status and the whole body of an answer; ProtocolError or h11.RemoteProtocolError where there is none, or no end to it."""
    status, body = 0, b""
    while True:
        match http.next_event():
            case h11.NEED_DATA:
                http.receive_data(await reader.read(READ_BYTES))
            case h11.Response(status_code=status):
                pass
            case h11.Data(data=data):
                body += data
                if len(body) > upnp.MAX_DOCUMENT_BYTES:
                    raise ProtocolError("an endless answer")
            case h11.EndOfMessage():
                return status, body
            case h11.ConnectionClosed():
                raise ProtocolError("no answer")
