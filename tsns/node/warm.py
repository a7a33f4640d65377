"""Imports that would otherwise happen after the engine has given up its rights (ring 1).

Python and its libraries load some modules only when they are first needed. An engine cannot do that: the interpreter's files may be out
of its reach by then. So they are named here, and an import that comes late all the same is logged as the bug that it is.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 (asyncio's getaddrinfo)
import encodings.ascii
import encodings.idna
import encodings.latin_1  # noqa: F401 (host names, HTTP headers)
import gc
import importlib.abc
import logging
import sys
import traceback  # noqa: F401 (the log of an exception)
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

import cryptography.hazmat.backends.openssl.backend  # noqa: F401 (the first key that is derived)
import dns.rdata

LATE: Final = "imported after the fork: %s"

log = logging.getLogger(__name__)


class _LateImports(importlib.abc.MetaPathFinder):
    """Finds nothing, and says that it was asked."""

    def find_spec(self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> Any:
        log.warning(LATE, fullname)


def watch_imports() -> None:
    """From now on, log each import."""
    sys.meta_path.insert(0, _LateImports())


def load() -> None:
    """Load what is loaded by name; the second time takes no time."""
    dns.rdata.load_all_types()  # type: ignore[no-untyped-call]  # a question may carry records of any type


def settle() -> None:
    """Before a fork: what is there stays as it is, so that parent and child go on sharing its memory."""
    gc.collect()
    gc.freeze()
