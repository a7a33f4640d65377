"""Every target with its seeds, the kept corpus, all that was once a finding, and the same mutations of these in each run."""

from __future__ import annotations

import itertools

import pytest

from tests.fuzz import corpus
from tests.fuzz.judge import Judge
from tests.fuzz.mutate import Mutator
from tests.fuzz.targets import TARGETS, Target

MUTATIONS = 1000  # of each target
SEED = 7


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_the_target_takes_everything(target: Target) -> None:
    cases = corpus.kept(target)
    assert cases
    judge = Judge(target)
    sample = itertools.islice(Mutator(cases, target.dictionary, target.max_case_bytes, SEED), MUTATIONS)
    findings = [finding for case in (*cases, *sample) if (finding := judge.judge(case))]
    shown = [f"{finding.summary}: {finding.case[:200].hex()} ({len(finding.case)} bytes)" for finding in findings[:5]]
    assert not findings, f"{len(findings)} findings, the first: {shown}"


def test_the_kept_corpus_is_small_and_nobody_elses() -> None:
    files = [path for path in (*corpus.KEPT.glob("*/*"), *corpus.CRASHES.glob("*/*")) if path.is_file()]
    assert len(files) <= 200
    assert sum(path.stat().st_size for path in files) <= 1 << 20
    assert {path.parent.name for path in files} <= {target.name for target in TARGETS}


def test_a_parser_that_fails_hangs_or_hoards_is_found() -> None:
    def fail(case: bytes) -> None:
        hoard = bytearray()
        if case == b"slow":
            sum(range(20_000_000))
        elif case == b"large":
            hoard += bytes([1]) * (300 << 20)
        elif case == b"documented":
            raise ValueError
        elif case == b"wrong":
            raise KeyError

    judge = Judge(Target("failing", fail, (b"",), (ValueError,), max_memory_mb=64))
    assert judge.judge(b"") is None
    assert judge.judge(b"documented") is None
    found = [judge.judge(case) for case in (b"wrong", b"slow", b"large")]
    summaries = [finding.summary if finding else "nothing" for finding in found]
    assert summaries[0].startswith("KeyError at test_corpus.py:")
    assert summaries[1:] == ["more than 100 ms", "more than 64 MB"]
