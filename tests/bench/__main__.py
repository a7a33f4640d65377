"""scripts/bench: tsns beside tailscaled on the rig, in alternating rounds; a table of medians on standard output."""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Final

from tests.bench.ends import LINE_UP
from tests.bench.figures import Figures, comparison, table
from tests.bench.machine_load import Quiet, Watch
from tests.bench.parts import DEFAULT, TESTCONTROL, Bench
from tests.bench.paths import cut, packets, paths
from tests.bench.plot import bar_chart
from tests.bench.speed import fair, relay, speed, storm
from tests.interop.rig.peers import missing_peers, peer
from tests.interop.rig.tailnet import KINDS

STREAMS: Final = {"speed": speed, "relay": relay, "storm": storm, "fair": fair}
ONLY_WHEN_NAMED: Final = {"paths": paths, "cut": cut, "packets": packets, **STREAMS}
PARTS: Final = {**DEFAULT, **ONLY_WHEN_NAMED}
ROUNDS: Final = 3
STREAM_S: Final = 3.0
QUICK_STREAM_S: Final = 1.0
SCHEMA: Final = 1


def main() -> int:
    """Exit status 1 when a part failed, 3 when the machine was too busy to believe the figures."""
    asked = _arguments()
    if os.geteuid() != 0 or missing_peers():
        sys.exit(f"needs root and the peers of scripts/peers; missing: {', '.join(missing_peers()) or 'root'}")
    if STREAMS.keys() & set(asked.parts) and shutil.which("iperf3") is None:
        sys.exit("needs iperf3")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # what was set up is taken down then, too
    noise, failed = dict[str, Quiet](), list[str]()
    rounds = asked.rounds or (1 if asked.quick else ROUNDS)
    stream_s = asked.seconds or (QUICK_STREAM_S if asked.quick else STREAM_S)
    bench = Bench(Figures(), rounds, quick=asked.quick, control=asked.control, stream_s=stream_s)
    for number, name in enumerate(asked.parts, start=1):
        _say(f"{number}/{len(asked.parts)} {name}: {(PARTS[name].__doc__ or '').strip()}")
        watch, began = Watch(), time.monotonic()
        try:
            PARTS[name](bench)
        except (AssertionError, subprocess.SubprocessError, OSError) as error:
            failed.append(name)
            _say(f"    FAILED: {error}")
        noise[name] = watch.quiet()
        _say(f"    {time.monotonic() - began:.0f} s; machine {noise[name]}")
    _show(bench, noise, failed, as_json=asked.json)
    if asked.plot:
        asked.plot.write_text(_plot(bench, noise))
    if failed:
        return 1
    return 0 if all(quiet.believable for quiet in noise.values()) else 3


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description=__doc__,
        epilog=f"By default {', '.join(DEFAULT)}: 10 minutes. The others only when named: paths 12 minutes, cut 4, packets 7, "
        "speed 8, relay 6, storm 5, fair 9.",
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--only", action="append", default=[], metavar="PART", help="another way to name a part")
    parser.add_argument("--json", action="store_true", help="all samples as one JSON object")
    parser.add_argument("--rounds", type=int, help=f"default {ROUNDS}")
    parser.add_argument("--quick", action="store_true", help="one round, smaller sizes: whether it works, not how fast")
    parser.add_argument(
        "--control",
        choices=KINDS,
        default=TESTCONTROL,
        help=f"for {', '.join(ONLY_WHEN_NAMED)} but storm: headscale, too, where TSNS_HEADSCALE names its program",
    )
    parser.add_argument(
        "--seconds", type=int, metavar="S", help=f"of each stream of {', '.join(STREAMS)}; default {STREAM_S:.0f}"
    )
    parser.add_argument(
        "--plot", type=Path, metavar="FILE", help=f"a bar chart of {', '.join(STREAMS)}, as SVG: ratios to tailscaled"
    )
    asked = parser.parse_args()
    asked.parts = [*asked.parts, *asked.only] or list(DEFAULT)
    if unknown := [name for name in asked.parts if name not in PARTS]:
        parser.error(f"there is no part {unknown[0]}; there are {', '.join(PARTS)}")
    return asked


def _show(bench: Bench, noise: dict[str, Quiet], failed: list[str], *, as_json: bool) -> None:
    machine = _machine() | ({} if bench.control == TESTCONTROL else {"control": bench.control})
    if as_json:
        answer = {
            "schema": SCHEMA,
            "machine": machine,
            "figures": [figure.as_json() for figure in [*bench.figures.all(), *bench.speeds.all()]],
            "paths": bench.grid.as_json(),
            "notes": bench.notes,
            "noise": {name: {**asdict(quiet), "believable": quiet.believable} for name, quiet in noise.items()},
            "failed": failed,
        }
        sys.stdout.write(json.dumps(answer, indent=1) + "\n")
        return
    lines = [f"{name}: {value}" for name, value in machine.items()]
    lines += [f"{name}: {quiet}" for name, quiet in noise.items() if not quiet.believable]
    lines += [f"{name}: FAILED, its figures are incomplete" for name in failed]
    lines += bench.notes
    if bench.figures.all():
        lines += ["", table(bench.figures.all())]
    if bench.speeds.all():
        lines += ["", comparison(bench.speeds.all(), bench.speeds.contenders(LINE_UP))]
    if bench.grid:
        lines += ["", "paths, an old node to a new one: s from the start of the new one's `up`", "", bench.grid.table()]
    sys.stdout.write("\n".join([*lines, ""]))


def _plot(bench: Bench, noise: dict[str, Quiet]) -> str:
    machine = _machine()
    what = [f"{name} {machine[name]}" for name in ("kernel", "python", "tsns", "tailscaled")]
    lines = [
        f"{machine['date']}; {machine['processor']}, {machine['memory']}; {', '.join(what)}",
        f"rounds: {bench.rounds}; {bench.stream_s:.0f} s for each stream",
        *(f"{name}: {quiet}" for name, quiet in noise.items() if not quiet.believable),
    ]
    contenders = bench.speeds.contenders(LINE_UP)
    return bar_chart(bench.speeds.all(), contenders, "What goes through a tunnel, and what it costs", lines)


def _machine() -> dict[str, str]:
    """On what was measured, and what."""
    version = subprocess.run([peer("tailscaled"), "--version"], capture_output=True, text=True, check=True).stdout
    models = [line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    memory_kib = next(int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal"))
    return {
        "date": dt.datetime.now(dt.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "processor": f"{os.cpu_count()} x {models[0] if models else platform.machine()}",
        "memory": f"{memory_kib / (1 << 20):.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "tsns": importlib.metadata.version("tsns"),
        "tailscaled": version.split()[0].partition("-")[0],
    }


def _lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
