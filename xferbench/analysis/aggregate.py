"""Aggregate scores of recipes over many tasks, with confidence intervals from a few seeds each.

Pure. All results are deterministic.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from xferbench.analysis.scores import Scores

BOOTSTRAP_REPLICATES = 2000
CONFIDENCE = 0.95
TRIM_SHARE = 0.25  # share of the runs removed at each end


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """Values with two-sided 95 % bounds, three arrays of the same shape; a missing bound is NaN.

    Only seeds are random: they are resampled within each task, with the same resample for all recipes, because recipes share
    splits and data order by seed (a stratified and paired bootstrap; Agarwal et al. 2021, arXiv:2108.13264; Bouthillier et
    al. 2021, arXiv:2103.03098). Tasks and test images are fixed: no interval covers the choice of another task or test set.

    The percentile bootstrap of five seeds is too narrow by a factor √(S / (S − 1)), and also because it uses the normal
    distribution instead of Student's t. The intervals are widened by both factors (Hesterberg 2015, What teachers should know
    about the bootstrap), with Satterthwaite's degrees of freedom of the variances over seeds by task. The bounds are NaN for a
    single seed.
    """

    value: np.ndarray
    low: np.ndarray
    high: np.ndarray

    def __getitem__(self, index: Any) -> Self:
        """Return the interval of the selected elements."""
        return replace(self, **{array.name: getattr(self, array.name)[index] for array in fields(self)})


def iqm(scores: Scores) -> Interval:
    """Return the interquartile mean over the runs of all tasks, [recipes] (Agarwal et al. 2021).

    This is the mean of the middle half of the runs.
    """
    R = len(scores.recipes)
    resampled = np.take_along_axis(scores.table[None], resampled_seeds(scores)[:, None], axis=-1)  # [B, R, T, S]
    return bootstrap_interval(
        trimmed_mean(scores.table.reshape(R, -1)),
        trimmed_mean(resampled.reshape(len(resampled), R, -1)),
        satterthwaite_df(scores.table),
        scores,
    )


def trimmed_mean(values: np.ndarray) -> np.ndarray:
    """Return the mean over the last axis after removing a quarter of the values, rounded down, at each end."""
    count, N = int(TRIM_SHARE * values.shape[-1]), values.shape[-1]
    mean: np.ndarray = np.sort(values, axis=-1)[..., count : N - count].mean(-1)
    return mean


def mean_rank(scores: Scores) -> Interval:
    """Return the rank of each recipe by its mean over seeds, averaged over tasks, [recipes]; 1 is best, ties share a rank."""
    interval = bootstrap_interval(
        ranks(scores.table.mean(-1)).mean(-1), ranks(resampled_means(scores)).mean(-1), satterthwaite_df(scores.table), scores
    )
    return clip_interval(interval, 1.0, float(len(scores.recipes)))


def ranks(mean: np.ndarray) -> np.ndarray:
    """Return ranks [..., R, T] among the R recipes; 1 is the highest mean, and ties share a rank."""
    row_mean, other_mean = mean[..., :, None, :], mean[..., None, :, :]
    rank: np.ndarray = (other_mean > row_mean).sum(-2) + (other_mean == row_mean).sum(-2) / 2 + 0.5
    return rank


def performance_profiles(scores: Scores, taus: Sequence[float]) -> Interval:
    """Return the share of runs that are above each tau, [recipes, taus], with pointwise bands.

    References: Dolan & Moré 2002, Agarwal et al. 2021.
    """
    _, T, S = scores.table.shape
    above = (scores.table[..., None] > np.asarray(taus)).astype(np.float64)  # [R, T, S, taus]
    replicates = np.einsum("bts,rtsk->brk", resample_counts(scores) / (T * S), above, optimize=True)
    return _share_interval(above.mean((1, 2)), replicates, satterthwaite_df(scores.table)[:, None], scores)


def probability_of_improvement(scores: Scores) -> Interval:
    """Return P(A > B) for each row's recipe A and column's recipe B, averaged over tasks, [recipes, recipes].

    A tie counts half. Within a task, this is the Mann–Whitney statistic over all pairs of seeds.
    """
    R, T, S = scores.table.shape
    first, second = scores.table[:, None, :, :, None], scores.table[None, :, :, None, :]
    wins = ((first > second) + 0.5 * (first == second)).reshape(R * R, T * S * S)
    weight = resample_counts(scores)
    pair_weights = (weight[..., :, None] * weight[..., None, :]).reshape(len(weight), -1) / (T * S * S)
    df = satterthwaite_df(scores.table)
    smaller_df = np.minimum(df[:, None], df[None, :])
    return _share_interval(wins.mean(-1).reshape(R, R), (pair_weights @ wins.T).reshape(-1, R, R), smaller_df, scores)


def resampled_seeds(scores: Scores) -> np.ndarray:
    """Return indices of seeds resampled within each task by a fixed generator, [replicates, tasks, seeds]."""
    _, T, S = scores.table.shape
    return np.random.default_rng(0).integers(S, size=(BOOTSTRAP_REPLICATES, T, S))


def resample_counts(scores: Scores) -> np.ndarray:
    """Return how often each replicate contains each seed, [replicates, tasks, seeds]."""
    S = scores.table.shape[-1]
    count: np.ndarray = (resampled_seeds(scores)[..., None] == np.arange(S)).sum(-2).astype(np.float64)
    return count


def resampled_means(scores: Scores) -> np.ndarray:
    """Return the means over resampled seeds, [replicates, recipes, tasks]."""
    mean: np.ndarray = np.einsum("bts,rts->brt", resample_counts(scores), scores.table, optimize=True) / scores.table.shape[-1]
    return mean


def satterthwaite_df(values: np.ndarray) -> np.ndarray:
    """Return Satterthwaite's degrees of freedom of a mean over the tasks of [..., T, S]; S − 1 if all variances are 0."""
    S = values.shape[-1]
    if S < 2:
        return np.zeros(values.shape[:-2])
    variance = values.var(-1, ddof=1)
    total, squared = variance.sum(-1) ** 2, np.square(variance).sum(-1)
    df: np.ndarray = (S - 1) * np.divide(total, squared, out=np.ones_like(total), where=squared > 0)
    return df


