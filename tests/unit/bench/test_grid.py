"""The grid of NAT pairs as scripts/bench shows it."""

from __future__ import annotations

from tests.bench.figures import OURS, THEIRS
from tests.bench.grid import Grid, Meeting


def test_a_pair_has_one_line_with_both_contenders() -> None:
    grid = Grid()
    for direct_s in (1.0, 3.0, 2.0):
        grid.add(("easy", "easy"), OURS, Meeting(0.5, 0.75, direct_s))
    grid.add(("easy", "easy"), THEIRS, Meeting(0.25, 0.5, 0.5))
    grid.add(("hard", "hard"), THEIRS, Meeting(0.25, 0.5, None))

    head, rule, easy, hard = grid.table().splitlines()

    names = ["old -> new", "tsns: up", "first pong", "direct", "tailscaled: up", "first pong", "direct"]
    assert cells(head) == names
    assert set(rule) == {"|", "-", " "}
    assert cells(easy) == ["easy -> easy", "0.500", "0.750 [0.750..0.750]", "2 [1..3]", "0.250", "0.500", "0.500"]
    assert cells(hard) == ["hard -> hard", "", "", "", "0.250", "0.500", "relayed"]


def test_a_pair_that_is_direct_only_now_and_then_says_so() -> None:
    grid = Grid()
    for direct_s in (1.0, None, 1.0):
        grid.add(("easy", "hard"), OURS, Meeting(0.5, 0.5, direct_s))

    assert cells(grid.table().splitlines()[-1])[3] == "1 [1..1], relayed 1 of 3"


def test_json_has_both_clocks() -> None:
    grid = Grid()
    assert not grid
    grid.add(("none", "hard"), OURS, Meeting(0.5, 0.75, 1.5))
    grid.add(("none", "hard"), OURS, Meeting(0.5, 0.75, None))
    assert grid

    [pair] = grid.as_json()
    direct, relayed = pair["samples"][OURS]

    assert (pair["old"], pair["new"]) == ("none", "hard")
    assert direct == {
        "up_s": 0.5,
        "kind": "direct",
        "first_pong_s": 0.75,
        "direct_s": 1.5,
        "first_pong_after_up_s": 0.25,
        "direct_after_up_s": 1.0,
    }
    assert (relayed["kind"], relayed["direct_s"], relayed["direct_after_up_s"]) == ("relayed", None, None)


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip("|").split("|")]
