"""A power law of the error by the number of training images, and the data multiplier between two learners. Pure.

The data multiplier is the factor of images that the baseline needs to reach the error of another learner.

References: Hestness et al. 2017 (arXiv:1712.00409), for the form a · n^−b + c; Howard & Ruder 2018 (arXiv:1801.06146), for
the ratio.
"""

from __future__ import annotations

import numpy as np

MAX_EXTRAPOLATION = 2.0  # multiple of the largest n up to which a curve is read
MAX_MISFIT = 0.03  # error by which a law may miss a point, and by which a curve must fall to be fitted
DRAWS = 200  # pairs of mean curves from which bounds are read
TAIL = 0.025  # nominal probability that the multiplier is beyond a bound


def fit_power_law(x: np.ndarray, errors: np.ndarray) -> tuple[float, float, float]:
    """Return a, b, c of a · x^−b + c, fitted by least squares.

    Args:
        x: [K] sizes divided by the largest size.
        errors: [K] error rates.
    """
    from scipy.optimize import least_squares

    last_error = float(np.clip(errors[-1], 0.02, 1.0))
    bounds = ([0, 0.01, 0], [1, 4, 1])
    solution = least_squares(
        lambda law: law[0] * x ** -law[1] + law[2] - errors, (last_error / 2, 0.5, last_error / 2), bounds=bounds
    )
    a, b, c = map(float, solution.x)
    return a, b, c


def extrapolation_limit(n: np.ndarray, baseline: np.ndarray) -> float:
    """Return up to which multiple of the largest n a curve may be read.

    The value is 1, the measured range, if the curve is flat or does not follow a power law. Near chance level, an error
    decreases slowly at first and then fast; a law fitted there would predict a multiplier that is far too large.
    """
    a, b, c = fit_power_law(n / n[-1], baseline)
    follows = np.abs(a * (n / n[-1]) ** -b + c - baseline).max() <= MAX_MISFIT
    return MAX_EXTRAPOLATION if follows and baseline[0] - baseline[-1] > MAX_MISFIT else 1.0


def data_multipliers(n: np.ndarray, errors: np.ndarray, baseline: np.ndarray, limit: float = MAX_EXTRAPOLATION) -> np.ndarray:
    """Return [K] numbers of images, divided by n, at which the baseline has the errors of the learner.

    The multiplier is infinite if ``limit`` times the largest n does not suffice. If the smallest n already suffices, the
    smallest n is used.

    Args:
        n: [K] sizes in increasing order.
        errors: [K] mean errors of the learner.
        baseline: [K] mean errors of the baseline.
        limit: the value of :func:`extrapolation_limit`. If it is 1, the baseline is interpolated in log n and no law is fitted.
    """
    x = n / n[-1]
    if limit > 1:
        a, b, c = fit_power_law(x, baseline)
        lowest, highest = (a * end**-b + c for end in (limit, x[0]))
        within = np.exp(np.clip((np.log(max(a, 1e-9)) - np.log(np.maximum(errors - c, 1e-9))) / b, -50, 50))
    else:
        falling = np.minimum.accumulate(baseline)
        lowest, highest = np.nextafter(falling[-1], 0), falling[0]
        within = np.exp(np.interp(-errors, -falling, np.log(x)))
    return np.asarray(np.where(errors <= lowest, np.inf, np.where(errors < highest, within, x[0])) / x)


def estimate_multipliers(n: np.ndarray, errors: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """Return [3, K] multipliers and their bounds (2.5 and 97.5 %); the bounds are NaN for one seed.

    The bounds are quantiles of the multipliers of curves that are drawn around the mean curves, so that any multiplier that
    depends on one number of a curve has the bounds of Student's t.

    Args:
        n: [K] sizes in increasing order.
        errors: [S, K] errors of the learner.
        baseline: [S, K] errors of the baseline at the same seeds.
    """
    limit = extrapolation_limit(n, baseline.mean(0))
    seeds, mean = len(errors), data_multipliers(n, errors.mean(0), baseline.mean(0), limit)
    if seeds == 1:
        return np.stack([mean, np.full(len(n), np.nan), np.full(len(n), np.nan)])
    weights = _student_weights(seeds)
    pairs = zip(_draw_means(errors, weights), _draw_means(baseline, weights), strict=True)
    replicates = np.stack([data_multipliers(n, *pair, limit) for pair in pairs])
    return np.stack([mean, *np.quantile(replicates, (TAIL, 1 - TAIL), axis=0, method="inverted_cdf")])


def _student_weights(seeds: int) -> np.ndarray:
    """Return weights [draws, S] of deviations from the mean; the weighted sum is the error of the mean times Student's t.

    A bootstrap of whole curves by seed would be too narrow: over five seeds, its intervals of 90 % contain 70 to 86 % of the
    true multipliers in simulations, and over three seeds 57 to 74 %.
    """
    rng = np.random.default_rng(0)
    normal, chi_square = rng.normal(size=(DRAWS // 2, seeds)), rng.chisquare(seeds - 1, size=(DRAWS // 2, 1))
    weights = normal / np.sqrt(seeds * chi_square)
    return np.concatenate([weights, -weights])


def _draw_means(curves: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return mean curves [draws, K] around the mean of curves [S, K]."""
    mean = curves.mean(0)
    means: np.ndarray = mean + weights @ (curves - mean)
    return means


def format_multipliers(n: np.ndarray, values: np.ndarray, limit: float = MAX_EXTRAPOLATION) -> list[str]:
    """Return [K] multipliers as text; those beyond either end of the curve are given as bounds."""
    is_lowest = values * n <= n[0] * (1 + 1e-6)
    return [
        f"{'at most ' if lowest else ''}{value:.3g}" if np.isfinite(value) else f"more than {limit * n[-1] / size:.3g}"
        for size, value, lowest in zip(n, values, is_lowest, strict=True)
    ]
