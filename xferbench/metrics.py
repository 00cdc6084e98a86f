"""Metrics of predictions as scores by example, so that one interval serves them all.

Accuracy, NLL, Brier score, sensitivity and specificity are means of a score by example. Balanced accuracy and AUROC are not;
they are written as means of jackknife pseudo-values (Dorfman, Berbaum & Metz 1992), which go through the same interval, and
a bootstrap may widen it.

Class 1 is the positive class of sensitivity, specificity and AUROC, the others together are the negative one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from xferbench import stats
from xferbench.problem import Problem, nearest

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from xferbench.record import Estimate, Predictions

SMALLEST = float(np.finfo(np.float32).eps)  # NLL clips p(true) here: 1.2e-7, as scikit-learn does for float32
POSITIVE = 1

Term = TypeVar("Term")


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A metric's unit and kind.

    Attributes:
        span: how far apart two scores of one example can be; of pseudo-values where every class has as many examples.
        loss: whether less is better. mean: whether it is a mean of scores that each need only their own example.
        everywhere: whether it makes sense on other classes than the target's, too.
    """

    unit: str
    span: float = 1.0
    loss: bool = False
    mean: bool = True
    everywhere: bool = True


METRICS: Mapping[str, Metric] = {
    "accuracy": Metric(unit="accuracy"),
    "balanced_accuracy": Metric(unit="accuracy", mean=False),
    "sensitivity": Metric(unit="sensitivity", everywhere=False),
    "specificity": Metric(unit="specificity", everywhere=False),
    "auroc": Metric(unit="AUROC", span=2.0, mean=False, everywhere=False),
    "nll": Metric(unit="nats", span=-float(np.log(SMALLEST)), loss=True),
    "brier": Metric(unit="Brier score", span=2.0, loss=True),
}


def named(metric: str) -> Metric:
    """Look a metric up.

    Raises:
        Problem: where there is none of that name.
    """
    if metric not in METRICS:
        raise Problem("unknown metric", found=metric, expected=nearest(metric, METRICS))
    return METRICS[metric]


