"""The soak: python -m tests.soak [--minutes M] [--seed N] [--json]; see scripts/soak."""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Final

from tests.soak import faults, samples
from tests.soak.faults import Fault
from tests.soak.flows import KINDS, Window, await_flowing
from tests.soak.stage import NODES, Stage, staged

PERIOD_S: Final = 10.0  # from one fault to the next
SAMPLE_S: Final = 5.0
SHOWN_SAMPLES: Final = 20
KILLS_A_MINUTE: Final = 500 / 30
WHOLE_MINUTES: Final = 10.0  # a shorter run has not had all of its kinds of faults
BEFORE_S: Final = 0.2  # what was sent so shortly before a fault may still be its victim
CYCLES_BETWEEN: Final = 6  # run-exit cycles after each fault: more than 1,000 in 30 minutes
HOME_AGAIN_S: Final = 120.0
THREADS_MAX: Final = 1 + min(32, (os.cpu_count() or 1) + 4)  # the loop's, and asyncio's own for look-ups of names
LAST_ECHOES_S: Final = 6.5  # until whatever was sent has come back or counts as lost
LOG_BOUND_BYTES: Final = len(NODES) * 2 * (5 << 20)
END_S: Final = 3.0
STEADY_CPU_MAX: Final = 0.25  # of one core: more means that a task spins


@dataclass(slots=True)
class Report:
    """What has happened."""

    seed: int
    minutes: float
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    silences: dict[str, list[float]] = field(default_factory=dict)
    lost_in_faults: dict[str, int] = field(default_factory=dict)
    windows: list[tuple[str, Window]] = field(default_factory=list)
    broken: list[str] = field(default_factory=list)
    totals: dict[str, Any] = field(default_factory=dict)


def say(text: str) -> None:
    """One line of progress."""
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


