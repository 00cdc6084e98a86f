"""Draw the figures of a run from the tables of :mod:`~xferbench.report.tables`.

Writes to the figure cache. Each label is above the row that it names.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from xferbench.analysis import metrics
from xferbench.report import figure_cache, format, matrix_tables, svg, tables
from xferbench.report.plotting import ARM_COLORS, INDUCED_COLORS
from xferbench.report.svg import CARD, FIGURE_WIDTH_INCHES, GREEN, INK, MUTED, ORANGE, PURPLE, VERMILION

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from xferbench.analysis.regret import TaskRegret
    from xferbench.core.plugin import Plugin
    from xferbench.core.run import Run

    Axes: TypeAlias = Any

VERDICT_COLORS = {"FAIL": VERMILION, "PASS": GREEN, "INCONCLUSIVE": ORANGE, "ERROR": PURPLE}
SIDE_MARGINS_INCHES = 0.24  # sum of the left and the right margin
MAX_SVG_CHARACTERS = 120_000  # a larger plot of a plugin becomes an image
DASHES = ("-", "-.", ":")


def draw_benefit_retained(groups: Sequence[tables.Group], cache: Path | None = None) -> str:
    """Draw the share of the benefit of pretraining that each failure retains; empty if there are no values."""
    groups = [group for group in groups if group[0].benefit_retained is not None]
    if not groups:
        return ""
    minimum, maximum = -0.5, 1.25  # a value outside is drawn at the edge; the label has its number

    def draw(figure: svg.Figure) -> None:
        axes = _row_axes(figure, len(groups), 0.42)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.axvline(1, color=GREEN, linewidth=1.2, linestyle="--")
        for row, group in enumerate(groups):
            value, color = group[0].benefit_retained or 0.0, VERDICT_COLORS.get(group[0].verdict, MUTED)
            end = min(max(value, minimum), maximum)
            _write_label(
                axes,
                row,
                f"{format.shorten(tables.group_name(group[0]), 36)}  {group[0].verdict}",
                format.format_percent(value, 0),
            )
            axes.plot([0, end], [row + 0.55] * 2, color=color, linewidth=7, alpha=0.35, solid_capstyle="butt")
            axes.plot(
                [end], [row + 0.55], color=color, marker="o" if end == value else "<" if value < minimum else ">", markersize=6
            )
        axes.set(xlim=(minimum - 0.05, maximum + 0.05), xticks=[-0.5, 0, 0.5, 1], xticklabels=["−50 %", "0", "50 %", "100 %"])
        axes.set_xlabel("benefit of pretraining that is retained")

    values = "; ".join(
        f"{format.one_line(tables.group_name(first))} {format.format_percent(first.benefit_retained, 0)}"
        for first, *_ in groups
    )
    label = f"Benefit retained by check: {values}"
    return figure_cache.cached_figure(
        cache, ("retained", groups), lambda: svg.inline_svg(draw, label, height=0.42 * len(groups) + 0.62)
    )


def draw_paired(rows: Sequence[tables.Paired], margin: float | None, unit: str, cache: Path | None = None) -> str:
    """Draw the harm of each seed with the mean and its bounds, for the subject and each induced arm; empty without seeds."""
    rows = [row for row in rows if row[1]]
    if not rows:
        return ""
    factor, _ = format.unit_scale(unit)

    def draw(figure: svg.Figure) -> None:
        axes = _row_axes(figure, len(rows), 0.62)
        draw_reference_lines(axes, [margin], factor)
        for row, (name, by_seed, bounds) in enumerate(rows):
            color = _color(name.replace(": ", ":"), row - 1)
            _write_label(axes, row, format.shorten(name, 38), format.format_bounds(bounds, unit))
            harms = factor * np.array(list(by_seed.values()))
            offsets = np.linspace(-0.12, 0.12, len(harms)) if len(harms) > 1 else np.zeros(1)
            axes.plot(
                harms,
                row + 0.5 + offsets,
                color=color,
                linestyle="none",
                marker="o",
                markersize=4,
                alpha=0.55,
                markeredgewidth=0,
            )
            draw_interval(axes, row + 0.78, bounds, factor, color=color, marker="D", linewidth=2.2)
        axes.set_xlabel(f"harm in {format.unit_name(unit)}, one dot per seed")

    values = "; ".join(
        f"{name} {format.format_bounds(bounds, unit)} over {len(by_seed)} seeds" for name, by_seed, bounds in rows
    )
    label = f"Harm by seed, in {format.unit_name(unit)}: {values}"
    content = ("paired", rows, margin, unit)
    return figure_cache.cached_figure(cache, content, lambda: svg.inline_svg(draw, label, height=0.62 * len(rows) + 0.62))


def draw_learning_curves(curves: Mapping[str, tables.ArmCurve], cache: Path | None = None) -> str:
    """Draw training loss and validation accuracy by step: the mean over seeds in a band from minimum to maximum."""
    if not curves:
        return ""
    names = list(curves)
    induced = [name for name in names if name.startswith("induced")]
    legend_lines = -(-len(names) // 2)  # two columns
    height = 2.6 + 0.16 * legend_lines

    def draw(figure: svg.Figure) -> None:
        sides = figure.subplots(1, 2)
        figure.subplots_adjust(
            left=0.095, right=0.985, bottom=0.45 / height, top=1 - (0.38 + 0.16 * legend_lines) / height, wspace=0.26
        )
        for axes, column, title in zip(sides, ("loss", "accuracy"), ("training loss", "validation accuracy"), strict=True):
            for name, curve in curves.items():
                _draw_curve(axes, name, curve.steps, getattr(curve, column), induced)
            axes.set(xlabel="step")
            axes.set_title(title, fontsize=9)
        if max(np.nanmax(curve.loss, initial=0.0) for curve in curves.values()) > 20:  # a diverged arm would flatten the others
            sides[0].set_yscale("log")
        handles, labels = sides[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="upper left", ncols=2, borderaxespad=0.2)

    ends = "; ".join(
        f"{format.one_line(name)} ends at {format.format_percent(_last_finite(curve.accuracy[:, 0]))}"
        for name, curve in curves.items()
    )
    label = f"Learning curves, mean over seeds: {ends}"
    return figure_cache.cached_figure(cache, ("learning", curves), lambda: svg.inline_svg(draw, label, height=height))


def _draw_curve(axes: Axes, name: str, steps: np.ndarray, values: np.ndarray, induced: Sequence[str]) -> None:
    """Draw the mean of an arm's curves in a band from minimum to maximum.

    Args:
        axes: matplotlib axes.
        name: name of the arm.
        steps: steps, shape [K].
        values: mean, minimum and maximum over seeds, shape [K, 3].
        induced: names of all induced arms, whose order determines their colors.
    """
    mean, minimum, maximum = values.T
    number = induced.index(name) if name in induced else 0
    color = _color(name, number)
    dashes = "--" if name == "scratch" else DASHES[number // len(INDUCED_COLORS) % len(DASHES)] if name in induced else "-"
    axes.fill_between(steps, minimum, maximum, color=color, alpha=0.15, linewidth=0)
    marker = "o" if len(mean) == 1 else ""
    label = format.shorten(name.replace(":", ": "), 28)
    axes.plot(steps, mean, color=color, linestyle=dashes, marker=marker, label=label)


def draw_plugin_plot(plugin: Plugin, run: Run, cache: Path | None = None, content: str = "") -> str:
    """Draw the plot of a plugin. A crash is reported in its place, because the verdicts do not depend on the plot.

    Args:
        plugin: the plugin. The plot of a third-party plugin is drawn each time, because its code may have changed.
        run: the run to draw.
        cache: folder of cached figures; None disables the cache.
        content: content key of the run, by :func:`xferbench.report.figure_cache.content_key`; without it, the plot is drawn
            each time.
    """
    plot = plugin.plot
    if plot is None:
        return ""

    def draw(figure: svg.Figure) -> None:
        figure.set_layout_engine("constrained")
        plot(figure.add_subplot(), run)

    def render() -> str:
        drawing = svg.inline_svg(draw, label, height=3.2)
        return drawing if len(drawing) <= MAX_SVG_CHARACTERS else svg.inline_png(draw, label, height=3.2)

    label = f"Plot of {format.one_line(plugin.id)}: {format.one_line(plugin.question)}"
    try:
        return figure_cache.cached_figure(
            cache if content and figure_cache.is_package_function(plot) else None,
            ("picture", plugin.id, label, content),
            render,
        )
    except Exception as error:  # noqa: BLE001 - a crash in the plot must not prevent the report
        message = format.one_line(f"{type(error).__name__}: {error}")
        return f"<p>The plot of this plugin could not be drawn: {escape(message)}</p>"


def _row_axes(figure: svg.Figure, rows: int, row: float) -> Axes:
    """Return axes for rows of a fixed height in inches; the vertical unit is a row, counted from the top."""
    height = figure.get_figheight()
    bottom = 0.48 / height
    axes = figure.add_axes(
        (
            SIDE_MARGINS_INCHES / 2 / FIGURE_WIDTH_INCHES,
            bottom,
            1 - SIDE_MARGINS_INCHES / FIGURE_WIDTH_INCHES,
            row * rows / height,
        )
    )
    axes.set(ylim=(rows, 0), yticks=[])
    axes.spines["left"].set_visible(False)
    return axes


def _write_label(axes: Axes, row: float, left: str, right: str) -> None:
    background = {"facecolor": CARD, "edgecolor": "none", "pad": 1.5}  # lines of the axes do not cross the text
    for side, content, align in ((0, left, "left"), (1, right, "right")):
        axes.text(side, row + 0.07, content, transform=axes.get_yaxis_transform(), va="top", ha=align, bbox=background)


def draw_interval(
    axes: Axes,
    y: float,
    mean: tables.Bounds,
    factor: float,
    *,
    color: str,
    marker: str,
    linewidth: float = 1.1,
    hollow: bool = False,
    span: tuple[float, float] = (-float("inf"), float("inf")),
) -> None:
    """Draw a value between its bounds; a value beyond the span of the axis is an arrow at its edge."""
    value, low, high = (None if number is None else factor * number for number in mean)
    if low is not None and high is not None and low <= span[1] and high >= span[0]:
        ends = [max(low, span[0]), min(high, span[1])]
        axes.plot(ends, [y, y], color=color, linewidth=linewidth, solid_capstyle="butt")
    if value is not None:
        axes.plot(
            [min(max(value, span[0]), span[1])],
            [y],
            color=color,
            marker=marker if span[0] <= value <= span[1] else "<" if value < span[0] else ">",
            markersize=4.5 if hollow else 6,
            fillstyle="none" if hollow else "full",
            clip_on=False,
        )


def draw_reference_lines(axes: Axes, margins: Sequence[float | None], factor: float) -> None:
    """Draw a line at no harm, and one at each margin."""
    axes.axvline(0, color=INK, linewidth=0.8)
    for margin in dict.fromkeys(margins):
        if margin is not None:
            axes.axvline(factor * margin, color=VERMILION, linewidth=1.2, linestyle="--")


def _color(name: str, number: int) -> str:
    return ARM_COLORS.get(name) or INDUCED_COLORS[number % len(INDUCED_COLORS)]


def _last_finite(values: np.ndarray) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def draw_quadrants(run: Run) -> str:
    """Draw the mean of each recipe in each quadrant of a matrix, with the advised and the best recipe marked.

    The result is empty for a matrix without the table of size × similarity.
    """
    means, cells = matrix_tables.quadrant_means(run), matrix_tables.measure_quadrants(run)
    if not means:
        return ""
    names = list(dict.fromkeys(name for by_recipe in means.values() for name in by_recipe))
    metric = metrics.get_metric(str(run.suite["metric"]))
    scale, _ = format.unit_scale(metric.unit)
    unit = str(run.suite["metric"]) + (", %" if scale > 1 else ", negative" if metric.loss else "")
    sizes = [size for size in matrix_tables.SIZES if any(quadrant[0] == size for quadrant in means)]
    height = 0.17 * len(sizes) * (len(names) + 1) + 0.5 + 0.3 * len(sizes)

    def draw(figure: svg.Figure) -> None:
        grid = figure.subplots(len(sizes), 2, sharex=True, squeeze=False)
        figure.subplots_adjust(left=0.31, right=0.985, bottom=0.42 / height, top=1 - 0.28 / height, wspace=0.08, hspace=0.22)
        for (row, column), axes in np.ndenumerate(grid):
            quadrant = (sizes[row], matrix_tables.SIMILARITIES[column])
            axes.set_visible(quadrant in means)
            if quadrant in means:
                _draw_quadrant(axes, names, means[quadrant], cells[quadrant], scale)
                axes.set_title(f"{quadrant[0]} images, {quadrant[1]}", fontsize=9)
                axes.set(yticks=range(len(names)), yticklabels=[*reversed(names)] if column == 0 else [])
            if row == len(sizes) - 1:
                axes.set_xlabel(unit)

    label = "Mean by recipe in each quadrant: " + "; ".join(
        f"{size} images, {similarity}: best {cell.best}, the textbook advises {cell.advised}"
        for (size, similarity), cell in cells.items()
    )
    return svg.inline_svg(draw, label, height=height)


def _draw_quadrant(axes: Axes, names: Sequence[str], means: Mapping[str, float], cell: TaskRegret, scale: float) -> None:
    for row, name in enumerate(reversed(names)):
        if (mean := means.get(name)) is None:  # the recipe was not run here
            continue
        color = VERMILION if name == cell.advised else GREEN if name == cell.best else MUTED
        axes.plot([scale * mean], [row], "D" if name == cell.advised else "o", color=color, markersize=5)
