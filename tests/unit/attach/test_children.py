"""Children and what they say."""

from __future__ import annotations

import os
import select
import signal
import time

import pytest

from tsns.attach import children
from tsns.attach.children import Child


def said(child: Child) -> list[bytes]:
    """All of it, up to its end."""
    found: list[bytes] = []
    while (lines := child.lines()) is not None:
        found += lines
    return found


def test_what_a_child_says_comes_in_lines() -> None:
    def work(fd: int) -> None:
        for line in (b"one", b"two" * 50_000, b""):
            children.say(fd, line)

    child = Child(work)
    assert said(child) == [b"one", b"two" * 50_000, b""]
    child.close()


def test_one_that_fails_or_dies_has_ended() -> None:
    def fail(_fd: int) -> None:
        raise SystemExit("no")

    for work in (fail, lambda _: os.kill(os.getpid(), signal.SIGKILL)):
        child = Child(work)
        assert said(child) == []
        child.close()


def test_one_that_hangs_is_ended() -> None:
    child = Child(lambda _: time.sleep(1000))
    assert select.select([child.fd], [], [], 0)[0] == []
    child.close()
    with pytest.raises(ProcessLookupError):
        os.kill(child.pid, 0)


def test_it_has_none_of_our_descriptors() -> None:
    ours, theirs = os.pipe()
    child = Child(lambda fd: children.say(fd, b" ".join(each.encode() for each in sorted(os.listdir("/proc/self/fd")))))
    (line,) = said(child)
    assert len(line.split()) == 5, "0, 1, 2, its pipe, and the one that lists them"
    child.close()
    os.close(ours)
    os.close(theirs)


def test_a_line_without_an_end_is_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "MAX_UNREAD_BYTES", 1000)

    def work(fd: int) -> None:
        for _ in range(10_000):
            os.write(fd, b"x" * 500)

    child = Child(work)
    assert said(child) == []
    child.close()
