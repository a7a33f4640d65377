"""What a person sees while waiting: nothing for half a second, then what is waited for."""

from __future__ import annotations

import os
import signal
import time

import pytest

from tsns.cli import terminal
from tsns.cli.terminal import Progress


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PATIENCE_S", 0.02)
    monkeypatch.setattr(terminal, "SPIN_S", 0.02)


def a_while() -> None:
    end = time.monotonic() + 0.1
    while time.monotonic() < end:
        time.sleep(0.01)


def test_a_short_wait_is_worth_no_word(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PATIENCE_S", 5.0)
    with Progress("starting") as progress:
        progress("control")
    assert capfd.readouterr().err == ""


def test_a_long_wait_says_each_thing_once(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress("starting") as progress:
        a_while()
        progress("control \x1b[2J")
        a_while()
    assert capfd.readouterr().err == "tsns: waiting: starting\ntsns: waiting: control [2J\n"


def test_quiet_says_nothing_but_what_to_do(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress("starting", quiet=True) as progress:
        a_while()
        progress("to log in, open https://a/b")
        a_while()
    assert capfd.readouterr().err == "to log in, open https://a/b\n"


def test_verbose_says_everything_at_once(capfd: pytest.CaptureFixture[str]) -> None:
    with Progress("starting", verbosity=1) as progress:
        progress("control")
        progress("control")
    words = [line.split("s  ")[1] for line in capfd.readouterr().err.splitlines()]
    assert words == ["starting", "control"]


def test_a_spinner_leaves_no_trace(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "is_fancy", lambda *_: True)
    with Progress("starting"):
        a_while()
    shown = capfd.readouterr().err
    assert "starting" in shown
    assert "\n" not in shown
    assert shown.endswith("\r\x1b[K")


def test_the_timer_and_its_handler_are_as_before(capfd: pytest.CaptureFixture[str]) -> None:
    handler = signal.getsignal(signal.SIGALRM)
    timer = signal.setitimer(signal.ITIMER_REAL, 100.0, 7.0)
    with pytest.raises(KeyboardInterrupt), Progress("starting"):
        raise KeyboardInterrupt
    left, interval = signal.setitimer(signal.ITIMER_REAL, *timer)
    assert signal.getsignal(signal.SIGALRM) is handler
    assert 90 < left <= 100
    assert interval == 7
    assert capfd.readouterr().err == ""


def test_colour_is_for_terminals_that_want_it() -> None:
    master, slave = os.openpty()
    reader, writer = os.pipe()
    try:
        assert terminal.is_fancy(slave, {"TERM": "xterm"})
        assert not terminal.is_fancy(slave, {"TERM": "dumb"})
        assert not terminal.is_fancy(slave, {"TERM": "xterm", "NO_COLOR": "1"})
        assert not terminal.is_fancy(writer, {"TERM": "xterm"})
    finally:
        for fd in (master, slave, reader, writer):
            os.close(fd)
