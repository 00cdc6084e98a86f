"""Draw the forest plot: the harm of every check against the margin, and the cost of each induced failure.

Writes to the cache.
"""

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
LEFT, RIGHT = 1.34, 1.5  # width in inches of the columns of names and numbers
COLUMN = WIDTH - LEFT - RIGHT
HEAD, ROW = 0.27, 0.2  # height in inches of a check's heading and of each row below it


def forest(groups: Sequence[frames.Group], cache: Path | None = None) -> str:
    """Draw the harm of every verdict with its bounds against the margin, and its positive controls in rows below.

    The result is empty if there is no harm to draw.
    """
    units = Counter(group[0].unit for group in groups if group[0].harm is not None)
    if not units:
        return ""
    ((unit, _),) = units.most_common(1)  # one axis has one unit
    drawn_groups = [group for group in groups if group[0].harm is not None and group[0].unit == unit]
    factor, _ = text.scale(unit)
    controls = [[finding for finding in group if finding.control_harm is not None] for group in drawn_groups]
    height = sum(HEAD + ROW * (1 + len(rows_below)) for rows_below in controls)

    def draw(figure: svg.Figure) -> None:
        axes = columns(figure, height)
        span = _axis_range(drawn_groups, factor)
        axes.set_xlim(span)
        limits(axes, [group[0].margin for group in drawn_groups], factor)
        top = 0.0
        for group, rows_below in zip(drawn_groups, controls, strict=True):
            first, color = group[0], VERDICT.get(group[0].verdict, MUTED)
            beside(
                axes,
                top + HEAD / 2,
                text.short(frames.check(first), 44),
                first.verdict,
                weight="bold",
                color=WORD.get(first.verdict, INK),
            )
            rows: list[tuple[str, frames.Bounds]] = [("your pipeline", (first.harm, first.low, first.high))]
            rows += [(_variant_name(item), (item.control_harm, item.control_low, item.control_high)) for item in rows_below]
            for number, (name, bounds) in enumerate(rows):
                y = top + HEAD + ROW * (number + 0.5)
                beside(axes, y, name, text.bounded(bounds, unit))
                style = {"color": MUTED, "marker": "D", "hollow": True} if number else {"color": color, "marker": "o"}
                interval(axes, y, bounds, factor, linewidth=1.1 if number else 2.2, span=span, **style)
            top += HEAD + ROW * len(rows)
            if top < height - ROW:
                axes.axhline(top + 0.02, xmin=-LEFT / COLUMN, xmax=1 + RIGHT / COLUMN, color=GRID, linewidth=0.6, clip_on=False)
        axes.set_xlabel(f"harm in {text.in_words(unit)}")

    values = "; ".join(f"{text.line(frames.check(first))} {first.verdict} {frames.harm(first)}" for first, *_ in drawn_groups)
    label = f"Harm by check with its bounds, in {text.in_words(unit)}: {values}"
    return drawn.kept(cache, ("forest", drawn_groups), lambda: svg.inline(draw, label, height=height + 0.62))


def _variant_name(finding: Finding) -> str:
    return text.short(finding.variant, 20) or "induced"


def _axis_range(groups: Sequence[frames.Group], factor: float) -> tuple[float, float]:
    """Return the range of the axis in displayed units.

    The range covers all intervals, except values so large that the margin would not be visible.
    """
    values = [value for group in groups for value in (group[0].harm, group[0].low, group[0].high) if value is not None]
    control_values = [
        value
        for group in groups
        for finding in group
        for value in (finding.control_harm, finding.control_low, finding.control_high)
        if value is not None
    ]
    margin = max((group[0].margin or 0.0 for group in groups), default=0.0)
    low, high = min([0.0, *values, *control_values]), max([margin, *values, *control_values])
    if margin:
        high = min(high, max([15 * margin, *values]))
        low = max(low, -max(5 * margin, high))
    padding = 0.04 * (high - low) or 0.01
    return factor * (low - padding), factor * (high + padding)


def columns(figure: svg.Figure, height: float) -> Axes:
    """Return axes between a column of names and a column of numbers; the vertical unit is an inch, counted from the top."""
    figure_height = figure.get_figheight()
    axes = figure.add_axes((LEFT / WIDTH, 0.48 / figure_height, COLUMN / WIDTH, height / figure_height))
    axes.set(ylim=(height, 0), yticks=[])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=5)
    return axes


def beside(axes: Axes, y: float, left: str, right: str, *, weight: str = "normal", color: str = INK) -> None:
    """Write a name in the left column and a number in the right column."""
    edge = (LEFT - MARGINS / 2) / COLUMN
    for side, content, align, text_color in (
        (-edge, left, "left", INK),
        (1 + (RIGHT - MARGINS / 2) / COLUMN, right, "right", color),
    ):
        axes.text(
            side,
            y,
            content,
            transform=axes.get_yaxis_transform(),
            va="center",
            ha=align,
            fontsize=9 if weight == "bold" else 8,
            fontweight=weight,
            color=text_color,
            bbox={"facecolor": CARD, "edgecolor": "none", "pad": 1.5},
        )
