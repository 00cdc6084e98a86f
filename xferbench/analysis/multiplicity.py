"""Several looks at the data and several contrasts: how alpha is shared, and the p-values that account for it. Pure.

FAIL is corrected for the number of contrasts, because a run raises a false alarm if any of them is wrong. PASS is not: a run
passes only if all contrasts pass, so that it is wrong only if at least one of them is (Berger 1982).
"""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

SPENDING_POWER = 2.0  # of the share of the seeds: most of alpha is left for the last look
LARGEST_LEVEL = 0.5  # levels above this are not tabulated: such p-values count as 1
SMALLEST_LEVEL = 1e-12
GRID_POINTS = 80  # Gauss-Legendre points of the integral over the statistic of the previous look
GRID_LIMIT = 9.0  # standard deviations
LEVELS = 40  # overall levels in the table
BISECTIONS = 45


def alpha_spending(looks: Sequence[int], alpha: float) -> tuple[float, ...]:
    """Divide alpha among the looks: the share of the first k looks is α (S_k / S_K)², as in Kim & DeMets (1987).

    Raises:
        UserError: if the looks are not increasing positive numbers of seeds.
    """
    previous = (0, *looks[:-1])
    if not looks or any(seeds <= seeds_before for seeds_before, seeds in zip(previous, looks, strict=True)):
        raise UserError("looks must increase", found=str(list(looks)), expected="increasing numbers of seeds")
    shares = [(seeds / looks[-1]) ** SPENDING_POWER for seeds in (0, *looks)]
    return tuple(alpha * (share - before) for before, share in pairwise(shares))


def look_levels(looks: Sequence[int], alpha: float) -> tuple[float, ...]:
    """Return the level of a single test at each look, so that the error over all looks is at most alpha.

    A look repeats a part of the errors of earlier looks, because it includes their seeds. The levels therefore add up to more
    than alpha. The correlation of two looks is at least √(S_j / S_k); the test examples, which all looks share, increase it.
    The levels are exact for this smallest correlation. For a larger one the error is lower (Slepian's inequality).
    """
    table_alpha, table_levels = _level_table(tuple(looks))
    if alpha > LARGEST_LEVEL:
        return tuple(float(level) for level in table_levels[-1])
    return tuple(float(np.exp(np.interp(np.log(alpha), np.log(table_alpha), np.log(levels)))) for levels in table_levels.T)


def sequential_p(p: Sequence[float], looks: Sequence[int]) -> float:
    """Return the p-value over all looks so far: the smallest alpha at which one of the looks is significant.

    ``p[k]`` is the p-value of the k-th planned look. NaN counts as 1.
    """
    finite = [(index, value) for index, value in enumerate(p) if np.isfinite(value)]
    if len(looks) == 1:
        return min((1.0, *(value for _, value in finite)))
    table_alpha, table_levels = _level_table(tuple(looks))
    candidates = []
    for index, value in finite:
        levels = table_levels[:, index]
        if value <= levels[0]:
            candidates.append(float(table_alpha[0]))
        elif value < levels[-1]:
            candidates.append(float(np.exp(np.interp(np.log(value), np.log(levels), np.log(table_alpha)))))
    return min((1.0, *candidates))


@lru_cache(maxsize=32)
def _level_table(looks: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Return overall levels [A] and the levels of the looks [A, K] that belong to them."""
    alphas = np.geomspace(SMALLEST_LEVEL, LARGEST_LEVEL, LEVELS)
    return alphas, np.stack([_levels(looks, float(alpha)) for alpha in alphas])


def _levels(looks: tuple[int, ...], alpha: float) -> np.ndarray:
    """Return the level of each look, by recursive integration (Armitage, McPherson & Rowe 1969).

    The sum of the standardized statistics of all seeds so far is a Brownian motion with the share of the seeds as its time.
    """
    from scipy.special import ndtr, ndtri

    spent, shares = alpha_spending(looks, alpha), np.asarray(looks) / looks[-1]
    levels = [spent[0]]
    points, weights = _quadrature(shares[0], -float(ndtri(spent[0])))
    weights = weights * np.exp(-(points**2) / (2 * shares[0])) / np.sqrt(2 * np.pi * shares[0])
    for before, share, share_spent in zip(shares, shares[1:], spent[1:], strict=False):
        step = np.sqrt(share - before)
        low, high = -GRID_LIMIT, GRID_LIMIT  # of the critical value
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            crossing = float((weights * ndtr((points - middle * np.sqrt(share)) / step)).sum())
            low, high = (middle, high) if crossing > share_spent else (low, middle)
        levels.append(float(ndtr(-high)))
        following, widths = _quadrature(share, high)
        kernel = np.exp(-((following[:, None] - points) ** 2) / (2 * step**2)) / np.sqrt(2 * np.pi * step**2)
        points, weights = following, widths * (kernel @ weights)
    return np.asarray(levels)


@lru_cache(maxsize=1)
def _unit_quadrature() -> tuple[np.ndarray, np.ndarray]:
    nodes, weights = np.polynomial.legendre.leggauss(GRID_POINTS)
    return nodes, weights


def _quadrature(share: float, critical: float) -> tuple[np.ndarray, np.ndarray]:
    """Return points of the Brownian motion at time ``share`` below the critical value, and their quadrature weights."""
    nodes, weights = _unit_quadrature()
    low, high = -GRID_LIMIT * np.sqrt(share), critical * np.sqrt(share)
    return low + (nodes + 1) * (high - low) / 2, weights * (high - low) / 2


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
    j is half of n + 1: the bound is α for one contrast, is attained for two (2 α), and stays below 4 α for any number.
    """
    if contrasts == 0:
        return 0.0
    half = (contrasts + 1) // 2
    return alpha * contrasts**2 / (half * (contrasts + 1 - half))
