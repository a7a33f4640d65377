"""Starts processes of tsns that outlive the one who starts them (ring 1, standard library only)."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

INHERITED_FD: Final = 3
MAX_LOG_BYTES: Final = 1 << 20
LOG_MODE: Final = 0o600
_NO_DISPOSITION: Final = {signal.SIGKILL, signal.SIGSTOP, 32, 33}  # 32 and 33 are the C library's own


def spawn(
    module: str, arguments: Sequence[str], inherited: int, log: Path, environ: Mapping[str, str] | None = None
) -> None:
    """Start a module of tsns as our grandchild, which has descriptor `inherited` as its descriptor 3, and a log.

    The command that we may become must not find a child that it never had. The caller has one thread only.
    """
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            if os.fork() == 0:
                _become(module, arguments, inherited, log, environ or {})
        finally:
            os._exit(127)
    os.waitpid(pid, 0)


def _become(module: str, arguments: Sequence[str], inherited: int, log: Path, environ: Mapping[str, str]) -> None:
    """Nothing of the first caller's is everybody's: no descriptors, signals, directory, mask or environment."""
    os.chdir("/")
    os.umask(0o022)  # while it imports: what Python caches of that is for everybody
    for number in set(range(1, signal.NSIG)) - _NO_DISPOSITION:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, set())
    written = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW, LOG_MODE)
    if os.fstat(written).st_size > MAX_LOG_BYTES:
        os.ftruncate(written, 0)
    nothing = os.open("/dev/null", os.O_RDONLY)
    high = os.dup(inherited)  # not one of those that are replaced now
    while high <= INHERITED_FD:
        high = os.dup(high)
    for source, target in ((nothing, 0), (written, 1), (written, 2), (high, INHERITED_FD)):
        os.dup2(source, target)
    os.closerange(INHERITED_FD + 1, 1 << 16)
    execute(module, arguments, environ)


def execute(module: str, arguments: Sequence[str], environ: Mapping[str, str]) -> None:
    """Become this module of tsns. It is isolated, but for what an ordinary user has installed for themselves (`pip install --user`)."""
    flags = "-I" if os.geteuid() == 0 else "-EP"
    words = [sys.executable, flags, "-m", module, *arguments]
    os.execve(sys.executable, words, {"PATH": os.defpath, "LANG": "C.UTF-8", **environ})
