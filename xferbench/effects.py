"""Claims held against what was measured: agrees, disagrees or inconclusive. Pure; what was not measured agrees with nothing."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

import numpy as np

from xferbench import judge, metrics
from xferbench.design import Contrast
from xferbench.looks import of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.design import Effect, Suite
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
    if number.why or not all(map(isfinite, (number.ours, number.low, number.high))):
        return "not measured"
    least, most = effect.at_least, effect.at_most
    if least is not None:
        return "agrees" if number.low > least else "disagrees" if number.high < least else "inconclusive"
    assert most is not None, "a suite's effect claims one of them"
    return "agrees" if number.high < most else "disagrees" if number.low > most else "inconclusive"


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


def of_measure(effect: Effect, rows: Sequence[Mapping[str, object]], parameters: int, alpha: float) -> Number:
    """The mean of a recipe's measure over seeds; ``share`` is of all parameters, and ``accuracy`` the suite's metric."""
    name = "trainable" if effect.measure == "share" else effect.measure
    values = [float(str(row[name])) for row in rows if row["recipe"] == effect.recipe and row.get(name) is not None]
    return _by_seed(effect, [value / parameters for value in values] if effect.measure == "share" else values, alpha)


def speed_up(effect: Effect, answers: Answers, seeds: Sequence[int], alpha: float) -> Number:
    """How many times fewer steps a recipe takes to where another one ends, on validation; 0 where it never gets there.

    The other one's steps are counted up to where it first is as good as at its end. Steps are those at which curves have a
    row, so that small ratios are coarse.
    """
    found = []
    for seed in seeds:
        one, other = (answers.get((name, "test", seed)) for name in (effect.recipe, effect.against))
        if one is not None and other is not None and one.curve and other.curve:
            end = other.curve[-1][2]
            mine, theirs = (
                next((step for step, _, score in curve if score >= end), None) for curve in (one.curve, other.curve)
            )
            found.append(0.0 if mine is None or theirs is None else theirs / mine)
    return _by_seed(effect, found, alpha)


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
