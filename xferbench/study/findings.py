"""From judgements to findings, and from questions to the rows of a run. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from xferbench.analysis import estimates, intervals, metrics, power
from xferbench.analysis import verdict as decision
from xferbench.config.render import describe_pipeline
from xferbench.core.reason import Code, because
from xferbench.core.run import Finding, TrialRow, contrast_id
from xferbench.study.contrast_result import ContrastResult, describe_patch, remarks, remedy, why_equal
from xferbench.study.draft import Draft
from xferbench.study.schedule import records_by_term, rules_for

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.analysis.verdict import Verdict
    from xferbench.core.plugin import Contrast
    from xferbench.core.reason import Reason
    from xferbench.core.record import Record
    from xferbench.core.suite import Suite
    from xferbench.study.schedule import PluginState, Schedule


def build_findings(suite: Suite, step: Schedule, answers: Mapping[str, Record]) -> tuple[Draft, ...]:
    """All findings of a finished study: for each judged contrast one a variant, then the plugin's measurements."""
    found: list[Draft] = []
    for case in step.cases:
        told = records_by_term(step.asked, case.plugin.id, answers)
        if case.skipped or case.error:
            found.append(_unasked(suite, case))
        for name, contrast in case.contrasts("paired"):
            result = ContrastResult(
                suite=rules_for(contrast, suite), case=case, contrast=contrast, judgement=step.judgements[name], records=told
            )
            found += [_finding(result, variant, step.stopped) for variant in case.variants or ("",)]
        found += [_exact(suite, case, contrast, told) for _, contrast in case.contrasts("exact")]
        found += [_measured(rules_for(contrast, suite), case, contrast, told) for contrast in case.measured()]
    return tuple(found)


def _blank(suite: Suite, case: PluginState, contrast: str, verdict: str) -> Finding:
    return Finding(
        id=contrast_id(case.plugin.id, contrast),
        plugin=case.plugin.id,
        contrast=contrast,
        kind="audit" if suite.after else "experiment",
        verdict=verdict,
        metric=suite.metric,
        unit=metrics.get_metric(suite.metric).unit,
    )


def _unasked(suite: Suite, case: PluginState) -> Draft:
    judged = next((one.name for one in case.plugin.contrasts if one.kind != "info"), case.plugin.contrasts[0].name)
    decided = decision.decide_without_trials(case.skipped, case.error)
    return Draft(finding=_blank(suite, case, judged, decided.code), reasons=(decided.reason,))


def _finding(result: ContrastResult, variant: str, stopped: Reason | None) -> Draft:
    suite, judgement, case = result.suite, result.judgement, result.case
    estimate, seen = judgement.harm.estimate, judgement.controls.get(variant)
    measures, broken = _measures(case, result.records, judgement.seeds, variant)
    if len(judgement.seeds) == 1 and judgement.harm.exposed and metrics.get_metric(suite.metric).unit == "accuracy":
        measures["McNemar's p, which tests a harm of 0"] = intervals.mcnemar_p(judgement.harm.difference.ravel())
    said, crashed = _told(case, result.contrast, result.records)
    error = judgement.harm.error or _crash(result.records, [variant]) or broken or crashed
    control = decision.control_outcome(seen, suite.margin)
    decided = decision.decide_harm(
        estimate,
        control,
        judgement.harm.exposed,
        case.trust,
        result.dead_baseline,
        decision=judgement.verdict,
        margin=suite.margin,
        error=error,
        equal=why_equal(result),
        selected=result.selected,
        finished=result.finished,
        variant=variant,
        cost=None if seen is None or seen.error else seen.estimate,
    )
    change, remaining = remedy(result, decided.code)
    blank = _blank(suite, case, result.contrast.name, decided.code)
    finding = replace(
        blank,
        id=f"{blank.id}/{variant}" if variant else blank.id,
        variant=variant,
        control=control,
        harm=_number(estimate.harm),
        low=_number(estimate.low),
        high=_number(estimate.high),
        p_fail=None if error else judgement.adjusted[0],
        p_pass=None if error else judgement.adjusted[1],
        margin=suite.margin,
        benefit_retained=None if error else estimates.benefit_retained(result.records, judgement.seeds, suite),
        accuracy=_accuracies(result.records, variant, judgement.seeds),
        seeds=len(judgement.seeds),
        examples=estimate.examples,
        control_harm=None if seen is None else _number(seen.estimate.harm),
        control_low=None if seen is None else _number(seen.estimate.low),
        control_high=None if seen is None else _number(seen.estimate.high),
        exposed=judgement.harm.exposed,
        measures=measures,
        remedy=change,
    )
    reasons = (decided.reason,) if error else _reasons(result, variant, decided, said, stopped)
    return Draft(finding=finding, reasons=reasons, remaining=remaining)


