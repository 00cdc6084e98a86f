"""The findings of a finished study, and the rows of its run. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.analysis import estimates, intervals, metrics, power
from xferbench.analysis import verdict as verdicts
from xferbench.analysis.seed_failures import FAILURE_METRIC, FAILURE_UNIT
from xferbench.config.render import describe_pipeline
from xferbench.core.reason import Code, because
from xferbench.core.run import Finding, HarmEstimate, PositiveControl, TrialRow, contrast_id
from xferbench.study.contrast_result import ContrastResult, describe_patch, remarks, remedy, why_equal
from xferbench.study.draft import Draft
from xferbench.study.schedule import records_by_term, rules_for
from xferbench.study.share_result import ShareResult

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from xferbench.analysis.verdict import Verdict
    from xferbench.core.plugin import Contrast
    from xferbench.core.reason import Reason
    from xferbench.core.record import Record
    from xferbench.core.run import Estimate
    from xferbench.core.suite import Rules, Suite
    from xferbench.study.plugin_state import PluginState
    from xferbench.study.schedule import Schedule


def build_findings(suite: Suite, schedule: Schedule, records: Mapping[str, Record]) -> tuple[Draft, ...]:
    """Return all findings of a finished study, by plugin.

    A paired contrast has a finding for each variant. Exact contrasts and measurements follow.
    """
    rules, drafts = suite.rules, list[Draft]()
    for state in schedule.states:
        by_term = records_by_term(schedule.requests, state.plugin.id, records)
        if state.skipped or state.error:
            drafts.append(_unavailable_finding(rules, state))
        for name, contrast in state.contrasts("paired"):
            result = ContrastResult(
                rules=rules_for(contrast, rules),
                state=state,
                contrast=contrast,
                decision=schedule.decisions[name],
                records=by_term,
            )
            drafts += [_paired_finding(result, variant, schedule.stop_reason) for variant in state.variants or ("",)]
        for name, contrast in state.contrasts("share"):
            share = ShareResult(rules=rules, contrast=contrast, decision=schedule.decisions[name], records=by_term)
            stopped = [reason for reason in (schedule.stop_reason, schedule.extra_stop_reason) if reason]
            drafts += [_share_finding(state, share, variant, stopped) for variant in state.variants or ("",)]
        drafts += [_exact_finding(rules, state, contrast, by_term) for _, contrast in state.contrasts("exact")]
        drafts += [_measurement(rules_for(contrast, rules), state, contrast, by_term) for contrast in state.measurements()]
    kind = "audit" if suite.is_audit else "experiment"
    return tuple(replace(draft, finding=replace(draft.finding, kind=kind)) for draft in drafts)


def _blank_finding(rules: Rules, state: PluginState, contrast: str, verdict: str) -> Finding:
    return Finding(
        id=contrast_id(state.plugin.id, contrast),
        plugin=state.plugin.id,
        contrast=contrast,
        verdict=verdict,
        estimate=HarmEstimate(metric=rules.metric, unit=metrics.get_metric(rules.metric).unit),
    )


def _harm_estimate(rules: Rules, estimate: Estimate, seeds: Sequence[int], **fields: Any) -> HarmEstimate:
    """Return a harm as results have it; ``fields`` are those that only a contrast with a verdict has."""
    return HarmEstimate(
        metric=rules.metric,
        unit=metrics.get_metric(rules.metric).unit,
        harm=_finite(estimate.harm),
        low=_finite(estimate.low),
        high=_finite(estimate.high),
        seeds=len(seeds),
        examples=estimate.examples,
        **fields,
    )


def _positive_control(variant: str, outcome: str, cost: Estimate | None) -> PositiveControl:
    if cost is None:
        return PositiveControl(variant=variant, outcome=outcome)
    return PositiveControl(
        variant=variant, outcome=outcome, harm=_finite(cost.harm), low=_finite(cost.low), high=_finite(cost.high)
    )


def _unavailable_finding(rules: Rules, state: PluginState) -> Draft:
    """Return the finding of a plugin that is skipped or crashed, for its first contrast with a verdict."""
    contrasts = state.plugin.contrasts
    name = next((contrast.name for contrast in contrasts if contrast.kind != "info"), contrasts[0].name)
    verdict = verdicts.decide_without_trials(state.skipped, state.error)
    return Draft(finding=_blank_finding(rules, state, name, verdict.code), reasons=(verdict.reason,))


def _paired_finding(result: ContrastResult, variant: str, stopped: Reason | None) -> Draft:
    """Return the finding of a contrast that is compared with the margin, with the control of a variant."""
    rules, decision, state = result.rules, result.decision, result.state
    estimate, cost = decision.harm.estimate, decision.controls.get(variant)
    measures, measure_error = _mean_measures(state, result.records, decision.seeds, variant)
    if len(decision.seeds) == 1 and decision.harm.exposed and rules.metric == "accuracy":
        measures["McNemar's p, which tests a harm of 0"] = intervals.mcnemar_p(decision.harm.difference.ravel())
    explanation, explain_error = _explanation(state, result.contrast, result.records)
    error = decision.harm.error or _first_crash(result.records, [variant]) or measure_error or explain_error
    control = verdicts.control_outcome(cost, rules.margin)
    evidence = verdicts.Evidence(
        control=control,
        exposed=decision.harm.exposed,
        trust=state.trust,
        baseline=result.baseline_failure,
        error=error,
        equal=why_equal(result),
        selected=result.is_selected,
        finished=result.is_finished,
        control_improves=result.compares_with_cure and cost is not None and cost.estimate.high < -rules.margin,
        may_understate=result.cut_arm(1.0),
        may_overstate=result.cut_arm(-1.0),
        seeds_apart=estimates.has_seeds_apart(decision.harm, rules.margin),
        failures=result.failure_obstacle,
        variant=variant,
        cost=None if cost is None or cost.error else cost.estimate,
    )
    verdict = verdicts.decide_harm(estimate, evidence, decision=decision.verdict, margin=rules.margin)
    patch, remaining = remedy(result, verdict.code)
    blank = _blank_finding(rules, state, result.contrast.name, verdict.code)
    finding = replace(
        blank,
        id=f"{blank.id}/{variant}" if variant else blank.id,
        estimate=_harm_estimate(
            rules,
            estimate,
            decision.seeds,
            p_fail=None if error else decision.adjusted[0],
            p_pass=None if error else decision.adjusted[1],
            margin=rules.margin,
            exposed=decision.harm.exposed,
        ),
        control=_positive_control(variant, control, None if cost is None else cost.estimate),
        benefit_retained=None if error else estimates.benefit_retained(result.records, decision.seeds, rules),
        failures=result.failures,
        accuracy=_accuracies(result.records, variant, decision.seeds),
        measures=measures,
        remedy=patch,
    )
    reasons = (verdict.reason,) if error else _paired_reasons(result, variant, verdict, explanation, stopped)
    return Draft(finding=finding, reasons=reasons, remaining=remaining)


def _paired_reasons(
    result: ContrastResult, variant: str, verdict: Verdict, explanation: str, stopped: Reason | None
) -> tuple[Reason, ...]:
    """Return the plugin's explanation, the reason of the verdict, what would decide it, remarks, and crashes of extra arms."""
    reasons = [because(Code.TEXT, text=explanation), verdict.reason]
    if result.decision.is_open:
        reasons.append(power.explain_required_sizes(result.decision, result.rules, halved=result.is_selected))
        reasons += [stopped] if stopped else []
    if verdict.reason.code not in {Code.ON_TRUST, Code.NOT_EXPOSED, Code.NOT_EXPOSED_NO_CONTROL}:
        reasons += remarks(result, variant, verdict.code)
    crash = _first_crash(result.records, result.state.extra_arms)
    return (*reasons, crash) if crash else tuple(reasons)


