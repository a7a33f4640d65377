"""The keeper's loop: descriptors, moments, signals."""

from __future__ import annotations

import os
import signal
import time

from tsns.node.watch import Watch


def test_a_descriptor_that_can_be_read_calls_its_handler() -> None:
    watch = Watch()
    heard: list[object] = []
    reading, writing = os.pipe()
    watch.reader(reading, lambda: heard.append(os.read(reading, 10)))
    os.write(writing, b"here")
    watch.turn()
    watch.forget(reading)
    watch.forget(reading)  # once more does no harm
    os.close(reading)
    os.close(writing)
    assert heard == [b"here"]


def test_moments_come_in_their_time_and_once() -> None:
    watch = Watch()
    heard: list[object] = []
    watch.at("late", time.monotonic() + 60, lambda: heard.append("late"))
    watch.at("now", time.monotonic(), lambda: heard.append("now"))
    watch.at("never", time.monotonic(), lambda: heard.append("never"))
    watch.cancel("never")
    watch.turn()
    assert heard == ["now"]
    assert watch.has_moment("late")
    assert not watch.has_moment("now")


def test_a_handler_may_set_its_moment_anew() -> None:
    watch = Watch()
    heard: list[object] = []

    def again() -> None:
        heard.append(len(heard))
        watch.at("tick", time.monotonic(), again)

    watch.at("tick", time.monotonic(), again)
    watch.turn()
    watch.turn()
    assert heard == [0, 1]


def test_a_signal_wakes_the_loop() -> None:
    watch = Watch()
    heard: list[object] = []
    before = signal.getsignal(signal.SIGUSR1)
    try:
        watch.signals([signal.SIGUSR1], lambda: heard.append("signal"))
        os.kill(os.getpid(), signal.SIGUSR1)
        watch.turn()
    finally:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGUSR1, before)
        watch.close()
    assert heard == ["signal"]