class Soak:
    """Plays one fault after the other, and checks what was promised."""

    def __init__(self, stage: Stage, minutes: float, seed: int) -> None:
        self.report = Report(seed, minutes)
        self._stage = stage
        self._began = time.monotonic()
        self._ends = self._began + 60 * minutes
        self._sampled = 0.0
        self._home_due: float | None = None

    def play(self) -> None:
        """Until the time is over."""
        stage = self._stage
        stage.begin()
        silent = await_flowing(stage.flows, time.monotonic(), 20)
        self._break("the beginning", [f"no traffic: {name}" for name in silent])
        say(f"{len(NODES)} nodes are up and talk; seed {self.report.seed}")
        self.report.windows.append(("the beginning", Window(self._began, time.monotonic())))
        self._began = time.monotonic()
        self._ends = self._began + 60 * self.report.minutes
        for number, fault in enumerate(self._deck(), 1):
            due = time.monotonic() + PERIOD_S
            stage.kills_due = round(KILLS_A_MINUTE * (time.monotonic() - self._began) / 60)
            self._inflict(number, fault)
            self._break("run-exit cycles", stage.cycle(CYCLES_BETWEEN, 2))
            self._look_for_home()
            while (now := time.monotonic()) < min(due, self._ends):
                self._sample()
                time.sleep(min(1.0, max(0.0, due - now)))
            if time.monotonic() >= self._ends:
                break
        self._finish()

    def _deck(self) -> Iterator[Fault]:
        for fault in faults.deck(self._stage):
            if self._home_due is not None and fault.play is faults.stop_derp:
                continue  # its own return is still awaited
            yield fault

    def _inflict(self, number: int, fault: Fault) -> None:
        stage, began = self._stage, time.monotonic()
        wrong = fault.play(stage)
        over = time.monotonic()
        wrong += [
            f"{name} is silent {fault.within_s:.0f} s later"
            for name in await_flowing(stage.flows, over, fault.within_s)
        ]
        flowing = time.monotonic()
        wrong += stage.await_right(fault.within_s)
        took = (flowing if fault.loses_nothing else time.monotonic()) - over
        window = Window(began - BEFORE_S, time.monotonic())
        self.report.windows.append((fault.name, window))
        silence = max(flow.silence_s(window) for flow in stage.flows)
        self.report.recoveries.setdefault(fault.name, []).append(took)
        self.report.silences.setdefault(fault.name, []).append(silence)
        if fault.play is faults.stop_derp:
            self._home_due = over + HOME_AGAIN_S
        wrong += [f"{name}: a second node" for name in stage.duplicates()]
        minutes = (time.monotonic() - self._began) / 60
        say(
            f"{minutes:5.1f} min  {number:3d}  {fault.name:20s} well after {took:5.2f} s, longest silence {silence:5.2f} s, "
            f"kills {sum(stage.kills.values()):3d}"
        )
        self._break(fault.name, wrong)

    def _look_for_home(self) -> None:
        """Whether all nodes are with their first relay again."""
        if self._home_due is None:
            return
        away = [name for name, home in self._stage.homes().items() if home != "lab1"]
        if not away:
            self._home_due = None
        elif time.monotonic() > self._home_due:
            self._break("relay stopped", [f"{name} is not home again after {HOME_AGAIN_S:.0f} s" for name in away])
            self._home_due = None

    def _break(self, by: str, wrong: list[str]) -> None:
        for text in wrong:
            say(f"BROKEN  {by}: {text}")
            self.report.broken.append(f"{by}: {text}")

    def _sample(self) -> None:
        now = time.monotonic()
        if now - self._sampled >= SAMPLE_S:
            self._sampled = now
            for life in self._stage.lives:
                life.look(now)

    # --- the sum

    def _finish(self) -> None:
        stage, report = self._stage, self.report
        ended = time.monotonic()
        time.sleep(LAST_ECHOES_S)
        outside = self._count(ended)
        memory = {life.name: self._check_life(life, ended) for life in stage.lives}
        self._break("the logs", stage.complaints()[:20])
        size = stage.log_bytes()
        if size > LOG_BOUND_BYTES:
            self._break("the logs", [f"{size} bytes"])
        slowest = stage.end()
        if slowest > END_S:
            self._break("the end", [f"a node took {slowest:.1f} s to go"])
        if report.minutes >= WHOLE_MINUTES and sum(stage.kills.values()) < KILLS_A_MINUTE * report.minutes:
            self._break("the end", [f"only {sum(stage.kills.values())} kills"])
        report.totals = {
            "faults": {name: len(times) for name, times in sorted(report.recoveries.items())},
            "kills": dict(stage.kills),
            "run_exit_cycles": stage.cycles,
            "outside_of_faults": {kind: {"sent": sent, "lost": lost} for kind, (sent, lost) in outside.items()},
            "processes": memory,
            "log_bytes": size,
            "slowest_end_s": round(slowest, 2),
        }

    def _count(self, ended: float) -> dict[str, tuple[int, int]]:
        """Of each kind of traffic, how many were sent outside of faults and lost. In some faults nothing may be lost either."""
        stage, report = self._stage, self.report
        for name, window in report.windows:
            lost = sum(flow.lost("udp", [window]) for flow in stage.flows)
            report.lost_in_faults[name] = report.lost_in_faults.get(name, 0) + lost
        for fault in faults.OTHERS:
            if fault.loses_nothing and (lost := report.lost_in_faults.get(fault.name, 0)):
                self._break(fault.name, [f"{lost} packets were lost"])
        outside: dict[str, tuple[int, int]] = {}
        for kind in KINDS:
            counts = {
                flow.name: flow.outside(kind, [window for _, window in report.windows], ended) for flow in stage.flows
            }
            outside[kind] = (sum(sent for sent, _ in counts.values()), sum(len(lost) for _, lost in counts.values()))
            for name, (_, moments) in counts.items():
                self._break("between faults", [f"{kind} {name}, {self._placed(moment)}" for moment in moments])
        return outside

    def _placed(self, moment: float) -> str:
        """Where in the play that was."""
        before = [(name, window) for name, window in self.report.windows if window.ended < moment]
        after = [(name, window) for name, window in self.report.windows if window.began > moment]
        words = [f"{moment - window.ended:.2f} s after {name}" for name, window in before[-1:]]
        return ", ".join(words + [f"{window.began - moment:.2f} s before {name}" for name, window in after[:1]])

    def _check_life(self, life: samples.Life, ended: float) -> dict[str, Any]:
        memory = life.memory_growth_kb(self._began, ended)
        descriptors = life.descriptor_growth(self._began, ended)
        last, shown = life.samples[-1], life.samples[:: max(1, len(life.samples) // SHOWN_SAMPLES)]
        if memory > samples.MEMORY_TOLERANCE_KB:
            self._break(life.name, [f"its memory grew by {memory:.0f} KB after the warm-up"])
        if descriptors > samples.DESCRIPTOR_TOLERANCE:
            self._break(life.name, [f"its descriptors grew by {descriptors:.1f} after the warm-up"])
        if last.threads > THREADS_MAX:
            self._break(life.name, [f"it has {last.threads} threads"])
        if life.cpu_share() > STEADY_CPU_MAX:
            self._break(life.name, [f"it used {100 * life.cpu_share():.0f} % of a core"])
        return {
            "private_kb": last.private_kb,
            "anonymous_kb": last.anonymous_kb,
            "growth_kb": round(memory),
            "descriptors": last.descriptors,
            "descriptor_growth": round(descriptors, 1),
            "cpu_percent": round(100 * life.cpu_share(), 2),
            "anonymous_kb_over_time": [sample.anonymous_kb for sample in shown],
            "private_kb_over_time": [sample.private_kb for sample in shown],
        }


def as_json(report: Report) -> str:
    """The totals, for a program."""
    times = {"recoveries_s": report.recoveries, "silences_s": report.silences, "lost_in_faults": report.lost_in_faults}
    heading = {"seed": report.seed, "minutes": report.minutes, "broken": report.broken}
    return json.dumps({**heading, **report.totals, **times}) + "\n"


def table(report: Report) -> list[str]:
    """The totals, for a person."""
    lines = [
        "",
        f"{'fault':22s} {'times':>5s}   well again after, s (min / median / max)   longest silence, s    lost (udp)",
    ]
    for name, times in sorted(report.recoveries.items()):
        spread = f"{min(times):6.2f} / {statistics.median(times):6.2f} / {max(times):6.2f}"
        lines.append(
            f"{name:22s} {len(times):5d}   {spread:>40s}   {max(report.silences[name]):18.2f}   {report.lost_in_faults[name]:11d}"
        )
    totals = report.totals
    kills = ", ".join(f"{kind} {count}" for kind, count in sorted(totals["kills"].items()))
    lines += ["", f"kills: {sum(totals['kills'].values())} ({kills}); run-exit cycles: {totals['run_exit_cycles']}"]
    for kind, counts in totals["outside_of_faults"].items():
        lines.append(f"{kind} outside of faults: {counts['sent']} sent, {counts['lost']} lost")
    for name, figures in totals["processes"].items():
        lines.append(
            f"{name}: {figures['private_kb']} KB private, {figures['anonymous_kb']} KB anonymous "
            f"({figures['growth_kb']:+d} after the warm-up), "
            f"{figures['descriptors']} descriptors ({figures['descriptor_growth']:+.1f}), {figures['cpu_percent']} % of a core"
        )
    lines.append(f"logs: {totals['log_bytes']} bytes; slowest end of a node: {totals['slowest_end_s']} s")
    lines += ["", *(f"BROKEN  {text}" for text in report.broken)] if report.broken else ["", "all promises kept"]
    return lines


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main() -> int:
    """Run it; 1 when a promise was broken, 130 when it was interrupted."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Faults under traffic, for as long as you like.")
    parser.add_argument("--minutes", type=float, default=30.0, help="how long (default: %(default)s)")
    parser.add_argument(
        "--seed", type=int, default=1, help="of the order and the moments of faults (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print the totals as JSON")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        with staged(arguments.seed) as stage:
            soak = Soak(stage, arguments.minutes, arguments.seed)
            try:
                soak.play()
            finally:
                for number in (signal.SIGINT, signal.SIGTERM):  # the stage is cleared in peace
                    signal.signal(number, signal.SIG_IGN)
    except KeyboardInterrupt:
        say("interrupted; nothing is left behind")
        return 130
    report = soak.report
    sys.stdout.write(as_json(report) if arguments.json else "\n".join([*table(report), ""]))
    return 1 if report.broken else 0


if __name__ == "__main__":
    sys.exit(main())
