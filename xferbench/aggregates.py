"""Recipes compared over many tasks by scores of a few seeds each. Arrays in, numbers with intervals out; higher is better.

Seeds are all that is drawn at random: they are resampled within each task, the same ones for all recipes, which share splits
and data order by seed (a stratified and paired bootstrap; Agarwal et al. 2021, arXiv:2108.13264; Bouthillier et al. 2021,
arXiv:2103.03098). Tasks and test images are taken as given: no interval says what another task or test set would show.

Intervals are two-sided at 95 %. The percentile bootstrap of five seeds is too narrow, by √(S / (S − 1)) and for want of
Student's t in place of the normal; intervals are widened by both (Hesterberg 2015, What teachers should know about the
bootstrap), with Satterthwaite's degrees of freedom of the variances over seeds by task. One seed has no interval: its bounds
are NaN. Everything is deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.scored import Scores

REPLICATES = 2000
LEVEL = 0.95
TRIM = 0.25  # of the runs cut off at each end


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Numbers with their bounds, arrays of one shape; NaN where there is no bound."""

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __getitem__(self, at: Any) -> Self:
        """The same of a part."""
        return replace(self, **{one.name: getattr(self, one.name)[at] for one in fields(self)})


def iqm(scores: Scores) -> Interval:
    """Interquartile mean over the runs of all tasks, [recipes]: the mean of the middle half (Agarwal et al. 2021)."""
    R = len(scores.recipes)
    picked = np.take_along_axis(scores.table[None], drawn(scores)[:, None], axis=-1)  # [B, R, T, S]
    return bounds(
        trimmed(scores.table.reshape(R, -1)), trimmed(picked.reshape(len(picked), R, -1)), degrees(scores.table), scores
    )


def trimmed(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis without a quarter of the values at each end, whole values only."""
    cut, N = int(TRIM * values.shape[-1]), values.shape[-1]
    mean: np.ndarray = np.sort(values, axis=-1)[..., cut : N - cut].mean(-1)
    return mean


def mean_rank(scores: Scores) -> Interval:
    """Rank by a task's mean over seeds, 1 the best and ties shared, averaged over tasks, [recipes]."""
    found = bounds(ranks(scores.table.mean(-1)).mean(-1), ranks(means(scores)).mean(-1), degrees(scores.table), scores)
    return clipped(found, 1.0, float(len(scores.recipes)))


def ranks(mean: np.ndarray) -> np.ndarray:
    """Ranks [..., R, T] among the R, 1 the highest, ties sharing theirs."""
    mine, others = mean[..., :, None, :], mean[..., None, :, :]
    found: np.ndarray = (others > mine).sum(-2) + (others == mine).sum(-2) / 2 + 0.5
    return found


def profiles(scores: Scores, taus: Sequence[float]) -> Interval:
    """Share of runs above each tau, [recipes, taus], with pointwise bands (Dolan & Moré 2002, Agarwal et al. 2021)."""
    _, T, S = scores.table.shape
    above = (scores.table[..., None] > np.asarray(taus)).astype(np.float64)  # [R, T, S, taus]
    each = np.einsum("bts,rtsk->brk", counts(scores) / (T * S), above, optimize=True)
    return _share(above.mean((1, 2)), each, degrees(scores.table)[:, None], scores)


def improvement(scores: Scores) -> Interval:
    """P(A > B), [recipes, recipes]: a run of the row's recipe against one of the column's, ties half, averaged over tasks.

    Within a task it is the Mann–Whitney statistic over all pairs of seeds.
    """
    R, T, S = scores.table.shape
    mine, other = scores.table[:, None, :, :, None], scores.table[None, :, :, None, :]
    wins = ((mine > other) + 0.5 * (mine == other)).reshape(R * R, T * S * S)
    weight = counts(scores)
    pairs = (weight[..., :, None] * weight[..., None, :]).reshape(len(weight), -1) / (T * S * S)
    df = degrees(scores.table)
    least = np.minimum(df[:, None], df[None, :])
    return _share(wins.mean(-1).reshape(R, R), (pairs @ wins.T).reshape(-1, R, R), least, scores)


def drawn(scores: Scores) -> np.ndarray:
    """Places of resampled seeds, [replicates, tasks, seeds], drawn within each task, always the same."""
    _, T, S = scores.table.shape
    return np.random.default_rng(0).integers(S, size=(REPLICATES, T, S))


def counts(scores: Scores) -> np.ndarray:
    """How often each replicate has each seed, [replicates, tasks, seeds]."""
    S = scores.table.shape[-1]
    found: np.ndarray = (drawn(scores)[..., None] == np.arange(S)).sum(-2).astype(np.float64)
    return found


def means(scores: Scores) -> np.ndarray:
    """Means over seeds, [replicates, recipes, tasks]."""
    found: np.ndarray = np.einsum("bts,rts->brt", counts(scores), scores.table, optimize=True) / scores.table.shape[-1]
    return found


def degrees(values: np.ndarray) -> np.ndarray:
    """Satterthwaite's degrees of freedom of a mean over the tasks of [..., T, S]; S − 1 where nothing varies."""
    S = values.shape[-1]
    if S < 2:
        return np.zeros(values.shape[:-2])
    variance = values.var(-1, ddof=1)
    total, squared = variance.sum(-1) ** 2, np.square(variance).sum(-1)
    found: np.ndarray = (S - 1) * np.divide(total, squared, out=np.ones_like(total), where=squared > 0)
    return found


def widening(df: np.ndarray, S: int) -> np.ndarray:
    """By how much a percentile of the bootstrap of S seeds is too near; NaN for one seed."""
    from scipy.special import ndtri, stdtrit

    if S < 2:
        return np.full(np.shape(df), np.nan)
    tail = (1 + LEVEL) / 2
    found: np.ndarray = np.sqrt(S / (S - 1)) * stdtrit(df, tail) / ndtri(tail)
    return found


def bounds(value: np.ndarray, replicates: np.ndarray, df: np.ndarray, scores: Scores) -> Interval:
    """A widened percentile interval of replicates [B, ...], which has the value in it."""
    low, high = np.quantile(replicates, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0)
    by = widening(df, scores.table.shape[-1])
    return Interval(value=value, low=value - by * np.maximum(value - low, 0), high=value + by * np.maximum(high - value, 0))


def clipped(found: Interval, least: float, most: float) -> Interval:
    """The same with bounds that can be."""
    return Interval(value=found.value, low=np.clip(found.low, least, most), high=np.clip(found.high, least, most))


def _share(value: np.ndarray, replicates: np.ndarray, df: np.ndarray, scores: Scores) -> Interval:
    """A share's interval; where every replicate says the same, Wilson's (1927) of as many pairs as a recipe has runs."""
    _, T, S = scores.table.shape
    found = bounds(value, replicates, df, scores)
    if S < 2:
        return found
    from scipy.special import ndtri

    z2, N = ndtri((1 + LEVEL) / 2) ** 2, T * S
    middle, half = value + z2 / (2 * N), np.sqrt(z2 * (value * (1 - value) / N + z2 / (4 * N**2)))
    same = np.isclose(found.low, found.high)
    low = np.where(same, (middle - half) / (1 + z2 / N), found.low)
    high = np.where(same, (middle + half) / (1 + z2 / N), found.high)
    return clipped(Interval(value=value, low=np.minimum(low, value), high=np.maximum(high, value)), 0.0, 1.0)
