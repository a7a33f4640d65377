"""What a node tells control of itself (ring 1)."""

from __future__ import annotations

import platform
from typing import Final

from tsns import VERSION
from tsns.config import NodeConfig
from tsns.proto.types import Hostinfo
from tsns.state import Identity

GO_ARCHITECTURES: Final = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "i686": "386"}
EVERYTHING: Final = ("0.0.0.0/0", "::/0")


def hostinfo(config: NodeConfig, identity: Identity) -> Hostinfo:
    """No more than peers and administrators need: name, system, and that nothing is logged anywhere."""
    machine = platform.machine()
    return Hostinfo(
        ipn_version=f"tsns/{VERSION}",
        backend_log_id=identity.log_id,
        os="linux",
        os_version=platform.release(),
        hostname=config.hostname or config.name,
        app="tsns",
        machine=machine,
        go_arch=GO_ARCHITECTURES.get(machine, machine),
        userspace=True,
        userspace_router=True,
        no_logs_no_support=True,
        shields_up=config.shields_up or None,
        request_tags=list(config.advertise_tags) or None,
        routable_ips=advertised(config) or None,
    )


def advertised(config: NodeConfig) -> list[str]:
    """The prefixes that the node offers to carry, everything among them where it is an exit node."""
    return [*config.advertise_routes, *(EVERYTHING if config.advertise_exit_node else ())]
