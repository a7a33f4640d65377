"""Which names have which addresses: nodes and extra records, and the way back from address to name (ring 0)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from tsns.dns.names import key_of
from tsns.proto.addresses import pack
from tsns.proto.types import DNSRecord, Node

SUBDOMAINS: Final = "dns-subdomain-resolve"  # a node's capability: names below its own have its addresses too
MAX_CLAIMANTS: Final = 16  # of one name or address; more than two are a mistake of control's

_SIZES: Final = {"": (4, 16), "A": (4,), "AAAA": (16,)}  # of the address, by an extra record's type


@dataclass(frozen=True, slots=True)
class Host:
    """One name and the address of each family that it is answered with."""

    owner: int  # the node's id
    key: bytes
    v4: bytes | None
    v6: bytes | None
    answers_below: bool = False

    @property
    def addresses(self) -> list[bytes]:
        """The addresses, IPv4 first."""
        return [address for address in (self.v4, self.v6) if address is not None]


def host_of(node: Node) -> Host | None:
    """A node as DNS sees it; None where its name is none or where it has no address."""
    addresses: list[bytes] = []
    for text in node.addresses or ():
        try:
            addresses.append(pack(text.partition("/")[0]))
        except ValueError:
            continue
    v4, v6 = _first_of_each(addresses)
    if v4 is None and v6 is None:
        return None
    try:
        key = key_of(node.name or "")
    except ValueError:
        return None
    return Host(node.id, key, v4, v6, SUBDOMAINS in (node.cap_map or ()))


def extra_hosts(records: Iterable[DNSRecord]) -> list[Host]:
    """The records that control adds; those of other types than addresses, or not understood, are left out."""
    found: dict[bytes, list[bytes]] = {}
    for record in records:
        try:
            key, address = key_of(record.name or ""), pack(record.value or "")
        except ValueError:
            continue
        if len(address) in _SIZES.get((record.type or "").upper(), ()):
            found.setdefault(key, []).append(address)
    return [Host(0, key, *_first_of_each(addresses)) for key, addresses in found.items()]


def _first_of_each(addresses: Iterable[bytes]) -> tuple[bytes | None, bytes | None]:
    v4 = v6 = None
    for address in addresses:
        if len(address) == 4:
            v4 = v4 or address
        else:
            v6 = v6 or address
    return v4, v6


class HostTable:
    """Hosts by name and by address.

    Several may claim the same name or address while a netmap changes node by node, hence each entry is a row of claimants, of
    which the first is answered; the others are there when it goes.
    """

    def __init__(self) -> None:
        self._by_key: dict[bytes, tuple[Host, ...]] = {}
        self._by_address: dict[bytes, tuple[Host, ...]] = {}

    def add(self, host: Host) -> None:
        """Let the host be found."""
        _add(self._by_key, host.key, host)
        for address in host.addresses:
            _add(self._by_address, address, host)

    def remove(self, host: Host) -> None:
        """Let it be found no more; what is not there is not missed."""
        _remove(self._by_key, host.key, host)
        for address in host.addresses:
            _remove(self._by_address, address, host)

    def named(self, key: bytes) -> Host | None:
        """The host of this name."""
        row = self._by_key.get(key)
        return row[0] if row else None

    def at(self, address: bytes) -> Host | None:
        """The host with this packed address."""
        row = self._by_address.get(address)
        return row[0] if row else None


def _add(table: dict[bytes, tuple[Host, ...]], key: bytes, host: Host) -> None:
    row = table.get(key, ())
    if len(row) < MAX_CLAIMANTS:
        table[key] = (*row, host)


def _remove(table: dict[bytes, tuple[Host, ...]], key: bytes, host: Host) -> None:
    row = tuple(other for other in table.get(key, ()) if other.owner != host.owner)
    if row:
        table[key] = row
    else:
        table.pop(key, None)
