"""Confidence intervals, decisions, multiplicity corrections and sample-size planning for contrasts. Pure.

All functions fail closed: values that are not finite, or too few values to estimate a variance, give p-values of 1 and decide
nothing. A score test must agree with the interval, because the interval alone passes rare harms too often at small levels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.errors import UserError
from xferbench.core.run import Estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_SEEDS = 1000  # larger numbers are reported as out of reach
MAX_EXAMPLES = 10_000_000
LARGEST_VALUE = 1e70  # degrees of freedom use fourth powers, which overflow above this value


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
    squares: Sequence[np.ndarray], S: int | np.ndarray, N: int | np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the standard error of the mean and Satterthwaite's degrees of freedom from the three mean squares.

    The shapes may broadcast. One seed needs no special case: its standard error is √(variance / N) with N − 1 degrees of
    freedom. If the estimated variance is zero or negative, the larger of the mean squares of seeds and of the interaction
    replaces it. The standard error is therefore 0 only if all values of D are equal.
    """
    seeds, examples, residual = squares
    seed_df = np.maximum(S - 1, 1)
    variance = seeds + examples - residual
    with np.errstate(divide="ignore", invalid="ignore"):
        weighted_squares = seeds**2 / seed_df + examples**2 / (N - 1) + residual**2 / (seed_df * (N - 1))
        df = np.maximum(variance**2 / weighted_squares, 1.0)
    is_degenerate = variance <= 1e-9 * residual
    usable = np.where(is_degenerate, np.maximum(seeds, residual), variance)
    return np.sqrt(usable / (S * N)), np.where(is_degenerate, seed_df, df)


