"""The resolv.conf that a command inside sees (ring 1, standard library only)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

SERVICE_ADDRESSES: Final = ("100.100.100.100", "fd7a:115c:a1e0::53")
MAX_SEARCH_DOMAINS: Final = 32
_DOMAIN: Final = re.compile(r"(?=.{1,253}$)[A-Za-z0-9_]([A-Za-z0-9_-]{0,62})(\.[A-Za-z0-9_][A-Za-z0-9_-]{0,62})*")


def checked_search(domains: Iterable[str]) -> list[str]:
    """The domains among these that may stand in the file, without their final dots."""
    bare = [domain.rstrip(".") for domain in domains]
    return [domain for domain in bare if _DOMAIN.fullmatch(domain)][:MAX_SEARCH_DOMAINS]


def render(search: list[str], *, magic_dns: bool, options: str = "") -> str:
    """The file's text; without MagicDNS it names no server, since none of the host's is within reach. `options` as in resolv.conf(5)."""
    lines = ["# made by tsns for the commands of this node"]
    if magic_dns:
        lines += [f"nameserver {address}" for address in SERVICE_ADDRESSES]
    if search:
        lines.append(f"search {' '.join(search)}")
    if options:
        lines.append(f"options {options}")
    return "\n".join([*lines, ""])