def _share_finding(state: PluginState, result: ShareResult, variant: str, stopped: Sequence[Reason]) -> Draft:
    """Return the finding of a share of failed runs, with the control of a variant; the margin is the allowed share."""
    rules, decision, allowed = result.rules, result.decision, result.allowed
    estimate, cost = decision.harm.estimate, decision.controls.get(variant)
    measures, measure_error = _mean_measures(state, result.records, decision.seeds, variant)
    explanation, explain_error = _explanation(state, result.contrast, result.records)
    error = decision.harm.error or _first_crash(result.records, [variant]) or measure_error or explain_error
    control = verdicts.control_outcome(cost, allowed)
    verdict = verdicts.decide_share(
        estimate,
        decision=decision.verdict,
        allowed=allowed,
        control=control,
        variant=variant,
        cost=None if cost is None or cost.error else cost.estimate,
        has_reference=result.has_reference,
        error=error,
        trust=state.trust,
    )
    cured = result.cured
    verified = not cured.error and bool(cured.estimate.high < allowed)
    blank = _blank_finding(rules, state, result.contrast.name, verdict.code)
    harm = _harm_estimate(
        rules,
        estimate,
        decision.seeds,
        p_fail=None if error else decision.adjusted[0],
        p_pass=None if error else decision.adjusted[1],
        margin=allowed,
    )
    finding = replace(
        blank,
        id=f"{blank.id}/{variant}" if variant else blank.id,
        estimate=replace(harm, metric=FAILURE_METRIC, unit=FAILURE_UNIT),
        control=_positive_control(variant, control, None if cost is None else cost.estimate),
        failures=result.failures,
        accuracy=_accuracies(result.records, variant, decision.seeds),
        measures=result.measures() | measures,
        remedy=describe_patch(state, verified=verified) if verdict.code == "FAIL" else None,
    )
    reasons: tuple[Reason, ...] = (verdict.reason,)
    if not error:
        stops = stopped if decision.is_open else ()
        reasons = (because(Code.TEXT, text=explanation), verdict.reason, *result.remarks(), *stops)
    return Draft(finding=finding, reasons=reasons, remaining=None if verified or cured.error else cured.estimate)


