"""The forest plot: every check's harm against the margin, and below each what its failure costs when it is put in."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

from xferbench.report import drawn, frames, svg, text
from xferbench.report.figures import MARGINS, VERDICT, interval, limits
from xferbench.report.svg import CARD, ERROR, FAIL, GRID, INK, MUTED, OPEN, PASS, WIDTH

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xferbench.record import Finding

    Axes: TypeAlias = Any

WORD = {"FAIL": FAIL, "PASS": PASS, "INCONCLUSIVE": OPEN, "ERROR": ERROR}
LEFT, RIGHT = 1.34, 1.5  # inches of the columns of names and of numbers
COLUMN = WIDTH - LEFT - RIGHT
HEAD, ROW = 0.27, 0.2  # inches of a check's heading, and of each row below it


def forest(groups: Sequence[frames.Group], cache: Path | None = None) -> str:
    """Harm of every verdict with its bounds against the margin, its positive controls on rows below; empty without any."""
    units = Counter(group[0].unit for group in groups if group[0].harm is not None)
    if not units:
        return ""
    ((unit, _),) = units.most_common(1)  # one axis, one unit
    shown = [group for group in groups if group[0].harm is not None and group[0].unit == unit]
    factor, _ = text.scale(unit)
    controls = [[one for one in group if one.control_harm is not None] for group in shown]
    height = sum(HEAD + ROW * (1 + len(below)) for below in controls)

    def draw(figure: svg.Figure) -> None:
        axes = columns(figure, height)
        span = _span(shown, factor)
        axes.set_xlim(span)
        limits(axes, [group[0].margin for group in shown], factor)
        top = 0.0
        for group, below in zip(shown, controls, strict=True):
            first, colour = group[0], VERDICT.get(group[0].verdict, MUTED)
            beside(
                axes,
                top + HEAD / 2,
                text.short(frames.check(first), 44),
                first.verdict,
                weight="bold",
                colour=WORD.get(first.verdict, INK),
            )
            own: tuple[str, frames.Bounds] = ("your pipeline", (first.harm, first.low, first.high))
            rows = [own] + [(_variant(one), (one.control_harm, one.control_low, one.control_high)) for one in below]
            for number, (name, bounds) in enumerate(rows):
                place = top + HEAD + ROW * (number + 0.5)
                beside(axes, place, name, text.bounded(bounds, unit))
                look = {"color": MUTED, "marker": "D", "hollow": True} if number else {"color": colour, "marker": "o"}
                interval(axes, place, bounds, factor, linewidth=1.1 if number else 2.2, span=span, **look)
            top += HEAD + ROW * len(rows)
            if top < height - ROW:
                axes.axhline(top + 0.02, xmin=-LEFT / COLUMN, xmax=1 + RIGHT / COLUMN, color=GRID, linewidth=0.6, clip_on=False)
        axes.set_xlabel(f"harm in {text.in_words(unit)}")

    told = "; ".join(f"{text.line(frames.check(one))} {one.verdict} {frames.harm(one)}" for one, *_ in shown)
    label = f"Harm by check with its bounds, in {text.in_words(unit)}: {told}"
    return drawn.kept(cache, ("forest", shown), lambda: svg.inline(draw, label, height=height + 0.62))


def _variant(finding: Finding) -> str:
    return text.short(finding.variant, 20) or "induced"


def _span(shown: Sequence[frames.Group], factor: float) -> tuple[float, float]:
    """The axis in told units: all intervals, but nothing so far from the margin that the margin could no longer be seen."""
    own = [value for group in shown for value in (group[0].harm, group[0].low, group[0].high) if value is not None]
    induced = [
        value
        for group in shown
        for one in group
        for value in (one.control_harm, one.control_low, one.control_high)
        if value is not None
    ]
    margin = max((group[0].margin or 0.0 for group in shown), default=0.0)
    least, most = min([0.0, *own, *induced]), max([margin, *own, *induced])
    if margin:
        most = min(most, max([15 * margin, *own]))
        least = max(least, -max(5 * margin, most))
    room = 0.04 * (most - least) or 0.01
    return factor * (least - room), factor * (most + room)


def columns(figure: svg.Figure, height: float) -> Axes:
    """Axes between a column of names and one of numbers, whose vertical unit is an inch, counted from the top."""
    whole = figure.get_figheight()
    axes = figure.add_axes((LEFT / WIDTH, 0.48 / whole, COLUMN / WIDTH, height / whole))
    axes.set(ylim=(height, 0), yticks=[])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=5)
    return axes


def beside(axes: Axes, place: float, left: str, right: str, *, weight: str = "normal", colour: str = INK) -> None:
    """A name in the left column and a number in the right one."""
    edge = (LEFT - MARGINS / 2) / COLUMN
    for side, words, align, ink in ((-edge, left, "left", INK), (1 + (RIGHT - MARGINS / 2) / COLUMN, right, "right", colour)):
        axes.text(
            side,
            place,
            words,
            transform=axes.get_yaxis_transform(),
            va="center",
            ha=align,
            fontsize=9 if weight == "bold" else 8,
            fontweight=weight,
            color=ink,
            bbox={"facecolor": CARD, "edgecolor": "none", "pad": 1.5},
        )
