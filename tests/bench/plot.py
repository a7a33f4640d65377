"""A bar chart of figures as ratios to tailscaled, as SVG that is read on a light and on a dark page.

The scale is logarithmic: twice as much and half as much are bars of the same length, to the right and to the left of tailscaled's line.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from typing import Final

from tests.bench.figures import THEIRS, Figure, number

MORE_IS_BETTER: Final = {
    "Gbit/s": True,
    "k/s": True,
    "s/GB": False,
    "ms": False,
    "MB": False,
}  # the units of what is shown

WIDTH: Final = 950
LABELS: Final = 300  # pixels for the figures' names
MARGIN: Final = 24
BAR: Final = 11
GAP: Final = 12  # between figures
HEAD_LINE: Final = 17
VALUE_ROOM: Final = 40  # for the number behind the longest bar
MIN_SPAN: Final = 1.0  # powers of two on either side of the line, at least
MAX_SPAN: Final = 5.0  # at most: what is beyond ends at the edge
COLOURS: Final = ("#2f81f7", "#2da44e", "#8c959f", "#d4772c", "#a371f7")  # strong enough on white and on black
# Spelled out twice and not with variables, which not everything that draws SVG knows.
STYLE: Final = """
  text { font: 12px sans-serif; fill: #1f2328 } .faint { fill: #59636e } .page { fill: #ffffff }
  .rule { stroke: #d1d9e0 } .one, .whisker { stroke: #1f2328 }
  .title { font-size: 16px; font-weight: bold } .head { font-weight: bold } .small { font-size: 10px }
  .end { text-anchor: end } .middle { text-anchor: middle }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc } .faint { fill: #9198a1 } .page { fill: #0d1117 }
    .rule { stroke: #3d444d } .one, .whisker { stroke: #f0f6fc }
  }
"""


def bar_chart(figures: Iterable[Figure], contenders: Sequence[str], title: str, lines: Sequence[str]) -> str:
    """The whole file: title, lines below it, legend, and a group of bars for each figure that has a ratio."""
    shown = [figure for figure in figures if figure.unit in MORE_IS_BETTER and figure.median(THEIRS)]
    span = _span(shown, contenders)
    body, y = list[str](), MARGIN + 12
    body.append(_text(MARGIN, y, title, "title"))
    for line in [
        *lines,
        "Medians as ratios to tailscaled's, from the smallest sample to the largest; the scale is logarithmic.",
    ]:
        y += HEAD_LINE
        body.append(_text(MARGIN, y, line, "faint"))
    y += HEAD_LINE + 6
    body += _legend(contenders, y)
    for better, head in ((True, "More is better"), (False, "Less is better")):
        group = [figure for figure in shown if MORE_IS_BETTER[figure.unit] is better]
        if group:
            y += 2 * HEAD_LINE
            body.append(_text(MARGIN, y, head, "head"))
            top, y = y + 6, y + GAP
            bars = list[str]()
            for figure in group:
                bars += _group(figure, contenders, y, span)
                y += len(_bars_of(figure, contenders)) * BAR + GAP
            body += [*_axis(top, y, span), *bars]
            y += HEAD_LINE
    height = y + MARGIN
    frame = f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>'
    start = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img">'
    return "\n".join([start, f"<title>{escape(title)}</title>", f"<style>{STYLE}</style>", frame, *body, "</svg>", ""])


def _span(figures: Sequence[Figure], contenders: Sequence[str]) -> float:
    """How many powers of two there have to be on either side."""
    ratios = [ratio for figure in figures for who in contenders for ratio in _ratios(figure, who)]
    farthest = max((abs(math.log2(ratio)) for ratio in ratios if ratio > 0), default=0.0)
    return min(MAX_SPAN, max(MIN_SPAN, farthest * 1.02))


def _ratios(figure: Figure, contender: str) -> list[float]:
    """Its samples by tailscaled's median."""
    theirs = figure.median(THEIRS)
    return [sample / theirs for sample in figure.samples.get(contender, [])] if theirs else []


def _x(ratio: float, span: float) -> float:
    half = (WIDTH - LABELS - 2 * MARGIN - 2 * VALUE_ROOM) / 2
    power = math.log2(ratio) if ratio > 0 else -span
    return LABELS + MARGIN + VALUE_ROOM + half * (1 + max(-span, min(span, power)) / span)


def _legend(contenders: Sequence[str], y: int) -> Iterator[str]:
    for place, who in enumerate(contenders):
        x = MARGIN + 150 * place
        yield f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="{_colour(place)}"/>'
        yield _text(x + 18, y, f"{who} = 1" if who == THEIRS else who)


def _axis(top: int, bottom: int, span: float) -> Iterator[str]:
    for power in range(-math.floor(span), math.floor(span) + 1):
        x = _x(2.0**power, span)
        kind = "rule" if power else "one"
        yield f'<line class="{kind}" x1="{x:.1f}" y1="{top}" x2="{x:.1f}" y2="{bottom}"/>'
        yield _text(x, bottom + 12, f"{2**power}" if power >= 0 else f"1/{2**-power}", "faint small middle")


def _bars_of(figure: Figure, contenders: Sequence[str]) -> list[tuple[str, str, float]]:
    """Who has a bar, in which colour, and how long it is."""
    found = [(who, _colour(place), figure.ratio_of(who)) for place, who in enumerate(contenders)]
    return [(who, colour, ratio) for who, colour, ratio in found if ratio is not None]


def _group(figure: Figure, contenders: Sequence[str], y: int, span: float) -> Iterator[str]:
    bars = _bars_of(figure, contenders)
    middle = y + len(bars) * BAR / 2 - 2
    yield _text(LABELS + MARGIN - 10, middle, f"{figure.part}: {figure.what}", "end")
    yield _text(
        LABELS + MARGIN - 10, middle + 13, f"1 = {number(figure.median(THEIRS) or 0)} {figure.unit}", "faint small end"
    )
    for line, (who, colour, ratio) in enumerate(bars):
        ratios = _ratios(figure, who)
        yield from _bar(ratio, min(ratios), max(ratios), y + line * BAR, span, colour, who)


def _bar(ratio: float, least: float, most: float, y: int, span: float, colour: str, who: str) -> Iterator[str]:
    one, end, low, high = (_x(value, span) for value in (1.0, ratio, least, most))
    left, width = min(one, end), max(abs(end - one), 2.0)  # tailscaled's own has no length, and is to be seen
    centre = y + BAR / 2
    yield f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="{BAR - 2}" fill="{colour}"/>'
    yield f'<line class="whisker" x1="{low:.1f}" y1="{centre - 1}" x2="{high:.1f}" y2="{centre - 1}"/>'
    if who != THEIRS:
        outwards = max(end, high) + 4 if ratio >= 1 else min(end, low) - 4
        yield _text(outwards, centre + 3, f"{ratio:.2f}", "small" if ratio >= 1 else "small end")


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{escape(words)}</text>'
