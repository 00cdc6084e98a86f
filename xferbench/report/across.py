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
    from collections.abc import Mapping

    from xferbench.regret import Cell
    from xferbench.scored import Scores
    from xferbench.table import Table

SIZES, LIKENESS = ("few", "many"), ("similar", "different")
TEXTBOOK, BY_SIZE = "the 2×2's advice", "the size rule's advice"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A recipe, or a rule that names one for each task: numbers with 95 % intervals, in words."""

    recipe: str
    gain: str
    rank: str
    regret: str
    greatest: str
    better: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quarter:
    """A quarter of the two by two: its tasks, what the textbook advises and what that costs, the best, and its equals."""

    name: str
    tasks: str
    advised: str
    regret: str
    best: str
    tied: str


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
    """Every recipe over all tasks and each rule, the least mean regret first, and what takes no part."""
    found, notes = scores(table)
    if found is None:
        return [], notes
    named = [(rule, told) for rule, told in rules(table).items() if {told[task] for task in found.tasks} <= {*found.recipes}]
    ruled = [[found.table[found.recipes.index(told[task]), at] for at, task in enumerate(found.tasks)] for _, told in named]
    # A rule's row is made of rows that are there, so that it moves no best; but it would move ranks, and has none.
    both = replace(found, table=np.concatenate([found.table, np.array(ruled).reshape(-1, *found.table.shape[1:])]))
    both = replace(both, recipes=(*found.recipes, *(name for name, _ in named)))
    against = both.recipes.index(table.suite["against"]) if table.suite["against"] in both.recipes else None
    # What is cut off must be runs that went unusually, and not whole tasks because they are easy or hard.
    usual = found.table.mean((0, 2), keepdims=True) if against is None else both.table[against].mean(-1)[None, :, None]
    gain, wins, rank = (
        aggregates.iqm(replace(both, table=both.table - usual)),
        aggregates.improvement(both),
        aggregates.mean_rank(found),
    )
    mean, greatest = regret.mean(both), regret.greatest(both)
    metric = metrics.named(str(table.suite["metric"]))
    told = [
        Row(
            recipe=both.recipes[at],
            gain=shown(gain[at], metric.unit, signed=True),
            rank=shown(rank[at], digits=1) if at < len(found.recipes) else "",
            regret=shown(mean[at], metric.unit, most=metric.span),
            greatest=shown(greatest[at], metric.unit, most=metric.span),
            better="" if against in {None, at} else shown(wins[at, against], "accuracy"),
        )
        for at in sorted(range(len(both.recipes)), key=lambda at: float(np.nan_to_num(mean.value[at], nan=np.inf)))
    ]
    return told, notes


def head(table: Table) -> list[str]:
    """The columns of :func:`cells`."""
    against = text.line(table.suite["against"])
    return [
        "recipe",
        f"gain over {against}, IQM",
        "mean rank",
        "mean regret",
        "greatest regret",
        f"P(better than {against}), %",
    ]


def cells(row: Row) -> list[str]:
    """A row's texts."""
    return [text.line(row.recipe), row.gain, row.rank, row.regret, row.greatest, row.better]


def quarters(table: Table) -> dict[tuple[str, ...], Cell]:
    """The measured two by two: by (size, likeness) the best recipe, those not shown to be worse, the regret of the advice."""
    told = rules(table).get(TEXTBOOK)
    if told is None or len(table.suite["recipes"]) < 2:
        return {}
    own = {at: one for at, one in _by_quarter(table).items() if not one.empty}
    return regret.grid(own, {at: told[one.tasks[0]] for at, one in own.items()})


def quartered(table: Table) -> list[Quarter]:
    """The measured two by two in words; none where nothing is known of likeness."""
    where, unit = places(table) if (found := quarters(table)) else {}, metrics.named(str(table.suite["metric"])).unit
    return [
        Quarter(
            name=f"{size} images, {likeness}",
            tasks=", ".join(task for task, at in where.items() if at == (size, likeness)),
            advised=cell.advised,
            regret=cell.why if cell.regret is None else shown(cell.regret, unit),
            best=cell.best,
            tied=", ".join(name for name in cell.tied if name != cell.best) or "none",
        )
        for (size, likeness), cell in found.items()
    ]


def _by_quarter(table: Table) -> dict[tuple[str, ...], Scores]:
    """Scores of each quarter by itself: a recipe that does not fit elsewhere is compared where it does."""
    where = places(table)
    tasks = {at: [task for task, own in where.items() if own == at] for at in dict.fromkeys(where.values())}
    return scored.by_cell(table.to_frame(), tasks, table.skipped, str(table.suite["metric"]))


def tied(table: Table) -> set[tuple[str, str]]:
    """Recipes, by (recipe, task), that are not shown to be worse than the best of that task; none where there is no other."""
    frame, metric = table.to_frame(), str(table.suite["metric"])
    each = scored.by_cell(frame, {(task,): [task] for task in table.suite["tasks"]}, table.skipped, metric)
    return {
        (name, task)
        for (task,), one in each.items()
        if not one.empty and len(one.recipes) > 1
        for name, good in zip(one.recipes, regret.tied(one)[:, 0], strict=True)
        if good
    }


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
    """By quarter and recipe the mean over tasks and seeds, for the picture; of a loss its negative."""
    if not quarters(table):
        return {}
    return {
        at: dict(zip(one.recipes, map(float, one.table.mean((1, 2))), strict=True))
        for at, one in _by_quarter(table).items()
        if not one.empty
    }


def level(value: float | None, unit: str) -> str:
    """A score as its unit has it."""
    if value is None or isnan(value):
        return text.NOTHING
    factor, digits = text.scale(unit)
    return f"{factor * value:.{digits}f}"


def shown(one: Any, unit: str = "", *, digits: int | None = None, most: float = float("inf"), signed: bool = False) -> str:
    """A number with its interval, where it has one, in its unit and no further than can be."""
    factor, usual = text.scale(unit)
    value, low, high = (min(float(part), most) * factor for part in (one.value, one.low, one.high))
    if isnan(value):
        return text.NOTHING
    form = f"{'+' if signed else ''}.{usual if digits is None else digits}f"
    bounds = "" if isnan(low) or isnan(high) else f" [{low:{form}}, {high:{form}}]"
    return f"{value:{form}}{bounds}"
