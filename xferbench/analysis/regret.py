"""The regret of using one recipe, or a rule's recipe, on every task.

Pure. Regret is estimated twice, with errors in opposite directions.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis.aggregate import CONFIDENCE, Interval, bootstrap_widening, resampled_means, satterthwaite_df

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.analysis.scores import Scores

NO_COMMON_RECIPE = "no recipe has a score on every task here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret(Interval):
    """Regret with its bounds; ``plain`` is the highest mean minus the mean of the recipe, which chance inflates.

    The regret of a recipe on a task is μ(best) − μ(recipe), the difference of expected scores. The best recipe is unknown.
    The recipe with the highest mean on the test set owes part of that mean to chance. The highest mean minus the mean of a
    recipe is therefore too large on average, and all but one of several equally good recipes seem to have regret. A
    bootstrap that selects the best recipe in each replicate repeats this error and cannot detect it, because it never gives
    a value below 0. Regret is therefore estimated in two ways:

    - Cross-fitted: the best recipe is selected on half of the seeds and scored on the other half, for each of S ways to
      halve them. The selected recipe is at most as good as the best one, and its chance advantage is not carried over. This
      estimate is too small on average, and 0 if all recipes are equal. It gives the value and, with Student's t over the
      other half, the lower bound. The standard errors of the halvings are averaged, as if their errors were fully
      dependent. Selecting on all seeds but one is not an alternative: the selections are then nearly identical and use
      nearly the data that scores them, so equal recipes differ significantly two to five times too often.
    - Plain: the highest mean minus the mean of the recipe. The best recipe is selected in each replicate of the bootstrap,
      and deviations are widened as in :mod:`xferbench.analysis.aggregate`. This estimate is reported as ``plain`` and gives
      the upper bound.

    Both bounds err outwards. With fewer than three seeds the lower bound is 0, and with one seed there is no upper bound.
    """

    plain: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskRegret:
    """The best recipe and the regret of the rule in one cell of a grid.

    Attributes:
        best: the recipe with the highest mean, or "" if nothing can be compared.
        tied: recipes that are not shown to be worse than the best, including the best.
        advised: the recipe that the rule advises.
        regret: regret of the advised recipe; None if it has no score here.
        why: why there is no regret, or "".
        tasks: number of tasks in the cell.
        seeds: number of seeds.
        left_out: excluded recipes, with the reason.
    """

    best: str
    tied: tuple[str, ...]
    advised: str
    regret: Regret | None
    why: str = ""
    tasks: int = 0
    seeds: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)


def regret_by_task(scores: Scores) -> Regret:
    """Return the regret of each recipe on each task, [recipes, tasks]."""
    value, low = _cross_fitted(_leads_on_other_half(scores.table)[..., None, :])
    return _build_regret(value, low, _gap_to_best(scores.table.mean(-1)), _gap_to_best(_replicates(scores)))


def mean_regret(scores: Scores) -> Regret:
    """Return the regret averaged over tasks, [recipes]."""
    value, low = _cross_fitted(_leads_on_other_half(scores.table))
    df = np.asarray(satterthwaite_df(scores.table).min())  # any recipe may be the best
    return _build_regret(
        value, low, _gap_to_best(scores.table.mean(-1)).mean(-1), _gap_to_best(_replicates(scores, df)).mean(-1)
    )


def largest_regret(scores: Scores) -> Regret:
    """Return the largest regret over the tasks, [recipes].

    In the cross-fitted estimate, this task is selected on the same half of the seeds as the best recipe.
    """
    leads, T = _leads_on_other_half(scores.table), len(scores.tasks)
    selected = [_gap_to_best(scores.table[..., selecting].mean(-1)) for selecting, _ in seed_halvings(scores.table.shape[-1])]
    worst = np.array(selected).argmax(-1) if selected else np.zeros(leads.shape[:2], dtype=np.int64)  # [halvings, recipes]
    worst_leads = np.where((worst[..., None] == np.arange(T))[..., None], leads, 0.0)
    value, low = _cross_fitted(worst_leads.sum(-2, keepdims=True))
    return _build_regret(value, low, _gap_to_best(scores.table.mean(-1)).max(-1), _gap_to_best(_replicates(scores)).max(-1))


def tied_with_best(scores: Scores) -> np.ndarray:
    """Return which recipes are not shown to be worse than the best one of a task, [recipes, tasks].

    A recipe as good as the best is missing with a probability of at most 1/40. The recipe with the highest mean is never
    missing.
    """
    highest = scores.table.mean(-1)
    is_tied: np.ndarray = ~(regret_by_task(scores).low > 0) | (highest == highest.max(0))
    return is_tied


def regret_grid(
    cells: Mapping[tuple[str, ...], Scores], advice: Mapping[tuple[str, ...], str]
) -> dict[tuple[str, ...], TaskRegret]:
    """Return the best recipe of each cell, the recipes not shown to be worse, and the regret of the rule's recipe.

    The tasks of a cell are averaged by seed first, because one recipe is selected for the whole cell.

    Args:
        cells: scores of the tasks of each cell, as returned by :func:`xferbench.analysis.scores.scores_by_cell`.
        advice: the rule's recipe for each cell, as returned by :mod:`xferbench.analysis.rules_of_thumb`.
    """
    return {cell: _task_regret(scores, advice.get(cell, "")) for cell, scores in cells.items()}


def _task_regret(scores: Scores, advised: str) -> TaskRegret:
    if scores.empty:
        return TaskRegret(best="", tied=(), advised=advised, regret=None, why=NO_COMMON_RECIPE, left_out=scores.left_out)
    averaged = replace(scores, table=scores.table.mean(1, keepdims=True), tasks=("all",))
    is_tied = tied_with_best(averaged)[:, 0]
    is_scored = advised in scores.recipes
    why = scores.left_out.get(advised, "not among the recipes") if advised else "the rule says nothing here"
    return TaskRegret(
        best=scores.recipes[int(averaged.table.mean(-1)[:, 0].argmax())],
        tied=tuple(name for name, tied in zip(scores.recipes, is_tied, strict=True) if tied),
        advised=advised,
        regret=regret_by_task(averaged)[scores.recipes.index(advised), 0] if is_scored else None,
        why="" if is_scored else why,
        tasks=len(scores.tasks),
        seeds=len(scores.seeds),
        left_out=scores.left_out,
    )


def seed_halvings(S: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return S ways to split the indices of S seeds into a selection half (rounded down) and the rest; empty for one seed."""
    return [(np.roll(np.arange(S), -k)[: S // 2], np.roll(np.arange(S), -k)[S // 2 :]) for k in range(S if S > 1 else 0)]


def _gap_to_best(means: np.ndarray) -> np.ndarray:
    """Return the highest mean of each task minus the mean of each recipe, [..., recipes, tasks]."""
    gap: np.ndarray = means.max(-2, keepdims=True) - means
    return gap


def _leads_on_other_half(values: np.ndarray) -> np.ndarray:
    """Return the lead of the recipe selected on one half of the seeds, on each other seed, [halvings, recipes, tasks, others].

    One seed gives a single halving of NaN.
    """
    T, S = values.shape[1:]
    if S < 2:
        return np.full((1, *values.shape), np.nan)
    best = [values[..., selecting].mean(-1).argmax(0) for selecting, _ in seed_halvings(S)]
    others = [values[..., scoring] for _, scoring in seed_halvings(S)]
    return np.stack([scores[recipe, np.arange(T)] - scores for recipe, scores in zip(best, others, strict=True)])


def _cross_fitted(leads: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return value and lower bound of [halvings, ..., T, others], averaged over halvings, tasks and seeds."""
    from scipy.special import stdtrit

    T, S = leads.shape[-2:]
    value = leads.mean((-2, -1)).mean(0)
    if S < 2:
        return value, np.zeros_like(value)
    se = np.sqrt(leads.var(-1, ddof=1).sum(-1) / S).mean(0) / T
    return value, value - stdtrit(satterthwaite_df(leads).min(0), (1 + CONFIDENCE) / 2) * se


def _replicates(scores: Scores, df: np.ndarray | None = None) -> np.ndarray:
    """Return bootstrap replicates of the means, [B, recipes, tasks], with widened deviations.

    The degrees of freedom ``df`` default to S − 1.
    """
    S, center = scores.table.shape[-1], scores.table.mean(-1)
    replicates: np.ndarray = center + bootstrap_widening(np.asarray(S - 1.0) if df is None else df, S) * (
        resampled_means(scores) - center
    )
    return replicates


def _build_regret(value: np.ndarray, low: np.ndarray, plain: np.ndarray, replicates: np.ndarray) -> Regret:
    """Return a Regret with its value and bounds limited to the possible range."""
    high = np.maximum(np.quantile(replicates, (1 + CONFIDENCE) / 2, axis=0), plain)
    value = np.clip(value, 0.0, plain)
    return Regret(value=value, low=np.clip(low, 0.0, value), high=high, plain=plain)
