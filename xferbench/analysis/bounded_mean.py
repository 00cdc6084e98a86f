"""A test of the mean of bounded values that holds for any distribution, however rare its largest values are. Pure.

An interval from a variance has no width if no test example shows a rare harm. This test then equals the binomial test.
"""

from __future__ import annotations

import numpy as np

MAX_DISTINCT_VALUES = 200  # more distinct values than these are not counted, but passed one by one
ITERATIONS = 60  # of Newton's method with bisection, which needs about ten
NEAR_ZERO = 1e-3  # saddlepoints with a root below this are at the mean, where the formula needs its limit


def bounded_mean_p(
    totals: np.ndarray,
    margin: float,
    bound: float,
    sizes: np.ndarray | float = 1.0,
    extra_size: np.ndarray | float = 1.0,
) -> np.ndarray:
    """Return the p-value of ``mean ≤ margin`` for values that are at least ``bound``, an array of shape [...].

    The p-value is the probability that a mean with random weights is at most the margin. The weights are uniform on the simplex
    (Dirichlet with all parameters 1) over the values and one more value, ``bound``. For two-valued data this is the
    binomial test, whose bound is that of Clopper & Pearson (1934). For other bounded data, Gaffke (2005) and Learned-Miller &
    Thomas (2019) found no distribution for which the test rejects too often.

    Args:
        totals: [..., N], the values, or the sum of the values of each group.
        margin: the margin, above ``bound``.
        bound: the smallest possible value.
        sizes: [N], numbers of values of the groups.
        extra_size: [...], number of values of the group that is added.
    """
    terms, counts = _distinct(totals - margin * np.asarray(sizes))
    extra = np.broadcast_to((bound - margin) * np.asarray(extra_size), terms.shape[:-1])[..., None]
    return weighted_sum_p(np.concatenate([terms, extra], axis=-1), np.concatenate([counts, np.ones_like(extra)], axis=-1))


def weighted_sum_p(terms: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the probability that a sum of terms with random weights is at most 0, an array of shape [...].

    The weight of a term is Gamma-distributed with its count as the shape, which is the sum of as many standard exponential
    weights. Lugannani & Rice's (1980) saddlepoint formula gives the probability with a relative error of a few percent.

    Args:
        terms: [..., K].
        counts: [..., K], at least 0.
    """
    from scipy.special import ndtr

    present = counts > 0
    smallest, largest = np.where(present, terms, np.inf).min(-1), np.where(present, terms, -np.inf).max(-1)
    is_mixed = (smallest < 0) & (largest > 0)
    low, high = 1 / np.where(is_mixed, smallest, -1.0), 1 / np.where(is_mixed, largest, 1.0)
    terms = np.where(present & is_mixed[..., None], terms, 0.0)
    root = np.zeros_like(low)
    for _ in range(ITERATIONS):
        ratio = terms / (1 - terms * root[..., None])
        slope, curvature = (counts * ratio).sum(-1), (counts * ratio**2).sum(-1)
        low, high = np.where(slope < 0, root, low), np.where(slope > 0, root, high)
        newton = root - slope / np.where(is_mixed, curvature, 1.0)
        following = np.where((newton <= low) | (newton >= high), (low + high) / 2, newton)
        is_done = np.abs(following - root) <= 1e-10 * np.abs(root)
        root = following
        if is_done.all():
            break
    ratio = terms / (1 - terms * root[..., None])
    exponent = -(counts * np.log1p(-terms * root[..., None])).sum(-1)
    curvature, third = (counts * ratio**2).sum(-1), 2 * (counts * ratio**3).sum(-1)
    with np.errstate(divide="ignore", invalid="ignore"):
        w, u = np.sign(root) * np.sqrt(np.maximum(-2 * exponent, 0.0)), root * np.sqrt(curvature)
        density = np.exp(-(w**2) / 2) / np.sqrt(2 * np.pi)
        at_mean = 0.5 + third / (6 * np.sqrt(2 * np.pi) * curvature**1.5)
        probability = np.where(np.abs(w) < NEAR_ZERO, at_mean, ndtr(w) + density * (1 / w - 1 / u))
    probability = np.where(is_mixed, probability, np.where(smallest > 0, 0.0, 1.0))
    clipped: np.ndarray = np.clip(np.nan_to_num(probability, nan=1.0), 0.0, 1.0)
    return clipped


def _distinct(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return distinct values [..., K] and their counts [..., K]; if there are too many, all values with counts of 1."""
    rounded = np.round(values, 9)
    distinct = np.unique(rounded)
    if len(distinct) > MAX_DISTINCT_VALUES:
        return values, np.ones_like(values)
    index = np.searchsorted(distinct, rounded)
    rows = index.reshape(-1, values.shape[-1])
    flat = (rows + np.arange(len(rows))[:, None] * len(distinct)).ravel()
    counts = np.bincount(flat, minlength=len(rows) * len(distinct)).reshape(*values.shape[:-1], len(distinct))
    return np.broadcast_to(distinct, counts.shape), counts.astype(np.float64)
