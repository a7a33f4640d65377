"""Where the programs are that nobody here wrote."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parents[3]
DIRECTORY: Final = ROOT / ".cache" / "peers"  # scripts/peers puts them there
BUILT: Final = ("tailscaled", "tailscale", "derper", "testcontrol", "lookup")
INSTALLED: Final = ("ip", "miniupnpd", "nsenter", "nft", "ping", "ss", "wg", "wireguard-go")


def peer(name: str) -> str:
    """The path of a program that scripts/peers built."""
    return str(DIRECTORY / name)


def missing_peers() -> list[str]:
    """What the rig cannot do without and does not find on this machine."""
    built = [name for name in BUILT if not os.access(DIRECTORY / name, os.X_OK)]
    return built + [name for name in INSTALLED if shutil.which(name) is None]


def headscale_binary() -> str | None:
    """A Headscale server's program, where the environment names one."""
    return os.environ.get("TSNS_HEADSCALE") or None
