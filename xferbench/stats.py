"""How a verdict is taken: intervals, decisions, multiplicity, planning. Arrays in, numbers out.

A contrast is D[s, i], the harm on seed s and test example i; its mean is the harm. Seeds and examples are both drawn at
random and crossed, so the interval is that of a two-way random-effects layout (the one of radiology's readers × cases:
Dorfman, Berbaum & Metz 1992) with Satterthwaite's (1946) degrees of freedom. Where D is all zero or nearly so such an
interval has no width, so one adverse pseudo-example is added on each side, as Agresti & Coull (1998) do for a proportion.
That is enough at a level of 5 % but not at the lower ones of looks and many contrasts, where a rare harm that no test example
happened to show would pass several times too often. So a score test with continuity correction (Wilson 1927, Newcombe 1998)
must agree: where harm is the margin m, examples may be harmed at all seeds or at none, with variance m (1 − m).

Everything fails closed: what is not finite, or too little to have a variance, has P-values of 1 and decides nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from xferbench.problem import Problem
from xferbench.record import Estimate

if TYPE_CHECKING:
    from collections.abc import Sequence

MOST_SEEDS = 1000  # what nobody would train, or label, is as good as unreachable
MOST_EXAMPLES = 10_000_000
HUGE = 1e70  # degrees of freedom take fourth powers, which are infinite beyond


def mean_squares(difference: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Mean, and mean squares of seeds, examples and their interaction, of [..., S, N]; each [...].

    One seed has neither a seed's nor an interaction's mean square: both are 0.
    """
    S, N = difference.shape[-2:]
    mean = difference.mean((-2, -1))
    centred = difference - mean[..., None, None]
    total = np.einsum("...si,...si->...", centred, centred)
    seeds = N * np.square(centred.mean(-1)).sum(-1)
    examples = S * np.square(centred.mean(-2)).sum(-1)
    rest = np.maximum(total - seeds - examples, 0.0)
    return mean, seeds / max(S - 1, 1), examples / (N - 1), rest / max((S - 1) * (N - 1), 1)


