"""From records to scores that can be compared: every recipe on every task at every seed, and whom that leaves out, by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from xferbench import metrics
from xferbench.problem import Problem

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    At: TypeAlias = tuple[str, str, int]  # task, recipe, seed
    Skipped: TypeAlias = Mapping[tuple[str, str], str]  # why a recipe was not asked of a task, by (task, recipe)

ALONE = "there is no task and seed to compare it on"
MOST = 3  # of those left out whom a problem names


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores that can be compared: every recipe has every task at every seed, and all are finite.

    Attributes:
        table: [recipes, tasks, seeds], higher is better; of a loss its negative.
        left_out: recipes that take no part, with the reason. notes: tasks and seeds that take none, in words.
    """

    table: np.ndarray
    recipes: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing can be compared: no recipe has a score on every task."""
        return self.table.size == 0


def read(frame: pd.DataFrame, skipped: Skipped | None = None, metric: str = "accuracy") -> Scores:
    """Scores from a frame of records, a row for each task, recipe and seed.

    Seeds are those that every task has at all; a task on which no recipe has a score tells nothing of recipes and is left out,
    and a recipe without a finite score at any of what then remains takes no part: each of them is named.

    Args:
        frame: with columns ``task``, ``recipe``, ``seed``, ``accuracy`` (the metric's value) and, if it has one, ``error``.
        skipped: why a recipe was not asked of a task, by (task, recipe).
        metric: what the values are; of a loss less is better.

    Raises:
        Problem: where a row is there twice, or nothing remains.
    """
    found = gathered(frame, skipped, metric)
    if found.empty:
        told = [*(f"{name}: {why}" for name, why in found.left_out.items())][:MOST] + [*found.notes][:MOST]
        expected = "one recipe at least, on all tasks"
        raise Problem("no recipe has a score on every task", found="; ".join(told) or "no rows", expected=expected)
    return found


def gathered(frame: pd.DataFrame, skipped: Skipped | None = None, metric: str = "accuracy") -> Scores:
    """The same, empty where nothing remains.

    Raises:
        Problem: where a row is there twice.
    """
    rows: dict[At, Any] = {(str(row.task), str(row.recipe), int(row.seed)): row for row in frame.itertuples(index=False)}
    if len(rows) != len(frame):
        what = "a task, recipe and seed is there more than once"
        raise Problem(what, found=f"{len(frame)} rows, {len(rows)} of them different", expected="one row for each")
    sign, why = -1.0 if metrics.named(metric).loss else 1.0, skipped or {}
    told = {at: sign * float(row.accuracy) for at, row in rows.items() if np.isfinite(row.accuracy)}
    tasks, seeds, notes = _common(told, [*(at[0] for at in rows), *(task for task, _ in why)])
    left_out, kept = {}, []
    for recipe in dict.fromkeys([*(at[1] for at in rows), *(recipe for _, recipe in why)]):
        lacking = [at for task in tasks for seed in seeds if (at := (task, recipe, seed)) not in told]
        if lacking:
            left_out[recipe] = _reason(lacking, rows, why)
        elif tasks and seeds:
            kept.append(recipe)
        else:
            left_out[recipe] = ALONE
    table = np.array([told[task, recipe, seed] for recipe in kept for task in tasks for seed in seeds])
    return Scores(
        table=table.reshape(len(kept), len(tasks), len(seeds)),
        recipes=tuple(kept),
        tasks=tuple(tasks),
        seeds=tuple(seeds),
        left_out=left_out,
        notes=tuple(notes),
    )


def by_cell(
    frame: pd.DataFrame,
    cells: Mapping[tuple[str, ...], Sequence[str]],
    skipped: Skipped | None = None,
    metric: str = "accuracy",
) -> dict[tuple[str, ...], Scores]:
    """Scores of each cell of a grid by itself, so that a recipe is missing only where it is; empty where nothing is comparable.

    Args:
        frame, skipped, metric: as in :func:`read`.
        cells: the tasks of each cell, (small, similar) say.

    Raises:
        Problem: where a row is there twice.
    """
    found = {}
    for cell, tasks in cells.items():
        own = {at: why for at, why in (skipped or {}).items() if at[0] in tasks}
        found[cell] = gathered(frame[frame.task.astype(str).isin(list(tasks))], own, metric)
    return found


def _common(told: Mapping[At, float], tasks: Sequence[str]) -> tuple[list[str], list[int], list[str]]:
    """The tasks that anybody has, the seeds that all of these have, and what was left out."""
    scored, every = {at[0] for at in told}, sorted({at[2] for at in told})
    known = [task for task in dict.fromkeys(tasks) if task in scored]
    seeds = [seed for seed in every if {at[0] for at in told if at[2] == seed} == scored]
    notes = [f"task {task} takes no part: no recipe has a score on it" for task in dict.fromkeys(tasks) if task not in scored]
    return known, seeds, notes + [f"seed {seed} takes no part: not every task has it" for seed in every if seed not in seeds]


def _reason(lacking: Sequence[At], rows: Mapping[At, Any], skipped: Skipped) -> str:
    """Why a recipe is left out: the first task that it lacks, or the first of which somebody says why."""
    at = next((at for at in lacking if at[:2] in skipped), lacking[0])
    said = getattr(rows.get(at), "error", "")
    nothing = "no finite score" if at in rows else "no record"
    why = skipped.get(at[:2]) or f"seed {at[2]}: {said if isinstance(said, str) and said else nothing}"
    more = len({task for task, *_ in lacking}) - 1
    return f"{at[0]}: {why}" + (f"; and {more} more" if more else "")
