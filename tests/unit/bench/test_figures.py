"""What scripts/bench makes of its samples."""

from __future__ import annotations

from tests.bench.figures import OURS, THEIRS, Figures, comparison, table
from tests.bench.machine_load import MAX_BUSY, MAX_STEAL, Quiet, Ticks


def test_a_line_has_medians_their_range_and_the_ratio() -> None:
    figures = Figures()
    for value in (3.0, 1.0, 2.0):
        figures.add("start", "up", "s", OURS, value)
    figures.add("start", "up", "s", THEIRS, 4.0)
    figures.add("run", "cold", "ms", OURS, 123.4)

    head, rule, up, cold = table(figures.all()).splitlines()

    assert head.split() == ["|", "figure", "|", "unit", "|", "tsns", "|", "tailscaled", "|", "ratio", "|"]
    assert set(rule) == {"|", "-", " "}
    assert up.split() == ["|", "start:", "up", "|", "s", "|", "2", "[1..3]", "|", "4", "|", "0.50", "|"]
    assert cold.split() == ["|", "run:", "cold", "|", "ms", "|", "123", "|", "|", "|"]


def test_a_ratio_needs_two_and_no_zero_below() -> None:
    figures = Figures()
    figures.add("deltas", "pings lost", "", OURS, 0.0)
    [figure] = figures.all()
    assert figure.ratio is None
    figures.add("deltas", "pings lost", "", THEIRS, 0.0)
    assert figure.ratio is None
    assert figure.as_json()["median"] == {OURS: 0.0, THEIRS: 0.0}


def test_any_contenders_side_by_side() -> None:
    figures = Figures()
    for contender, value in (("one", 3.0), ("two", 1.0), (THEIRS, 2.0)):
        figures.add("speed", "TCP", "Gbit/s", contender, value)
    figures.add("speed", "retransmits", "", "one", 0.0)

    contenders = figures.contenders(("two", "absent", THEIRS, "one"))
    head, _, tcp, retransmits = comparison(figures.all(), contenders).splitlines()

    assert contenders == ["two", THEIRS, "one"]
    assert cells(head) == ["figure", "unit", "two", "ratio", THEIRS, "one", "ratio"]
    assert cells(tcp) == ["speed: TCP", "Gbit/s", "1", "0.50", "2", "3", "1.50"]
    assert cells(retransmits) == ["speed: retransmits", "", "", "", "", "0", ""]
    assert figures.all()[0].as_json()["ratios"] == {"one": 1.5, "two": 0.5}


def test_when_a_machine_was_too_busy() -> None:
    assert Quiet(MAX_BUSY, MAX_BUSY, MAX_STEAL, 3.0).believable
    assert not Quiet(MAX_BUSY + 0.01, 0, 0, 0).believable
    assert not Quiet(0, MAX_BUSY + 0.01, 0, 0).believable
    assert "TOO BUSY" in str(Quiet(0, 0, MAX_STEAL + 0.01, 0))
    assert Ticks(60, 5, 200).since(Ticks(10, 0, 100)) == (0.5, 0.05)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
