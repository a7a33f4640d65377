"""The figures of a run: gathered sample by sample, shown as a table or as JSON."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

OURS: Final = "tsns"
THEIRS: Final = "tailscaled"


@dataclass(slots=True)
class Figure:
    """One line of the table: all samples of each contender, in the order in which they were taken."""

    part: str
    what: str
    unit: str
    samples: dict[str, list[float]] = field(default_factory=dict)

    def median(self, contender: str) -> float | None:
        """The middle one; None where there is none."""
        found = self.samples.get(contender)
        return statistics.median(found) if found else None

    @property
    def ratio(self) -> float | None:
        """tsns's median by tailscaled's."""
        return self.ratio_of(OURS)

    def ratio_of(self, contender: str) -> float | None:
        """A contender's median by tailscaled's."""
        theirs, other = self.median(THEIRS), self.median(contender)
        return None if other is None or not theirs else other / theirs

    def as_json(self) -> dict[str, Any]:
        """For --json."""
        medians = {contender: self.median(contender) for contender in self.samples}
        return {
            "part": self.part,
            "what": self.what,
            "unit": self.unit,
            "median": medians,
            "ratio": self.ratio,
            "ratios": {contender: self.ratio_of(contender) for contender in self.samples if contender != THEIRS},
            "samples": self.samples,
        }


class Figures:
    """All figures of a run, in the order in which they first came up."""

    def __init__(self) -> None:
        self._figures: dict[tuple[str, str], Figure] = {}

    def add(self, part: str, what: str, unit: str, contender: str, value: float) -> None:
        """One sample."""
        figure = self._figures.setdefault((part, what), Figure(part, what, unit))
        figure.samples.setdefault(contender, []).append(value)

    def all(self) -> list[Figure]:
        """The lines."""
        return list(self._figures.values())

    def contenders(self, order: Sequence[str]) -> list[str]:
        """Those of whom there is a sample, in this order."""
        known = {contender for figure in self._figures.values() for contender in figure.samples}
        return [contender for contender in order if contender in known]


def table(figures: Iterable[Figure]) -> str:
    """A Markdown table: medians, the smallest and the largest sample, and the ratio."""
    head = ("figure", "unit", OURS, THEIRS, "ratio")
    rows = [
        (f"{figure.part}: {figure.what}", figure.unit, *(_cell(figure, who) for who in (OURS, THEIRS)), _ratio(figure))
        for figure in figures
    ]
    return markdown_table([head, *rows])


def comparison(figures: Iterable[Figure], contenders: Sequence[str]) -> str:
    """A Markdown table of any contenders side by side, each but tailscaled with its ratio to tailscaled after it."""
    head = ["figure", "unit"]
    for who in contenders:
        head += [who] if who == THEIRS else [who, "ratio"]
    rows = []
    for figure in figures:
        row = [f"{figure.part}: {figure.what}", figure.unit]
        for who in contenders:
            row += [_cell(figure, who)] if who == THEIRS else [_cell(figure, who), _ratio(figure, who)]
        rows.append(row)
    return markdown_table([head, *rows])


def markdown_table(lines: Sequence[Sequence[str]]) -> str:
    """The first line is the head."""
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    head, *rows = lines
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |"
        for line in [head, ["-" * width for width in widths], *rows]
    )


def spread(samples: Sequence[float]) -> str:
    """The median, with the smallest and the largest where there are several."""
    middle = number(statistics.median(samples))
    return middle if len(samples) == 1 else f"{middle} [{number(min(samples))}..{number(max(samples))}]"


def _cell(figure: Figure, contender: str) -> str:
    found = figure.samples.get(contender)
    return spread(found) if found else ""


def _ratio(figure: Figure, contender: str = OURS) -> str:
    ratio = figure.ratio_of(contender)
    return "" if ratio is None else f"{ratio:.2f}"


def number(value: float) -> str:
    """Three digits or so."""
    if value == 0 or abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}" if abs(value) >= 1 else f"{value:.3f}"
