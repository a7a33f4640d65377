"""One target under atheris (libFuzzer): `python -m tests.fuzz.worker NAME REPORT ARGUMENTS OF libFuzzer`.

Findings do not end the run: each new one is written down, with its case, as a line of JSON in the file REPORT.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Final

import atheris

INSTRUMENTED: Final = ["tsns", "h11", "h2", "hpack", "hyperframe", "dns"]
SLOWER_BY: Final = 3.0  # than without instrumentation; `run` confirms what is slow without it


def main() -> None:
    """Fuzz until libFuzzer has had enough; does not return."""
    name, report, *arguments = sys.argv[1:]
    with atheris.instrument_imports(include=INSTRUMENTED):
        from tests.fuzz.targets import BY_NAME
    from tests.fuzz.judge import Judge

    judge = Judge(BY_NAME[name], slower_by=SLOWER_BY)
    known: set[str] = set()
    slowest = 0.0

    def note(**what: object) -> None:
        with Path(report).open("a") as file:
            file.write(json.dumps(what) + "\n")

    def one(case: bytes) -> None:
        nonlocal slowest
        finding = judge.judge(case)
        if finding is not None and finding.summary not in known:
            known.add(finding.summary)
            note(summary=finding.summary, case=case.hex())
        if judge.slowest_s > slowest:
            slowest = judge.slowest_s
            note(slowest_s=slowest, case=judge.slowest.hex())

    atheris.Setup([sys.argv[0], *arguments], one)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