def spread(squares: Sequence[np.ndarray], S: int | np.ndarray, N: int | np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Give the mean's standard error and Satterthwaite's degrees of freedom from the three mean squares; shapes may broadcast.

    One seed needs no formula of its own: its standard error comes out as √(variance / N) with N − 1 degrees of freedom.
    Where the variance is estimated as zero or below, the larger of the seeds' and the interaction's mean square stands in
    for it, so that the standard error is 0 only where all of D is one number.
    """
    seeds, examples, rest = squares
    between = np.maximum(S - 1, 1)
    variance = seeds + examples - rest
    with np.errstate(divide="ignore", invalid="ignore"):
        squared = seeds**2 / between + examples**2 / (N - 1) + rest**2 / (between * (N - 1))
        df = np.maximum(variance**2 / squared, 1.0)
    empty = variance <= 1e-9 * rest
    return np.sqrt(np.where(empty, np.maximum(seeds, rest), variance) / (S * N)), np.where(empty, between, df)


def one_sided(difference: np.ndarray, adverse: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, standard error and degrees of freedom of [..., S, N] with one more example on which every seed has ``adverse``."""
    S, N = difference.shape[-2:]
    more = np.concatenate([difference, np.full((*difference.shape[:-1], 1), adverse)], axis=-1)
    mean, *squares = mean_squares(more)
    return mean, *spread(squares, S, N + 1)


def tail(mean: np.ndarray, se: np.ndarray, df: np.ndarray, margin: float) -> np.ndarray:
    """P-value of ``harm ≤ margin``; 1 where it cannot be had."""
    from scipy.special import stdtr  # a third of the time of scipy.stats

    with np.errstate(divide="ignore", invalid="ignore"):
        below: np.ndarray = np.nan_to_num(stdtr(df, (margin - mean) / se), nan=1.0)
    return below


def rare(mean: np.ndarray, N: int, margin: float, span: float) -> np.ndarray:
    """P-value of ``harm ≤ margin``, a margin below 0, if examples are −span or 0 alike at all seeds; 0 for any other margin."""
    from scipy.special import ndtr

    if not -span < margin < 0:
        return np.zeros_like(mean)
    below: np.ndarray = ndtr((margin - mean + span / (2 * N)) / np.sqrt(-margin * (span + margin) / N))
    return below


def wilson(mean: np.ndarray, N: int | np.ndarray, alpha: float, span: float) -> np.ndarray:
    """Upper bound of the harm if examples are +span or 0 alike at all seeds, inverting :func:`rare`; −∞ for a mean too low."""
    from scipy.special import ndtri

    c = ndtri(alpha) ** 2 / N
    corrected = mean + span / (2 * N)
    middle = 2 * corrected + c * span
    squared = middle**2 - 4 * corrected**2 * (1 + c)
    root = (middle + np.sqrt(np.maximum(squared, 0.0))) / (2 * (1 + c))
    bound: np.ndarray = np.where(squared >= 0, root, -np.inf)
    return bound


def p_values(difference: np.ndarray, margin: float, span: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """P-values of ``harm ≤ margin`` and of ``harm ≥ margin`` for finite [..., S, N], N ≥ 2; each [...]."""
    mean, N = difference.mean((-2, -1)), difference.shape[-1]
    low, high = one_sided(difference, -span), one_sided(-difference, -span)
    return (
        np.maximum(tail(*low, margin), rare(mean, N, margin, span)),
        np.maximum(tail(*high, -margin), rare(-mean, N, -margin, span)),
    )


def _lower(D: np.ndarray, least_se: float, *, margin: float, alpha: float, span: float) -> tuple[float, float, float, float]:
    """Lower bound, P-value of ``harm ≤ margin``, standard error and degrees of freedom.

    The bound is above the margin exactly where the P-value is below alpha.
    """
    from scipy.special import stdtrit

    N, harm = D.shape[1], D.mean()
    mean, se, df = one_sided(D, -span)
    se = np.maximum(se, least_se)
    low = float(np.minimum(mean + stdtrit(df, alpha) * se, -wilson(-harm, N, alpha, span)))
    p = float(np.maximum(tail(mean, se, df, margin), rare(harm, N, margin, span)))
    if low > margin and p < alpha:
        return low, p, float(se), float(df)
    return min(low, margin), max(p, alpha), float(se), float(df)  # the two can differ by rounding: then neither decides


def by_group(difference: np.ndarray, groups: np.ndarray | None) -> np.ndarray:
    """[S, N] averaged within each group: [S, groups]. None, or an empty array, is no groups.

    Raises:
        Problem: where there is not one group to an example.
    """
    if groups is None or len(groups) == 0:
        return difference
    if len(groups) != difference.shape[1]:
        raise Problem("groups do not fit the examples", found=f"{len(groups)} groups", expected=f"{difference.shape[1]}")
    order = np.argsort(groups, kind="stable")
    _, start, size = np.unique(np.asarray(groups)[order], return_index=True, return_counts=True)
    return np.add.reduceat(difference[:, order], start, axis=1) / size


def crossed(
    difference: np.ndarray,
    *,
    margin: float,
    alpha: float,
    groups: np.ndarray | None = None,
    span: float = 1.0,
    least_se: tuple[float, float] = (0.0, 0.0),
) -> Estimate:
    """Harm of a contrast with one-sided bounds, each at level ``alpha``, over random seeds crossed with random examples.

    Args:
        difference: [S, N], harm by seed and example.
        margin: in the unit of ``difference``.
        groups: [N] integers; D is averaged within a group first, and the groups, each counting alike, are the examples.
        span: the largest harm that one example can show.
        least_se: floors of the standard error on the lower and the upper side, from a bootstrap for instance.

    The standard error and degrees of freedom in the answer are those of the side where the error is larger. One seed gives an
    interval conditional on that seed. NaN, infinity, no seed, or fewer than two examples give bounds of NaN.
    """
    D = by_group(np.asarray(difference, dtype=np.float64), groups)
    S, N = D.shape
    finite = D.size > 0 and bool((np.abs(D) < HUGE).all())
    harm = float(D.mean()) if finite else np.nan
    if not finite or N < 2:
        return Estimate(harm=harm, low=np.nan, high=np.nan, p_fail=1.0, p_pass=1.0, se=np.nan, df=np.nan, seeds=S, examples=N)
    low, p_fail, *of_low = _lower(D, least_se[0], margin=margin, alpha=alpha, span=span)
    high, p_pass, *of_high = _lower(-D, least_se[1], margin=-margin, alpha=alpha, span=span)
    se, df = max(of_low, of_high)
    return Estimate(harm=harm, low=low, high=-high, p_fail=p_fail, p_pass=p_pass, se=se, df=df, seeds=S, examples=N)


def spending(looks: Sequence[int], alpha: float) -> tuple[float, ...]:
    """Share alpha among the looks, α (S_k − S_{k−1}) / S_K: a union bound, valid whatever the dependence between looks.

    Raises:
        Problem: where the looks are not numbers of seeds that grow.
    """
    before = (0, *looks[:-1])
    if not looks or any(now <= then for then, now in zip(before, looks, strict=True)):
        raise Problem("looks are not usable", found=str(list(looks)), expected="numbers of seeds, each above the one before")
    return tuple(alpha * (now - then) / looks[-1] for then, now in zip(before, looks, strict=True))


def sequential(p: Sequence[float], looks: Sequence[int], alpha: float) -> float:
    """P-value over the looks taken so far, min(1, min_k p_k α / α_k), p[k] that of the k-th planned look; NaN counts as 1."""
    levels = spending(looks, alpha)[: len(p)]
    return min((1.0, *(value * alpha / level for value, level in zip(p, levels, strict=True) if np.isfinite(value))))


def holm(p: Sequence[float]) -> np.ndarray:
    """P-values adjusted for all of them (Holm 1979), in the order given, whatever their dependence; NaN counts as 1."""
    values = np.nan_to_num(np.asarray(p, dtype=np.float64), nan=1.0)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)), 1.0)
    return adjusted


