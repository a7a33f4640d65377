"""pyroute2, and when it is loaded (ring 1).

Its import takes as long as a login, so it is not done with the other imports but by `load`, which the keeper calls while the engine
already talks to control. A forked child then finds it there.
"""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from pyroute2 import IPRoute

FAMILIES: Final = (socket.AF_INET, socket.AF_INET6)


def load() -> None:
    """Import what `connection` needs."""
    import pyroute2  # noqa: F401


def connection() -> IPRoute:
    """A netlink socket of the caller's own network namespace; to be closed, best by `with`."""
    from pyroute2 import IPRoute

    return IPRoute()


def attempt(call: Callable[..., Any], *args: Any, **what: Any) -> None:
    """Do what is no loss where an older kernel does not know it."""
    from pyroute2.netlink.exceptions import NetlinkError

    with contextlib.suppress(NetlinkError):
        call(*args, **what)


def ensure(call: Callable[..., Any], **what: Any) -> None:
    """Add something that may be there already."""
    from pyroute2.netlink.exceptions import NetlinkError

    try:
        call("add", **what)
    except NetlinkError as error:
        if error.code != errno.EEXIST:
            raise
