"""Claims held against what was measured: agrees, disagrees or inconclusive. Pure; what was not measured agrees with nothing."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench import judge, metrics
from xferbench.analysis import verdict
from xferbench.design import Contrast
from xferbench.looks import of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.design import Effect, Pipeline, Suite
    from xferbench.judge import Answers
    from xferbench.record import Finding

MEASURES = {
    "accuracy": "accuracy",
    "seconds": "s",
    "trainable": "numbers",
    "stored": "bytes",
    "share": "of the parameters",
    "speed-up": "times",
}
OUTCOMES = ("agrees", "disagrees", "inconclusive", "not measured")


@dataclass(frozen=True, slots=True, kw_only=True)
class Number:
    """What was measured: the mean with its one-sided bounds, in a unit; ``why`` there is none, or ""."""

    ours: float = float("nan")
    low: float = float("nan")
    high: float = float("nan")
    unit: str = ""
    seeds: int = 0
    why: str = ""


def outcome(effect: Effect, number: Number) -> str:
    """Whether a number is what was claimed: only where its whole interval is, or is not."""
    return verdict.claim((number.ours, number.low, number.high), effect.at_least, effect.at_most, number.why)


def of_contrast(effect: Effect, findings: Sequence[Finding]) -> Number:
    """What a variant costs against the cure (its control), or without a variant the measurement or harm itself."""
    found = {one.id: one for one in findings}
    plugin, _, *variant = effect.contrast.split("/")
    one = found.get(effect.contrast)
    if one is None:
        unasked = [other for other in findings if other.plugin == plugin and other.verdict in {"SKIPPED", "ERROR"}]
        why = unasked[0].reason if unasked else f"no such contrast; there are {', '.join(sorted(found)) or 'none'}"
        return Number(why=why)
    told = (one.control_harm, one.control_low, one.control_high) if variant else (one.harm, one.low, one.high)
    if one.verdict == "ERROR" or any(value is None for value in told):
        return Number(why=one.reason or "not measured")
    ours, low, high = (float(value) for value in told if value is not None)
    return Number(ours=ours, low=low, high=high, unit=one.unit, seeds=one.seeds)


def of_recipes(effect: Effect, answers: Answers, seeds: Sequence[int], suite: Suite) -> Number:
    """What one recipe has more than another in a view, paired by seed and test example.

    Args:
        answers: by recipe, view and seed. suite: of the task.
    """
    contrast = difference(effect.recipe, effect.against, effect.view)
    own = of(contrast, suite)
    found = judge.judge(contrast, answers, seeds, own)
    if found.error:
        return Number(why=found.error)
    estimate, unit = found.estimate, metrics.named(own.metric).unit
    return Number(ours=estimate.harm, low=estimate.low, high=estimate.high, unit=unit, seeds=len(seeds))


def difference(recipe: str, against: str, view: str = "test") -> Contrast:
    """By how much a recipe is better than another in a view, as a contrast; above 0 is better, for losses too."""
    weights = {(recipe, view): 1.0, (against, view): -1.0}
    return Contrast(name=f"{recipe} − {against}", kind="info", weights=weights, meaning=f"{recipe} − {against}")


def of_measure(effect: Effect, rows: Sequence[Mapping[str, object]], parameters: int, suite: Suite) -> Number:
    """The mean of a recipe's measure over all its seeds; ``share`` is of all parameters, ``accuracy`` the suite's metric."""
    name = "trainable" if effect.measure == "share" else effect.measure
    own = [row for row in rows if row["recipe"] == effect.recipe]
    lacking = [row for row in own if row["error"] or row.get(name) is None]
    broken = f"seed {lacking[0]['seed']}: {lacking[0]['error'] or 'not measured'}" if lacking else ""
    if broken or not own:
        return Number(why=f"{effect.recipe}, {broken or 'not measured'}")
    values = [float(str(row[name])) / (parameters if effect.measure == "share" else 1) for row in own]
    found = _by_seed(effect, values, suite.alpha)
    return replace(found, unit=metrics.named(suite.metric).unit) if effect.measure == "accuracy" else found


def speed_up(
    effect: Effect, answers: Answers, pipelines: Mapping[str, Pipeline | None], seeds: Sequence[int], suite: Suite
) -> Number:
    """How many times fewer images a recipe sees until it is, on validation, as good as another one at its end.

    The other one's images are counted up to where it first was so good. A curve has few rows, and what happened between two
    is not known: the lower bound takes the row before for the other one, and the upper bound the row before for the recipe. It
    is 0 where the recipe never gets there. Where the other one has learnt nothing there is nowhere to get to.
    """
    if judge.learnt_nothing(answers, effect.against, seeds, suite.margin) is not None:
        return Number(why=f"{effect.against} learnt nothing, and has no end to be reached")
    bounds: list[tuple[float, float, float]] = []
    for seed in seeds:
        records = [answers.get((name, "test", seed)) for name in (effect.recipe, effect.against)]
        broken = next(
            (one.error if one else "not measured" for one in records if one is None or one.error or not one.curve), None
        )
        if broken is not None:
            return Number(why=f"seed {seed}: {broken or 'no learning curve'}")
        mine, theirs = (one.curve for one in records if one is not None)
        end = theirs[-1][2]
        (before, at), (least, most) = (
            _reached(curve, end, pipelines[name]) for curve, name in ((mine, effect.recipe), (theirs, effect.against))
        )
        bounds.append((least / at, most / at, most / before) if at else (0.0, 0.0, 0.0))
    low, ours, high = ([float(one[side]) for one in bounds] for side in range(3))
    found = _by_seed(effect, ours, suite.alpha)
    lower, upper = (mean_and_half(values, suite.alpha) for values in (low, high))
    return found if found.why else replace(found, low=lower[0] - lower[1], high=upper[0] + upper[1])


def _reached(curve: Sequence[tuple[int, float, float]], end: float, pipeline: Pipeline | None) -> tuple[float, float]:
    """Images seen at the row before a curve first is at a level, a step's at least, and at that row; 0 where it never is."""
    steps = [0, *(step for step, _, _ in curve)]
    place = next((number for number, (_, _, score) in enumerate(curve, start=1) if score >= end), 0)
    return _images(max(1, steps[place - 1]) if place else 1, pipeline), _images(steps[place], pipeline)


def _images(step: int, pipeline: Pipeline | None) -> float:
    """Images that a recipe has seen up to a step of its phases."""
    seen, left = 0.0, step
    for phase in pipeline.recipe.phases if pipeline else ():
        seen, left = seen + min(left, phase.steps) * phase.batch_size, max(0, left - phase.steps)
    return seen


def _by_seed(effect: Effect, values: Sequence[float], alpha: float) -> Number:
    """A mean with bounds by a t over seeds; what is the same at all of them is exact."""
    if len(values) < 2:
        return Number(why=f"{effect.recipe} was measured at {len(values)} seeds, and an interval needs two")
    mean, apart = mean_and_half(values, alpha)
    return Number(ours=mean, low=mean - apart, high=mean + apart, unit=MEASURES[effect.measure], seeds=len(values))


def mean_and_half(values: Sequence[float], alpha: float) -> tuple[float, float]:
    """The mean of some seeds, and how far its one-sided bounds lie from it, by Student's t."""
    from scipy import stats

    found = np.asarray(values, float)
    if len(found) < 2:
        return float(found.mean()) if len(found) else float("nan"), float("nan")
    return float(found.mean()), float(stats.t.ppf(1 - alpha, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