def bootstrap_widening(df: np.ndarray, S: int) -> np.ndarray:
    """Return the factor by which a bootstrap percentile of S seeds must be moved away from the value; NaN for one seed."""
    from scipy.special import ndtri, stdtrit

    if S < 2:
        return np.full(np.shape(df), np.nan)
    tail = (1 + CONFIDENCE) / 2
    factor: np.ndarray = np.sqrt(S / (S - 1)) * stdtrit(df, tail) / ndtri(tail)
    return factor


def bootstrap_interval(value: np.ndarray, replicates: np.ndarray, df: np.ndarray, scores: Scores) -> Interval:
    """Return a widened percentile interval of replicates [B, ...] that contains the value."""
    low, high = np.quantile(replicates, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], axis=0)
    factor = bootstrap_widening(df, scores.table.shape[-1])
    return Interval(
        value=value, low=value - factor * np.maximum(value - low, 0), high=value + factor * np.maximum(high - value, 0)
    )


def clip_interval(interval: Interval, minimum: float, maximum: float) -> Interval:
    """Return the interval with its bounds limited to the possible range."""
    return Interval(
        value=interval.value, low=np.clip(interval.low, minimum, maximum), high=np.clip(interval.high, minimum, maximum)
    )


def _share_interval(value: np.ndarray, replicates: np.ndarray, df: np.ndarray, scores: Scores) -> Interval:
    """Return the interval of a share.

    If all replicates are equal, Wilson's (1927) interval is used, with as many pairs as a recipe has runs.
    """
    _, T, S = scores.table.shape
    interval = bootstrap_interval(value, replicates, df, scores)
    if S < 2:
        return interval
    from scipy.special import ndtri

    z2, N = ndtri((1 + CONFIDENCE) / 2) ** 2, T * S
    middle, half = value + z2 / (2 * N), np.sqrt(z2 * (value * (1 - value) / N + z2 / (4 * N**2)))
    is_constant = np.isclose(interval.low, interval.high)
    low = np.where(is_constant, (middle - half) / (1 + z2 / N), interval.low)
    high = np.where(is_constant, (middle + half) / (1 + z2 / N), interval.high)
    return clip_interval(Interval(value=value, low=np.minimum(low, value), high=np.maximum(high, value)), 0.0, 1.0)
