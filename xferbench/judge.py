"""From records to estimates: the harm of a contrast by seed and by test example. Pure; whatever is missing decides nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from xferbench import metrics, stats
from xferbench.design import Contrast, Suite
from xferbench.record import Estimate, Predictions, Record

Answers = Mapping[tuple[str, str, int], Record]  # by arm, view and seed

NOTHING = Estimate(
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
class Judged:
    """A contrast's estimate, whether its sides differ at all, and what is behind it: [S, N] harms and [N] groups (or empty).

    ``span`` is the largest harm that one example can show.
    """

    estimate: Estimate
    exposed: bool
    difference: np.ndarray
    groups: np.ndarray
    span: float = 1.0
    error: str = ""


def judge(contrast: Contrast, answers: Answers, seeds: Sequence[int], suite: Suite) -> Judged:
    """Estimate a contrast's harm over some seeds in the suite's metric; above 0 is harm, for losses too.

    Where both sides ask for the same trials the harm is exactly 0, and nothing is estimated. A crash, a missing record or
    an unequal set of examples gives an error and p-values of 1; but what is only measured may be of a part, or of others.
    """
    records = {(term, seed): answers.get((*term, seed)) for term in contrast.weights for seed in seeds}
    told, error = _predictions(records)
    if error:
        return _undecided(error)
    first = next(iter(told.values()))
    unequal = any(not np.array_equal(one.example, first.example) for one in told.values())
    if unequal and contrast.kind == "info":
        return _of_parts(contrast, told, seeds, suite)
    if unequal:
        return _undecided("the arms were not scored on the same examples")
    keys = {at: one.key for at, one in records.items() if one is not None}
    if all(_cancels(contrast, keys, seed) for seed in seeds):
        exact = Estimate(
            harm=0.0, low=0.0, high=0.0, p_fail=1.0, p_pass=0.0, se=0.0, df=1.0, seeds=len(seeds), examples=len(first.label)
        )
        return Judged(estimate=exact, exposed=False, difference=np.zeros((len(seeds), len(first.label))), groups=first.group)
    sides = {term: [told[term, seed] for seed in seeds] for term in contrast.weights}
    estimate, difference = metrics.contrast(
        sides, contrast.weights, metric=suite.metric, margin=suite.margin, alpha=suite.alpha
    )
    groups = first.group[metrics.scores(first, suite.metric)[0]] if len(first.group) else first.group
    span = metrics.named(suite.metric).span * max(map(abs, contrast.weights.values()))
    return Judged(estimate=estimate, exposed=True, difference=difference, groups=groups, span=span)


def _predictions(
    records: Mapping[tuple[tuple[str, str], int], Record | None],
) -> tuple[dict[tuple[tuple[str, str], int], Predictions], str]:
    """The predictions of some records, or why they cannot be had: a crash before what is only missing."""
    crashed = [f"{arm} (seed {seed}): {one.error}" for ((arm, _), seed), one in records.items() if one and one.error]
    told = {at: one.predictions for at, one in records.items() if one and one.predictions is not None}
    empty = {at for at, one in records.items() if one and one.predictions is None}
    missing = [
        f"{term[0]} has " + ("nothing to be scored on" if (term, seed) in empty else f"no predictions at seed {seed}")
        for term, seed in records
        if (term, seed) not in told
    ]
    return told, next(iter([*crashed, *missing, *([] if told else ["not measured at any seed"])]), "")


def _of_parts(
    contrast: Contrast, told: Mapping[tuple[tuple[str, str], int], Predictions], seeds: Sequence[int], suite: Suite
) -> Judged:
    """A difference between means over examples of their own; those that are left out of one have no weight there."""
    whole, group = _whole(list(told.values()))
    metric, count = metrics.named(suite.metric), len(whole)
    order = np.argsort(whole, kind="stable")
    difference = np.zeros((len(seeds), count))
    least = count
    for (term, seed), one in told.items():
        part = np.flatnonzero(np.isin(whole, one.example))
        if not np.array_equal(whole[part], one.example):
            part = order[np.searchsorted(whole, one.example, sorter=order)]
        about, score = metrics.scores(one, suite.metric)
        if not metric.mean or not about.all() or not len(score):
            return _undecided(f"{suite.metric} on a part of the examples cannot be compared with that on all")
        sign = -1.0 if metric.loss else 1.0
        row, weight = difference[list(seeds).index(seed)], sign * contrast.weights[term]
        row += weight * score.mean()
        np.add.at(row, part, weight * (score - score.mean()) * count / len(score))  # so that who is left out moves no mean
        least = min(least, len(score))
    groups = group if len(group) else None
    span = metric.span * max(map(abs, contrast.weights.values())) * count / least
    estimate = stats.crossed(difference, margin=suite.margin, alpha=suite.alpha, groups=groups, span=span)
    return Judged(estimate=estimate, exposed=True, difference=difference, groups=group, span=span)


def _whole(told: Sequence[Predictions]) -> tuple[np.ndarray, np.ndarray]:
    """All examples [N] that any predictions are about, those of the longest first, and their groups [N] (or none)."""
    longest = max(told, key=lambda one: len(one.example))
    example, group = (np.concatenate([getattr(one, name) for one in told]) for name in ("example", "group"))
    _, first = np.unique(example, return_index=True)
    more = np.sort(first[~np.isin(example[first], longest.example)])
    return (
        np.concatenate([longest.example, example[more]]),
        np.concatenate([longest.group, group[more]]) if len(group) == len(example) else longest.group[:0],
    )


def _undecided(error: str) -> Judged:
    return Judged(estimate=NOTHING, exposed=True, difference=np.empty((0, 0)), groups=np.empty(0), error=error)


def _cancels(contrast: Contrast, keys: Mapping[tuple[tuple[str, str], int], str], seed: int) -> bool:
    total: dict[str, float] = {}
    for term, weight in contrast.weights.items():
        total[keys[term, seed]] = total.get(keys[term, seed], 0.0) + weight
    return all(weight == 0 for weight in total.values())


def exact(contrast: Contrast, answers: Answers, seed: int) -> float:
    """An invariant's sum at a seed, 0 where it holds; NaN where a measure is missing, and NaN is not 0."""
    found = [answers.get((arm, view, seed)) for arm, view in contrast.weights]
    values = [
        float("nan") if one is None else one.scalars.get(view, float("nan"))
        for one, (_, view) in zip(found, contrast.weights, strict=True)
    ]
    return sum(weight * value for weight, value in zip(contrast.weights.values(), values, strict=True))