def _exact_finding(rules: Rules, state: PluginState, contrast: Contrast, records: estimates.RecordsByTerm) -> Draft:
    """Return the finding of an invariant, which is broken if its sum exceeds the allowed value (default 0) at any seed.

    An invariant needs no control. The induced arms show that it can be broken.
    """
    contrasts = {"subject": contrast, "cured": estimates.swap_arm(contrast, "subject", "cured")}
    variants = state.variants if contrast.controlled else ()
    contrasts |= {f"induced:{variant}": estimates.positive_control(contrast, variant) for variant in variants}
    terms = [term for arm_contrast in contrasts.values() for term in arm_contrast.weights]
    seeds = _complete_seeds(records, terms)
    values = {
        arm: np.array([estimates.invariant_value(arm_contrast, records, seed) for seed in seeds])
        for arm, arm_contrast in contrasts.items()
    }
    diverged = {
        seed for (arm, _, seed), record in records.items() if arm == "subject" and record.scalars.get("diverged", 0.0) > 0
    }
    explanation, explain_error = _explanation(state, contrast, records)
    obstacle, obstacle_error = _obstacle(state, contrast, records, rules)
    allowed = getattr(rules, contrast.allowed) if contrast.allowed else 0.0
    verdict = verdicts.decide_invariant(
        [float(value) for value in values["subject"]],
        [seed in diverged for seed in seeds],
        allowed=allowed,
        meaning=contrast.meaning,
        error=_first_crash(records, state.variants) or explain_error or obstacle_error,
        trust=state.trust,
        comparable=not _has_unknown_training(state),
        obstacle=obstacle,
    )
    broken = {arm: int((np.isfinite(sums) & (np.abs(sums) > allowed)).sum()) for arm, sums in values.items()}
    sizes = {arm: float(np.abs(sums).mean()) for arm, sums in values.items() if np.isfinite(sums).all()}
    is_repaired = not broken["cured"] and bool(np.isfinite(values["cured"]).all())
    is_detected = any(broken[f"induced:{variant}"] for variant in variants)
    blank = _blank_finding(rules, state, contrast.name, verdict.code)
    finding = replace(
        blank,
        estimate=replace(blank.estimate, seeds=len(seeds), exposed=bool(broken["subject"])),
        control=PositiveControl(outcome=("detected" if is_detected else "missed") if variants else "none"),
        measures={f"{arm}/{contrast.name}": size for arm, size in sizes.items()},
        remedy=describe_patch(state, verified=is_repaired) if verdict.code == "FAIL" else None,
    )
    reasons: tuple[Reason, ...] = (verdict.reason,)
    if verdict.code != "ERROR":
        crash = _first_crash(records, state.extra_arms)
        effect = _effect(rules, state, contrast, records) if verdict.code == "FAIL" else None
        remarks_after = [reason for reason in (effect, crash) if reason]
        reasons = (because(Code.TEXT, text=explanation), verdict.reason, *remarks_after)
    return Draft(finding=finding, reasons=reasons)


