"""Estimate the harm of a contrast by seed and test example from trial records. Pure. Missing data never gives a decision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis import intervals, metrics
from xferbench.core.plugin import Contrast
from xferbench.core.reason import Code, Reason, because
from xferbench.core.record import Predictions, Record
from xferbench.core.run import Estimate

if TYPE_CHECKING:
    from xferbench.core.suite import Rules

RecordsByTerm = Mapping[tuple[str, str, int], Record]  # by arm, view and seed

MIN_SEEDS_WITH_GAP, MIN_SEEDS_FOR_MEAN = 3, 10  # numbers of seeds between which a gap counts

UNDECIDED = Estimate(
    harm=float("nan"),
    low=float("nan"),
    high=float("nan"),
    p_fail=1.0,
    p_pass=1.0,
    se=float("nan"),
    df=float("nan"),
    seeds=0,
    examples=0,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastEstimate:
    """The estimate of a contrast with the values behind it.

    Attributes:
        estimate: the harm with its bounds and p-values.
        exposed: whether the sides of the contrast differ at all.
        difference: [S, N] harms by seed and example.
        groups: [N] groups, or empty.
        span: the largest harm that one example can show.
        error: why there is no estimate, or None.
    """

    estimate: Estimate
    exposed: bool
    difference: np.ndarray
    groups: np.ndarray
    span: float = 1.0
    error: Reason | None = None


def estimate_contrast(contrast: Contrast, records: RecordsByTerm, seeds: Sequence[int], rules: Rules) -> ContrastEstimate:
    """Estimate the harm of a contrast over some seeds in the metric of the rules. Positive values are harm, for losses too.

    If both sides request the same trials, the harm is exactly 0 and nothing is estimated. A crash, a missing record or
    different sets of examples give an error and p-values of 1. A contrast of kind ``info`` may have sides with different
    examples.
    """
    terms = {(term, seed): records.get((*term, seed)) for term in contrast.weights for seed in seeds}
    predictions, error = collect_predictions(terms)
    if error is not None:
        return undecided(error)
    first = next(iter(predictions.values()))
    is_mixed = any(not np.array_equal(part.example, first.example) for part in predictions.values())
    if is_mixed and contrast.kind == "info":
        return _estimate_from_parts(contrast, predictions, seeds, rules)
    if is_mixed:
        return undecided(because(Code.OTHER_EXAMPLES))
    keys = {term: record.key for term, record in terms.items() if record is not None}
    if all(_is_identity(contrast, keys, seed) for seed in seeds):
        exact = Estimate(
            harm=0.0, low=0.0, high=0.0, p_fail=1.0, p_pass=0.0, se=0.0, df=1.0, seeds=len(seeds), examples=len(first.label)
        )
        return ContrastEstimate(
            estimate=exact, exposed=False, difference=np.zeros((len(seeds), len(first.label))), groups=first.group
        )
    sides = {term: [predictions[term, seed] for seed in seeds] for term in contrast.weights}
    estimate, difference = metrics.estimate_metric_contrast(
        sides, contrast.weights, metric=rules.metric, margin=rules.margin, alpha=rules.alpha, span=contrast.span
    )
    groups = first.group[metrics.example_scores(first, rules.metric)[0]] if len(first.group) else first.group
    span = contrast.span or metrics.get_metric(rules.metric).span * max(map(abs, contrast.weights.values()))
    return ContrastEstimate(estimate=estimate, exposed=True, difference=difference, groups=groups, span=span)


def collect_predictions(
    records: Mapping[tuple[tuple[str, str], int], Record | None],
) -> tuple[dict[tuple[tuple[str, str], int], Predictions], Reason | None]:
    """Return the predictions of some records, and why any of them is missing. A crash takes precedence as the reason."""
    crashes = [
        because(Code.CRASHED, arm=arm, seed=seed, error=record.error)
        for ((arm, _), seed), record in records.items()
        if record and record.error
    ]
    predictions = {term: record.predictions for term, record in records.items() if record and record.predictions is not None}
    empty = {term for term, record in records.items() if record and record.predictions is None}
    missing = [
        because(Code.NOTHING_SCORED, arm=term[0])
        if (term, seed) in empty
        else because(Code.NO_PREDICTIONS, arm=term[0], seed=seed)
        for term, seed in records
        if (term, seed) not in predictions
    ]
    unmeasured = [] if predictions else [because(Code.NOT_MEASURED_AT_ANY_SEED)]
    return predictions, next(iter([*crashes, *missing, *unmeasured]), None)


def _estimate_from_parts(
    contrast: Contrast, predictions: Mapping[tuple[tuple[str, str], int], Predictions], seeds: Sequence[int], rules: Rules
) -> ContrastEstimate:
    """Estimate a difference between means over different examples.

    An example that a side lacks has no weight in the mean of that side.
    """
    examples, group = _all_examples(list(predictions.values()))
    metric, count = metrics.get_metric(rules.metric), len(examples)
    order = np.argsort(examples, kind="stable")
    difference = np.zeros((len(seeds), count))
    smallest = count
    for (term, seed), part in predictions.items():
        columns = np.flatnonzero(np.isin(examples, part.example))
        if not np.array_equal(examples[columns], part.example):
            columns = order[np.searchsorted(examples, part.example, sorter=order)]
        mask, score = metrics.example_scores(part, rules.metric)
        if not metric.mean or not mask.all() or not len(score):
            return undecided(because(Code.METRIC_OF_PARTS, metric=rules.metric))
        sign = -1.0 if metric.loss else 1.0
        row, weight = difference[list(seeds).index(seed)], sign * contrast.weights[term]
        row += weight * score.mean()
        np.add.at(row, columns, weight * (score - score.mean()) * count / len(score))  # absent examples do not change the mean
        smallest = min(smallest, len(score))
    groups = group if len(group) else None
    limit = metric.span * max(map(abs, contrast.weights.values()))
    span = limit * count / smallest
    estimate = intervals.crossed_interval(
        difference, margin=rules.margin, alpha=rules.alpha, groups=groups, span=span, limit=limit
    )
    return ContrastEstimate(estimate=estimate, exposed=True, difference=difference, groups=group, span=span)


def _all_examples(parts: Sequence[Predictions]) -> tuple[np.ndarray, np.ndarray]:
    """Return all examples [N] of any of the predictions, those of the longest first, and their groups [N] or an empty array."""
    longest = max(parts, key=lambda part: len(part.example))
    example, group = (np.concatenate([getattr(part, name) for part in parts]) for name in ("example", "group"))
    _, first = np.unique(example, return_index=True)
    extra = np.sort(first[~np.isin(example[first], longest.example)])
    return (
        np.concatenate([longest.example, example[extra]]),
        np.concatenate([longest.group, group[extra]]) if len(group) == len(example) else longest.group[:0],
    )


def undecided(error: Reason) -> ContrastEstimate:
    """Return a contrast without an estimate; its p-values are 1."""
    return ContrastEstimate(estimate=UNDECIDED, exposed=True, difference=np.empty((0, 0)), groups=np.empty(0), error=error)


def _is_identity(contrast: Contrast, keys: Mapping[tuple[tuple[str, str], int], str], seed: int) -> bool:
    """Return whether the contrast is identically zero at a seed because its terms share the same trials."""
    total: dict[str, float] = {}
    for term, weight in contrast.weights.items():
        total[keys[term, seed]] = total.get(keys[term, seed], 0.0) + weight
    return all(weight == 0 for weight in total.values())


def invariant_value(contrast: Contrast, records: RecordsByTerm, seed: int) -> float:
    """Return an invariant's sum at a seed, 0 if it holds; NaN if a measure is missing, and NaN is not 0."""
    total = 0.0
    for (arm, view), weight in contrast.weights.items():
        record = records.get((arm, view, seed))
        total += weight * (float("nan") if record is None else record.scalars.get(view, float("nan")))
    return total


