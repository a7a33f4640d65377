"""The command behind scripts/fuzz: one process for each target, a table at the end."""

from __future__ import annotations

import argparse
import concurrent.futures
import importlib.util
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final

from tests.fuzz import corpus
from tests.fuzz.judge import ROOT, Judge
from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import BY_NAME, TARGETS, Target

WORK: Final = ROOT / ".cache" / "fuzz"  # all that libFuzzer found of use; grows from run to run
HANG_S: Final = 20  # after which libFuzzer gives a case up
RSS_LIMIT_MB: Final = 2048
REDUCE_FROM: Final = 600  # cases at most, the smallest ones: each is traced line by line
DEFAULT_SECONDS: Final = 60


@dataclass
class Result:
    """What became of one target."""

    target: str
    guided: bool
    cases: int = 0
    seconds: float = 0.0
    slowest_ms: float = 0.0
    kept: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def per_second(self) -> float:
        """Executions."""
        return self.cases / self.seconds if self.seconds else 0.0


def main() -> int:
    """Run the command; 1 when anything was found."""
    options = _options()
    targets = [BY_NAME[name] for name in options.target] if options.target else list(TARGETS)
    guided = importlib.util.find_spec("atheris") is not None and not options.blind
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        results = list(pool.map(lambda target: _fuzz(target, options, guided=guided), targets))
    if options.json:
        print(json.dumps([asdict(result) for result in results], indent=2))
    else:
        _print_table(results)
    return 1 if any(result.findings for result in results) else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/fuzz", description="Feeds every parser that a stranger reaches with garbage."
    )
    parser.add_argument(
        "--target",
        action="append",
        choices=BY_NAME,
        metavar="NAME",
        help="only this one (repeatable): " + ", ".join(BY_NAME),
    )
    parser.add_argument("--cases", type=int, metavar="N", help="how many for each target")
    parser.add_argument(
        "--seconds",
        type=int,
        metavar="S",
        help=f"how long for each target ({DEFAULT_SECONDS}, unless --cases is given)",
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="targets at once (1)")
    parser.add_argument("--blind", action="store_true", help="without atheris: mutations that nothing guides")
    parser.add_argument("--json", action="store_true", help="for programs")
    options = parser.parse_args()
    if options.cases is None and options.seconds is None:
        options.seconds = DEFAULT_SECONDS
    return options


def _fuzz(target: Target, options: argparse.Namespace, *, guided: bool) -> Result:
    begun = time.monotonic()
    run = _guided if guided else _blind
    with tempfile.TemporaryDirectory() as scratch:
        result, found = run(target, options, Path(scratch))
    result.seconds = round(time.monotonic() - begun, 1)
    result.findings += _confirmed(target, found)
    process = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", "reduce", target.name], cwd=ROOT, check=False, capture_output=True
    )
    result.kept = int(process.stdout or 0)
    print(f"{target.name}: {result.cases} cases, {len(result.findings)} findings", file=sys.stderr, flush=True)
    return result


def _guided(target: Target, options: argparse.Namespace, scratch: Path) -> tuple[Result, list[tuple[str, bytes]]]:
    """Under atheris; the cases that look like findings are still to be confirmed."""
    work = WORK / target.name
    work.mkdir(parents=True, exist_ok=True)
    for number, case in enumerate(corpus.kept(target)):
        (work / f"kept-{number}").write_bytes(case)
    words = scratch / "words"
    words.write_text("".join(f'"{_escaped(word)}"\n' for word in target.dictionary if word))
    report = scratch / "report"
    report.touch()
    arguments = [
        *(f"-max_len={target.max_case_bytes}", f"-dict={words}", f"-timeout={HANG_S}", f"-rss_limit_mb={RSS_LIMIT_MB}"),
        *("-print_final_stats=1", "-reload=0", "-len_control=20", f"-artifact_prefix={scratch}/"),
        *([f"-runs={options.cases}"] if options.cases else []),
        *([f"-max_total_time={options.seconds}"] if options.seconds else []),
        str(work),
    ]
    process = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.worker", target.name, str(report), *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONHASHSEED": "0"},
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    result = Result(target.name, guided=True)
    counted = re.search(r"number_of_executed_units: (\d+)", process.stderr)
    if counted is None:
        result.findings.append("the fuzzer broke off: " + " ".join(process.stderr.split()[-40:]))
    else:
        result.cases = int(counted[1])
    found: list[tuple[str, bytes]] = []
    for line in report.read_text().splitlines():
        entry = json.loads(line)
        if "summary" in entry:
            found.append((entry["summary"], bytes.fromhex(entry["case"])))
        else:
            judge = Judge(target)
            judge.judge(bytes.fromhex(entry["case"]))
            result.slowest_ms = max(result.slowest_ms, round(1000 * judge.slowest_s, 1))
    # libFuzzer's own: out of time or memory.
    found += [(path.name.partition("-")[0], path.read_bytes()) for path in scratch.glob("*-*")]
    return result, found


def _escaped(word: bytes) -> str:
    return "".join(f"\\x{byte:02x}" for byte in word)


def _blind(target: Target, options: argparse.Namespace, _: Path) -> tuple[Result, list[tuple[str, bytes]]]:
    judge = Judge(target)
    result = Result(target.name, guided=False)
    found: dict[str, bytes] = {}
    until = time.monotonic() + (options.seconds or float("inf"))
    for case in Mutator(corpus.kept(target), target.dictionary, target.max_case_bytes, seed=time.time_ns()):
        finding = judge.judge(case)
        if finding is not None:
            found.setdefault(finding.summary, case)
        result.cases += 1
        if result.cases == options.cases or time.monotonic() >= until:
            break
    result.slowest_ms = round(1000 * judge.slowest_s, 1)
    return result, list(found.items())


def _confirmed(target: Target, found: list[tuple[str, bytes]]) -> list[str]:
    """Keep the cases that are findings without instrumentation, too; their summaries."""
    summaries = []
    judge = Judge(target)
    for summary, case in found:
        finding = judge.judge(case)
        if finding is None and not summary.startswith(("timeout", "oom", "crash", "more than")):
            summaries.append(f"{summary} (not seen again)")
        elif finding is not None:
            directory = corpus.CRASHES / target.name
            directory.mkdir(parents=True, exist_ok=True)
            (directory / finding.digest).write_bytes(case)
            summaries.append(f"{finding.summary}: {(directory / finding.digest).relative_to(ROOT)}")
    return summaries


def _reduce(target: Target) -> int:
    work = [case for case in corpus.cases(WORK / target.name) if len(case) <= corpus.MAX_FILE_BYTES]
    return corpus.keep(target, sorted(work, key=len)[:REDUCE_FROM])


def _print_table(results: list[Result]) -> None:
    print(f"{'target':18} {'cases':>10} {'per second':>10} {'slowest':>10} {'kept':>5}  findings")
    for result in results:
        line = f"{result.target:18} {result.cases:10} {result.per_second:10.0f} {result.slowest_ms:7.1f} ms {result.kept:5}  "
        print(line + (str(len(result.findings)) if result.findings else "none"))
        for finding in result.findings:
            print(f"    {finding}")
    if not all(result.guided for result in results):
        print("without atheris (pip install 'tsns[fuzz]'): mutations that no coverage guides")


if __name__ == "__main__":
    if sys.argv[1:2] == ["reduce"]:
        print(_reduce(BY_NAME[sys.argv[2]]))
    else:
        sys.exit(main())
