"""The bar chart that scripts/bench writes."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from tests.bench.figures import THEIRS, Figures
from tests.bench.plot import bar_chart

SVG = "{http://www.w3.org/2000/svg}"


def chart(figures: Figures, *contenders: str) -> ET.Element:
    return ET.fromstring(bar_chart(figures.all(), contenders, "A & B", ["line <one>"]))


def bars(root: ET.Element) -> list[tuple[float, float]]:
    """Where each begins and ends: what is left when the page and the legend's squares are taken away."""
    found = [rect for rect in root.iter(f"{SVG}rect") if rect.get("class") != "page" and rect.get("height") != "12"]
    return [(float(rect.get("x", "")), float(rect.get("x", "")) + float(rect.get("width", ""))) for rect in found]


def texts(root: ET.Element) -> list[str]:
    return [text.text or "" for text in root.iter(f"{SVG}text")]


def test_twice_and_half_as_much_are_bars_of_one_length_to_either_side() -> None:
    figures = Figures()
    for contender, value in (("fast", 4.0), (THEIRS, 2.0), ("slow", 1.0)):
        figures.add("speed", "TCP", "Gbit/s", contender, value)

    root = chart(figures, "fast", THEIRS, "slow")
    fast, theirs, slow = bars(root)

    assert fast[0] == theirs[0] == slow[1]
    assert round(fast[1] - fast[0], 1) == round(slow[1] - slow[0], 1)
    assert {"2.00", "0.50", "More is better", "speed: TCP", "A & B", "line <one>"} <= set(texts(root))


def test_whiskers_go_from_the_smallest_sample_to_the_largest() -> None:
    figures = Figures()
    for value in (1.0, 2.0, 4.0):
        figures.add("speed", "CPU", "s/GB", "other", value)
    figures.add("speed", "CPU", "s/GB", THEIRS, 1.0)

    [bar, _] = bars(root := chart(figures, "other", THEIRS))
    whisker, _ = [line for line in root.iter(f"{SVG}line") if line.get("class") == "whisker"]

    assert float(whisker.get("x1", "")) == bar[0]  # one
    four, two = float(whisker.get("x2", "")) - bar[0], bar[1] - bar[0]  # the latter is the median
    assert four == pytest.approx(2 * two, abs=0.2)  # pixels
    assert "Less is better" in texts(root)


def test_what_has_no_ratio_or_no_better_is_not_shown() -> None:
    figures = Figures()
    figures.add("speed", "TCP", "Gbit/s", "other", 1.0)
    figures.add("speed", "retransmits", "", "other", 3.0)
    figures.add("speed", "retransmits", "", THEIRS, 3.0)
    figures.add("speed", "UDP", "k/s", "other", 1.0)
    figures.add("speed", "UDP", "k/s", THEIRS, 0.0)

    assert bars(chart(figures, "other", THEIRS)) == []


def test_a_sample_of_nothing_ends_at_the_edge() -> None:
    figures = Figures()
    for value in (0.0, 0.0, 2.0):
        figures.add("speed", "TCP", "Gbit/s", "other", value)
    figures.add("speed", "TCP", "Gbit/s", THEIRS, 2.0)

    other, theirs = bars(chart(figures, "other", THEIRS))

    assert other[0] < other[1] == theirs[0]
