"""``report.html`` of a matrix: claims, recipes over all tasks, the two by two, what each costs; one file without a network."""

from __future__ import annotations

from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench import advice, metrics
from xferbench.report import across, comparison, crossed, html, page, svg, text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.regret import Cell
    from xferbench.table import Table

COSTS = ("trainable", "stored", "multiply_adds", "seconds", "accuracy", "source_before", "source", "shifted")
LOOK = {"agrees": "PASS", "disagrees": "FAIL", "inconclusive": "INCONCLUSIVE", "not measured": "SKIPPED"}


def render(table: Table) -> str:
    """Render the page."""
    from markupsafe import Markup

    suite, rows = table.suite, across.ranked(table)
    return page.render(
        "crossed.html.j2",
        title=text.line(suite["name"]),
        outcome=crossed.sentence(table),
        facts=[(name, text.line(value)) for name, value in _facts(table).items() if value],
        claims=[_claim(one) for one in table.claims],
        head=across.head(table),
        ranked=[across.cells(one) for one in rows[0]],
        ruled=_ruled(table),
        quarters=across.quartered(table),
        drawing=Markup(_drawn(table)),  # noqa: S704 - drawn here, its texts escaped
        tasks=[text.line(task) for task in suite["tasks"]],
        metric=text.line(suite["metric"]),
        unit=text.in_words(metrics.named(str(suite["metric"])).unit),
        level=f"{100 * (1 - float(suite['alpha'])):g} %",
        against=text.line(suite["against"]),
        grid=_grid(table),
        costs=_costs(table),
        findings=[(one, text.line(one.id), text.line(one.reason)) for one in table.findings if one.verdict != "INFO"],
        pages=sorted({one.id.partition(":")[0] for one in table.findings}),
        crashed=[text.line(one) for one in table.crashed],
        skipped=[text.line(one) for one in crossed.left_out(table)],
        notes=[text.line(note) for note in (*rows[1], *table.notes)],
        cost=table.cost,
        environment=comparison.environment(table.environment),
        command=html.command(table.suite),
    )


def _facts(table: Table) -> dict[str, Any]:
    suite = table.suite
    seeds = sorted({row["seed"] for row in table.rows})
    return {
        "recipes": len(suite["recipes"]),
        "tasks": len(suite["tasks"]),
        "seeds": len(seeds),
        "chosen": f"each recipe's rate, on validation, on tuning seeds of its own ({suite['tuning_seeds']})",
        "metric": suite["metric"],
        "margin": f"{suite['margin']:g}",
        "held against": suite["against"],
    }


def _claim(one: Any) -> dict[str, str]:
    measured, asked, published = crossed.claim(one)
    words = {name: text.line(one[name]) for name in ("claim", "source", "why", "task", "outcome")}
    number = one["contrast"] or (
        f"{one['recipe']} − {one['against']}, {one['view']}" if one["against"] else f"{one['recipe']}, {one['measure']}"
    )
    return words | {
        "look": LOOK[one["outcome"]],
        "measured": measured,
        "asked": asked,
        "published": published,
        "number": text.line(number),
    }


def _ruled(table: Table) -> str:
    """What the rules say, in words, where they have a row."""
    probe, upper, whole = "a linear probe", "the upper layers", "all layers"
    said = {
        across.TEXTBOOK: f"below {advice.FEW} images {probe} if they are like the source, else {upper}; above it {whole}",
        across.BY_SIZE: f"below {advice.LEAST} images {probe}, up to {advice.MOST} {upper}, above it {whole}",
    }
    return "; ".join(f"{rule}: {said[rule]}" for rule in across.rules(table))


def _drawn(table: Table) -> str:
    """Each recipe's mean in each quarter; the advised one is marked, and the best."""
    found, told = across.behind(table), across.quarters(table)
    if not found:
        return ""
    names = list(dict.fromkeys(name for means in found.values() for name in means))
    scale, _ = text.scale(metrics.named(str(table.suite["metric"])).unit)
    unit = str(table.suite["metric"]) + (
        ", %" if scale > 1 else ", negative" if metrics.named(str(table.suite["metric"])).loss else ""
    )

    rows = [size for size in across.SIZES if any(at[0] == size for at in found)]
    height = 0.17 * len(rows) * (len(names) + 1) + 0.5 + 0.3 * len(rows)

    def draw(figure: svg.Figure) -> None:
        sides = figure.subplots(len(rows), 2, sharex=True, squeeze=False)
        figure.subplots_adjust(left=0.31, right=0.985, bottom=0.42 / height, top=1 - 0.28 / height, wspace=0.08, hspace=0.22)
        for (row, column), axes in np.ndenumerate(sides):
            at = (rows[row], across.LIKENESS[column])
            axes.set_visible(at in found)
            if at in found:
                _quarter(axes, at, names, found[at], told[at], scale=scale, labelled=column == 0)
            if row == len(rows) - 1:
                axes.set_xlabel(unit)

    label = "Mean by recipe in four quarters: " + "; ".join(
        f"{at[0]} images, {at[1]}: best {cell.best}, the textbook advises {cell.advised}" for at, cell in told.items()
    )
    return svg.inline(draw, label, height=height)


def _quarter(
    axes: Any,
    at: tuple[str, ...],
    names: Sequence[str],
    means: Mapping[str, float],
    cell: Cell,
    *,
    scale: float,
    labelled: bool,
) -> None:
    for place, name in enumerate(reversed(names)):
        if (mean := means.get(name)) is None:  # it does not fit here
            continue
        colour = svg.VERMILION if name == cell.advised else svg.GREEN if name == cell.best else svg.MUTED
        axes.plot([scale * mean], [place], "D" if name == cell.advised else "o", color=colour, markersize=5)
    axes.set_title(f"{at[0]} images, {at[1]}", fontsize=9)
    axes.set(yticks=range(len(names)), yticklabels=[*reversed(names)] if labelled else [])


def _grid(table: Table) -> list[tuple[str, list[tuple[str, str, bool]]]]:
    """Recipes by task: the mean, how it compares with the one that all are held against, and whether it may be the best."""
    means, best, unit = crossed.means(table), across.tied(table), metrics.named(str(table.suite["metric"])).unit
    against = {(one["recipe"], one["task"]): one for one in table.comparisons}
    rows = []
    for name in table.suite["recipes"]:
        cells = []
        for task in table.suite["tasks"]:
            one = against.get((name, task))
            told = "" if one is None or one["error"] else text.bounded((one["difference"], one["low"], one["high"]), unit)
            value = (means.get((name, task)) or {}).get("accuracy")
            cells.append((across.level(value, unit), told, (name, task) in best))
        rows.append((text.line(name), cells))
    return rows


def _costs(table: Table) -> list[tuple[str, list[str]]]:
    """Means over all tasks that have a number."""
    frame, unit = table.to_frame(), metrics.named(str(table.suite["metric"])).unit
    rows = []
    for name in table.suite["recipes"]:
        told = frame[frame["recipe"] == name][list(COSTS)].mean()
        if not told.isna().all():
            rows.append((text.line(name), [_cost(column, float(told[column]), unit) for column in COSTS]))
    return rows


def _cost(column: str, value: float, unit: str) -> str:
    if isnan(value):
        return text.NOTHING
    if column == "seconds":
        return text.seconds(value)
    if column in {"trainable", "multiply_adds"}:
        return f"{value:,.0f}"
    return f"{value / 1000:,.1f} kB" if column == "stored" else across.level(value, unit)
