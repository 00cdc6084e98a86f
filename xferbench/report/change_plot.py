"""Draw the forest plot of a comparison: each change with its bounds, zero and the margin. Imports matplotlib."""

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
    """Return the plot of the changes in the unit of the subject as SVG; empty if there is no change."""
    outcomes = drawable_outcomes(comparison)
    if not outcomes:
        return ""
    unit, height = outcomes[0].estimate.unit, (HEADING_HEIGHT + ROW_HEIGHT) * len(outcomes)
    factor, _ = format.unit_scale(unit)

    def draw(figure: svg.Figure) -> None:
        axes = add_plot_column(figure, height)
        span = _span(outcomes, factor)
        axes.set_xlim(span)
        draw_reference_lines(axes, [outcome.estimate.margin for outcome in outcomes], factor)
        for number, outcome in enumerate(outcomes):
            top, style = number * (HEADING_HEIGHT + ROW_HEIGHT), comparison_text.VERDICT_STYLE[outcome.decision]
            write_row_text(
                axes,
                top + HEADING_HEIGHT / 2,
                format.shorten(comparison_text.outcome_name(outcome), 40),
                outcome.decision,
                weight="bold",
                color=VERDICT_TEXT_COLORS.get(style, INK),
            )
            middle = top + HEADING_HEIGHT + ROW_HEIGHT / 2
            write_row_text(axes, middle, comparison_text.levels_text(outcome), comparison_text.change_text(outcome))
            bounds, color = outcome.estimate.bounds, VERDICT_COLORS.get(style, MUTED)
            draw_interval(axes, middle, bounds, factor, color=color, marker="o", linewidth=2.2, span=span)
            if number < len(outcomes) - 1:
                line = top + HEADING_HEIGHT + ROW_HEIGHT + 0.02
                axes.axhline(
                    line,
                    xmin=-NAME_COLUMN_WIDTH / PLOT_WIDTH,
                    xmax=1 + NUMBER_COLUMN_WIDTH / PLOT_WIDTH,
                    color=GRID,
                    linewidth=0.6,
                    clip_on=False,
                )
        axes.set_xlabel(f"change in {format.unit_name(unit)}; worse to the right")

    changes = "; ".join(
        f"{comparison_text.outcome_name(outcome)} {outcome.decision} {comparison_text.change_text(outcome)}"
        for outcome in outcomes
    )
    label = f"Change from the accepted run with its bounds, in {format.unit_name(unit)}: {changes}"
    return figure_cache.cached_figure(cache, ("changes", outcomes), lambda: svg.inline_svg(draw, label, height=height + 0.62))


def drawable_outcomes(comparison: Comparison) -> tuple[Outcome, ...]:
    """Return the outcomes with a change in the unit of the subject, or in the most common unit; the subject comes first."""
    outcomes = [outcome for outcome in comparison_text.in_reading_order(comparison) if outcome.estimate.change is not None]
    subject_units = [outcome.estimate.unit for outcome in outcomes if comparison_text.is_subject(outcome)]
    most_common = [unit for unit, _ in Counter(outcome.estimate.unit for outcome in outcomes).most_common(1)]
    unit = next(iter(subject_units or most_common), "")
    return tuple(outcome for outcome in outcomes if outcome.estimate.unit == unit)


def _span(outcomes: Sequence[Outcome], factor: float) -> tuple[float, float]:
    """Return the limits of the axis in printed units: all changes, and their bounds as far as the margin stays visible."""
    margin = max((outcome.estimate.margin or 0.0 for outcome in outcomes), default=0.0)
    changes = [outcome.estimate.change for outcome in outcomes if outcome.estimate.change is not None]
    bounds = [value for outcome in outcomes for value in (outcome.estimate.low, outcome.estimate.high) if value is not None]
    least, most = min([0.0, *changes, *bounds]), max([margin, *changes, *bounds])
    if margin:
        least, most = max(least, min([-15 * margin, *changes])), min(most, max([15 * margin, *changes]))
    room = 0.04 * (most - least) or 0.01
    return factor * (least - room), factor * (most + room)
