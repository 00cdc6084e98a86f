"""The forest plot of a comparison: how much worse each thing has become, against none and against the margin."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from xferbench.report import comparison_text, figure_cache, format, svg
from xferbench.report.figures import VERDICT_COLORS, draw_interval, draw_reference_lines
from xferbench.report.forest_plot import (
    HEADING_HEIGHT,
    NAME_COLUMN_WIDTH,
    NUMBER_COLUMN_WIDTH,
    PLOT_WIDTH,
    ROW_HEIGHT,
    VERDICT_TEXT_COLORS,
    add_plot_column,
    write_row_text,
)
from xferbench.report.svg import GRID, INK, MUTED

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from xferbench.core.comparison import Comparison, Outcome


def draw_changes(comparison: Comparison, cache: Path | None = None) -> str:
    """The change of all that is told in the subject's unit, the subject first; empty where there is none."""
    shown = drawable_outcomes(comparison)
    if not shown:
        return ""
    unit, height = shown[0].unit, (HEADING_HEIGHT + ROW_HEIGHT) * len(shown)
    factor, _ = format.unit_scale(unit)

    def draw(figure: svg.Figure) -> None:
        axes = add_plot_column(figure, height)
        span = _span(shown, factor)
        axes.set_xlim(span)
        draw_reference_lines(axes, [one.margin for one in shown], factor)
        for number, one in enumerate(shown):
            top, look = number * (HEADING_HEIGHT + ROW_HEIGHT), comparison_text.VERDICT_STYLE[one.decision]
            write_row_text(
                axes,
                top + HEADING_HEIGHT / 2,
                format.shorten(comparison_text.outcome_name(one), 40),
                one.decision,
                weight="bold",
                color=VERDICT_TEXT_COLORS.get(look, INK),
            )
            write_row_text(
                axes, top + HEADING_HEIGHT + ROW_HEIGHT / 2, comparison_text.levels_text(one), comparison_text.change_text(one)
            )
            bounds = (one.change, one.low, one.high)
            colour = VERDICT_COLORS.get(look, MUTED)
            draw_interval(
                axes, top + HEADING_HEIGHT + ROW_HEIGHT / 2, bounds, factor, color=colour, marker="o", linewidth=2.2, span=span
            )
            if number < len(shown) - 1:
                line = top + HEADING_HEIGHT + ROW_HEIGHT + 0.02
                axes.axhline(
                    line,
                    xmin=-NAME_COLUMN_WIDTH / PLOT_WIDTH,
                    xmax=1 + NUMBER_COLUMN_WIDTH / PLOT_WIDTH,
                    color=GRID,
                    linewidth=0.6,
                    clip_on=False,
                )
        axes.set_xlabel(f"change in {format.unit_name(unit)}, worse to the right")

    told = "; ".join(f"{comparison_text.outcome_name(one)} {one.decision} {comparison_text.change_text(one)}" for one in shown)
    label = f"Change against what was accepted with its bounds, in {format.unit_name(unit)}: {told}"
    return figure_cache.cached_figure(cache, ("changes", shown), lambda: svg.inline_svg(draw, label, height=height + 0.62))


def drawable_outcomes(comparison: Comparison) -> tuple[Outcome, ...]:
    """Outcomes with a change in one unit, which is the subject's or else the commonest, the subject first."""
    told = [one for one in comparison_text.in_reading_order(comparison) if one.change is not None]
    own = [one.unit for one in told if comparison_text.is_subject(one)]
    unit = next(iter(own or [unit for unit, _ in Counter(one.unit for one in told).most_common(1)]), "")
    return tuple(one for one in told if one.unit == unit)


def _span(shown: Sequence[Outcome], factor: float) -> tuple[float, float]:
    """The axis in told units: every change, and of bounds no more than leaves the margin visible."""
    margin = max((one.margin or 0.0 for one in shown), default=0.0)
    own = [one.change for one in shown if one.change is not None]
    bounds = [value for one in shown for value in (one.low, one.high) if value is not None]
    least, most = min([0.0, *own, *bounds]), max([margin, *own, *bounds])
    if margin:
        least, most = max(least, min([-15 * margin, *own])), min(most, max([15 * margin, *own]))
    room = 0.04 * (most - least) or 0.01
    return factor * (least - room), factor * (most + room)
