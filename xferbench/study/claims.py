"""Claims compared with measurements. Pure. A claim without a measured number never agrees."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis import estimates, metrics, verdict
from xferbench.core.plugin import Contrast
from xferbench.core.reason import Code, Reason, because
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
    """The measured number of a claim: the mean ``ours`` with one-sided bounds, or the reason ``why`` there is no number."""

    ours: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    unit: str = ""
    seeds: int = 0
    why: Reason | None = None


def claim_outcome(claim: Claim, estimate: ClaimEstimate) -> str:
    """Return one of :data:`CLAIM_OUTCOMES`: a claim agrees or disagrees only if the whole interval does."""
    return verdict.decide_claim((estimate.ours, estimate.low, estimate.high), claim.at_least, claim.at_most, estimate.why)


def estimate_contrast(claim: Claim, findings: Sequence[Finding]) -> ClaimEstimate:
    """Return the cost of a variant compared with the cure (its control), or without a variant the measurement or harm."""
    by_id = {finding.id: finding for finding in findings}
    plugin, _, *variant = claim.contrast.split("/")
    finding = by_id.get(claim.contrast)
    if finding is None:
        undecided = [other for other in findings if other.plugin == plugin and other.verdict in {"SKIPPED", "ERROR"}]
        if undecided:
            return ClaimEstimate(why=because(Code.TEXT, text=undecided[0].reason))
        return ClaimEstimate(why=because(Code.NO_SUCH_CONTRAST, available=tuple(sorted(by_id))))
    numbers = finding.control.bounds if variant else finding.estimate.bounds
    if finding.verdict == "ERROR" or any(number is None for number in numbers):
        return ClaimEstimate(why=because(Code.TEXT, text=finding.reason) if finding.reason else because(Code.NOT_MEASURED))
    ours, low, high = (float(number) for number in numbers if number is not None)
    return ClaimEstimate(ours=ours, low=low, high=high, unit=finding.estimate.unit, seeds=finding.estimate.seeds)


def estimate_difference(claim: Claim, records: RecordsByTerm, seeds: Sequence[int], suite: Suite) -> ClaimEstimate:
    """Return the difference of two recipes in a view, paired by seed and test example.

    Args:
        claim: the claim.
        records: records by recipe, view and seed.
        seeds: the seeds of both recipes.
        suite: the task.
    """
    contrast = recipe_contrast(claim.recipe, claim.against, claim.view)
    rules = rules_for(contrast, suite.rules)
    difference = estimates.estimate_contrast(contrast, records, seeds, rules)
    if difference.error:
        return ClaimEstimate(why=difference.error)
    estimate, unit = difference.estimate, metrics.get_metric(rules.metric).unit
    return ClaimEstimate(ours=estimate.harm, low=estimate.low, high=estimate.high, unit=unit, seeds=len(seeds))


def recipe_contrast(recipe: str, against: str, view: str = "test") -> Contrast:
    """Return the advantage of a recipe over another one in a view, as a contrast; above 0 is better, for losses too."""
    weights = {(recipe, view): 1.0, (against, view): -1.0}
    return Contrast(name=f"{recipe} − {against}", kind="info", weights=weights, meaning=f"{recipe} − {against}")


def estimate_measure(claim: Claim, rows: Sequence[Mapping[str, object]], parameters: int, suite: Suite) -> ClaimEstimate:
    """Return the mean of a recipe's measure over seeds. ``share`` is of all parameters, ``accuracy`` is the suite's metric."""
    name = "trainable" if claim.measure == "share" else claim.measure
    recipe_rows = [row for row in rows if row["recipe"] == claim.recipe]
    missing = [row for row in recipe_rows if row["error"] or row.get(name) is None]
    if missing:
        seed, error = missing[0]["seed"], missing[0]["error"]
        return ClaimEstimate(why=because(Code.SEED_WITHOUT_MEASURE, recipe=claim.recipe, seed=seed, error=error))
    if not recipe_rows:
        return ClaimEstimate(why=because(Code.RECIPE_NOT_MEASURED, recipe=claim.recipe))
    values = [float(str(row[name])) / (parameters if claim.measure == "share" else 1) for row in recipe_rows]
    estimate = _mean_over_seeds(claim, values, suite.rules.alpha)
    return replace(estimate, unit=metrics.get_metric(suite.rules.metric).unit) if claim.measure == "accuracy" else estimate


def estimate_speed_up(
    claim: Claim, records: RecordsByTerm, pipelines: Mapping[str, Pipeline | None], seeds: Sequence[int], suite: Suite
) -> ClaimEstimate:
    """Return how many times fewer images a recipe needs until it reaches the final validation score of the other recipe.

    The images of the other recipe count up to the row that first has that score. A curve has few rows, and the scores between
    two rows are not known. The lower bound therefore uses the earlier row of the other recipe, and the upper bound the earlier
    row of the recipe. The speed-up is 0 if the recipe never reaches the score. There is no speed-up if the other recipe did
    not learn.
    """
    if estimates.majority_baseline_share(records, claim.against, seeds, suite.rules.margin) is not None:
        return ClaimEstimate(why=because(Code.NO_SCORE_TO_REACH, recipe=claim.against))
    bounds: list[tuple[float, float, float]] = []
    for seed in seeds:
        pair = [records.get((name, "test", seed)) for name in (claim.recipe, claim.against)]
        errors = [record.error if record else "not measured" for record in pair]
        incomplete = [index for index, record in enumerate(pair) if record is None or record.error or not record.curve]
        if incomplete:
            return ClaimEstimate(why=because(Code.NO_LEARNING_CURVE, seed=seed, error=errors[incomplete[0]]))
        curve, other = (record.curve for record in pair if record is not None)
        score = other[-1][2]
        (before, after), (other_before, other_after) = (
            _images_until(rows, score, pipelines[name]) for rows, name in ((curve, claim.recipe), (other, claim.against))
        )
        bounds.append((other_before / after, other_after / after, other_after / before) if after else (0.0, 0.0, 0.0))
    low, ours, high = ([float(bound[index]) for bound in bounds] for index in range(3))
    estimate = _mean_over_seeds(claim, ours, suite.rules.alpha)
    lower, upper = (mean_and_half_width(values, suite.rules.alpha) for values in (low, high))
    return estimate if estimate.why else replace(estimate, low=lower[0] - lower[1], high=upper[0] + upper[1])


def _images_until(curve: Sequence[tuple[int, float, float]], target: float, pipeline: Pipeline | None) -> tuple[float, float]:
    """Return the numbers of training images at two rows of a curve.

    Args:
        curve: rows of step, training loss and validation score.
        target: the score to reach.
        pipeline: the pipeline of the curve.

    Returns:
        the images at the row before the first row with the score (at least one step), and at that row, or 0 without such a row.
    """
    steps = [0, *(step for step, _, _ in curve)]
    index = next((index for index, (_, _, score) in enumerate(curve, start=1) if score >= target), 0)
    return _count_images(max(1, steps[index - 1]) if index else 1, pipeline), _count_images(steps[index], pipeline)


def _count_images(step: int, pipeline: Pipeline | None) -> float:
    """Return the number of training images up to a step of a recipe."""
    images, remaining = 0.0, step
    for phase in pipeline.recipe.phases if pipeline else ():
        images += min(remaining, phase.steps) * phase.batch_size
        remaining = max(0, remaining - phase.steps)
    return images


def _mean_over_seeds(claim: Claim, values: Sequence[float], alpha: float) -> ClaimEstimate:
    """Return a mean with bounds by Student's t over seeds; a value that is equal at all seeds is exact."""
    if len(values) < 2:
        return ClaimEstimate(why=because(Code.TOO_FEW_SEEDS, recipe=claim.recipe, seeds=len(values)))
    mean, half = mean_and_half_width(values, alpha)
    return ClaimEstimate(ours=mean, low=mean - half, high=mean + half, unit=CLAIM_UNITS[claim.measure], seeds=len(values))


def mean_and_half_width(values: Sequence[float], alpha: float) -> tuple[float, float]:
    """Return the mean over seeds, and the distance of its one-sided bounds from the mean, by Student's t."""
    from scipy import stats

    sample = np.asarray(values, float)
    if len(sample) < 2:
        return float(sample.mean()) if len(sample) else float("nan"), float("nan")
    return float(sample.mean()), float(stats.t.ppf(1 - alpha, len(sample) - 1) * sample.std(ddof=1) / np.sqrt(len(sample)))
