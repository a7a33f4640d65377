"""One question to a gateway about a mapping, in NAT-PMP or PCP, and what is answered to it (ring 0).

Source: RFC 6886 and RFC 6887. A question may take several datagrams; each is answered once, in any order.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

from tsns.paths import natpmp, pcp
from tsns.paths.home_network import Network
from tsns.proto.addresses import pack

NOWHERE: Final = "0.0.0.0"


class Service(enum.Enum):
    """Who gives mappings, in the order in which they are tried."""

    PMP = "NAT-PMP"
    PCP = "PCP"
    UPNP = "UPnP"


class Purpose(enum.Enum):
    """What is wanted: a mapping or a longer life for it, a sign that it is still there, or its end."""

    MAP = enum.auto()
    CHECK = enum.auto()
    RELEASE = enum.auto()


class Drop(enum.StrEnum):
    """Why a datagram was not listened to."""

    UNASKED = "nothing was asked"
    NOT_FROM_GATEWAY = "not from the gateway that was asked"
    MALFORMED = "no answer in the protocol that was asked in"
    NO_MATCH = "answer to something else"


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is asked for: the external address and port are wishes (0: any). The nonce stays the same as long as the mapping (PCP)."""

    lifetime_s: int
    nonce: bytes
    external_port: int = 0
    external: str = NOWHERE


@dataclass(slots=True)
class Question:
    """What was asked, what of it has no answer yet (by opcode), and what was learned."""

    service: Service
    purpose: Purpose
    network: Network
    wanted: Wanted
    unanswered: dict[int, bytes] = field(init=False)
    address: bytes = pcp.NO_ADDRESS  # the external one; 4 bytes where it is one of IPv4
    external_port: int = 0
    lifetime_s: int = 0  # granted
    epoch_s: int = 0  # the gateway's clock

    def __post_init__(self) -> None:
        self.unanswered = self._in_pmp() if self.service is Service.PMP else self._in_pcp()

    def take(self, data: bytes) -> bool | Drop:
        """Read a datagram that the gateway sent: whether what it answers is granted."""
        return self._take_pmp(data) if self.service is Service.PMP else self._take_pcp(data)

    def _in_pmp(self) -> dict[int, bytes]:
        requests: dict[int, bytes] = {}
        if self.purpose is not Purpose.RELEASE:
            requests[natpmp.Opcode.ADDRESS] = natpmp.ADDRESS_REQUEST
        if self.purpose is not Purpose.CHECK:
            wanted = self.wanted
            requests[natpmp.Opcode.MAP_UDP] = natpmp.map_request(
                self.network.port, wanted.external_port, wanted.lifetime_s
            )
        return requests

    def _in_pcp(self) -> dict[int, bytes]:
        own, wanted = pack(self.network.own), self.wanted
        if self.purpose is Purpose.CHECK:
            return {pcp.Opcode.ANNOUNCE: pcp.announce(own)}
        external = pack(wanted.external)
        request = pcp.map_request(
            own, wanted.nonce, self.network.port, wanted.lifetime_s, wanted.external_port, external
        )
        return {pcp.Opcode.MAP: request}

    def _take_pmp(self, data: bytes) -> bool | Drop:
        answer = natpmp.parse_answer(data)
        if answer is None:
            spoken = pcp.parse_answer(data)
            only_pcp = spoken is not None and spoken.result == pcp.Result.UNSUPPORTED_VERSION
            return False if only_pcp else Drop.MALFORMED
        if answer.opcode not in self.unanswered:
            return Drop.NO_MATCH
        if answer.result != natpmp.Result.SUCCESS:
            return False
        if answer.opcode == natpmp.Opcode.ADDRESS:
            self.address = answer.address
        elif answer.internal_port != self.network.port:
            return Drop.NO_MATCH
        else:
            self.external_port, self.lifetime_s = answer.external_port, answer.lifetime_s
        return self._heard(answer.opcode, answer.epoch_s)

    def _take_pcp(self, data: bytes) -> bool | Drop:
        answer = pcp.parse_answer(data)
        if answer is None:
            spoken = natpmp.parse_answer(data)
            only_pmp = spoken is not None and spoken.result == natpmp.Result.UNSUPPORTED_VERSION
            return False if only_pmp else Drop.MALFORMED
        if answer.opcode not in self.unanswered:
            return Drop.NO_MATCH
        mapped = answer.mapped
        if answer.opcode == pcp.Opcode.MAP and (
            mapped is None or (mapped.nonce, mapped.internal_port) != (self.wanted.nonce, self.network.port)
        ):
            return Drop.NO_MATCH  # perhaps an error that is still on its way, for what NAT-PMP has asked
        if answer.result != pcp.Result.SUCCESS:
            return False
        if mapped is not None:
            self.address, self.external_port, self.lifetime_s = mapped.external, mapped.external_port, answer.lifetime_s
        return self._heard(answer.opcode, answer.epoch_s)

    def _heard(self, opcode: int, epoch_s: int) -> bool:
        del self.unanswered[opcode]
        self.epoch_s = epoch_s
        return True
