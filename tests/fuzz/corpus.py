"""The cases that are kept: few and small ones that reach what the seeds do not, and those that once were findings."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import Any, Final

from tests.fuzz.judge import ROOT
from tests.fuzz.targets import Target

KEPT: Final = Path(__file__).parent / "corpus"
CRASHES: Final = Path(__file__).parent / "crashes"
MAX_FILES: Final = 8  # for each target: at most 200 in all
MAX_FILE_BYTES: Final = 4096

Feature = tuple[object, ...]


def cases(directory: Path) -> list[bytes]:
    """All cases in a directory, in the order of their names."""
    return [path.read_bytes() for path in sorted(directory.glob("*"))] if directory.is_dir() else []


def kept(target: Target) -> list[bytes]:
    """What CI runs of a target, besides mutations: seeds, corpus, former findings."""
    return [*target.seeds, *cases(KEPT / target.name), *cases(CRASHES / target.name)]


def keep(target: Target, found: Iterable[bytes]) -> int:
    """Choose what to keep of `found` and of what was kept before; how many there are then."""
    candidates = {case for case in (*found, *cases(KEPT / target.name)) if len(case) <= MAX_FILE_BYTES}
    reached = {case: features(target, case) for case in sorted(candidates, key=lambda case: (len(case), case))}
    covered: set[Feature] = set().union(*(features(target, seed) for seed in target.seeds))
    chosen: list[bytes] = []
    while reached and len(chosen) < MAX_FILES:
        best = max(
            reached, key=lambda case: len(reached[case] - covered)
        )  # the smallest of those that are equally good
        new = reached.pop(best) - covered
        if not new:
            break
        covered |= new
        chosen.append(best)
    directory = KEPT / target.name
    for path in directory.glob("*"):
        path.unlink()
    directory.mkdir(parents=True, exist_ok=True)
    for case in chosen:
        (directory / hashlib.sha256(case).hexdigest()[:16]).write_bytes(case)
    return len(chosen)


def features(target: Target, case: bytes) -> set[Feature]:
    """The steps from line to line that a case takes through our code, and what it raises."""
    steps: set[Feature] = set()
    package = str(ROOT / "tsns")
    last: dict[FrameType, int] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if not frame.f_code.co_filename.startswith(package):
            return None
        if event == "line":
            steps.add((frame.f_code.co_filename, last.get(frame, 0), frame.f_lineno))
            last[frame] = frame.f_lineno
        elif event == "return":
            last.pop(frame, None)
        return trace

    sys.settrace(trace)
    try:
        target.run(case)
    except Exception as error:  # noqa: BLE001 (documented or not)
        steps.add((type(error),))
    finally:
        sys.settrace(None)
    return steps
