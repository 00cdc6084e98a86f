"""Metrics of predictions, written as scores of single examples so that one interval serves all metrics. Pure.

Class 1 is the positive class of sensitivity, specificity and AUROC; all other classes together are the negative class.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from xferbench.analysis import intervals
from xferbench.core.errors import UserError, suggest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xferbench.core.record import Predictions
    from xferbench.core.run import Estimate

MIN_PROBABILITY = float(np.finfo(np.float32).eps)  # NLL clips p(true) to at least 1.2e-7, as scikit-learn does for float32
POSITIVE_CLASS = 1

Term = TypeVar("Term")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """The unit and kind of a metric.

    Attributes:
        unit: name of the unit.
        span: largest difference between two scores of one example; for pseudo-values, the span in a balanced data set.
        loss: whether lower is better.
        mean: whether the metric is a mean of scores that each depend on one example only.
        everywhere: whether the metric also makes sense on classes other than those of the target.
    """

    unit: str
    span: float = 1.0
    loss: bool = False
    mean: bool = True
    everywhere: bool = True


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(unit="accuracy"),
    "balanced_accuracy": Metric(unit="balanced accuracy", mean=False),
    "sensitivity": Metric(unit="sensitivity", everywhere=False),
    "specificity": Metric(unit="specificity", everywhere=False),
    "auroc": Metric(unit="AUROC", span=2.0, mean=False, everywhere=False),
    "nll": Metric(unit="nats", span=-float(np.log(MIN_PROBABILITY)), loss=True),
    "brier": Metric(unit="Brier score", span=2.0, loss=True),
}


def get_metric(metric: str) -> Metric:
    """Return the metric with this name.

    Raises:
        UserError: if there is no such metric.
    """
    if metric not in METRICS:
        raise UserError("unknown metric", found=metric, expected=suggest(metric, METRICS))
    return METRICS[metric]


def example_scores(predictions: Predictions, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Return a mask [N] of the examples that the metric covers, and their scores [n]. The mean of the scores is the metric.

    Accuracy, NLL, Brier score, sensitivity and specificity are means of a score by example. Balanced accuracy and AUROC are
    not. They are written as means of jackknife pseudo-values (Dorfman, Berbaum & Metz 1992), which use the same interval; a
    bootstrap may widen it.

    NaN among the predictions stays NaN. The pseudo-values of balanced accuracy and AUROC are NaN if a class that they need
    has fewer than two examples.

    Raises:
        UserError: for an unknown metric, or for AUROC without stored class probabilities.
    """
    get_metric(metric)
    label = predictions.label
    mask = np.ones(len(label), dtype=bool)
    correct = (predictions.predicted == label).astype(np.float64)
    match metric:
        case "accuracy":
            score = correct
        case "nll":
            score = -np.log(np.clip(predictions.p_true.astype(np.float64), MIN_PROBABILITY, 1.0))
        case "brier":
            score = 1.0 - 2.0 * predictions.p_true.astype(np.float64) + predictions.sum_p2
        case "sensitivity":
            mask = label == POSITIVE_CLASS
            score = correct[mask]
        case "specificity":
            mask = label != POSITIVE_CLASS
            score = (predictions.predicted[mask] != POSITIVE_CLASS).astype(np.float64)
        case "balanced_accuracy":
            score = _pseudo_values(correct, label, len(np.unique(label)))
        case _:
            score = _pseudo_values(
                _placements(_positive_odds(predictions), label == POSITIVE_CLASS), label == POSITIVE_CLASS, 1
            )
    return mask, score


def metric_value(predictions: Predictions, metric: str) -> float:
    """Compute a metric over all examples; NaN if it is not defined."""
    if get_metric(metric).mean:
        _, score = example_scores(predictions, metric)
        return float(score.mean()) if len(score) else float("nan")
    if len(predictions.label) == 0:
        return float("nan")
    return float(_reweighted(predictions, metric)(np.ones((1, len(predictions.label))))[0])


