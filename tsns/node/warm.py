"""What is made ready before an engine gives up its rights, and before a server forks (ring 1).

Python and its libraries load some modules only when they are first needed. An engine cannot do that: the interpreter's files may be out
of its reach by then. So they are named here, and an import that comes late all the same is logged as the bug that it is.

Memory that a process writes to is its own, so what is set up before a fork is shared by all nodes, and what is set up after it costs each
of them. Hence the arithmetic is tried once here (OpenSSL fetches its algorithms on first use), and the system's TLS roots are read here.
"""

from __future__ import annotations

import concurrent.futures.thread  # noqa: F401 (asyncio's getaddrinfo)
import contextlib
import encodings.ascii
import encodings.idna
import encodings.latin_1  # noqa: F401 (host names, HTTP headers)
import functools
import gc
import importlib.abc
import logging
import os
import ssl
import sys
import traceback  # noqa: F401 (the log of an exception)
from collections.abc import Sequence
from types import ModuleType
from typing import Any, Final

import cryptography.hazmat.backends.openssl.backend  # noqa: F401 (the first key that is derived)
import dns.rdata
import zstandard
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from tsns.derp.framing import ServerInfo
from tsns.keys import KEY_BYTES, LockPrivate, NodePrivate
from tsns.proto.types import ControlKeys, EarlyNoise, Hostinfo, MapResponse, RegisterResponse, decode
from tsns.sealed_box import SealedBox
from tsns.state import Identity
from tsns.wg.engines import choose

LATE: Final = "imported after the fork: %s"
READ_AT_A_START: Final = (ControlKeys, EarlyNoise, RegisterResponse, MapResponse, Hostinfo, ServerInfo)

log = logging.getLogger(__name__)


class _LateImports(importlib.abc.MetaPathFinder):
    """Finds nothing, and says that it was asked."""

    def find_spec(self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None) -> Any:
        log.warning(LATE, fullname)


def watch_imports() -> None:
    """From now on, log each import."""
    sys.meta_path.insert(0, _LateImports())


@functools.cache
def load() -> None:
    """Load what is loaded by name, and try what sets itself up on its first use; the second time takes no time."""
    choose()
    dns.rdata.load_all_types()  # type: ignore[no-untyped-call]  # a question may carry records of any type
    nobody = bytes(range(KEY_BYTES))
    Identity.load(Identity.generate().dump())
    SealedBox(NodePrivate(nobody), NodePrivate(nobody).public.raw).seal(b"", bytes)
    assert LockPrivate(nobody).public
    cipher = ChaCha20Poly1305(nobody)
    assert cipher.decrypt(bytes(12), cipher.encrypt(bytes(12), b"", b""), b"") == b""
    for kind in READ_AT_A_START:
        decode(b"{}", kind)
    zstandard.ZstdDecompressor().decompress(zstandard.compress(b""))
    hello = tls("").wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="localhost")
    with contextlib.suppress(ssl.SSLWantReadError):
        hello.do_handshake()


def tls(roots: str) -> ssl.SSLContext:
    """How servers are believed: by the roots in this PEM file, or (empty) by the system's as they are now."""
    return ssl.create_default_context(cafile=roots) if roots else _system_tls(_system_roots_changed())


@functools.lru_cache(maxsize=1)
def _system_tls(_changed: float) -> ssl.SSLContext:
    return ssl.create_default_context()


def _system_roots_changed() -> float:
    """When the file of the system's roots was last written: a server may be older than that."""
    file = ssl.get_default_verify_paths().cafile
    return os.stat(file).st_mtime if file else 0.0


def settle() -> None:
    """Before a fork: what is there stays as it is, so that parent and child go on sharing its memory."""
    # Else a node's look-ups push out what the imports had looked up, and write to each name of that.
    clear = getattr(sys, "_clear_internal_caches", None) or sys._clear_type_cache
    clear()
    gc.freeze()
    gc.enable()