def decide(p_fail: float, p_pass: float, alpha: float) -> str:
    """``FAIL``, ``PASS`` or ``INCONCLUSIVE``, the last also where both would hold: what contradicts itself decides nothing."""
    failed, passed = p_fail < alpha, p_pass < alpha
    if failed == passed:
        return "INCONCLUSIVE"
    return "FAIL" if failed else "PASS"


def expected_false_alarms(contrasts: int, alpha: float) -> float:
    """Upper bound on the expected number of false FAILs among ``contrasts`` judged by Holm's procedure at ``alpha``.

    The chance of one or more is at most alpha, and under independence the expected number is about alpha as well. Verdicts
    share arms, though, and false alarms may come together. Let V be their number among n true hypotheses. k of them fall
    only if at least j P-values are at most α / (n − j + 1), for each j ≤ k, so Markov's inequality gives
    E min(V, j) ≤ n α / (n − j + 1) for every j; as P(V ≥ k) falls with k, E V ≤ (n / j) E min(V, j). The best j is half of
    n + 1: the bound is α for one contrast, reached for two (2 α), and below 4 α for any number. The same holds for PASS.
    """
    if contrasts == 0:
        return 0.0
    half = (contrasts + 1) // 2
    return alpha * contrasts**2 / (half * (contrasts + 1 - half))