def scores(predictions: Predictions, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Score examples: a mask [N] of those that the metric is about, and their scores [n], whose mean is the metric.

    A NaN among the predictions stays one. The pseudo-values of balanced accuracy and AUROC are NaN where a class that
    they need has fewer than two examples.

    Raises:
        Problem: for an unknown metric, or AUROC where no probabilities by class were kept.
    """
    named(metric)
    label = predictions.label
    mask = np.ones(len(label), dtype=bool)
    correct = (predictions.predicted == label).astype(np.float64)
    match metric:
        case "accuracy":
            score = correct
        case "nll":
            score = -np.log(np.clip(predictions.p_true.astype(np.float64), SMALLEST, 1.0))
        case "brier":
            score = 1.0 - 2.0 * predictions.p_true.astype(np.float64) + predictions.sum_p2
        case "sensitivity":
            mask = label == POSITIVE
            score = correct[mask]
        case "specificity":
            mask = label != POSITIVE
            score = (predictions.predicted[mask] != POSITIVE).astype(np.float64)
        case "balanced_accuracy":
            score = _pseudo_values(correct, label, len(np.unique(label)))
        case _:
            score = _pseudo_values(_placements(_odds(predictions), label == POSITIVE), label == POSITIVE, 1)
    return mask, score


def value(predictions: Predictions, metric: str) -> float:
    """Compute a metric over all examples; NaN where it is not defined."""
    if named(metric).mean:
        _, score = scores(predictions, metric)
        return float(score.mean()) if len(score) else float("nan")
    if len(predictions.label) == 0:
        return float("nan")
    return float(_reweighted(predictions, metric)(np.ones((1, len(predictions.label))))[0])


def contrast(
    sides: Mapping[Term, Sequence[Predictions]], weights: Mapping[Term, float], *, metric: str, margin: float, alpha: float
) -> tuple[Estimate, np.ndarray]:
    """Estimate a weighted sum of sides, above 0 being harm, for losses too; and [S, n], the harms by seed and example.

    Args:
        sides: predictions of each side, one for each seed, all on the same examples in the same order.
        weights: by side, for a metric of which more is better.
    """
    first = next(iter(sides.values()))[0]
    sign = -1.0 if named(metric).loss else 1.0
    mask, _ = scores(first, metric)
    difference = np.zeros((len(next(iter(sides.values()))), int(mask.sum())))
    for side, weight in weights.items():
        difference += sign * weight * np.stack([scores(one, metric)[1] for one in sides[side]])
    groups = first.group[mask] if len(first.group) else None
    span = _span(first, metric) * max(sum(max(way * weight, 0.0) for weight in weights.values()) for way in (1.0, -1.0))
    if named(metric).mean:
        return stats.crossed(difference, margin=margin, alpha=alpha, groups=groups, span=span), difference

    def reweighted(counts: np.ndarray) -> np.ndarray:
        total = np.zeros((len(counts), len(difference)))
        for side, weight in weights.items():
            total += weight * np.stack([_reweighted(one, metric)(counts) for one in sides[side]], axis=1)
        return total

    return crossed_bootstrap(difference, reweighted, margin=margin, alpha=alpha, groups=groups, span=span), difference


def crossed_bootstrap(
    pseudo: np.ndarray,
    reweighted: Callable[[np.ndarray], np.ndarray],
    *,
    margin: float,
    alpha: float,
    groups: np.ndarray | None = None,
    span: float = 1.0,
    draws: int = 1000,
) -> Estimate:
    """Estimate a harm that is no mean over examples: the crossed interval of its pseudo-values, widened by a bootstrap.

    Examples (or groups) are resampled, the same for all seeds, and the seeds' own variance component is added: to resample
    both would count their interaction three times (Owen 2007). The standard error of each side is at least that of the
    bootstrap's standard deviation and of its quantile on that side. The same input gives the same answer.

    Args:
        pseudo: [S, N], pseudo-values, each row's mean being that seed's harm.
        reweighted: harm by seed, [draws, S], under example counts [draws, N].
        margin, alpha, groups, span: as in :func:`xferbench.stats.crossed`.
        draws: bootstrap samples.
    """
    from scipy.special import ndtri

    S, N = pseudo.shape
    _, member = np.unique(groups if groups is not None else np.arange(N), return_inverse=True)
    G = int(member.max(initial=-1)) + 1
    harm = pseudo.mean(1, keepdims=True)
    units = harm + stats.by_group(pseudo - harm, member) * np.bincount(member) * G / N  # a group weighs as its examples do
    if G < 2 or not np.isfinite(units).all():
        return stats.crossed(units, margin=margin, alpha=alpha)
    drawn = np.random.default_rng(0).integers(G, size=(draws, G)) + np.arange(draws)[:, None] * G
    counts = np.bincount(drawn.ravel(), minlength=draws * G).reshape(draws, G)[:, member].astype(np.float64)
    off = reweighted(counts).mean(1) - harm.mean()
    low, high = np.nanquantile(off, [alpha, 1 - alpha]) / ndtri([alpha, 1 - alpha])  # a draw may lack a class
    _, seeds, _, rest = stats.mean_squares(units)
    least = np.sqrt(np.maximum(np.nanstd(off), (low, high)) ** 2 + np.maximum(seeds - rest, 0.0) / (S * G))
    return stats.crossed(units, margin=margin, alpha=alpha, span=span, least_se=(float(least[0]), float(least[1])))


def best_of(candidates: Sequence[Predictions], metric: str, draws: int = 1000) -> list[float | None]:
    """How often each candidate is the best where examples, or whole groups, are drawn again; of equals the first is.

    None for a metric that is no mean over examples. The same input gives the same answer.
    """
    if not named(metric).mean:
        return [None] * len(candidates)
    sign = -1.0 if named(metric).loss else 1.0
    mask, _ = scores(candidates[0], metric)
    told = sign * np.stack([scores(one, metric)[1] for one in candidates])
    groups = candidates[0].group[mask] if len(candidates[0].group) else np.arange(told.shape[1])
    _, member = np.unique(groups, return_inverse=True)
    count = int(member.max()) + 1
    drawn = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), draws)
    totals = drawn[:, member].astype(np.float64) @ told.T
    best = totals.round(9).argmax(1)
    return [float((best == rank).mean()) for rank in range(len(candidates))]


def _span(predictions: Predictions, metric: str) -> float:
    """Tell how far apart two scores of one example can be."""
    if named(metric).mean:
        return named(metric).span
    _, size = np.unique(predictions.label == POSITIVE if metric == "auroc" else predictions.label, return_counts=True)
    return float((size.sum() - 1) / max(size.min() - 1, 1) / (len(size) if metric == "balanced_accuracy" else 1))


def _pseudo_values(score: np.ndarray, stratum: np.ndarray, share: int) -> np.ndarray:
    """Jackknife pseudo-values [N] of the mean over strata of their mean scores.

    Leaving an example out moves its stratum's mean, and that moves the metric by one part in ``share``: by a K-th for
    balanced accuracy; in full for AUROC, which is the mean placement of either class.
    """
    _, member, size = np.unique(stratum, return_inverse=True, return_counts=True)
    mean = np.bincount(member, score) / size
    with np.errstate(divide="ignore", invalid="ignore"):
        leverage = (len(score) - 1) / (share * (size - 1.0))
        pseudo: np.ndarray = mean.mean() + leverage[member] * (score - mean[member])
    return pseudo


def _odds(predictions: Predictions) -> np.ndarray:
    """Odds [N] of the positive class; unlike those of p(true), their rounding knows nothing of the label."""
    probabilities = predictions.probabilities.astype(np.float64)
    if probabilities.shape[1] <= POSITIVE:
        raise Problem("AUROC needs the probabilities of all classes", found="none kept", expected="2 to 20 classes")
    positive = probabilities[:, POSITIVE]
    with np.errstate(divide="ignore", invalid="ignore"):
        odds: np.ndarray = positive / (probabilities.sum(1) - positive)
    return odds


def _placements(odds: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """Share [N] of the other class that each example is on the right side of, ties counting half (DeLong et al. 1988)."""
    placed = np.full(len(odds), np.nan)
    if np.isnan(odds).any() or positive.all() or not positive.any():
        return placed
    for one, sign in ((positive, 1.0), (~positive, -1.0)):
        others, own = np.sort(sign * odds[~one]), sign * odds[one]
        placed[one] = (np.searchsorted(others, own) + np.searchsorted(others, own, side="right")) / (2 * len(others))
    return placed


def _reweighted(predictions: Predictions, metric: str) -> Callable[[np.ndarray], np.ndarray]:
    """Balanced accuracy or AUROC as a function of example counts, [draws, N] → [draws]; NaN where a draw lacks a class."""
    label = predictions.label
    if metric == "balanced_accuracy":
        member = (label[:, None] == np.unique(label)).astype(np.float64)
        hit = member * (predictions.predicted == label)[:, None]
        return lambda counts: _ratio(counts @ hit, counts @ member)
    odds, positive = _odds(predictions), label == POSITIVE
    if np.isnan(odds).any():
        return lambda counts: np.full(len(counts), np.nan)
    low, high = np.flatnonzero(~positive), np.flatnonzero(positive)
    low = low[np.argsort(odds[low], kind="stable")]
    under, upto = (np.searchsorted(odds[low], odds[high], side=side) for side in ("left", "right"))

    def auroc(counts: np.ndarray) -> np.ndarray:
        below = np.cumsum(np.pad(counts[:, low], ((0, 0), (1, 0))), axis=1)
        won = np.einsum("di,di->d", counts[:, high], below[:, under] + below[:, upto]) / 2
        return _ratio(won[:, None], (counts[:, high].sum(1) * below[:, -1])[:, None])

    return auroc


def _ratio(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    """Mean [draws] over classes of [draws, classes] ratios."""
    with np.errstate(divide="ignore", invalid="ignore"):
        mean: np.ndarray = (above / below).mean(1)
    return mean