def _obstacle(
    state: PluginState, contrast: Contrast, records: estimates.RecordsByTerm, rules: Rules
) -> tuple[Reason | None, Reason | None]:
    """Return why the plugin does not let an invariant pass, or None; and the crash of that function, or None."""
    if state.plugin.why_no_pass is None:
        return None, None
    try:
        return state.plugin.why_no_pass(contrast.name, records, rules), None
    except Exception as error:  # noqa: BLE001 - the crash becomes the plugin's finding, and other plugins continue
        return None, because(Code.EXPLANATION_CRASHED, error=f"{type(error).__name__}: {error}")


def _effect(rules: Rules, state: PluginState, contrast: Contrast, records: estimates.RecordsByTerm) -> Reason | None:
    """Return what a broken invariant changes, with its interval, if it was measured."""
    measurement = next((other for other in state.measurements() if other.name == contrast.effect), None)
    if measurement is None:
        return None
    rules = rules_for(measurement, rules)
    result = estimates.estimate_contrast(measurement, records, _complete_seeds(records, measurement.weights), rules)
    return None if result.error else because(Code.EFFECT, meaning=measurement.meaning, estimate=result.estimate)


def _has_unknown_training(state: PluginState) -> bool:
    """Return whether the training of a finished network is not known, so that it can be measured but not compared."""
    subject = state.arms["subject"].pipeline
    return subject is not None and subject.checkpoint is not None and subject.expected_training is None


def _complete_seeds(records: estimates.RecordsByTerm, terms: Iterable[tuple[str, str]]) -> list[int]:
    """Return the seeds that have a record for every term, in order."""
    required = list(terms)
    return sorted(seed for seed in {seed for _, _, seed in records} if all((*term, seed) in records for term in required))


def _measurement(rules: Rules, state: PluginState, contrast: Contrast, records: estimates.RecordsByTerm) -> Draft:
    """Return the finding of a measurement with its interval, over the seeds that have it; it is never a verdict.

    For a plugin without verdicts, the finding also has the plugin's measures and explanation.
    """
    seeds = _complete_seeds(records, contrast.weights)
    result = estimates.estimate_contrast(contrast, records, seeds, rules)
    has_crashed = any(records[(*term, seed)].error for term in contrast.weights for seed in seeds)
    measures: dict[str, float] = {}
    explanation, failure = "", None
    if not state.plugin.has_verdict:
        measures, measure_error = _mean_measures(state, records, seeds, "")
        explanation, explain_error = _explanation(state, contrast, records)
        failure = _first_crash(records, state.extra_arms) or measure_error or explain_error
    verdict = verdicts.decide_measurement(
        meaning=contrast.meaning, failure=failure, error=result.error, crashed=has_crashed, seeds=len(seeds)
    )
    finding = replace(
        _blank_finding(rules, state, contrast.name, verdict.code),
        estimate=_harm_estimate(rules, result.estimate, seeds),
        measures=measures,
    )
    reasons = (verdict.reason, because(Code.TEXT, text=explanation)) if verdict.code == "INFO" else (verdict.reason,)
    return Draft(finding=finding, reasons=reasons)