def _reach(
    variances: tuple[float, float, float], S: np.ndarray, N: np.ndarray, *, alpha: float, power: float, harm: float, span: float
) -> np.ndarray:
    """Distance from harm to a margin above it that :func:`crossed` decides with this power.

    ``variances`` are those of seeds, examples and the rest.
    """
    from scipy.special import stdtrit

    seed, example, rest = variances
    one, pull = S == 1, span - harm  # how far the pseudo-example lies
    squares = (np.where(one, 0.0, N * seed + rest), S * example + rest + S * pull**2 / (N + 1), np.where(one, 0.0, rest))
    se, df = spread(squares, S, N + 1)
    noise = stdtrit(df, power) * np.sqrt(seed / S + example / N + rest / (S * N))
    bound: np.ndarray = np.maximum(
        pull / (N + 1) - stdtrit(df, alpha) * se + noise, wilson(harm + noise, N, alpha, span) - harm
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
    """Find the smallest margin that a true harm of 0 is shown to be below with this power; infinite where nothing can be.

    Args:
        examples: test examples, or groups where there are any.
        disagree: variance of D within a seed; for accuracy, the share of examples on which the two arms disagree.
        persistent: share of that which is the same for every seed, so that more seeds do not average it away.
        seed_sd: standard deviation over seeds of the harm itself.
    """
    if examples < 2 or seeds < 1:
        return np.inf
    variances = (seed_sd**2, persistent * disagree, (1 - persistent) * disagree)
    return float(_reach(variances, np.asarray(seeds), np.asarray(examples), alpha=alpha, power=power, harm=0.0, span=span))


def needed(
    difference: np.ndarray,
    *,
    margin: float,
    alpha: float,
    power: float = 0.8,
    groups: np.ndarray | None = None,
    span: float = 1.0,
) -> tuple[int | None, int | None]:
    """Find the seeds at these examples, and the examples (or groups) at these seeds, that decide a harm such as was observed.

    The variances are taken as observed too. None where no number that anyone would pay for is enough, or where one seed
    leaves the variance over seeds unknown.
    """
    D = by_group(np.asarray(difference, dtype=np.float64), groups)
    S, N = D.shape
    if S < 1 or N < 2 or not np.isfinite(D).all():
        return None, None
    mean, seeds, examples, rest = (float(value) for value in mean_squares(D))
    variances = (max(seeds - rest, 0.0) / N, max(examples - rest, 0.0) / S, rest)
    harm = mean if mean < margin else -mean  # a FAIL is a PASS seen in a mirror

    def first(s: np.ndarray, n: np.ndarray, many: np.ndarray) -> int | None:
        enough = _reach(variances, s, n, alpha=alpha, power=power, harm=harm, span=span) <= abs(mean - margin)
        return int(many[enough.argmax()]) if enough.any() else None

    more_seeds = np.arange(S, MOST_SEEDS + 1)
    more_examples = np.unique(np.ceil(np.geomspace(N, MOST_EXAMPLES, 400)).astype(np.int64))
    return first(more_seeds, np.asarray(N), more_seeds) if S > 1 else None, first(np.asarray(S), more_examples, more_examples)


def mcnemar(difference: np.ndarray) -> float:
    """McNemar's exact two-sided P-value of one seed's [N] differences: a fair coin over the discordant examples.

    It tests a harm of 0, not of the margin, so it stands beside a verdict from one checkpoint and is never the verdict.
    """
    from scipy.special import bdtr  # what scipy.stats.binomtest comes to at one half

    if not np.isfinite(difference).all():
        return 1.0
    worse, better = int((difference > 0).sum()), int((difference < 0).sum())
    return min(1.0, 2.0 * float(bdtr(min(worse, better), worse + better, 0.5)))


def improvement(difference: np.ndarray) -> float:
    """P(A > B) over seeds, ties counting half (Bouthillier et al. 2021): the share of [S, N]'s rows with a mean above 0."""
    rows = difference.mean(-1)
    return float(((rows > 0) + 0.5 * (rows == 0)).mean()) if np.isfinite(rows).all() else np.nan