def _reasons(result: ContrastResult, variant: str, decided: Verdict, said: str, stopped: Reason | None) -> tuple[Reason, ...]:
    """What a finding says: the plugin's own words, why the verdict, what would decide it, and remarks."""
    beside = because(Code.TEXT, text=_crash(result.records, result.case.beside))  # the last one's numbers are not there
    reasons = [because(Code.TEXT, text=said), decided.reason]
    if result.judgement.is_open:
        reasons.append(power.to_decide(result.judgement, result.suite, halved=result.selected))
        reasons += [stopped] if stopped else []
    if decided.reason.code not in {Code.ON_TRUST, Code.NOT_EXPOSED, Code.NOT_EXPOSED_NO_CONTROL}:
        reasons += remarks(result, variant, decided.code)
    return (*reasons, beside)


def _exact(suite: Suite, case: PluginState, contrast: Contrast, told: estimates.RecordsByTerm) -> Draft:
    """An invariant, broken as soon as its sum is beyond what is allowed at one seed: 0, if nothing is said.

    It needs no control; what is induced shows that it can be broken.
    """
    arms = {"subject": contrast, "cured": estimates.swap_arm(contrast, "subject", "cured")}
    variants = case.variants if contrast.controlled else ()
    arms |= {f"induced:{variant}": estimates.positive_control(contrast, variant) for variant in variants}
    terms = [term for own in arms.values() for term in own.weights]
    seeds = sorted({seed for _, _, seed in told if all((*term, seed) in told for term in terms)})
    values = {arm: np.array([estimates.invariant_value(own, told, seed) for seed in seeds]) for arm, own in arms.items()}
    dead = {seed for (arm, view, seed) in told if arm == "subject" and told[arm, view, seed].scalars.get("diverged", 0.0) > 0}
    said, crashed = _told(case, contrast, told)
    error = _crash(told, case.variants) or crashed
    allowed = getattr(suite, contrast.allowed) if contrast.allowed else 0.0
    decided = decision.decide_invariant(
        [float(value) for value in values["subject"]],
        [seed in dead for seed in seeds],
        allowed=allowed,
        meaning=contrast.meaning,
        error=error,
        trust=case.trust,
        comparable=not _untold(case),
    )
    broken = {arm: int((np.isfinite(found) & (np.abs(found) > allowed)).sum()) for arm, found in values.items()}
    sizes = {arm: float(np.abs(found).mean()) for arm, found in values.items() if np.isfinite(found).all()}
    mended = not broken["cured"] and bool(np.isfinite(values["cured"]).all())
    seen = any(broken[f"induced:{variant}"] for variant in variants)
    finding = replace(
        _blank(suite, case, contrast.name, decided.code),
        control=("detected" if seen else "missed") if variants else "none",
        seeds=len(seeds),
        exposed=bool(broken["subject"]),
        measures={f"{arm}/{contrast.name}": size for arm, size in sizes.items()},
        remedy=describe_patch(case, verified=mended) if decided.code == "FAIL" else None,
    )
    around = [because(Code.TEXT, text=text) for text in (said, _crash(told, case.beside))]
    reasons = (decided.reason,) if decided.code == "ERROR" else (around[0], decided.reason, around[1])
    return Draft(finding=finding, reasons=reasons)


def _untold(case: PluginState) -> bool:
    """Whether nobody said how a finished network was trained, so that it can be measured, and held against nothing."""
    subject = case.arms["subject"].pipeline
    return subject is not None and subject.finished is not None and subject.expected_training is None


