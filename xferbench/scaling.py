"""Error by the number of training images: a power law, and how many times the images one learner needs for what another has.

References: Hestness et al. 2017 (arXiv:1712.00409), for the form a · n^−b + c; Howard & Ruder 2018 (arXiv:1801.06146), for the
ratio.
"""

from __future__ import annotations

import numpy as np

BEYOND = 2.0  # times the largest n, up to which a curve is read off
MISFIT = 0.03  # of the error: by which a law may miss a point, and a curve must fall for one to be seen
DRAWS, TAIL = 200, 0.05


def fitted(x: np.ndarray, errors: np.ndarray) -> tuple[float, float, float]:
    """a, b, c of a · x^−b + c, by least squares.

    Args:
        x: [K] sizes over the largest. errors: [K] shares of answers that are wrong.
    """
    from scipy.optimize import least_squares

    last = float(np.clip(errors[-1], 0.02, 1.0))
    bounds = ([0, 0.01, 0], [1, 4, 1])
    found = least_squares(lambda law: law[0] * x ** -law[1] + law[2] - errors, (last / 2, 0.5, last / 2), bounds=bounds)
    a, b, c = map(float, found.x)
    return a, b, c


def reach(n: np.ndarray, baseline: np.ndarray) -> float:
    """Times the largest n up to which a curve may be read off: as far as it was measured where it is flat or no power law.

    Near chance an error falls slowly, then fast; a law fitted there would promise a learner many times the images.
    """
    a, b, c = fitted(n / n[-1], baseline)
    follows = np.abs(a * (n / n[-1]) ** -b + c - baseline).max() <= MISFIT
    return BEYOND if follows and baseline[0] - baseline[-1] > MISFIT else 1.0


def multipliers(n: np.ndarray, own: np.ndarray, baseline: np.ndarray, most: float = BEYOND) -> np.ndarray:
    """[K] numbers of images, over n, with which the baseline would have a learner's errors.

    What is not reached with ``most`` times the largest n is infinite, what the least n has already is given as the least.

    Args:
        n: [K] sizes, from the least up. own, baseline: [K] mean errors.
        most: of :func:`reach`; where it is 1, the baseline's points are joined in log n, and no law is fitted.
    """
    x = n / n[-1]
    if most > 1:
        a, b, c = fitted(x, baseline)
        lowest, highest = (a * end**-b + c for end in (most, x[0]))
        within = np.exp(np.clip((np.log(max(a, 1e-9)) - np.log(np.maximum(own - c, 1e-9))) / b, -50, 50))
    else:
        falling = np.minimum.accumulate(baseline)
        lowest, highest = np.nextafter(falling[-1], 0), falling[0]
        within = np.exp(np.interp(-own, -falling, np.log(x)))
    return np.asarray(np.where(own <= lowest, np.inf, np.where(own < highest, within, x[0])) / x)


def estimated(n: np.ndarray, own: np.ndarray, baseline: np.ndarray) -> np.ndarray:
    """[3, K] multipliers and their bounds (5 and 95 %), by a bootstrap of whole curves; bounds are NaN where there is one seed.

    Args:
        n: [K] sizes, from the least up. own, baseline: [S, K] errors of the same seeds.
    """
    most = reach(n, baseline.mean(0))
    seeds, mean = len(own), multipliers(n, own.mean(0), baseline.mean(0), most)
    if seeds == 1:
        return np.stack([mean, np.full(len(n), np.nan), np.full(len(n), np.nan)])
    drawn = np.random.default_rng(0).integers(seeds, size=(DRAWS, seeds))
    spread = np.stack([multipliers(n, own[rows].mean(0), baseline[rows].mean(0), most) for rows in drawn])
    return np.stack([mean, *np.quantile(spread, (TAIL, 1 - TAIL), axis=0, method="inverted_cdf")])


def shown(n: np.ndarray, values: np.ndarray, most: float = BEYOND) -> list[str]:
    """[K] multipliers in words, those beyond either end of the curve as bounds."""
    least = values * n <= n[0] * (1 + 1e-6)
    return [
        f"{'at most ' if low else ''}{value:.3g}" if np.isfinite(value) else f"more than {most * n[-1] / size:.3g}"
        for size, value, low in zip(n, values, least, strict=True)
    ]
