"""Draw the forest plot: the harm of every check against the margin, and the cost of each induced failure.

Writes to the cache.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, TypeAlias

from xferbench.report import figure_cache, format, svg, tables
from xferbench.report.figures import SIDE_MARGINS_INCHES, VERDICT_COLORS, draw_interval, draw_reference_lines
from xferbench.report.svg import CARD, ERROR, FAIL, FIGURE_WIDTH_INCHES, GRID, INK, MUTED, OPEN, PASS

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xferbench.core.run import Finding

    Axes: TypeAlias = Any

VERDICT_TEXT_COLORS = {"FAIL": FAIL, "PASS": PASS, "INCONCLUSIVE": OPEN, "ERROR": ERROR}
NAME_COLUMN_WIDTH, NUMBER_COLUMN_WIDTH = 1.34, 1.5  # width in inches of the columns of names and numbers
PLOT_WIDTH = FIGURE_WIDTH_INCHES - NAME_COLUMN_WIDTH - NUMBER_COLUMN_WIDTH
HEADING_HEIGHT, ROW_HEIGHT = 0.27, 0.2  # height in inches of a check's heading and of each row below it


def draw_forest(groups: Sequence[tables.Group], cache: Path | None = None) -> str:
    """Draw the harm of every verdict with its bounds against the margin, and its positive controls in rows below.

    The plot shows the groups with the most common unit, because one axis has one unit. The result is empty if there is no
    harm to draw.
    """
    units = Counter(group[0].estimate.unit for group in groups if group[0].estimate.harm is not None)
    if not units:
        return ""
    ((unit, _),) = units.most_common(1)
    groups = [group for group in groups if group[0].estimate.harm is not None and group[0].estimate.unit == unit]
    height = sum(map(_group_height, groups))
    values = "; ".join(
        f"{format.one_line(tables.group_name(first))} {first.verdict} {tables.harm_text(first)}" for first, *_ in groups
    )
    label = f"Harm by check with its bounds, in {format.unit_name(unit)}: {values}"

    def render() -> str:
        return svg.inline_svg(lambda figure: _draw_groups(figure, groups, unit, height), label, height=height + 0.62)

    return figure_cache.cached_figure(cache, ("forest", groups), render)


def _draw_groups(figure: svg.Figure, groups: Sequence[tables.Group], unit: str, height: float) -> None:
    factor, _ = format.unit_scale(unit)
    axes = add_plot_column(figure, height)
    span = _axis_range(groups, factor)
    axes.set_xlim(span)
    draw_reference_lines(axes, [group[0].estimate.margin for group in groups], factor)
    top = 0.0
    for group in groups:
        _draw_group(axes, group, top, span)
        top += _group_height(group)
        if top < height - ROW_HEIGHT:
            _draw_separator(axes, top + 0.02)
    axes.set_xlabel(f"harm in {format.unit_name(unit)}")


def _draw_group(axes: Axes, group: tables.Group, top: float, span: tuple[float, float]) -> None:
    """Draw the heading of a check, and rows for the pipeline and each positive control, from ``top`` inches down."""
    first = group[0]
    factor, _ = format.unit_scale(first.estimate.unit)
    write_row_text(
        axes,
        top + HEADING_HEIGHT / 2,
        format.shorten(tables.group_name(first), 44),
        first.verdict,
        weight="bold",
        color=VERDICT_TEXT_COLORS.get(first.verdict, INK),
    )
    rows: list[tuple[str, tables.Bounds]] = [("your pipeline", first.estimate.bounds)]
    rows += [(_variant_name(finding), finding.control.bounds) for finding in _controls(group)]
    color = VERDICT_COLORS.get(first.verdict, MUTED)
    for number, (name, bounds) in enumerate(rows):
        y = top + HEADING_HEIGHT + ROW_HEIGHT * (number + 0.5)
        write_row_text(axes, y, name, format.format_bounds(bounds, first.estimate.unit))
        style = {"color": MUTED, "marker": "D", "hollow": True} if number else {"color": color, "marker": "o"}
        draw_interval(axes, y, bounds, factor, linewidth=1.1 if number else 2.2, span=span, **style)


def _draw_separator(axes: Axes, y: float) -> None:
    axes.axhline(
        y,
        xmin=-NAME_COLUMN_WIDTH / PLOT_WIDTH,
        xmax=1 + NUMBER_COLUMN_WIDTH / PLOT_WIDTH,
        color=GRID,
        linewidth=0.6,
        clip_on=False,
    )


def _controls(group: tables.Group) -> list[Finding]:
    return [finding for finding in group if finding.control.harm is not None]


def _group_height(group: tables.Group) -> float:
    """Return the height in inches of a check's heading and rows."""
    return HEADING_HEIGHT + ROW_HEIGHT * (1 + len(_controls(group)))


def _variant_name(finding: Finding) -> str:
    return format.shorten(finding.control.variant, 20) or "induced"


def _axis_range(groups: Sequence[tables.Group], factor: float) -> tuple[float, float]:
    """Return the range of the axis in displayed units.

    The range covers all intervals, except values so large that the margin would not be visible.
    """
    values = [value for group in groups for value in group[0].estimate.bounds if value is not None]
    control_values = [value for group in groups for finding in group for value in finding.control.bounds if value is not None]
    margin = max((group[0].estimate.margin or 0.0 for group in groups), default=0.0)
    low, high = min([0.0, *values, *control_values]), max([margin, *values, *control_values])
    if margin:
        high = min(high, max([15 * margin, *values]))
        low = max(low, -max(5 * margin, high))
    padding = 0.04 * (high - low) or 0.01
    return factor * (low - padding), factor * (high + padding)


def add_plot_column(figure: svg.Figure, height: float) -> Axes:
    """Return axes between a column of names and a column of numbers; the vertical unit is an inch, counted from the top."""
    figure_height = figure.get_figheight()
    axes = figure.add_axes(
        (
            NAME_COLUMN_WIDTH / FIGURE_WIDTH_INCHES,
            0.48 / figure_height,
            PLOT_WIDTH / FIGURE_WIDTH_INCHES,
            height / figure_height,
        )
    )
    axes.set(ylim=(height, 0), yticks=[])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.locator_params(axis="x", nbins=5)
    return axes


def write_row_text(axes: Axes, y: float, left: str, right: str, *, weight: str = "normal", color: str = INK) -> None:
    """Write a name in the left column and a number in the right column."""
    edge = (NAME_COLUMN_WIDTH - SIDE_MARGINS_INCHES / 2) / PLOT_WIDTH
    for side, content, align, text_color in (
        (-edge, left, "left", INK),
        (1 + (NUMBER_COLUMN_WIDTH - SIDE_MARGINS_INCHES / 2) / PLOT_WIDTH, right, "right", color),
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
