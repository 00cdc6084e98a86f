"""Statistics of the series in a training log. Pure."""

from __future__ import annotations

from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from xferbench.core.training_log import Missing, Series

if TYPE_CHECKING:
    from xferbench.core.training_log import TrainingLog

ALPHA = 0.001  # of each one-sided test
MIN_LOSSES = 12  # for thirds of at least four losses
LARGEST_VALUE = 1e70  # tests use fourth powers, which overflow above this value
MIN_SHORT_FALL = 0.2  # of the first loss, in a log with too few losses for a test


def usable(series: Series) -> Series:
    """Return the values that are finite, without those that are too large for a test."""
    kept = [(step, value) for step, value in zip(series.steps, series.values, strict=True) if abs(value) < LARGEST_VALUE]
    return Series(steps=tuple(step for step, _ in kept), values=tuple(value for _, value in kept))


def missing_losses(training_log: TrainingLog, needed: int, progress: float = 0.0) -> Missing | None:
    """Return what a rule lacks that needs some losses, and a share of the planned steps."""
    end, count = training_log.end, len(usable(training_log.losses))
    if count < needed:
        return Missing(what="losses", found=count, needed=needed)
    if end.max_steps is not None and end.step < progress * end.max_steps and not end.stopped_early:
        return Missing(what="steps", found=end.step, needed=round(progress * end.max_steps))
    return None


def thirds(series: Series) -> tuple[np.ndarray, np.ndarray]:
    """Return the first and the last third of the values."""
    count = len(series) // 3
    return np.array(series.values[:count]), np.array(series.values[-count:])


def fall_bounds(first: np.ndarray, last: np.ndarray) -> tuple[float, float]:
    """Return Welch's one-sided bounds of the fall from one mean to another."""
    from scipy.special import stdtrit

    variances = [float(part.var(ddof=1)) / len(part) for part in (first, last)]
    weight = sum(variance**2 / (len(part) - 1) for variance, part in zip(variances, (first, last), strict=True))
    fall = float(first.mean() - last.mean())
    if not weight:
        return fall, fall
    margin = -float(stdtrit(sum(variances) ** 2 / weight, ALPHA)) * sum(variances) ** 0.5
    return fall - margin, fall + margin


def has_fallen(losses: Series) -> bool:
    """Check that a loss is shown to fall; a short log must fall by a fifth from its first to its last value."""
    finite = usable(losses)
    if len(finite) < MIN_LOSSES:
        return len(finite) > 1 and finite.values[-1] < finite.values[0] * (1 - MIN_SHORT_FALL)
    return fall_bounds(*thirds(finite))[0] > 0


def falls_after(losses: Series, step: int) -> bool:
    """Check that the last training losses are lower in the mean than as many losses up to a step."""
    finite = usable(losses)
    before = finite.before(step + 1).values
    after = finite.values[len(before) :]
    count = min(len(before), len(after))
    return count > 0 and float(np.mean(after[-count:])) < float(np.mean(before[-count:]))


def lower_bound(values: np.ndarray) -> float:
    """Return Student's one-sided lower bound of a mean."""
    from scipy.special import stdtrit

    return float(values.mean() + stdtrit(len(values) - 1, ALPHA) * values.std(ddof=1) / len(values) ** 0.5)


def fit_slope(steps: np.ndarray, values: np.ndarray) -> tuple[float, float]:
    """Return the slope of a line through values, and its standard error."""
    centered = steps - steps.mean()
    squares = float(centered @ centered)
    if not squares:
        return 0.0, 0.0
    slope = float(centered @ values) / squares
    residual = values - values.mean() - slope * centered
    return slope, float((residual @ residual / max(len(values) - 2, 1) / squares) ** 0.5)


def is_negative(value: float, error: float, df: int) -> bool:
    """Check by Student's t that an estimate is below 0."""
    from scipy.special import stdtr

    return float(stdtr(df, value / error)) < ALPHA if error else value < 0


def is_score_flat(scores: Series, examples: int | None) -> bool:
    """Check that no score exceeds the first one by two standard errors of a difference.

    Without the number of examples, or with fewer than three scores, the result is False.
    """
    if len(scores) < 3 or not examples:
        return False
    first, best = scores.values[0], max(scores.values)
    return best - first <= 2 * _difference_error(first, best, examples)


def is_lower(before: float, now: float, examples: int | None) -> bool:
    """Check that a score is shown to be lower than before, at 1 %.

    The standard error is that of independent examples, which is too large for two scores on the same examples.
    """
    return bool(examples) and before - now > 2.33 * _difference_error(before, now, examples or 1)


def _difference_error(one: float, other: float, examples: int) -> float:
    """Return the standard error of the difference of two shares of as many independent examples."""
    variance = sum(max(share * (1 - share), 0.0) for share in (one, other)) / examples
    return variance**0.5 if isfinite(variance) else 0.0
