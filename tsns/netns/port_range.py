"""From which ports the flows of a namespace begin (ring 1). Source: ip-sysctl.rst of the kernel, `ip_local_port_range`, which IPv6 goes by as well."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from tsns.netns.child import in_network

_KEY: Final = Path("/proc/sys/net/ipv4/ip_local_port_range")


def present() -> range:
    """The ports of the caller's own namespace. OSError with the reason."""
    first, last = map(int, _KEY.read_text().split())
    return range(first, last + 1)


def choose(ports: range) -> None:
    """Have the caller's own namespace use these. OSError with the reason."""
    if ports != present():
        _KEY.write_text(f"{ports.start} {ports.stop - 1}")


def set_range(namespace: int, ports: range) -> None:
    """The same in another namespace."""

    def job() -> list[int]:
        choose(ports)
        return []

    in_network(namespace, job)
