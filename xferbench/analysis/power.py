"""Sample sizes and power: what a test set can decide, and what would decide an open contrast. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis import intervals, multiplicity
from xferbench.core.reason import Code, Reason, because

if TYPE_CHECKING:
    from xferbench.analysis.sequential import SequentialDecision
    from xferbench.core.suite import Rules

MAX_SEEDS = 1000  # larger numbers are reported as out of reach
MAX_EXAMPLES = 10_000_000
POWER = 0.8  # probability of a decision for which sizes are planned


@dataclass(frozen=True, slots=True, kw_only=True)
class Variances:
    """Variance components of D, the harm by seed and example. The defaults are assumptions for accuracy before anything is run.

    Attributes:
        seed: variance of the harm over seeds.
        example: variance over examples that is the same at every seed, so that more seeds do not average it away.
        residual: variance of the rest.

    For accuracy, ``example + residual`` is about the share of examples on which the two arms disagree.
    """

    seed: float = 0.015**2
    example: float = 0.075
    residual: float = 0.075


DEFAULT_VARIANCES = Variances()


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionPower:
    """What a test set can decide, under :data:`DEFAULT_VARIANCES`.

    Attributes:
        examples, seeds: numbers of test examples (or groups) and of seeds at the last look.
        smallest_margin: the smallest margin that a harm of 0 is shown to be below with a probability of :data:`POWER`.
        pass_chance: probability of a PASS if the harm is 0.
        fail_chance: probability of a FAIL if the harm is twice the margin.
    """

    examples: int
    seeds: int
    smallest_margin: float
    pass_chance: float
    fail_chance: float


def decision_power(examples: int, rules: Rules, contrasts: int) -> DecisionPower:
    """Return what a test set can decide at the last look.

    Args:
        examples: number of test examples, or of groups if there are any.
        rules: the rules of the suite.
        contrasts: number of contrasts that share alpha.
    """
    seeds, level = rules.looks[-1], multiplicity.look_levels(rules.looks, rules.alpha)[-1]
    pass_chance, fail_chance = decision_chances(
        examples, seeds, rules.margin, alpha_pass=level, alpha_fail=level / max(1, contrasts)
    )
    return DecisionPower(
        examples=examples,
        seeds=seeds,
        smallest_margin=smallest_margin(examples, seeds, alpha=level),
        pass_chance=pass_chance,
        fail_chance=fail_chance,
    )


def smallest_margin(
    examples: int,
    seeds: int,
    *,
    alpha: float = 0.05,
    power: float = POWER,
    variances: Variances = DEFAULT_VARIANCES,
    span: float = 1.0,
) -> float:
    """Return the smallest margin that a true harm of 0 is shown to be below with this power; infinity if there is none.

    Args:
        examples: number of test examples, or of groups if there are any.
        seeds: number of seeds.
        alpha: level of the test.
        power: probability of the decision.
        variances: the assumed variances of D.
        span: the largest harm that one example can show.
    """
    if examples < 2 or seeds < 1:
        return np.inf
    return float(_pass_distance(variances, np.asarray(seeds), np.asarray(examples), alpha, power, 0.0, span))


def decision_chances(
    examples: int,
    seeds: int,
    margin: float,
    *,
    alpha_pass: float,
    alpha_fail: float,
    variances: Variances = DEFAULT_VARIANCES,
    span: float = 1.0,
) -> tuple[float, float]:
    """Return the probabilities of a PASS at a harm of 0 and of a FAIL at twice the margin, under assumed variances.

    Args:
        examples: number of test examples, or of groups if there are any.
        seeds: number of seeds.
        margin: the margin.
        alpha_pass: level of a PASS.
        alpha_fail: level of a FAIL.
        variances: the assumed variances of D.
        span: the largest harm that one example can show.
    """
    if examples < 2 or seeds < 1:
        return 0.0, 0.0
    powers = np.linspace(0.001, 0.999, 999)
    S, N = np.asarray(seeds), np.asarray(examples)
    passing = _pass_distance(variances, S, N, alpha_pass, powers, 0.0, span) <= margin
    failing = _fail_distance(variances, S, N, alpha_fail, powers) <= margin
    return (float(powers[passing].max(initial=0.0)), float(powers[failing].max(initial=0.0)))


def required_sizes(
    difference: np.ndarray,
    *,
    margin: float,
    alpha_pass: float,
    alpha_fail: float,
    power: float = POWER,
    groups: np.ndarray | None = None,
    span: float = 1.0,
) -> tuple[int | None, int | None]:
    """Return the number of seeds, and the number of examples or groups, that would decide the observed harm.

    The number of seeds assumes the present examples; the number of examples assumes the present seeds. The variances are the
    observed ones. A number is None if no affordable number suffices. With one seed, the variance over seeds is unknown and
    the number of seeds is None.
    """
    D = np.asarray(difference, dtype=np.float64)
    if groups is not None and len(groups):
        D = intervals.group_values(D, groups)
    S, N = D.shape
    if S < 1 or N < 2 or not np.isfinite(D).all() or np.isclose(D.mean(), margin, rtol=0, atol=1e-9):
        return None, None
    harm, seeds, examples, residual = (float(value) for value in intervals.mean_squares(D))
    variances = Variances(seed=max(seeds - residual, 0.0) / N, example=max(examples - residual, 0.0) / S, residual=residual)

    def first_sufficient(s: np.ndarray, n: np.ndarray, numbers: np.ndarray) -> int | None:
        if harm < margin:
            is_sufficient = _pass_distance(variances, s, n, alpha_pass, power, harm, span) <= margin - harm
        else:
            is_sufficient = _fail_distance(variances, s, n, alpha_fail, power) < harm - margin
        return int(numbers[is_sufficient.argmax()]) if is_sufficient.any() else None

    more_seeds = np.arange(S, MAX_SEEDS + 1)
    more_examples = np.unique(np.ceil(np.geomspace(N, MAX_EXAMPLES, 400)).astype(np.int64))
    by_seeds = first_sufficient(more_seeds, np.asarray(N), more_seeds) if S > 1 else None
    return by_seeds, first_sufficient(np.asarray(S), more_examples, more_examples)


def _fail_distance(variances: Variances, S: np.ndarray, N: np.ndarray, alpha: float, power: float | np.ndarray) -> np.ndarray:
    """Return the distance from a harm to the closest margin below it that is rejected with this power."""
    from scipy.special import stdtrit

    is_single = S == 1
    squares = (
        np.where(is_single, 0.0, N * variances.seed + variances.residual),
        S * variances.example + variances.residual,
        np.where(is_single, 0.0, variances.residual),
    )
    se, df = intervals.standard_error_and_df(squares, S, N)
    noise = np.sqrt(variances.seed / S + variances.example / N + variances.residual / (S * N))
    distance: np.ndarray = stdtrit(df, power) * noise - stdtrit(df, alpha) * se
    return distance


def _pass_distance(
    variances: Variances, S: np.ndarray, N: np.ndarray, alpha: float, power: float | np.ndarray, harm: float, span: float
) -> np.ndarray:
    """Return the distance from a harm to the closest margin above it that is rejected with this power.

    The test of the bounded mean must agree. Two approximations stand for it: a normal interval of the examples with one more
    example of the largest harm, and the score interval of Wilson (1927) for a harm that no example shows.
    """
    from scipy.special import ndtri

    noise = np.sqrt(variances.seed / S + variances.example / N + variances.residual / (S * N))
    within = variances.example + variances.residual / S
    guard_se = np.sqrt((within + (span - harm) ** 2 / (N + 1)) / (N + 1))
    guard = (span - harm) / (N + 1) - ndtri(alpha) * guard_se + ndtri(power) * noise
    rare = wilson_upper(harm + np.maximum(ndtri(power) * noise, 0.0), N, alpha, span) - harm
    distance: np.ndarray = np.maximum(_fail_distance(variances, S, N, alpha, power), np.maximum(guard, rare))
    return distance


def wilson_upper(mean: np.ndarray | float, N: int | np.ndarray, alpha: float, span: float) -> np.ndarray:
    """Return the upper bound of a harm that is ``span`` or 0 by example, by Wilson's score interval with continuity correction.

    The bound is −∞ if the mean is too low.
    """
    from scipy.special import ndtri

    c = ndtri(alpha) ** 2 / N
    corrected = mean + span / (2 * N)
    middle = 2 * corrected + c * span
    discriminant = middle**2 - 4 * corrected**2 * (1 + c)
    root = (middle + np.sqrt(np.maximum(discriminant, 0.0))) / (2 * (1 + c))
    bound: np.ndarray = np.where(discriminant >= 0, root, -np.inf)
    return bound


def explain_required_sizes(decision: SequentialDecision, rules: Rules, *, halved: bool = False) -> Reason:
    """Return the number of seeds or test examples that would decide a contrast at the last look.

    The level is that of the last look; for a FAIL it is divided among all contrasts that share alpha.

    Args:
        decision: the decision so far.
        rules: the rules, with the contrast's own margin.
        halved: whether only half of the test examples scored the contrast, because the other half selected a repair.
    """
    harm = decision.harm
    groups = harm.groups if len(harm.groups) else None
    level = multiplicity.look_levels(rules.looks, rules.alpha)[-1]
    seeds, examples = required_sizes(
        harm.difference,
        margin=rules.margin,
        alpha_pass=level,
        alpha_fail=level / max(1, decision.hypotheses),
        groups=groups,
        span=harm.span,
    )
    is_single = rules.looks == (1,)
    return because(
        Code.TO_DECIDE,
        seeds=seeds,
        examples=None if examples is None else (2 if halved and is_single else 1) * examples,
        grouped=groups is not None,
        at_these_seeds=not is_single,
    )