def estimate_metric_contrast(
    sides: Mapping[Term, Sequence[Predictions]],
    weights: Mapping[Term, float],
    *,
    metric: str,
    margin: float,
    alpha: float,
    span: float | None = None,
) -> tuple[Estimate, np.ndarray]:
    """Estimate a weighted sum of metrics, and return the estimate and the harms [S, n] by seed and example.

    Positive values are harm, for losses too.

    Args:
        sides: predictions of each side, one for each seed; all sides have the same examples in the same order.
        weights: weight of each side, for a metric where higher is better.
        metric: name of the metric.
        margin: the margin, in the metric's unit.
        alpha: level of each bound.
        span: the largest harm that one example can show, or None for that of the metric.
    """
    example_predictions = next(iter(sides.values()))[0]
    sign = -1.0 if get_metric(metric).loss else 1.0
    mask, _ = example_scores(example_predictions, metric)
    difference = np.zeros((len(next(iter(sides.values()))), int(mask.sum())))
    for side, weight in weights.items():
        difference += sign * weight * np.stack([example_scores(predictions, metric)[1] for predictions in sides[side]])
    groups = example_predictions.group[mask] if len(example_predictions.group) else None
    largest_weight = max(sum(max(direction * weight, 0.0) for weight in weights.values()) for direction in (1.0, -1.0))
    span = span or _score_span(example_predictions, metric) * largest_weight
    if get_metric(metric).mean:
        return intervals.crossed_interval(difference, margin=margin, alpha=alpha, groups=groups, span=span), difference

    def reweighted(counts: np.ndarray) -> np.ndarray:
        total = np.zeros((len(counts), len(difference)))
        for side, weight in weights.items():
            total += weight * np.stack([_reweighted(predictions, metric)(counts) for predictions in sides[side]], axis=1)
        return total

    return crossed_bootstrap(
        difference, reweighted, margin=margin, alpha=alpha, groups=groups, span=span, limit=largest_weight
    ), difference


def crossed_bootstrap(
    pseudo: np.ndarray,
    reweighted: Callable[[np.ndarray], np.ndarray],
    *,
    margin: float,
    alpha: float,
    groups: np.ndarray | None = None,
    span: float = 1.0,
    limit: float = 1.0,
    draws: int = 1000,
) -> Estimate:
    """Estimate a harm that is not a mean over examples: the crossed interval of its pseudo-values, widened by a bootstrap.

    Examples (or groups) are resampled, the same ones for all seeds, and the variance component of the seeds is added.
    Resampling both would count their interaction three times (Owen 2007). The standard error of each side is at least the
    bootstrap's standard deviation, and at least what its quantile on that side implies. The result is deterministic.

    Args:
        pseudo: [S, N], pseudo-values; the mean of each row is the harm at that seed.
        reweighted: function that returns the harm by seed, [draws, S], for example counts [draws, N].
        margin: as in :func:`xferbench.analysis.intervals.crossed_interval`, and so are ``alpha``, ``groups`` and ``span``.
        alpha: level of each bound.
        groups: [N] integers, or None.
        span: the largest harm that one example can show.
        limit: the largest possible harm.
        draws: number of bootstrap samples.
    """
    from scipy.special import ndtri

    S, N = pseudo.shape
    _, member = np.unique(groups if groups is not None else np.arange(N), return_inverse=True)
    G = int(member.max(initial=-1)) + 1
    harm = pseudo.mean(1, keepdims=True)
    units = intervals.group_values(pseudo, member)
    if G < 2 or not np.isfinite(units).all():
        return intervals.crossed_interval(units, margin=margin, alpha=alpha)
    resampled = np.random.default_rng(0).integers(G, size=(draws, G)) + np.arange(draws)[:, None] * G
    counts = np.bincount(resampled.ravel(), minlength=draws * G).reshape(draws, G)[:, member].astype(np.float64)
    deviation = reweighted(counts).mean(1) - harm.mean()
    low, high = np.nanquantile(deviation, [alpha, 1 - alpha]) / ndtri([alpha, 1 - alpha])  # a draw without a class is NaN
    _, seeds, _, residual = intervals.mean_squares(units)
    least_se = np.sqrt(np.maximum(np.nanstd(deviation), (low, high)) ** 2 + np.maximum(seeds - residual, 0.0) / (S * G))
    return intervals.crossed_interval(
        units, margin=margin, alpha=alpha, span=span, limit=limit, least_se=(float(least_se[0]), float(least_se[1]))
    )


