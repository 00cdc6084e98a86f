"""Recipes over all tasks of a matrix, and beside them what the textbooks' rules would have come to."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench import advice, aggregates, metrics, regret, scored
from xferbench.problem import Problem
from xferbench.report import text

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from xferbench.regret import Cell
    from xferbench.scored import Scores
    from xferbench.table import Table

SIZES, LIKENESS = ("few", "many"), ("similar", "different")
TEXTBOOK, BY_SIZE = "the 2×2's advice", "the size rule's advice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A recipe, or a rule that names one for each task: numbers with 95 % intervals, in words."""

    recipe: str
    iqm: str
    rank: str
    regret: str
    greatest: str
    better: str


def scores(table: Table) -> tuple[Scores | None, list[str]]:
    """Scores of the recipes that have one everywhere, or None; and who takes no part."""
    if len(table.suite["tasks"]) < 2 or len(table.suite["recipes"]) < 2:
        return None, []
    try:
        found = scored.read(table.to_frame(), table.skipped, str(table.suite["metric"]))
    except Problem as problem:
        return None, [str(problem)]
    left = [f"{name} takes no part over all tasks: {why}" for name, why in found.left_out.items()]
    return found, [*left, *found.notes]


def rules(table: Table) -> dict[str, dict[str, str]]:
    """What each rule advises, by task; a rule that has no advice for every task is left out."""
    sizes = {str(row["task"]): row["train_size"] for row in table.rows}
    similar: Mapping[str, bool] = table.suite.get("similar") or {}
    tasks = [str(task) for task in table.suite["tasks"] if sizes.get(str(task))]
    if len(tasks) < len(table.suite["tasks"]):
        return {}
    told = {BY_SIZE: {task: advice.by_size(sizes[task]) for task in tasks}}
    if all(task in similar for task in tasks):
        told[TEXTBOOK] = {task: advice.textbook(sizes[task], similar[task]) for task in tasks}
    return told


def ranked(table: Table) -> tuple[list[Row], list[str]]:
    """Every recipe over all tasks and each rule, the highest interquartile mean first, and what takes no part."""
    found, notes = scores(table)
    if found is None:
        return [], notes
    named = [(rule, told) for rule, told in rules(table).items() if {told[task] for task in found.tasks} <= {*found.recipes}]
    ruled = [[found.table[found.recipes.index(told[task]), at] for at, task in enumerate(found.tasks)] for _, told in named]
    # A rule's row is made of rows that are there, so that it moves no best; but it would move ranks, and has none.
    both = replace(found, table=np.concatenate([found.table, np.array(ruled).reshape(-1, *found.table.shape[1:])]))
    both = replace(both, recipes=(*found.recipes, *(name for name, _ in named)))
    middle, wins, rank = aggregates.iqm(both), aggregates.improvement(both), aggregates.mean_rank(found)
    mean, greatest = regret.mean(both), regret.greatest(both)
    span = metrics.named(str(table.suite["metric"])).span
    against = both.recipes.index(table.suite["against"]) if table.suite["against"] in both.recipes else None
    order = sorted(range(len(both.recipes)), key=lambda at: -middle.value[at])
    told = [
        Row(
            recipe=both.recipes[at],
            iqm=shown(middle[at]),
            rank=shown(rank[at], 1, 1) if at < len(found.recipes) else "",
            regret=shown(mean[at], most=span),
            greatest=shown(greatest[at], most=span),
            better="" if against in {None, at} else shown(wins[at, against]),
        )
        for at in order
    ]
    return told, notes


def head(table: Table) -> list[str]:
    """The columns of :func:`cells`."""
    return [
        "recipe",
        "IQM",
        "mean rank",
        "mean regret",
        "greatest regret",
        f"P(better than {text.line(table.suite['against'])})",
    ]


def cells(row: Row) -> list[str]:
    """A row's texts."""
    return [text.line(row.recipe), row.iqm, row.rank, row.regret, row.greatest, row.better]


def quarters(table: Table) -> dict[tuple[str, ...], Cell]:
    """The measured two by two: by (size, likeness) the best recipe, those not shown to be worse, the regret of the advice."""
    found, _ = scores(table)
    told = rules(table).get(TEXTBOOK)
    if found is None or told is None:
        return {}
    where = places(table)
    cells_ = {
        at: replace(found, table=found.table[:, own], tasks=tuple(found.tasks[one] for one in own))
        for at in dict.fromkeys(where.values())
        if (own := [one for one, task in enumerate(found.tasks) if where[task] == at])
    }
    return regret.grid(cells_, {at: told[own.tasks[0]] for at, own in cells_.items()})


def places(table: Table) -> dict[str, tuple[str, ...]]:
    """In which of the four quarters each task lies, in the order in which they are drawn."""
    sizes = {str(row["task"]): row["train_size"] for row in table.rows}
    similar = table.suite["similar"]
    found: dict[str, tuple[str, ...]] = {
        task: (SIZES[sizes[task] >= advice.FEW], LIKENESS[not similar[task]]) for task in sizes
    }
    order: list[tuple[str, ...]] = [(size, likeness) for size in SIZES for likeness in LIKENESS]
    return dict(sorted(found.items(), key=lambda item: order.index(item[1])))


def behind(table: Table) -> dict[tuple[str, ...], dict[str, float]]:
    """By quarter and recipe the mean over tasks and seeds, for the picture."""
    found, _ = scores(table)
    if found is None or not quarters(table):
        return {}
    where, mean = places(table), found.table.mean(-1)
    own: Callable[[tuple[str, ...]], Any] = lambda at: [one for one, task in enumerate(found.tasks) if where[task] == at]  # noqa: E731
    return {
        at: dict(zip(found.recipes, map(float, mean[:, own(at)].mean(-1)), strict=True)) for at in dict.fromkeys(where.values())
    }


def shown(one: Any, factor: float = 100.0, digits: int = 1, most: float = float("inf")) -> str:
    """A number with its interval, where it has one, and no further than can be."""
    value, low, high = (min(float(part), most) * factor for part in (one.value, one.low, one.high))
    bounds = "" if isnan(low) or isnan(high) else f" [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{value:.{digits}f}{bounds}"
