"""Which engine seals and opens: the native core where it is built, else pure Python (ring 0).

Both are behind the seam that `transport` draws, and pass the same tests. An engine is imported when it is chosen, and the other one never.
"""

from __future__ import annotations

from functools import cache, partial
from typing import Final

from tsns.wg.transport import MakeTransport

NATIVE: Final = "native"
PYTHON: Final = "python"


@cache
def choose(wanted: str = "") -> str:
    """The engine to use, imported: the one that is wanted, by default the native one if it is there. ValueError where it is not."""
    if wanted != PYTHON:
        try:
            import tsns.wg.native_transport
        except ImportError:
            if wanted:
                raise ValueError(f"the data plane {wanted!r} is not part of this installation of tsns") from None
        else:
            return NATIVE
    import tsns.wg.python_transport  # noqa: F401

    return PYTHON


def maker(engine: str, *, join_udp: bool) -> MakeTransport:
    """What makes the transports of sessions. `join_udp`: whether the TUN takes super-packets of datagrams."""
    if engine == NATIVE:
        from tsns.wg.native_transport import NativeTransport

        return partial(NativeTransport, join_udp=join_udp)
    from tsns.wg.python_transport import PythonTransport

    return partial(PythonTransport, join_udp=join_udp)
