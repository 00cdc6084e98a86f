"""From judgements to findings: numbers, a reason in words, and the next action. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xferbench import judge, metrics, stats
from xferbench.design import Contrast
from xferbench.looks import Case, Judgement, Step, by_question
from xferbench.plan import Study
from xferbench.record import Cell, Estimate, Finding, Record
from xferbench.suite import patch, words


def findings(study: Study, step: Step, answers: Mapping[str, Record]) -> tuple[Finding, ...]:
    """All findings of a finished study: for each judged contrast one a variant, then the plugin's measurements."""
    found: list[Finding] = []
    for case in step.cases:
        told = by_question(step.asked, case.plugin.id, answers)
        base = {"plugin": case.plugin.id, "metric": study.suite.metric, "unit": metrics.METRICS[study.suite.metric].unit}
        if case.skipped or case.error:
            verdict, reason = ("SKIPPED", case.skipped) if case.skipped else ("ERROR", case.error)
            found.append(Finding(id=f"{case.plugin.id}/harm", contrast="harm", verdict=verdict, reason=reason, **base))
            continue
        for name, contrast in case.contrasts("paired"):
            judgement = step.judgements[name]
            for variant in case.variants or ("",):
                found.append(_finding(study, step, case, contrast, judgement, variant, told, base))
        found += [_info(study, case, contrast, told, base) for _, contrast in case.contrasts("info") if case.exposed]
    return tuple(found)


def _finding(
    study: Study,
    step: Step,
    case: Case,
    contrast: Contrast,
    judgement: Judgement,
    variant: str,
    told: judge.Answers,
    base: Mapping[str, str],
) -> Finding:
    suite, estimate = study.suite, judgement.harm.estimate
    seen = judgement.controls.get(variant)
    control = "none" if seen is None else judge.control(seen, suite.margin)
    error = judgement.harm.error or _crash(case, told, variant)
    verdict = "ERROR" if error else judgement.verdict
    if verdict == "PASS" and judgement.harm.exposed and control == "missed":
        verdict = "INCONCLUSIVE"
    return Finding(
        id="/".join(part for part in (case.plugin.id, contrast.name, variant) if part),
        contrast=contrast.name,
        variant=variant,
        verdict=verdict,
        control=control,
        harm=_number(estimate.harm),
        low=_number(estimate.low),
        high=_number(estimate.high),
        p_fail=None if error else judgement.adjusted[0],
        p_pass=None if error else judgement.adjusted[1],
        margin=suite.margin,
        benefit_retained=None if error else judge.benefit_retained(told, judgement.seeds, suite.alpha),
        accuracy=_accuracies(told, variant, judgement.seeds),
        seeds=len(judgement.seeds),
        examples=estimate.examples,
        control_harm=None if seen is None else _number(seen.estimate.harm),
        control_low=None if seen is None else _number(seen.estimate.low),
        control_high=None if seen is None else _number(seen.estimate.high),
        exposed=judgement.harm.exposed,
        measures=_measures(case, told, judgement.seeds, variant),
        reason=error or _reason(study, step, contrast, judgement, variant, verdict, told),
        remedy=_remedy(study, case, contrast, verdict, judgement.seeds, told),
        **base,
    )


def _info(study: Study, case: Case, contrast: Contrast, told: judge.Answers, base: Mapping[str, str]) -> Finding:
    """A measurement with its interval, over the seeds that have it; it is never a verdict by itself."""
    views = set(contrast.weights)
    seeds = sorted(seed for seed in {seed for _, _, seed in told} if all((*view, seed) in told for view in views))
    seen = judge.judge(contrast, told, seeds, metric=study.suite.metric, margin=study.suite.margin, alpha=study.suite.alpha)
    return Finding(
        id=f"{case.plugin.id}/{contrast.name}",
        contrast=contrast.name,
        verdict="ERROR" if seen.error else "INFO",
        harm=_number(seen.estimate.harm),
        low=_number(seen.estimate.low),
        high=_number(seen.estimate.high),
        seeds=len(seeds),
        examples=seen.estimate.examples,
        reason=seen.error or contrast.meaning,
        **base,
    )


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _crash(case: Case, told: judge.Answers, variant: str) -> str:
    """The first crash among the arms of a finding: a missing arm leads to ERROR, whatever the others show."""
    arms = {"subject", "cured", "scratch", f"induced:{variant}"}
    crashed = (f"{arm} (seed {seed}): {one.error}" for (arm, _, seed), one in told.items() if one.error and arm in arms)
    return next(crashed, "")


def _accuracies(told: judge.Answers, variant: str, seeds: Sequence[int]) -> dict[str, float]:
    arms = {"subject": "subject", "cured": "cured", "induced": f"induced:{variant}", "scratch": "scratch"}
    found = {name: judge.accuracy(told, arm, seeds) for name, arm in arms.items()}
    return {name: value for name, value in found.items() if value is not None}


