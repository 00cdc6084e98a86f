"""Claims against what was measured. Pure. A claim whose number is missing agrees with nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis import estimates, metrics, verdict
from xferbench.core.plugin import Contrast
from xferbench.study.schedule import rules_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.analysis.estimates import RecordsByTerm
    from xferbench.core.pipeline import Pipeline
    from xferbench.core.run import Finding
    from xferbench.core.suite import Claim, Suite

CLAIM_UNITS = {
    "accuracy": "accuracy",
    "seconds": "s",
    "trainable": "numbers",
    "stored": "bytes",
    "share": "of the parameters",
    "speed-up": "times",
}
CLAIM_OUTCOMES = ("agrees", "disagrees", "inconclusive", "not measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimEstimate:
    """The measured number of a claim: the mean with its one-sided bounds, in a unit. ``why`` says why there is no number."""

    ours: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    unit: str = ""
    seeds: int = 0
    why: str = ""


def claim_outcome(effect: Claim, estimate: ClaimEstimate) -> str:
    """One of :data:`OUTCOMES`: a claim agrees or disagrees only if its whole interval does."""
    return verdict.decide_claim((estimate.ours, estimate.low, estimate.high), effect.at_least, effect.at_most, estimate.why)


def estimate_contrast(effect: Claim, findings: Sequence[Finding]) -> ClaimEstimate:
    """The cost of a variant against the cure (its control), or without a variant the measurement or harm itself."""
    by_id = {finding.id: finding for finding in findings}
    plugin, _, *variant = effect.contrast.split("/")
    finding = by_id.get(effect.contrast)
    if finding is None:
        unjudged = [other for other in findings if other.plugin == plugin and other.verdict in {"SKIPPED", "ERROR"}]
        why = unjudged[0].reason if unjudged else f"no such contrast (available: {', '.join(sorted(by_id)) or 'none'})"
        return ClaimEstimate(why=why)
    numbers = (
        (finding.control_harm, finding.control_low, finding.control_high)
        if variant
        else (finding.harm, finding.low, finding.high)
    )
    if finding.verdict == "ERROR" or any(number is None for number in numbers):
        return ClaimEstimate(why=finding.reason or "not measured")
    ours, low, high = (float(number) for number in numbers if number is not None)
    return ClaimEstimate(ours=ours, low=low, high=high, unit=finding.unit, seeds=finding.seeds)


def estimate_difference(effect: Claim, records: RecordsByTerm, seeds: Sequence[int], suite: Suite) -> ClaimEstimate:
    """The difference of two recipes in a view, paired by seed and test example.

    Args:
        effect: the claim. records: by recipe, view and seed. seeds: at which both recipes were measured.
        suite: of the task.
    """
    contrast = recipe_contrast(effect.recipe, effect.against, effect.view)
    rules = rules_for(contrast, suite)
    difference = estimates.estimate_contrast(contrast, records, seeds, rules)
    if difference.error:
        return ClaimEstimate(why=difference.error)
    estimate, unit = difference.estimate, metrics.get_metric(rules.metric).unit
    return ClaimEstimate(ours=estimate.harm, low=estimate.low, high=estimate.high, unit=unit, seeds=len(seeds))


def recipe_contrast(recipe: str, against: str, view: str = "test") -> Contrast:
    """By how much a recipe is better than another one in a view, as a contrast; above 0 is better, for losses too."""
    weights = {(recipe, view): 1.0, (against, view): -1.0}
    return Contrast(name=f"{recipe} − {against}", kind="info", weights=weights, meaning=f"{recipe} − {against}")


def estimate_measure(effect: Claim, rows: Sequence[Mapping[str, object]], parameters: int, suite: Suite) -> ClaimEstimate:
    """The mean of a recipe's measure over all its seeds; ``share`` is of all parameters, ``accuracy`` the suite's metric."""
    name = "trainable" if effect.measure == "share" else effect.measure
    of_recipe = [row for row in rows if row["recipe"] == effect.recipe]
    missing = [row for row in of_recipe if row["error"] or row.get(name) is None]
    why = f"seed {missing[0]['seed']}: {missing[0]['error'] or 'not measured'}" if missing else ""
    if why or not of_recipe:
        return ClaimEstimate(why=f"{effect.recipe}, {why or 'not measured'}")
    values = [float(str(row[name])) / (parameters if effect.measure == "share" else 1) for row in of_recipe]
    estimate = _over_seeds(effect, values, suite.alpha)
    return replace(estimate, unit=metrics.get_metric(suite.metric).unit) if effect.measure == "accuracy" else estimate


def estimate_speed_up(
    effect: Claim, records: RecordsByTerm, pipelines: Mapping[str, Pipeline | None], seeds: Sequence[int], suite: Suite
) -> ClaimEstimate:
    """How many times fewer images a recipe needs until its validation score is the other recipe's final one.

    The images of the other recipe count up to where it first had that score. A curve has few rows, and nothing is known of
    what happened between two rows: the lower bound takes the earlier row for the other recipe, and the upper bound the earlier
    row for the recipe. The speed-up is 0 if the recipe never reaches the score. There is no speed-up if the other recipe
    learnt nothing.
    """
    if estimates.majority_baseline_share(records, effect.against, seeds, suite.margin) is not None:
        return ClaimEstimate(why=f"{effect.against} learned nothing, so it has no final score to reach")
    bounds: list[tuple[float, float, float]] = []
    for seed in seeds:
        pair = [records.get((name, "test", seed)) for name in (effect.recipe, effect.against)]
        errors = [record.error if record else "not measured" for record in pair]
        incomplete = [index for index, record in enumerate(pair) if record is None or record.error or not record.curve]
        if incomplete:
            return ClaimEstimate(why=f"seed {seed}: {errors[incomplete[0]] or 'no learning curve'}")
        curve, other = (record.curve for record in pair if record is not None)
        end = other[-1][2]
        (before, at), (least, most) = (
            _reach(rows, end, pipelines[name]) for rows, name in ((curve, effect.recipe), (other, effect.against))
        )
        bounds.append((least / at, most / at, most / before) if at else (0.0, 0.0, 0.0))
    low, ours, high = ([float(bound[side]) for bound in bounds] for side in range(3))
    estimate = _over_seeds(effect, ours, suite.alpha)
    lower, upper = (mean_and_half_width(values, suite.alpha) for values in (low, high))
    return estimate if estimate.why else replace(estimate, low=lower[0] - lower[1], high=upper[0] + upper[1])


def _reach(curve: Sequence[tuple[int, float, float]], end: float, pipeline: Pipeline | None) -> tuple[float, float]:
    """Images seen at the row before a curve first reaches a score (one step at least), and at that row; 0 if it never does."""
    steps = [0, *(step for step, _, _ in curve)]
    place = next((number for number, (_, _, score) in enumerate(curve, start=1) if score >= end), 0)
    return _images(max(1, steps[place - 1]) if place else 1, pipeline), _images(steps[place], pipeline)


def _images(step: int, pipeline: Pipeline | None) -> float:
    """Images that a recipe has seen up to a step of its phases."""
    seen, left = 0.0, step
    for phase in pipeline.recipe.phases if pipeline else ():
        seen, left = seen + min(left, phase.steps) * phase.batch_size, max(0, left - phase.steps)
    return seen


def _over_seeds(effect: Claim, values: Sequence[float], alpha: float) -> ClaimEstimate:
    """A mean with bounds by a t over seeds; a value that is the same at all seeds is exact."""
    if len(values) < 2:
        return ClaimEstimate(why=f"{effect.recipe} was measured at {len(values)} seeds, but an interval needs at least two")
    mean, half = mean_and_half_width(values, alpha)
    return ClaimEstimate(ours=mean, low=mean - half, high=mean + half, unit=CLAIM_UNITS[effect.measure], seeds=len(values))


def mean_and_half_width(values: Sequence[float], alpha: float) -> tuple[float, float]:
    """The mean over seeds, and the distance of its one-sided bounds from it, by Student's t."""
    from scipy import stats

    sample = np.asarray(values, float)
    if len(sample) < 2:
        return float(sample.mean()) if len(sample) else float("nan"), float("nan")
    return float(sample.mean()), float(stats.t.ppf(1 - alpha, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample)))
