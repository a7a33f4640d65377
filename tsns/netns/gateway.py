"""Where the way out leads: the default gateways of the namespace that this thread runs in (ring 1)."""

from __future__ import annotations

import os
import struct
from typing import Final

from tsns.proto.addresses import unpack

ROUTES: Final = "/proc/thread-self/net/route"  # IPv4's main table, as the reader's own namespace has it
MAX_TABLE_BYTES: Final = 64 << 10  # the default routes come first

_UP_AND_GATEWAY: Final = 0x1 | 0x2
_EVERYTHING: Final = ("00000000", "00000000")  # destination and mask


def default_gateways() -> list[str]:
    """Their IPv4 addresses, the preferred one first; empty where there is none, or where one may not look."""
    try:
        file = os.open(ROUTES, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return []
    try:
        table = b""
        while len(table) < MAX_TABLE_BYTES and (more := os.read(file, MAX_TABLE_BYTES - len(table))):
            table += more
    except OSError:
        return []
    finally:
        os.close(file)
    return parse(table.decode("ascii", "replace"))


def parse(table: str) -> list[str]:
    """The gateways in the text of such a table."""
    found: list[str] = []
    for line in table.splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8 or (fields[1], fields[7]) != _EVERYTHING:
            continue
        try:
            gateway, flags = int(fields[2], 16), int(fields[3], 16)
            packed = struct.pack("=I", gateway)  # the kernel prints the address as a number of its own byte order
        except (ValueError, struct.error):  # a line that was cut
            continue
        if flags & _UP_AND_GATEWAY == _UP_AND_GATEWAY:
            found.append(unpack(packed))
    return found
