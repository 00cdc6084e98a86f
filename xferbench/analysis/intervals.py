"""Confidence intervals of contrasts over random seeds crossed with random test examples. Pure.

All functions fail closed: values that are not finite, or too few values to estimate a variance, give p-values of 1 and decide
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis.bounded_mean import bounded_mean_p
from xferbench.core.errors import UserError
from xferbench.core.run import Estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

LARGEST_VALUE = 1e70  # degrees of freedom use fourth powers, which overflow above this value
BISECTIONS = 40
WHOLE_GROUP = 0.5  # a group whose harm is at least this share of the largest possible harm is harmed as a whole


def mean_squares(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return the mean and the mean squares of seeds, examples and their interaction, four arrays of shape [...].

    With one seed, the mean squares of seeds and of the interaction are 0.

    Args:
        difference: [..., S, N], harm by seed and example.
    """
    S, N = difference.shape[-2:]
    mean = difference.mean((-2, -1))
    centered = difference - mean[..., None, None]
    total = np.einsum("...si,...si->...", centered, centered)
    seeds = N * np.square(centered.mean(-1)).sum(-1)
    examples = S * np.square(centered.mean(-2)).sum(-1)
    residual = np.maximum(total - seeds - examples, 0.0)
    return mean, seeds / max(S - 1, 1), examples / (N - 1), residual / max((S - 1) * (N - 1), 1)


