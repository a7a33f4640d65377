"""Does one thing in a short-lived forked child, which may change its namespaces at will (ring 1)."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
from collections.abc import Callable, Sequence
from typing import Final

from tsns.netns import user_namespace

CHILD_TIMEOUT_S: Final = 10.0
MAX_ANSWER_BYTES: Final = 4096
MAX_DESCRIPTORS: Final = 16
_DONE: Final = b"done"  # a failure begins with a number


def in_child(job: Callable[[], Sequence[int]]) -> list[int]:
    """Run `job` in a child of its own and give back the descriptors that it returned; OSError with its text and errno if it failed.

    The caller must have one thread only. The child never returns from here.
    """
    fds, _ = _told_in_child(lambda: (job(), ""))
    return fds


def _told_in_child(job: Callable[[], tuple[Sequence[int], str]]) -> tuple[list[int], str]:
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
            fds, text = job()
            answer = _DONE + text.encode()
            if len(answer) > MAX_ANSWER_BYTES:
                raise OSError(errno.EMSGSIZE, "there is too much to tell")
            socket.send_fds(theirs, [answer], list(fds))
            status = 0
        except BaseException as error:  # noqa: BLE001 (the parent gets every failure as text)
            theirs.send(_told(error))
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
    if not answer.startswith(_DONE):
        raise _failure(answer)
    for fd in fds:
        os.set_inheritable(fd, False)
    return list(fds), answer.removeprefix(_DONE).decode()


def _told(error: BaseException) -> bytes:
    number, text = None, str(error)
    if isinstance(error, OSError):
        number = error.errno
        text = error.strerror if error.strerror and error.filename is None else text  # without its number
    return f"{number or 0} {text or type(error).__name__}".encode(errors="replace")[:MAX_ANSWER_BYTES]


def _failure(answer: bytes) -> OSError:
    number, _, text = answer.decode(errors="replace").partition(" ")
    failure = OSError(text or "it ended without an answer")
    with contextlib.suppress(ValueError):
        failure.errno = int(number) or None
    return failure


def in_network(namespace: int, job: Callable[[], Sequence[int]]) -> list[int]:
    """The same inside the network namespace behind this descriptor, with all rights over it."""
    fds, _ = told_in_network(namespace, lambda: (job(), ""))
    return fds


def told_in_network(namespace: int, job: Callable[[], tuple[Sequence[int], str]]) -> tuple[list[int], str]:
    """The same, of a job that has something to tell besides."""

    def entered() -> tuple[Sequence[int], str]:
        user_namespace.enter(namespace)
        return job()

    return _told_in_child(entered)
