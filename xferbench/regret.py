"""What it costs to use one recipe everywhere, or a rule's, where each task has a best one of its own.

The regret of a recipe on a task is μ(best) − μ(recipe), of expected scores. Nobody knows the best: the recipe with the highest
mean on the test set owes part of that to luck, so that the highest mean less one's own is too large on average, and of equally
good recipes all but one seem to have regret (a bootstrap that chooses the best anew in each replicate repeats the error and
does not see it: it never falls below 0). So regret is taken twice, erring in opposite directions:

- cross-fitted: the best is chosen on half of the seeds and scored on the others, for each of S ways to halve them. The chosen
  recipe is at most as good as the best, and its luck stays behind, so this is too small on average, and 0 where all are equal.
  It gives the value and, by Student's t over the other half, the lower bound; the standard errors of the halvings are averaged,
  as if they all erred together. (To choose on all seeds but one would be no substitute: the choices are then nearly one, made
  on nearly all that they are scored on, and equal recipes are told apart two to five times too often.)
- plainly, the highest mean less one's own, the best chosen anew in each replicate of the bootstrap, with deviations widened as
  :mod:`xferbench.aggregates` says. It is told as ``plain`` and gives the upper bound.

Both bounds err outwards. Fewer than three seeds have no lower bound but 0, and one seed has no upper one.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.aggregates import LEVEL, Interval, degrees, means, widening

if TYPE_CHECKING:
    from collections.abc import Mapping

    from xferbench.scored import Scores


NOTHING = "no recipe has a score on every task here"


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret(Interval):
    """Regret with its bounds; ``plain`` is what luck enlarges: the highest mean less one's own."""

    plain: np.ndarray


@dataclass(frozen=True, slots=True, kw_only=True)
class Cell:
    """What is known of one cell of a grid.

    Attributes:
        best: the recipe with the highest mean, "" where nothing can be compared.
        tied: recipes not shown to be worse than the best, that one among them.
        advised: what the rule says. regret: of that, None where it was not scored here, and ``why`` says so.
        left_out: recipes that take no part, with the reason.
    """

    best: str
    tied: tuple[str, ...]
    advised: str
    regret: Regret | None
    why: str = ""
    tasks: int = 0
    seeds: int = 0
    left_out: Mapping[str, str] = field(default_factory=dict)


def by_task(scores: Scores) -> Regret:
    """Regret of each recipe on each task, [recipes, tasks]."""
    value, low = _cross_fitted(_halved(scores.table)[..., None, :])
    return _regret(value, low, _behind(scores.table.mean(-1)), _behind(_replicates(scores)))


def mean(scores: Scores) -> Regret:
    """Regret averaged over tasks, [recipes]."""
    value, low = _cross_fitted(_halved(scores.table))
    df = np.asarray(degrees(scores.table).min())  # the best may be any recipe
    return _regret(value, low, _behind(scores.table.mean(-1)).mean(-1), _behind(_replicates(scores, df)).mean(-1))


def greatest(scores: Scores) -> Regret:
    """Regret on the task where it is greatest, [recipes]; where it is cross-fitted the task is chosen as the best is."""
    apart, T = _halved(scores.table), len(scores.tasks)
    chosen = [_behind(scores.table[..., choosing].mean(-1)) for choosing, _ in halvings(scores.table.shape[-1])]
    worst = np.array(chosen).argmax(-1) if chosen else np.zeros(apart.shape[:2], dtype=np.int64)  # [halvings, recipes]
    own = np.where((worst[..., None] == np.arange(T))[..., None], apart, 0.0)
    value, low = _cross_fitted(own.sum(-2, keepdims=True))
    return _regret(value, low, _behind(scores.table.mean(-1)).max(-1), _behind(_replicates(scores)).max(-1))


def tied(scores: Scores) -> np.ndarray:
    """Which recipes are not shown to be worse than a task's best, [recipes, tasks]: their regret may be 0.

    A recipe as good as the best is missing at most once in forty times, and the one with the highest mean never.
    """
    highest = scores.table.mean(-1)
    found: np.ndarray = ~(by_task(scores).low > 0) | (highest == highest.max(0))
    return found