def standard_error_and_df(
    squares: Sequence[np.ndarray], S: int | np.ndarray, N: int | np.ndarray, example_df: float | np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the standard error of the mean and Satterthwaite's degrees of freedom from the three mean squares.

    The shapes may broadcast. One seed needs no special case: its standard error is √(variance / N) with N − 1 degrees of
    freedom. If the estimated variance is zero or negative, the larger of the mean squares of seeds and of the interaction
    replaces it. The standard error is therefore 0 only if all values of D are equal.

    Args:
        squares: mean squares of seeds, examples and their interaction.
        S, N: numbers of seeds and examples.
        example_df: degrees of freedom of the examples; N − 1 by default.
    """
    seeds, examples, residual = squares
    seed_df = np.maximum(S - 1, 1)
    example_df = N - 1 if example_df is None else example_df
    variance = seeds + examples - residual
    with np.errstate(divide="ignore", invalid="ignore"):
        weighted_squares = seeds**2 / seed_df + examples**2 / example_df + residual**2 / (seed_df * example_df)
        df = np.maximum(variance**2 / weighted_squares, 1.0)
    is_degenerate = variance <= 1e-9 * residual
    usable = np.where(is_degenerate, np.maximum(seeds, residual), variance)
    return np.sqrt(usable / (S * N)), np.where(is_degenerate, seed_df, df)


def mean_skewness(difference: np.ndarray, se: np.ndarray) -> np.ndarray:
    """Return the skewness of the mean of [..., S, N] over examples, an array of shape [...].

    Args:
        difference: [..., S, N].
        se: [...], standard error of the mean.
    """
    example = difference.mean(-2)
    third = np.power(example - example.mean(-1, keepdims=True), 3).mean(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        skewness: np.ndarray = np.nan_to_num(third / difference.shape[-1] ** 2 / se**3, posinf=0.0, neginf=0.0)
    return skewness


def tail_p(mean: np.ndarray, se: np.ndarray, df: np.ndarray, skewness: np.ndarray, margin: float) -> np.ndarray:
    """Return the p-value of ``harm ≤ margin``, or 1 if it cannot be computed.

    It is the larger of the p-values of Student's t and of t with Hall's (1992) correction for skewness. If large benefits are
    rare, most samples show too few of them, and t alone gives a wrong FAIL too often. The correction only makes decisions
    harder, because at small levels its own error is large.
    """
    from scipy.special import stdtr  # takes a third of the time of scipy.stats

    with np.errstate(divide="ignore", invalid="ignore"):
        t = (mean - margin) / se
        corrected = t + skewness * (t**2 / 3 + 1 / 6) + skewness**2 * t**3 / 27
        p = stdtr(df, -np.where(skewness < 0, np.minimum(t, corrected), t))
    finite_p: np.ndarray = np.nan_to_num(p, nan=1.0)
    return finite_p


def _critical_t(df: float, skewness: float, alpha: float) -> float:
    """Return the value of t at which :func:`tail_p` is alpha."""
    from scipy.special import stdtrit

    quantile = -float(stdtrit(df, alpha))
    if not skewness < 0:
        return quantile
    cube = 1 + skewness * (quantile - skewness / 6)  # Hall's transformation is a shifted cube
    return max(quantile, 3 / skewness * (float(np.cbrt(cube)) - 1))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sample:
    """The units of an interval, which are examples or groups of examples.

    Attributes:
        values: [..., S, G], harm by seed and unit; the mean is the harm over all examples.
        totals: [..., G], sum of the harms of the unit's examples, averaged over seeds.
        sizes: [G], numbers of examples.
        extra_size: [...], number of examples of a unit that the sample may lack.
        df: degrees of freedom of the units.
    """

    values: np.ndarray
    totals: np.ndarray
    sizes: np.ndarray
    extra_size: np.ndarray
    df: float

    def __neg__(self) -> _Sample:
        return replace(self, values=-self.values, totals=-self.totals)

    def moments(self, least_se: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return the mean, its standard error and degrees of freedom, and its skewness, four arrays of shape [...]."""
        mean, *squares = mean_squares(self.values)
        S, G = self.values.shape[-2:]
        se, df = standard_error_and_df(squares, S, G, self.df)
        se = np.maximum(se, least_se)
        return mean, se, df, mean_skewness(self.values, se)

    def guard_p(self, margin: float, span: float) -> np.ndarray:
        """Return the p-value of ``harm ≤ margin`` by the test of the bounded mean."""
        return bounded_mean_p(self.totals, margin, -span, self.sizes, self.extra_size)


def _sample(difference: np.ndarray, groups: np.ndarray | None, span: float) -> _Sample:
    """Return examples, or groups of them, as units.

    Groups of unequal sizes have the degrees of freedom of (Σ n)² / Σ n² groups of equal size, as clusters have in Carter,
    Schnepel & Steigerwald (2017).
    """
    shape, N = difference.shape[:-2], difference.shape[-1]
    if groups is None or len(groups) == 0:
        return _Sample(
            values=difference, totals=difference.mean(-2), sizes=np.ones(N), extra_size=np.ones(shape), df=max(N - 1, 1)
        )
    sums, sizes = group_sums(difference, groups)
    totals = sums.mean(-2)
    harmed = np.abs(totals / sizes)
    least_harmed = np.where(harmed > 0, harmed, np.inf).min(-1)
    is_all_or_nothing = np.isfinite(least_harmed) & (least_harmed >= WHOLE_GROUP * span)
    return _Sample(
        values=group_values(difference, groups),
        totals=totals,
        sizes=sizes,
        extra_size=np.where(is_all_or_nothing, sizes.mean(), 1.0),
        df=float(max(sizes.sum() ** 2 / np.square(sizes).sum() - 1, 1.0)),
    )


def p_values(
    difference: np.ndarray, margin: float, span: float = 1.0, groups: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Return the p-values of ``harm ≤ margin`` and of ``harm ≥ margin``, two arrays of shape [...].

    Args:
        difference: [..., S, N], finite, with N ≥ 2.
        margin: the margin, in the unit of ``difference``.
        span: the largest harm that one example can show.
        groups: [N] integers, or None.
    """
    sample = _sample(difference, groups, span)
    return _lower_p(sample, margin, span), _lower_p(-sample, -margin, span)


def _lower_p(sample: _Sample, margin: float, span: float, least_se: float = 0.0) -> np.ndarray:
    """Return the p-value of ``harm ≤ margin``, an array of shape [...]; see :func:`crossed_interval`.

    ``harm ≤ 0`` contains ``harm ≤ margin`` for a negative margin, so that its p-value is valid for both.
    """
    mean, se, df, skewness = sample.moments(least_se)
    p = tail_p(mean, se, df, skewness, margin)
    if -span < margin < 0:
        combined: np.ndarray = np.minimum(np.maximum(p, sample.guard_p(margin, span)), _lower_p(sample, 0.0, span, least_se))
        return combined
    is_constant = se == 0
    return np.where(is_constant, np.maximum(p, sample.guard_p(margin, span)), p) if is_constant.any() else p


def group_values(difference: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Return the harm by seed and group, [..., S, G], so that the mean over groups is the mean of [..., S, N] over examples.

    Large groups weigh more, as they do in the accuracy over all examples. The harm is a ratio of two sums over groups, and the
    value of a group is its linear approximation.
    """
    sums, sizes = group_sums(difference, groups)
    seed_harm = difference.mean(-1, keepdims=True)
    values: np.ndarray = seed_harm + (sums - seed_harm * sizes) / sizes.mean()
    return values


def group_sums(difference: np.ndarray, groups: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the sums of [..., S, N] over the examples of each group, [..., S, G], and the numbers of examples [G].

    Raises:
        UserError: if the number of groups differs from the number of examples.
    """
    N = difference.shape[-1]
    if len(groups) != N:
        raise UserError("groups do not match the examples", found=f"{len(groups)} groups", expected=f"{N}")
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(np.asarray(groups)[order], return_index=True, return_counts=True)
    return np.add.reduceat(difference[..., order], starts, axis=-1), sizes.astype(np.float64)


def crossed_interval(
    difference: np.ndarray,
    *,
    margin: float,
    alpha: float,
    groups: np.ndarray | None = None,
    span: float = 1.0,
    limit: float | None = None,
    least_se: tuple[float, float] = (0.0, 0.0),
) -> Estimate:
    """Estimate the harm of a contrast over random seeds crossed with random examples.

    A contrast is D[s, i], the harm on seed s and test example i; its mean is the harm. Seeds and examples are both random and
    crossed, so the interval is that of a two-way random-effects layout, as in radiology's readers × cases (Dorfman, Berbaum &
    Metz 1992), with Satterthwaite's (1946) degrees of freedom and a correction for skewness (:func:`tail_p`).

    If D is all zero, or nearly so, such an interval has no width, and a harm that no test example shows would pass. The test
    of the bounded mean (:func:`xferbench.analysis.bounded_mean.bounded_mean_p`) must therefore agree, for the upper bound above
    0 and the lower bound below 0. On the other side of 0, examples that the sample lacks cannot lead to a wrong decision, and
    the test must agree only if all values are equal: two harmed examples are no FAIL.

    The estimate has two one-sided bounds, each at level ``alpha``. The standard error and the degrees of freedom of the
    result belong to the side with the larger error. With one seed, the interval is conditional on that seed. NaN, infinity,
    no seed, or fewer than two units give bounds of NaN.

    Args:
        difference: [S, N], harm by seed and example.
        margin: the margin, in the unit of ``difference``.
        alpha: level of each bound.
        groups: [N] integers, or None. Groups, and not examples, are then the random units; each counts with all its examples.
        span: the largest harm that one example can show.
        limit: the largest possible harm, ``span`` by default. No bound exceeds it.
        least_se: lower limits of the standard error on the lower and the upper side, for example from a bootstrap.
    """
    D = np.asarray(difference, dtype=np.float64)
    S, N = D.shape
    is_finite = D.size > 0 and bool((np.abs(D) < LARGEST_VALUE).all())
    harm = float(D.mean()) if is_finite else np.nan
    sizes = np.ones(N) if groups is None or len(groups) == 0 else group_sums(D, groups)[1]
    units = len(sizes)
    if not is_finite or units < 2:
        return Estimate(
            harm=harm, low=np.nan, high=np.nan, p_fail=1.0, p_pass=1.0, se=np.nan, df=np.nan, seeds=S, examples=units
        )
    sample = _sample(D, groups, span)
    low, p_fail, *low_moments = _lower_bound(sample, least_se[0], margin=margin, alpha=alpha, span=span)
    high, p_pass, *high_moments = _lower_bound(-sample, least_se[1], margin=-margin, alpha=alpha, span=span)
    se, df = max(low_moments, high_moments)
    limit = span if limit is None else limit
    low, high = max(low, -limit), min(-high, limit)
    return Estimate(harm=harm, low=low, high=high, p_fail=p_fail, p_pass=p_pass, se=se, df=df, seeds=S, examples=units)


def _lower_bound(
    sample: _Sample, least_se: float, *, margin: float, alpha: float, span: float
) -> tuple[float, float, float, float]:
    """Return the lower bound, the p-value of ``harm ≤ margin``, the standard error and the degrees of freedom.

    The bound is above the margin if and only if the p-value is below alpha.
    """
    mean, se, df, skewness = sample.moments(least_se)
    p = float(_lower_p(sample, margin, span, least_se))
    bound = float(mean - _critical_t(float(df), float(skewness), alpha) * se)
    if bound <= 0 or se == 0:
        bound = min(bound, _guard_bound(sample, alpha, span, highest=max(bound, 0.0)))
    if bound > margin and p < alpha:
        return bound, p, float(se), float(df)
    return min(bound, margin), max(p, alpha), float(se), float(df)  # if rounding makes them disagree, neither decides


def _guard_bound(sample: _Sample, alpha: float, span: float, highest: float) -> float:
    """Return the lower bound, at most ``highest``, by the test of the bounded mean."""
    low, high = -span, highest
    for _ in range(BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if sample.guard_p(middle, span) < alpha else (low, middle)
    return low


def mcnemar_p(difference: np.ndarray) -> float:
    """Return McNemar's exact two-sided p-value for the [N] differences of one seed.

    The test is that of a fair coin over the discordant examples. It tests a harm of 0 instead of a harm at the margin, so it
    accompanies the verdict on a single checkpoint but never decides it.
    """
    from scipy.special import bdtr  # equals scipy.stats.binomtest at a probability of one half

    if not np.isfinite(difference).all():
        return 1.0
    worse, better = int((difference > 0).sum()), int((difference < 0).sum())
    return min(1.0, 2.0 * float(bdtr(min(worse, better), worse + better, 0.5)))


def proportion_lower_bound(successes: int, trials: int, alpha: float) -> float:
    """Return the one-sided lower bound of a proportion by Clopper & Pearson (1934); 0 without trials."""
    from scipy.special import betaincinv

    return float(betaincinv(successes, trials - successes + 1, alpha)) if successes else 0.0


def proportion_interval(successes: int, trials: int, alpha: float) -> tuple[float, float]:
    """Return the exact two-sided interval of a proportion by Clopper & Pearson (1934), with confidence 1 − ``alpha``.

    It is [0, 1] without trials.
    """
    low = proportion_lower_bound(successes, trials, alpha / 2)
    return low, 1.0 - proportion_lower_bound(trials - successes, trials, alpha / 2)


def probability_of_improvement(difference: np.ndarray) -> float:
    """Return P(A > B) over seeds, with ties counted as half (Bouthillier et al. 2021).

    This is the share of rows of [S, N] whose mean is above 0.
    """
    rows = difference.mean(-1)
    return float(((rows > 0) + 0.5 * (rows == 0)).mean()) if np.isfinite(rows).all() else np.nan