def positive_control(contrast: Contrast, variant: str) -> Contrast:
    """Return the positive control of a contrast: the same contrast with an induced arm as the subject.

    In a contrast without the subject, the induced arm replaces the cured one.
    """
    return swap_arm(contrast, judged_arm(contrast), f"induced:{variant}")


def judged_arm(contrast: Contrast) -> str:
    """Return the arm that a contrast judges: the subject, or the cured arm in a contrast without the subject."""
    return "subject" if any(arm == "subject" for arm, _ in contrast.weights) else "cured"


def swap_arm(contrast: Contrast, old: str, new: str) -> Contrast:
    """Return a contrast with one arm replaced by another; weights of the same term are added."""
    weights: dict[tuple[str, str], float] = {}
    for (arm, view), weight in contrast.weights.items():
        term = (new if arm == old else arm, view)
        weights[term] = weights.get(term, 0.0) + weight
    return replace(contrast, weights=weights)


def mean_accuracy(records: RecordsByTerm, arm: str, seeds: Sequence[int], view: str = "test") -> float | None:
    """Return the mean accuracy of an arm in a view over the seeds that have predictions; None if there are none."""
    parts = _stored_predictions(records, arm, seeds, view)
    return float(np.mean([(part.predicted == part.label).mean() for part in parts])) if parts else None