def grid(cells: Mapping[tuple[str, ...], Scores], advice: Mapping[tuple[str, ...], str]) -> dict[tuple[str, ...], Cell]:
    """For each cell (small and similar, say) the best recipe, those not shown to be worse, and what a rule costs there.

    A cell's tasks are averaged by seed first: one recipe is chosen for the whole cell.

    Args:
        cells: scores of a cell's tasks, as :func:`xferbench.scored.by_cell` gives them.
        advice: what the rule says in a cell, as :mod:`xferbench.advice` has it.
    """
    return {at: _cell(scores, advice.get(at, "")) for at, scores in cells.items()}


def _cell(scores: Scores, advised: str) -> Cell:
    if scores.empty:
        return Cell(best="", tied=(), advised=advised, regret=None, why=NOTHING, left_out=scores.left_out)
    whole = replace(scores, table=scores.table.mean(1, keepdims=True), tasks=("all",))
    good = tied(whole)[:, 0]
    known = advised in scores.recipes
    why = scores.left_out.get(advised, "not among the recipes") if advised else "the rule says nothing here"
    return Cell(
        best=scores.recipes[int(whole.table.mean(-1)[:, 0].argmax())],
        tied=tuple(name for name, is_good in zip(scores.recipes, good, strict=True) if is_good),
        advised=advised,
        regret=by_task(whole)[scores.recipes.index(advised), 0] if known else None,
        why="" if known else why,
        tasks=len(scores.tasks),
        seeds=len(scores.seeds),
        left_out=scores.left_out,
    )


def halvings(S: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """S ways to part the places of S seeds: those to choose on, half or one less, and the others; none for one seed."""
    return [(np.roll(np.arange(S), -k)[: S // 2], np.roll(np.arange(S), -k)[S // 2 :]) for k in range(S if S > 1 else 0)]


def _behind(mean_: np.ndarray) -> np.ndarray:
    """The highest mean of each task less one's own, [..., recipes, tasks]."""
    found: np.ndarray = mean_.max(-2, keepdims=True) - mean_
    return found


def _halved(values: np.ndarray) -> np.ndarray:
    """By how much the recipe chosen on one half of the seeds leads on each of the others, [halvings, recipes, tasks, others].

    One seed gives one NaN.
    """
    T, S = values.shape[1:]
    if S < 2:
        return np.full((1, *values.shape), np.nan)
    best = [values[..., choosing].mean(-1).argmax(0) for choosing, _ in halvings(S)]
    others = [values[..., scoring] for _, scoring in halvings(S)]
    return np.stack([held[at, np.arange(T)] - held for at, held in zip(best, others, strict=True)])


def _cross_fitted(apart: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Value and lower bound of [halvings, ..., T, others], a mean over all but the middle."""
    from scipy.special import stdtrit

    T, S = apart.shape[-2:]
    value = apart.mean((-2, -1)).mean(0)
    if S < 2:
        return value, np.zeros_like(value)
    se = np.sqrt(apart.var(-1, ddof=1).sum(-1) / S).mean(0) / T
    return value, value - stdtrit(degrees(apart).min(0), (1 + LEVEL) / 2) * se


def _replicates(scores: Scores, df: np.ndarray | None = None) -> np.ndarray:
    """Replicates of the means, [B, recipes, tasks], deviations widened for degrees of freedom, S − 1 if nothing is said."""
    S, centre = scores.table.shape[-1], scores.table.mean(-1)
    found: np.ndarray = centre + widening(np.asarray(S - 1.0) if df is None else df, S) * (means(scores) - centre)
    return found


def _regret(value: np.ndarray, low: np.ndarray, plain: np.ndarray, replicates: np.ndarray) -> Regret:
    """Put together; what no regret can be is cut off."""
    high = np.maximum(np.quantile(replicates, (1 + LEVEL) / 2, axis=0), plain)
    value = np.clip(value, 0.0, plain)
    return Regret(value=value, low=np.clip(low, 0.0, value), high=high, plain=plain)