def one_sided_moments(difference: np.ndarray, adverse: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return mean, standard error and degrees of freedom of [..., S, N] with one adverse example added.

    The added example has the value ``adverse`` at every seed.
    """
    S, N = difference.shape[-2:]
    extended = np.concatenate([difference, np.full((*difference.shape[:-1], 1), adverse)], axis=-1)
    mean, *squares = mean_squares(extended)
    return mean, *standard_error_and_df(squares, S, N + 1)


def tail_p(mean: np.ndarray, se: np.ndarray, df: np.ndarray, margin: float) -> np.ndarray:
    """Return the p-value of ``harm ≤ margin``, or 1 if it cannot be computed."""
    from scipy.special import stdtr  # takes a third of the time of scipy.stats

    with np.errstate(divide="ignore", invalid="ignore"):
        below: np.ndarray = np.nan_to_num(stdtr(df, (margin - mean) / se), nan=1.0)
    return below


def rare_event_p(mean: np.ndarray, N: int, margin: float, span: float) -> np.ndarray:
    """Return the p-value of ``harm ≤ margin`` if each example has the value −span or 0 at all seeds.

    The margin must be between −span and 0; the p-value is 0 for any other margin.
    """
    from scipy.special import ndtr

    if not -span < margin < 0:
        return np.zeros_like(mean)
    below: np.ndarray = ndtr((margin - mean + span / (2 * N)) / np.sqrt(-margin * (span + margin) / N))
    return below


def wilson_upper(mean: np.ndarray, N: int | np.ndarray, alpha: float, span: float) -> np.ndarray:
    """Return the upper bound of the harm if each example has the value +span or 0 at all seeds.

    The function inverts :func:`rare_event_p`. The bound is −∞ if the mean is too low.
    """
    from scipy.special import ndtri

    c = ndtri(alpha) ** 2 / N
    corrected = mean + span / (2 * N)
    middle = 2 * corrected + c * span
    discriminant = middle**2 - 4 * corrected**2 * (1 + c)
    root = (middle + np.sqrt(np.maximum(discriminant, 0.0))) / (2 * (1 + c))
    bound: np.ndarray = np.where(discriminant >= 0, root, -np.inf)
    return bound


def p_values(difference: np.ndarray, margin: float, span: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Return the p-values of ``harm ≤ margin`` and of ``harm ≥ margin``, two arrays of shape [...].

    Args:
        difference: [..., S, N], finite, with N ≥ 2.
        margin: the margin, in the unit of ``difference``.
        span: the largest harm that one example can show.
    """
    mean, N = difference.mean((-2, -1)), difference.shape[-1]
    low, high = one_sided_moments(difference, -span), one_sided_moments(-difference, -span)
    return (
        np.maximum(tail_p(*low, margin), rare_event_p(mean, N, margin, span)),
        np.maximum(tail_p(*high, -margin), rare_event_p(-mean, N, -margin, span)),
    )


def _lower_bound(
    D: np.ndarray, least_se: float, *, margin: float, alpha: float, span: float
) -> tuple[float, float, float, float]:
    """Return the lower bound, the p-value of ``harm ≤ margin``, the standard error and the degrees of freedom.

    The bound is above the margin if and only if the p-value is below alpha.
    """
    from scipy.special import stdtrit

    N, harm = D.shape[1], D.mean()
    mean, se, df = one_sided_moments(D, -span)
    se = np.maximum(se, least_se)
    bound = float(np.minimum(mean + stdtrit(df, alpha) * se, -wilson_upper(-harm, N, alpha, span)))
    p = float(np.maximum(tail_p(mean, se, df, margin), rare_event_p(harm, N, margin, span)))
    if bound > margin and p < alpha:
        return bound, p, float(se), float(df)
    return min(bound, margin), max(p, alpha), float(se), float(df)  # rounding can make the two disagree: then neither decides


def group_means(difference: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """Average [S, N] within each group and return [S, groups].

    None or an empty array means that there are no groups, and ``difference`` is returned.

    Raises:
        UserError: if the number of groups differs from the number of examples.
    """
    if groups is None or len(groups) == 0:
        return difference
    if len(groups) != difference.shape[1]:
        raise UserError("groups do not match the examples", found=f"{len(groups)} groups", expected=f"{difference.shape[1]}")
    order = np.argsort(groups, kind="stable")
    _, starts, sizes = np.unique(np.asarray(groups)[order], return_index=True, return_counts=True)
    return np.add.reduceat(difference[:, order], starts, axis=1) / sizes


def crossed_interval(
    difference: np.ndarray,
    *,
    margin: float,
    alpha: float,
    groups: np.ndarray | None = None,
    span: float = 1.0,
    least_se: tuple[float, float] = (0.0, 0.0),
) -> Estimate:
    """Estimate the harm of a contrast over random seeds crossed with random examples.

    A contrast is D[s, i], the harm on seed s and test example i; its mean is the harm. Seeds and examples are both random and
    crossed, so the interval is that of a two-way random-effects layout, as in radiology's readers × cases (Dorfman, Berbaum &
    Metz 1992), with Satterthwaite's (1946) degrees of freedom.

    If D is all zero, or nearly so, such an interval has no width. One adverse pseudo-example is therefore added on each side,
    as Agresti & Coull (1998) do for a proportion. This suffices at a level of 5 % but not at the smaller levels of several
    looks and many contrasts: a rare harm that no test example shows would pass several times too often. A score test with
    continuity correction (Wilson 1927, Newcombe 1998) must therefore agree. If the harm equals the margin m, examples may be
    harmed at all seeds or at none, with variance m (1 − m).

    The estimate has two one-sided bounds, each at level ``alpha``. The standard error and the degrees of freedom of the
    result belong to the side with the larger error. With one seed, the interval is conditional on that seed. NaN, infinity,
    no seed, or fewer than two examples give bounds of NaN.

    Args:
        difference: [S, N], harm by seed and example.
        margin: the margin, in the unit of ``difference``.
        alpha: level of each bound.
        groups: [N] integers. D is averaged within each group first; the groups then replace the examples, with equal weights.
        span: the largest harm that one example can show.
        least_se: lower limits of the standard error on the lower and the upper side, for example from a bootstrap.
    """
    D = group_means(np.asarray(difference, dtype=np.float64), groups)
    S, N = D.shape
    finite = D.size > 0 and bool((np.abs(D) < LARGEST_VALUE).all())
    harm = float(D.mean()) if finite else np.nan
    if not finite or N < 2:
        return Estimate(harm=harm, low=np.nan, high=np.nan, p_fail=1.0, p_pass=1.0, se=np.nan, df=np.nan, seeds=S, examples=N)
    low, p_fail, *low_moments = _lower_bound(D, least_se[0], margin=margin, alpha=alpha, span=span)
    high, p_pass, *high_moments = _lower_bound(-D, least_se[1], margin=-margin, alpha=alpha, span=span)
    se, df = max(low_moments, high_moments)
    return Estimate(harm=harm, low=low, high=-high, p_fail=p_fail, p_pass=p_pass, se=se, df=df, seeds=S, examples=N)


def alpha_spending(looks: Sequence[int], alpha: float) -> tuple[float, ...]:
    """Divide alpha among the looks: α (S_k − S_{k−1}) / S_K.

    This is a union bound, which is valid for any dependence between looks.

    Raises:
        UserError: if the looks are not increasing positive numbers of seeds.
    """
    previous = (0, *looks[:-1])
    if not looks or any(seeds <= seeds_before for seeds_before, seeds in zip(previous, looks, strict=True)):
        raise UserError("looks must increase", found=str(list(looks)), expected="increasing numbers of seeds")
    return tuple(alpha * (seeds - seeds_before) / looks[-1] for seeds_before, seeds in zip(previous, looks, strict=True))


def sequential_p(p: Sequence[float], looks: Sequence[int], alpha: float) -> float:
    """Return the p-value over all looks so far: min(1, min_k p_k α / α_k).

    ``p[k]`` is the p-value of the k-th planned look. NaN counts as 1.
    """
    levels = alpha_spending(looks, alpha)[: len(p)]
    return min((1.0, *(value * alpha / level for value, level in zip(p, levels, strict=True) if np.isfinite(value))))


def holm_adjusted(p: Sequence[float]) -> np.ndarray:
    """Return p-values adjusted by Holm's procedure (Holm 1979), in the order of the input.

    The adjustment is valid for any dependence. NaN counts as 1.
    """
    values = np.nan_to_num(np.asarray(p, dtype=np.float64), nan=1.0)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1.0)
    return adjusted


def decide(p_fail: float, p_pass: float, alpha: float) -> str:
    """Return ``FAIL``, ``PASS`` or ``INCONCLUSIVE``.

    The decision is INCONCLUSIVE if both p-values are below alpha, because they contradict each other.
    """
    is_fail, is_pass = p_fail < alpha, p_pass < alpha
    if is_fail == is_pass:
        return "INCONCLUSIVE"
    return "FAIL" if is_fail else "PASS"


def expected_false_alarms(contrasts: int, alpha: float) -> float:
    """Return an upper bound on the expected number of false FAILs among ``contrasts`` tested by Holm's procedure at ``alpha``.

    The probability of at least one false FAIL is at most alpha. Under independence, the expected number is about alpha as
    well. Verdicts share arms, however, and false alarms may occur together. Let V be their number among n true hypotheses. If
    k of them are rejected, then for each j ≤ k at least j p-values are at most α / (n − j + 1). Markov's inequality therefore
    gives E min(V, j) ≤ n α / (n − j + 1) for every j. Because P(V ≥ k) decreases with k, E V ≤ (n / j) E min(V, j). The best
    j is half of n + 1: the bound is α for one contrast, is attained for two (2 α), and stays below 4 α for any number. The
    same holds for PASS.
    """
    if contrasts == 0:
        return 0.0
    half = (contrasts + 1) // 2
    return alpha * contrasts**2 / (half * (contrasts + 1 - half))


def _decision_distance(
    variances: tuple[float, float, float], S: np.ndarray, N: np.ndarray, *, alpha: float, power: float, harm: float, span: float
) -> np.ndarray:
    """Return the distance from the harm to the closest margin above it that :func:`crossed_interval` decides with this power.

    ``variances`` are the variances of seeds, examples and the residual.
    """
    from scipy.special import stdtrit

    seed, example, residual = variances
    is_single, distance = S == 1, span - harm  # distance of the pseudo-example from the harm
    squares = (
        np.where(is_single, 0.0, N * seed + residual),
        S * example + residual + S * distance**2 / (N + 1),
        np.where(is_single, 0.0, residual),
    )
    se, df = standard_error_and_df(squares, S, N + 1)
    noise = stdtrit(df, power) * np.sqrt(seed / S + example / N + residual / (S * N))
    bound: np.ndarray = np.maximum(
        distance / (N + 1) - stdtrit(df, alpha) * se + noise, wilson_upper(harm + noise, N, alpha, span) - harm
    )
    return bound


def smallest_margin(
    examples: int,
    seeds: int,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    disagree: float = 0.15,
    persistent: float = 0.5,
    seed_sd: float = 0.015,
    span: float = 1.0,
) -> float:
    """Return the smallest margin that a true harm of 0 is shown to be below with this power; infinity if there is none.

    Args:
        examples: number of test examples, or of groups if there are any.
        seeds: number of seeds.
        alpha: level of the test.
        power: probability of the decision.
        disagree: variance of D within a seed; for accuracy, the share of examples on which the two arms disagree.
        persistent: share of that variance which is the same for every seed, so that more seeds do not average it away.
        seed_sd: standard deviation of the harm over seeds.
        span: the largest harm that one example can show.
    """
    if examples < 2 or seeds < 1:
        return np.inf
    variances = (seed_sd**2, persistent * disagree, (1 - persistent) * disagree)
    return float(
        _decision_distance(variances, np.asarray(seeds), np.asarray(examples), alpha=alpha, power=power, harm=0.0, span=span)
    )


def required_sizes(
    difference: np.ndarray,
    *,
    margin: float,
    alpha: float,
    power: float = 0.8,
    groups: np.ndarray | None = None,
    span: float = 1.0,
) -> tuple[int | None, int | None]:
    """Return the number of seeds, and the number of examples or groups, that would decide the observed harm.

    The number of seeds assumes the present examples; the number of examples assumes the present seeds. The variances are the
    observed ones. A number is None if no affordable number suffices. With one seed, the variance over seeds is unknown and
    the number of seeds is None.
    """
    D = group_means(np.asarray(difference, dtype=np.float64), groups)
    S, N = D.shape
    if S < 1 or N < 2 or not np.isfinite(D).all():
        return None, None
    mean, seeds, examples, residual = (float(value) for value in mean_squares(D))
    variances = (max(seeds - residual, 0.0) / N, max(examples - residual, 0.0) / S, residual)
    harm = mean if mean < margin else -mean  # a FAIL is a PASS with the sign reversed

    def first_sufficient(s: np.ndarray, n: np.ndarray, numbers: np.ndarray) -> int | None:
        is_sufficient = _decision_distance(variances, s, n, alpha=alpha, power=power, harm=harm, span=span) <= abs(
            mean - margin
        )
        return int(numbers[is_sufficient.argmax()]) if is_sufficient.any() else None

    more_seeds = np.arange(S, MAX_SEEDS + 1)
    more_examples = np.unique(np.ceil(np.geomspace(N, MAX_EXAMPLES, 400)).astype(np.int64))
    by_seeds = first_sufficient(more_seeds, np.asarray(N), more_seeds) if S > 1 else None
    return by_seeds, first_sufficient(np.asarray(S), more_examples, more_examples)


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


def probability_of_improvement(difference: np.ndarray) -> float:
    """Return P(A > B) over seeds, with ties counted as half (Bouthillier et al. 2021).

    This is the share of rows of [S, N] whose mean is above 0.
    """
    rows = difference.mean(-1)
    return float(((rows > 0) + 0.5 * (rows == 0)).mean()) if np.isfinite(rows).all() else np.nan