def _stored_predictions(records: RecordsByTerm, arm: str, seeds: Sequence[int], view: str) -> list[Predictions]:
    """Return the predictions of an arm in a view at the seeds that have them."""
    arm_records = [records.get((arm, view, seed)) for seed in seeds]
    return [record.predictions for record in arm_records if record is not None and record.predictions is not None]


def majority_baseline_share(
    records: RecordsByTerm, arm: str, seeds: Sequence[int], margin: float, view: str = "test"
) -> float | None:
    """Return the share of the most frequent class if the accuracy of an arm does not exceed it by the margin; else None."""
    parts = _stored_predictions(records, arm, seeds, view)
    accuracy = mean_accuracy(records, arm, seeds, view)
    if not parts or accuracy is None:
        return None
    share = float(np.bincount(parts[0].label).max() / len(parts[0].label))
    return share if accuracy < share + margin else None


def benefit_retained(records: RecordsByTerm, seeds: Sequence[int], rules: Rules) -> float | None:
    """Return (subject − scratch) / (cured − scratch) in accuracy; None unless cured is shown to be better than scratch."""
    contrast = Contrast(name="gain", weights={("cured", "test"): 1.0, ("scratch", "test"): -1.0})
    gain = estimate_contrast(contrast, records, seeds, replace(rules, metric="accuracy", margin=0.0))
    means = [mean_accuracy(records, arm, seeds) for arm in ("subject", "cured", "scratch")]
    if gain.error or not gain.exposed or not gain.estimate.low > 0 or None in means:
        return None
    subject, cured, scratch = (float(mean) for mean in means if mean is not None)
    return (subject - scratch) / (cured - scratch)


def has_seeds_apart(estimate: ContrastEstimate, margin: float) -> bool:
    """Return whether a few of the seeds are far more harmed than the others, and there are too few seeds for a mean.

    Student's t assumes that seeds are alike. If one seed in five to ten fails, most samples of five seeds have none or one, and
    an interval from them is too narrow. Seeds are apart if a gap separates the most harmed half, or fewer, from the others. The
    gap must exceed the margin and three times the range of the others.
    """
    harms = np.sort(estimate.difference.mean(1)) if estimate.difference.size else np.empty(0)
    if estimate.error or not MIN_SEEDS_WITH_GAP <= len(harms) < MIN_SEEDS_FOR_MEAN:
        return False
    first = max(2, -(-len(harms) // 2))  # the others are at least two, and at least half
    gaps, ranges = np.diff(harms)[first - 1 :], (harms - harms[0])[first - 1 : -1]
    return bool(((gaps > margin) & (gaps > 3 * ranges)).any())


def count_diverged(records: RecordsByTerm, arm: str, seeds: Sequence[int]) -> int:
    """Return the number of seeds at which the training of an arm diverged."""
    arm_records = [records.get((arm, "test", seed)) for seed in seeds]
    return sum(record.scalars.get("diverged", 0.0) > 0 for record in arm_records if record is not None)