def with_induced(contrast: Contrast, variant: str) -> Contrast:
    """The positive control of a contrast: the same with an induced arm in the subject's place."""
    return replace_arm(contrast, "subject", f"induced:{variant}")


def replace_arm(contrast: Contrast, old: str, new: str) -> Contrast:
    """A contrast with one arm in another's place; weights that meet are added."""
    weights: dict[tuple[str, str], float] = {}
    for (arm, view), weight in contrast.weights.items():
        term = (new if arm == old else arm, view)
        weights[term] = weights.get(term, 0.0) + weight
    return replace(contrast, weights=weights)


def accuracy(answers: Answers, arm: str, seeds: Sequence[int], view: str = "test") -> float | None:
    """Mean accuracy of an arm in a view (the target's, if not said) over the seeds that have it; None where none has."""
    found = [answers.get((arm, view, seed)) for seed in seeds]
    told = [one.predictions for one in found if one is not None and one.predictions is not None]
    return float(np.mean([(one.predicted == one.label).mean() for one in told])) if told else None


def learnt_nothing(answers: Answers, arm: str, seeds: Sequence[int], margin: float, view: str = "test") -> float | None:
    """The most frequent class's share of a view's images, if an arm's accuracy is not above it by the margin; else None."""
    found = [answers.get((arm, view, seed)) for seed in seeds]
    known = [one.predictions for one in found if one is not None and one.predictions is not None]
    reached = accuracy(answers, arm, seeds, view)
    if not known or reached is None:
        return None
    share = float(np.bincount(known[0].label).max() / len(known[0].label))
    return share if reached < share + margin else None


def benefit_retained(answers: Answers, seeds: Sequence[int], suite: Suite) -> float | None:
    """(subject − scratch) / (cured − scratch) in accuracy; None unless cured is shown to beat scratch."""
    gain = Contrast(name="gain", weights={("cured", "test"): 1.0, ("scratch", "test"): -1.0})
    shown = judge(gain, answers, seeds, replace(suite, metric="accuracy", margin=0.0))
    means = [accuracy(answers, arm, seeds) for arm in ("subject", "cured", "scratch")]
    if shown.error or not shown.exposed or not shown.estimate.low > 0 or None in means:
        return None
    subject, cured, scratch = (float(mean) for mean in means if mean is not None)
    return (subject - scratch) / (cured - scratch)


def diverged(answers: Answers, arm: str, seeds: Sequence[int]) -> int:
    """At how many seeds an arm's training diverged."""
    found = [answers.get((arm, "test", seed)) for seed in seeds]
    return sum(one.scalars.get("diverged", 0.0) > 0 for one in found if one is not None)
