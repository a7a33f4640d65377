"""An engine's process, from the fork to its end (ring 1)."""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from typing import Final, NoReturn

from tsns.netns import confinement, linux
from tsns.node import netmap_cache, warm
from tsns.node.engine import Engine, Given
from tsns.proto.types import MapResponse
from tsns.wg import engines

UID_BASE: Final = 1_953_693_696  # plus the keeper's pid: engines cannot signal or trace one another

log = logging.getLogger(__name__)


def live(given: Given, cache_fd: int, parent: int) -> NoReturn:
    """Give up all rights, then work. `cache_fd` is the cached netmap, -1 where there is none."""
    exit_status = 1
    try:
        inherited = [sock.fileno() for sock in (given.channel, given.api, *given.udp)]
        linux.close_all_but(*inherited, *([cache_fd] if cache_fd >= 0 else []))
        warm.load()
        engines.choose(given.config.data_plane)
        tls = warm.tls(given.config.tls_roots)
        confinement.confine(UID_BASE + parent, parent)
        warm.watch_imports()
        node_key = given.identity.node_key
        asyncio.run(_work(given, tls, netmap_cache.read(cache_fd, node_key.public if node_key else None)))
        exit_status = 0
    except Exception:  # the last frame of a process: say it where somebody may look
        log.exception("the engine failed")
    finally:
        logging.shutdown()
        os._exit(exit_status)


async def _work(given: Given, tls: ssl.SSLContext, cached: MapResponse | None) -> None:
    await Engine(given, tls, cached).run()
