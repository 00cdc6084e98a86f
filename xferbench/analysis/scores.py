"""Scores of every recipe on every task at every seed, and the reasons for excluded recipes. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from xferbench.analysis import metrics
from xferbench.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pandas as pd

    Term: TypeAlias = tuple[str, str, int]  # (task, recipe, seed)
    Skipped: TypeAlias = Mapping[tuple[str, str], str]  # why a recipe was not run on a task, by (task, recipe)

NOT_COMPARABLE = "no task and seed remains on which it can be compared"
MAX_LISTED_TASKS = 3  # excluded recipes or tasks that an error lists


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Comparable scores: every recipe has every task at every seed, and all scores are finite.

    Attributes:
        table: [recipes, tasks, seeds], higher is better; the negative of a loss.
        recipes: names of the recipes.
        tasks: names of the tasks.
        seeds: the seeds that all tasks have.
        left_out: excluded recipes, with the reason.
        notes: excluded tasks and seeds, as sentences.
    """

    table: np.ndarray
    recipes: tuple[str, ...]
    tasks: tuple[str, ...]
    seeds: tuple[int, ...]
    left_out: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def empty(self) -> bool:
        """Whether nothing can be compared because no recipe has a score on every task."""
        return self.table.size == 0


def scores_from_frame(frame: pd.DataFrame, skipped: Skipped | None = None, metric: str = "accuracy") -> Scores:
    """Return the scores in a frame with one row for each task, recipe and seed.

    Only seeds that every task has are used. A task on which no recipe has a score is excluded, and so is a recipe without a
    finite score on every remaining task and seed. All exclusions are reported by name.

    Args:
        frame: columns ``task``, ``recipe``, ``seed``, ``accuracy`` (the value of the metric) and optionally ``error``.
        skipped: why a recipe was not run on a task, by (task, recipe).
        metric: the metric of the values; lower is better for a loss.

    Raises:
        UserError: if a row is duplicated, or if nothing remains.
    """
    scores = common_scores(frame, skipped, metric)
    if scores.empty:
        reasons = [*(f"{name}: {why}" for name, why in scores.left_out.items())][:MAX_LISTED_TASKS] + [*scores.notes][
            :MAX_LISTED_TASKS
        ]
        expected = "at least one recipe with scores on all tasks"
        raise UserError("no recipe has a score on every task", found="; ".join(reasons) or "no rows", expected=expected)
    return scores


def common_scores(frame: pd.DataFrame, skipped: Skipped | None = None, metric: str = "accuracy") -> Scores:
    """Return the scores as :func:`scores_from_frame` does, but empty instead of an error if nothing remains.

    Raises:
        UserError: if a row is duplicated.
    """
    rows: dict[Term, Any] = {(str(row.task), str(row.recipe), int(row.seed)): row for row in frame.itertuples(index=False)}
    if len(rows) != len(frame):
        what = "a task, recipe and seed occurs more than once"
        raise UserError(what, found=f"{len(frame)} rows, {len(rows)} of them different", expected="one row for each")
    sign, why = -1.0 if metrics.get_metric(metric).loss else 1.0, skipped or {}
    values = {term: sign * float(row.accuracy) for term, row in rows.items() if np.isfinite(row.accuracy)}
    tasks, seeds, notes = _common_tasks_and_seeds(values, [*(term[0] for term in rows), *(task for task, _ in why)])
    left_out, complete = {}, []
    for recipe in dict.fromkeys([*(term[1] for term in rows), *(recipe for _, recipe in why)]):
        missing = [term for task in tasks for seed in seeds if (term := (task, recipe, seed)) not in values]
        if missing:
            left_out[recipe] = _exclusion_reason(missing, rows, why)
        elif tasks and seeds:
            complete.append(recipe)
        else:
            left_out[recipe] = NOT_COMPARABLE
    table = np.array([values[task, recipe, seed] for recipe in complete for task in tasks for seed in seeds])
    return Scores(
        table=table.reshape(len(complete), len(tasks), len(seeds)),
        recipes=tuple(complete),
        tasks=tuple(tasks),
        seeds=tuple(seeds),
        left_out=left_out,
        notes=tuple(notes),
    )


def scores_by_cell(
    frame: pd.DataFrame,
    cells: Mapping[tuple[str, ...], Sequence[str]],
    skipped: Skipped | None = None,
    metric: str = "accuracy",
) -> dict[tuple[str, ...], Scores]:
    """Return the scores of each cell of a grid separately, empty if nothing is comparable.

    A recipe is excluded only from the cells in which it lacks a score.

    Args:
        frame: as in :func:`scores_from_frame`, and so are ``skipped`` and ``metric``.
        cells: the tasks of each cell, for example (small, similar).
        skipped: why a recipe was not run on a task, by (task, recipe).
        metric: the metric of the values.

    Raises:
        UserError: if a row is duplicated.
    """
    scores = {}
    for cell, tasks in cells.items():
        cell_skipped = {key: why for key, why in (skipped or {}).items() if key[0] in tasks}
        scores[cell] = common_scores(frame[frame.task.astype(str).isin(list(tasks))], cell_skipped, metric)
    return scores


def _common_tasks_and_seeds(scores: Mapping[Term, float], tasks: Sequence[str]) -> tuple[list[str], list[int], list[str]]:
    """Return the tasks with any score, the seeds that all of these have, and notes about what was excluded."""
    scored, all_seeds = {term[0] for term in scores}, sorted({term[2] for term in scores})
    scored_tasks = [task for task in dict.fromkeys(tasks) if task in scored]
    seeds = [seed for seed in all_seeds if {term[0] for term in scores if term[2] == seed} == scored]
    notes = [f"task {task} is excluded: no recipe has a score on it" for task in dict.fromkeys(tasks) if task not in scored]
    return (
        scored_tasks,
        seeds,
        notes + [f"seed {seed} is excluded: not every task has it" for seed in all_seeds if seed not in seeds],
    )


def _exclusion_reason(missing: Sequence[Term], rows: Mapping[Term, Any], skipped: Skipped) -> str:
    """Return why a recipe is excluded: its first skipped task with the reason, or else its first missing score."""
    term = next((term for term in missing if term[:2] in skipped), missing[0])
    error = getattr(rows.get(term), "error", "")
    default = "no finite score" if term in rows else "no record"
    why = skipped.get(term[:2]) or f"seed {term[2]}: {error if isinstance(error, str) and error else default}"
    more = len({task for task, *_ in missing}) - 1
    return f"{term[0]}: {why}" + (f"; and {more} more" if more else "")