def _explanation(state: PluginState, contrast: Contrast, records: estimates.RecordsByTerm) -> tuple[str, Reason | None]:
    """Return the plugin's explanation of a contrast, or "", and the crash of the explaining function, or None."""
    subject, cured = (state.arms[arm].pipeline for arm in ("subject", "cured"))
    has_crashed = any(record.error for record in records.values())
    if state.plugin.explain is None or subject is None or cured is None or has_crashed:
        return "", None
    try:
        return state.plugin.explain(contrast.name, records, subject, cured), None
    except Exception as error:  # noqa: BLE001 - the crash becomes the plugin's finding, and other plugins continue
        return "", because(Code.EXPLANATION_CRASHED, error=f"{type(error).__name__}: {error}")


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _first_crash(records: estimates.RecordsByTerm, variants: Sequence[str]) -> Reason | None:
    """Return the first crash among the arms of a finding, or None; a missing arm leads to ERROR, even if other arms exist."""
    arms = {"subject", "cured", "scratch", *variants, *(f"induced:{variant}" for variant in variants)}
    crashes = (
        because(Code.CRASHED, arm=arm, seed=seed, error=record.error)
        for (arm, _, seed), record in records.items()
        if record.error and arm in arms
    )
    return next(crashes, None)


def _accuracies(records: estimates.RecordsByTerm, variant: str, seeds: Sequence[int]) -> dict[str, float]:
    arms = {"subject": "subject", "cured": "cured", "induced": f"induced:{variant}", "scratch": "scratch"}
    accuracies = {name: estimates.mean_accuracy(records, arm, seeds) for name, arm in arms.items()}
    return {name: accuracy for name, accuracy in accuracies.items() if accuracy is not None}


def _mean_measures(
    state: PluginState, records: estimates.RecordsByTerm, seeds: Sequence[int], variant: str
) -> tuple[dict[str, float], Reason | None]:
    """Return the means over seeds of the plugin's measures, by arm/name, with its derived metrics; and the crash, or None."""
    plugin = state.plugin
    values: dict[str, list[float]] = {}
    try:
        for (arm, view, _), record in records.items():
            if view in plugin.measures and arm in {"subject", f"induced:{variant}"} and not record.error:
                values.setdefault(f"{arm.partition(':')[0]}/{view}", []).append(record.scalars[view])
        means = {name: float(np.mean(scalars)) for name, scalars in values.items()}
        means |= dict(plugin.derived_metrics(records, seeds)) if plugin.derived_metrics else {}
        return {name: mean for name, mean in means.items() if np.isfinite(mean)}, None
    except Exception as error:  # noqa: BLE001 - the crash becomes the plugin's finding, and other plugins continue
        return {}, because(Code.MEASURES_CRASHED, error=f"{type(error).__name__}: {error}")


def trial_rows(schedule: Schedule, records: Mapping[str, Record]) -> tuple[TrialRow, ...]:
    """Return a row for every request with its record, without those of selections."""
    states = {state.plugin.id: state for state in schedule.states}
    rows = []
    for request in schedule.requests:
        state = states.get(request.plugin)
        resolved = state.arms.get(request.arm) if state else None
        if request.view == "validation" or state is None or resolved is None or resolved.pipeline is None:
            continue
        arm, _, variant = request.arm.partition(":")
        rows.append(
            TrialRow(
                plugin=request.plugin,
                arm=arm,
                variant=variant,
                view=request.view,
                seed=request.seed,
                record=records[request.trial.key],
                recipe=describe_pipeline(resolved.pipeline, state.recorded),
            )
        )
    return tuple(rows)