def _measures(case: Case, told: judge.Answers, seeds: Sequence[int], variant: str) -> dict[str, float]:
    """Means over seeds of the plugin's own scalars by arm/name, and what it reads out of the records."""
    found: dict[str, list[float]] = {}
    for (arm, view, _), record in told.items():
        if view in case.plugin.measures and arm in {"subject", f"induced:{variant}"}:
            for name, value in record.scalars.items():
                if name in case.plugin.measures:
                    found.setdefault(f"{arm.partition(':')[0]}/{name}", []).append(value)
    means = {name: float(np.mean(values)) for name, values in found.items()}
    return means | (dict(case.plugin.derived(told, seeds)) if case.plugin.derived else {})


def shown(value: float, unit: str, *, signed: bool = True) -> str:
    """A number in the unit that people say it in: accuracies in points of a hundred."""
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f} points" if unit == "accuracy" else f"{value:{sign}.3f} {unit}"


def interval(estimate: Estimate, unit: str) -> str:
    """Harm with its one-sided bounds."""
    scale, digits = (100, 1) if unit == "accuracy" else (1, 3)
    return f"{shown(estimate.harm, unit)} [{scale * estimate.low:+.{digits}f}, {scale * estimate.high:+.{digits}f}]"


def _reason(
    study: Study, step: Step, contrast: Contrast, judgement: Judgement, variant: str, verdict: str, told: judge.Answers
) -> str:
    """Why this verdict, and for an open one what would decide it."""
    suite, unit = study.suite, metrics.METRICS[study.suite.metric].unit
    harm, margin = judgement.harm, shown(study.suite.margin, metrics.METRICS[study.suite.metric].unit, signed=False)
    seen = judgement.controls.get(variant)
    cost = "" if seen is None or seen.error else f"{variant} would cost {interval(seen.estimate, unit)}"
    if not harm.exposed:
        return "not exposed: the cure changes nothing here" + (f"; {cost}" if cost else "")
    lost = {arm: judge.diverged(told, arm, judgement.seeds) for arm in {arm for arm, _ in contrast.weights}}
    also = "".join(f"; {arm} diverged at {count} of {len(judgement.seeds)} seeds" for arm, count in sorted(lost.items()) if count)
    if verdict == "FAIL":
        return f"harm is above the margin of {margin}{also}"
    if judgement.verdict == "PASS" and verdict == "INCONCLUSIVE":
        return f"no power here: harm looks below the margin of {margin}, but the control was not seen either ({cost}){also}"
    if verdict == "PASS":
        return f"harm is below the margin of {margin}; {cost}{also}"
    groups = harm.groups if len(harm.groups) else None
    seeds, examples = stats.needed(harm.difference, margin=suite.margin, alpha=suite.alpha, groups=groups)
    ways = [f"about {seeds} seeds"] * (seeds is not None) + [f"about {examples} test examples at these seeds"] * (examples is not None)
    need = f"; to decide it: {' or '.join(ways)}" if ways else "; no affordable number of seeds or examples would decide it"
    return f"the interval holds the margin of {margin}{need}{also}" + (f"; {step.stopped}" if step.stopped else "")


def _remedy(
    study: Study, case: Case, contrast: Contrast, verdict: str, seeds: Sequence[int], told: judge.Answers
) -> dict[str, Any] | None:
    """For a FAIL: what to change, as lines of the suite file, and whether the cured arm is shown to be free of the harm."""
    before, after = case.arms["subject"].pipeline, case.arms["cured"].pipeline
    if verdict != "FAIL" or before is None or after is None:
        return None
    mended = judge.replace_arm(contrast, "subject", "cured")
    how = {"metric": study.suite.metric, "margin": study.suite.margin, "alpha": study.suite.alpha}
    seen = judge.judge(mended, told, seeds, **how) if any(mended.weights.values()) else None
    verified = before != after and (seen is None or bool(seen.estimate.high < study.suite.margin))
    return {"text": case.plugin.remedy, "patch": patch(before.recipe, after.recipe), "verified": verified}


def cells(step: Step, answers: Mapping[str, Record]) -> tuple[Cell, ...]:
    """Every judged question with its record, one row each."""
    arms = {(case.plugin.id, name): one for case in step.cases for name, one in case.arms.items()}
    found = []
    for one in step.asked:
        settled = arms.get((one.plugin, one.arm))
        if one.view == "validation" or settled is None or settled.pipeline is None:
            continue
        arm, _, variant = one.arm.partition(":")
        recipe = words(settled.pipeline.recipe)
        record = answers[one.trial.key]
        found.append(Cell(plugin=one.plugin, arm=arm, variant=variant, view=one.view, seed=one.seed, record=record, recipe=recipe))
    return tuple(found)