def selection_frequencies(candidates: Sequence[Predictions], metric: str, draws: int = 1000) -> list[float | None]:
    """Return the share of resamples in which each candidate is the best; examples, or whole groups, are resampled.

    The first of several equal candidates counts as the best. The shares are None for a metric that is not a mean over
    examples. The result is deterministic.
    """
    if not get_metric(metric).mean:
        return [None] * len(candidates)
    sign = -1.0 if get_metric(metric).loss else 1.0
    mask, _ = example_scores(candidates[0], metric)
    values = sign * np.stack([example_scores(candidate, metric)[1] for candidate in candidates])
    groups = candidates[0].group[mask] if len(candidates[0].group) else np.arange(values.shape[1])
    _, member = np.unique(groups, return_inverse=True)
    count = int(member.max()) + 1
    resample_counts = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), draws)
    totals = resample_counts[:, member].astype(np.float64) @ values.T
    best = totals.round(9).argmax(1)
    return [float((best == index).mean()) for index in range(len(candidates))]


def _score_span(predictions: Predictions, metric: str) -> float:
    """Return the largest difference between two scores of one example."""
    if get_metric(metric).mean:
        return get_metric(metric).span
    _, sizes = np.unique(predictions.label == POSITIVE_CLASS if metric == "auroc" else predictions.label, return_counts=True)
    return float((sizes.sum() - 1) / max(sizes.min() - 1, 1) / (len(sizes) if metric == "balanced_accuracy" else 1))


def _pseudo_values(score: np.ndarray, stratum: np.ndarray, share: int) -> np.ndarray:
    """Return jackknife pseudo-values [N] of the mean over strata of their mean scores.

    Leaving out an example changes the mean of its stratum, and this changes the metric by one part in ``share``: the number
    of classes for balanced accuracy; 1 for AUROC, which is the mean placement of either class.
    """
    _, member, size = np.unique(stratum, return_inverse=True, return_counts=True)
    mean = np.bincount(member, score) / size
    with np.errstate(divide="ignore", invalid="ignore"):
        leverage = (len(score) - 1) / (share * (size - 1.0))
        pseudo: np.ndarray = mean.mean() + leverage[member] * (score - mean[member])
    return pseudo


def _positive_odds(predictions: Predictions) -> np.ndarray:
    """Return the odds [N] of the positive class.

    Unlike odds computed from p(true), their rounding does not depend on the label.
    """
    probabilities = predictions.probabilities.astype(np.float64)
    if probabilities.shape[1] <= POSITIVE_CLASS:
        raise UserError(
            "AUROC needs the probabilities of all classes", found="no stored probabilities", expected="2 to 20 classes"
        )
    positive = probabilities[:, POSITIVE_CLASS]
    with np.errstate(divide="ignore", invalid="ignore"):
        odds: np.ndarray = positive / (probabilities.sum(1) - positive)
    return odds


def _placements(odds: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Return the share [N] of the other class that each example is ranked correctly against; a tie counts half.

    Reference: DeLong et al. 1988.
    """
    placements = np.full(len(odds), np.nan)
    if np.isnan(odds).any() or positive.all() or not positive.any():
        return placements
    for mask, sign in ((positive, 1.0), (~positive, -1.0)):
        others, values = np.sort(sign * odds[~mask]), sign * odds[mask]
        placements[mask] = (np.searchsorted(others, values) + np.searchsorted(others, values, side="right")) / (2 * len(others))
    return placements


def _reweighted(predictions: Predictions, metric: str) -> Callable[[np.ndarray], np.ndarray]:
    """Return balanced accuracy or AUROC as a function of example counts, [draws, N] → [draws]; NaN if a draw lacks a class."""
    label = predictions.label
    if metric == "balanced_accuracy":
        member = (label[:, None] == np.unique(label)).astype(np.float64)
        hit = member * (predictions.predicted == label)[:, None]
        return lambda counts: _mean_ratio(counts @ hit, counts @ member)
    odds, positive = _positive_odds(predictions), label == POSITIVE_CLASS
    if np.isnan(odds).any():
        return lambda counts: np.full(len(counts), np.nan)
    low, high = np.flatnonzero(~positive), np.flatnonzero(positive)
    low = low[np.argsort(odds[low], kind="stable")]
    under, up_to = (np.searchsorted(odds[low], odds[high], side=side) for side in ("left", "right"))

    def auroc(counts: np.ndarray) -> np.ndarray:
        below = np.cumsum(np.pad(counts[:, low], ((0, 0), (1, 0))), axis=1)
        wins = np.einsum("di,di->d", counts[:, high], below[:, under] + below[:, up_to]) / 2
        return _mean_ratio(wins[:, None], (counts[:, high].sum(1) * below[:, -1])[:, None])

    return auroc


def _mean_ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Return the mean [draws] over classes of the ratios [draws, classes]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: np.ndarray = (numerator / denominator).mean(1)
    return mean