def _measured(suite: Suite, case: PluginState, contrast: Contrast, told: estimates.RecordsByTerm) -> Draft:
    """A measurement with its interval, over the seeds that have it; it is never a verdict by itself.

    A plugin that judges nothing has its own numbers and words here.
    """
    seeds = sorted(seed for seed in {seed for _, _, seed in told} if all((*term, seed) in told for term in contrast.weights))
    seen = estimates.estimate_contrast(contrast, told, seeds, suite)
    crashed = any(told[(*term, seed)].error for term in contrast.weights for seed in seeds)
    measures: dict[str, float] = {}
    said = broken = ""
    if not case.plugin.has_verdict:
        measures, broken = _measures(case, told, seeds, "")
        said, failed = _told(case, contrast, told)
        broken = _crash(told, case.beside) or broken or failed
    decided = decision.decide_measurement(
        meaning=contrast.meaning, failure=broken, error=seen.error, crashed=crashed, seeds=len(seeds)
    )
    finding = replace(
        _blank(suite, case, contrast.name, decided.code),
        harm=_number(seen.estimate.harm),
        low=_number(seen.estimate.low),
        high=_number(seen.estimate.high),
        seeds=len(seeds),
        examples=seen.estimate.examples,
        measures=measures,
    )
    own = (because(Code.TEXT, text=said),) if decided.code == "INFO" else ()
    return Draft(finding=finding, reasons=(decided.reason, *own))


def _told(case: PluginState, contrast: Contrast, told: estimates.RecordsByTerm) -> tuple[str, str]:
    """What the plugin itself says of the answers, or what broke as it did."""
    subject, cured = (case.arms[arm].pipeline for arm in ("subject", "cured"))
    if case.plugin.explain is None or subject is None or cured is None or any(one.error for one in told.values()):
        return "", ""
    try:
        return case.plugin.explain(contrast.name, told, subject, cured), ""
    except Exception as error:  # noqa: BLE001 - a plugin's crash is its finding, and the others go on
        return "", f"the plugin's own words: {type(error).__name__}: {error}"


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _crash(told: estimates.RecordsByTerm, variants: Sequence[str]) -> str:
    """The first crash among the arms of a finding: a missing arm leads to ERROR, whatever the others show."""
    arms = {"subject", "cured", "scratch", *variants, *(f"induced:{variant}" for variant in variants)}
    crashed = (f"{arm} (seed {seed}): {one.error}" for (arm, _, seed), one in told.items() if one.error and arm in arms)
    return next(crashed, "")


def _accuracies(told: estimates.RecordsByTerm, variant: str, seeds: Sequence[int]) -> dict[str, float]:
    arms = {"subject": "subject", "cured": "cured", "induced": f"induced:{variant}", "scratch": "scratch"}
    found = {name: estimates.mean_accuracy(told, arm, seeds) for name, arm in arms.items()}
    return {name: value for name, value in found.items() if value is not None}


def _measures(
    case: PluginState, told: estimates.RecordsByTerm, seeds: Sequence[int], variant: str
) -> tuple[dict[str, float], str]:
    """Means over seeds of the plugin's own scalars by arm/name, and what it reads out of the records; or what broke."""
    found: dict[str, list[float]] = {}
    try:
        for (arm, view, _), record in told.items():
            if view in case.plugin.measures and arm in {"subject", f"induced:{variant}"} and not record.error:
                found.setdefault(f"{arm.partition(':')[0]}/{view}", []).append(record.scalars[view])
        means = {name: float(np.mean(values)) for name, values in found.items()}
        means |= dict(case.plugin.derived_metrics(told, seeds)) if case.plugin.derived_metrics else {}
        return {name: value for name, value in means.items() if np.isfinite(value)}, ""
    except Exception as error:  # noqa: BLE001 - a plugin's crash is its finding, and the others go on
        return {}, f"the plugin's own numbers: {type(error).__name__}: {error}"


def trial_rows(step: Schedule, answers: Mapping[str, Record]) -> tuple[TrialRow, ...]:
    """Every judged question with its record, one row each."""
    arms_of = {case.plugin.id: case for case in step.cases}
    arms = {(case.plugin.id, name): one for case in step.cases for name, one in case.arms.items()}
    found = []
    for one in step.asked:
        settled = arms.get((one.plugin, one.arm))
        if one.view == "validation" or settled is None or settled.pipeline is None:
            continue
        arm, _, variant = one.arm.partition(":")
        found.append(
            TrialRow(
                plugin=one.plugin,
                arm=arm,
                variant=variant,
                view=one.view,
                seed=one.seed,
                record=answers[one.trial.key],
                recipe=describe_pipeline(settled.pipeline, arms_of[one.plugin].recorded),
            )
        )
    return tuple(found)
