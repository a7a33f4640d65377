"""Does one thing in a short-lived forked child, which may change its namespaces at will (ring 1)."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Final

from tsns.netns import linux

CHILD_TIMEOUT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 4096
MAX_DESCRIPTORS: Final = 16


def in_child(job: Callable[[], Sequence[int]]) -> list[int]:
    """Run `job` in a child of its own and give back the descriptors that it returned; OSError with its text if it failed.

    The caller must have one thread only. The child never returns from here.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    blocked = signal.pthread_sigmask(
        signal.SIG_BLOCK, {signal.SIGTERM}
    )  # else it may run the caller's handler, and live on
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_SETMASK, set())
            socket.send_fds(theirs, [b"done"], list(job()))
            status = 0
        except BaseException as error:  # noqa: BLE001 (the parent gets every failure as text)
            theirs.send(str(error).encode()[:MAX_ANSWER_BYTES] or type(error).__name__.encode())
        finally:
            os._exit(status)
    signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    theirs.close()
    ours.settimeout(CHILD_TIMEOUT_S)
    try:
        answer, fds, _, _ = socket.recv_fds(ours, MAX_ANSWER_BYTES, MAX_DESCRIPTORS)
    except TimeoutError:
        os.kill(pid, signal.SIGKILL)
        raise OSError(f"no answer within {CHILD_TIMEOUT_S:.0f} s") from None
    finally:
        ours.close()
        os.waitpid(pid, 0)
    if answer != b"done":
        raise OSError(answer.decode(errors="replace") or "it ended without an answer")
    for fd in fds:
        os.set_inheritable(fd, False)
    return list(fds)


def in_network(namespace: int, job: Callable[[], Sequence[int]]) -> list[int]:
    """The same inside the network namespace behind this descriptor."""

    def entered() -> Sequence[int]:
        linux.setns(namespace, linux.CLONE_NEWNET)
        return job()

    return in_child(entered)
