"""The next trials of a study, or its decisions, from the records so far. Pure, so that a killed run resumes by itself.

Selections come first, that of the subject before all others. Then follow the looks in order, and a look requests only trials of
contrasts that are still open.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from xferbench.analysis import estimates, sequential
from xferbench.core.reason import Code, Reason, because
from xferbench.study import batching, cost, selection
from xferbench.study.arms import induced_arms, plugin_arms, why_not, why_not_supported
from xferbench.study.plugin_state import PluginState
from xferbench.study.share import decide_share, extra_looks, share_looks
from xferbench.study.study import why_unaffordable
from xferbench.study.trial_requests import (
    check_views,
    contrast_margin,
    contrast_requests,
    extra_share_requests,
    invariant_requests,
    selection_requests,
    share_requests,
    start_requests,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from xferbench.analysis.sequential import SequentialDecision
    from xferbench.core.pipeline import Arm, Pipeline
    from xferbench.core.plugin import Contrast, Plugin
    from xferbench.core.record import Record
    from xferbench.core.suite import Rules, Suite
    from xferbench.core.trial import TrainingSpec, Trial
    from xferbench.study.selection import ResolvedArm
    from xferbench.study.study import Study, TrialRequest


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """The current stage of a study.

    Attributes:
        stage: the name of the stage.
        pending: all trials of the stage by key, with or without a record; empty if the study is finished.
        requests: all requests so far, including those of selections.
        states: the states of the plugins.
        subject: the resolved subject, or None.
        decisions: the decisions by ``plugin/contrast``.
        stop_reason: why the study stopped before the last look, or None.
        extra_stop_reason: why it stopped before the additional looks at shares of failed runs, or None.
    """

    stage: str = ""
    pending: Mapping[str, Trial] = field(default_factory=dict)
    requests: tuple[TrialRequest, ...] = ()
    states: tuple[PluginState, ...] = ()
    subject: ResolvedArm | None = None
    decisions: Mapping[str, SequentialDecision] = field(default_factory=dict)
    stop_reason: Reason | None = None
    extra_stop_reason: Reason | None = None


def next_schedule(study: Study, records: Mapping[str, Record]) -> Schedule:
    """Return the next stage of a study; teachers are trained before the networks that learn from them.

    Args:
        study: the study.
        records: all records so far, by key.
    """
    schedule = _next_stage(study, records)
    teachers = {trial.model.base.procedure.teacher for trial in schedule.pending.values()}
    first = {key: trial for key, trial in schedule.pending.items() if trial.model.base in teachers}
    return replace(schedule, stage="training teachers", pending=first) if first.keys() - records.keys() else schedule


def _next_stage(study: Study, records: Mapping[str, Record]) -> Schedule:
    """Return the next stage of a study, with teachers and students together."""
    crash = study.profile.user_code.crash
    unaffordable = None if crash else why_unaffordable(study)
    if crash or unaffordable:
        return Schedule(states=tuple(PluginState(plugin=plugin, error=crash, skipped=unaffordable) for plugin in study.plugins))
    requests = selection_requests("", "subject", study.subject, study, records)
    subject = selection.select(study.subject, study, records)
    if subject is None:
        wanted = batching.unique_trials(requests)
        return Schedule(stage="selecting the default recipe", pending=wanted, requests=tuple(requests))
    if subject.pipeline is None:
        states = tuple(PluginState(plugin=plugin, error=f"subject: {subject.error}") for plugin in study.plugins)
        return Schedule(requests=tuple(requests), states=states, subject=subject)
    resolved = [_resolve_plugin(plugin, study, subject.pipeline, records) for plugin in study.plugins]
    tuning = [request for _, new in resolved for request in new]
    requests += tuning
    if _is_incomplete(tuning, records):
        stage = "selecting repairs" if subject.pipeline.checkpoint else "tuning cures and scratch"
        return Schedule(stage=stage, pending=batching.unique_trials(tuning), requests=tuple(requests), subject=subject)
    states = tuple(state for state, _ in resolved)
    first_seeds = range(study.suite.rules.seed, study.suite.rules.seed + study.suite.rules.looks[0])
    starts = [request for state in states for request in start_requests(state, first_seeds, study)]
    requests += starts
    if _is_incomplete(starts, records):
        wanted = batching.unique_trials(starts)
        return Schedule(stage="training initial networks", pending=wanted, requests=tuple(requests), subject=subject)
    return _run_looks(study, Schedule(requests=tuple(requests), states=states, subject=subject), records)


def _is_incomplete(requests: Iterable[TrialRequest], records: Mapping[str, Record]) -> bool:
    return any(request.trial.key not in records for request in requests)


def _resolve_plugin(
    plugin: Plugin, study: Study, subject: Pipeline, records: Mapping[str, Record]
) -> tuple[PluginState, list[TrialRequest]]:
    """Return the state of a plugin with the arms that can be resolved, and the requests of its selections."""
    requests: list[TrialRequest] = []
    resolved: dict[str, ResolvedArm] = {}
    pending: list[str] = []

    def resolve(arms: Mapping[str, Arm]) -> None:
        for name, arm in arms.items():
            requests.extend(selection_requests(plugin.id, name, arm, study, records))
            resolved_arm = selection.select(arm, study, records)
            if resolved_arm is None:
                pending.append(name)
            else:
                resolved[name] = resolved_arm

    try:
        if skipped := why_not(plugin, study, subject):
            return PluginState(plugin=plugin, skipped=skipped), []
        resolve(plugin_arms(plugin, study, subject))
        if "cured" in resolved and _judges_selection(plugin, subject):
            resolved["cured"] = selection.best_alternative(resolved["cured"], subject, study)
        trust = plugin.trust(subject, study.profile) if plugin.trust else ""
        if "cured" in resolved and (cured := resolved["cured"].pipeline) is not None:
            if skipped := why_not_supported(plugin, study, subject, cured):
                return PluginState(plugin=plugin, skipped=skipped), []
            resolve(induced_arms(plugin, study, cured))
        errors = [f"{name}: {arm.error}" for name, arm in resolved.items() if arm.error]
        state = PluginState(plugin=plugin, error=errors[0] if errors else "", trust=trust, arms=resolved)
        if not pending:  # a contrast whose views do not exist is a crash of this plugin only
            check_views(state, study)
    except Exception as error:  # noqa: BLE001 - the crash becomes the plugin's finding, and other plugins continue
        return PluginState(plugin=plugin, error=f"{type(error).__name__}: {error}"), []
    return replace(state, recorded=study.profile.preprocessing), requests


def _judges_selection(plugin: Plugin, subject: Pipeline) -> bool:
    """Return whether a verdict of the plugin compares the subject with a cure that is trained."""
    weighed = [{arm for arm, _ in contrast.weights} for contrast in plugin.contrasts if contrast.kind == "paired"]
    has_share = any(contrast.kind == "share" for contrast in plugin.contrasts)
    return subject.checkpoint is None and (has_share or any({"cured", "subject"} <= arms for arms in weighed))


def _run_looks(study: Study, initial: Schedule, records: Mapping[str, Record]) -> Schedule:
    """Return the schedule after all looks whose records exist."""
    suite, schedule = study.suite, initial
    extra = extra_looks(initial.states, suite.rules)
    looks = (*suite.rules.looks, *extra)
    stopped: dict[str, Reason] = {}

    def observe(look: int, decisions: Mapping[str, SequentialDecision]) -> Mapping[str, SequentialDecision] | None:
        nonlocal schedule
        number, kind = looks.index(look) + 1, "stop_reason" if look in suite.rules.looks else "extra_stop_reason"
        if number > 1:
            if kind in stopped or not (new := _new_requests(study, initial, look, decisions)):
                return decisions
            planned = cost.planned_seconds([request.trial for request in (*schedule.requests, *new)], study.profile)
            if planned > suite.rules.budget:
                last = suite.rules.looks[-1] if kind == "stop_reason" else look
                stopped[kind] = because(Code.BUDGET_SPENT, budget=suite.rules.budget, seeds=looks[number - 2], planned=last)
                return decisions
        schedule = replace(initial, **_look_fields(study, schedule, look, decisions, records, number))
        return None if schedule.pending else _add_look(study, schedule, look, decisions, records)

    decisions = sequential.run_looks(suite.rules.looks, suite.rules.alpha, observe, extra)
    if schedule.pending:
        return schedule
    reasons = (stopped.get(kind) for kind in ("stop_reason", "extra_stop_reason"))
    return replace(schedule, decisions=decisions, stop_reason=next(reasons), extra_stop_reason=next(reasons))


def _look_seeds(suite: Suite, look: int) -> tuple[int, ...]:
    return tuple(range(suite.rules.seed, suite.rules.seed + look))


def _new_requests(
    study: Study, schedule: Schedule, look: int, decisions: Mapping[str, SequentialDecision]
) -> list[TrialRequest]:
    if look not in study.suite.rules.looks:
        return [request for state in schedule.states for request in extra_share_requests(state, look, study, decisions)]
    seeds = _look_seeds(study.suite, look)
    return [
        request
        for requests in (contrast_requests, share_requests)
        for state in schedule.states
        for request in requests(state, seeds, study, decisions)
    ]


def _look_fields(
    study: Study,
    schedule: Schedule,
    look: int,
    decisions: Mapping[str, SequentialDecision],
    records: Mapping[str, Record],
    number: int,
) -> dict[str, Any]:
    """Return the fields of the schedule at a look: all requests so far, and the trials of the look if a record is missing."""
    suite, seeds = study.suite, _look_seeds(study.suite, look)
    new = _new_requests(study, schedule, look, decisions)
    if number == 1:  # an invariant that holds by construction at a few seeds holds at all seeds
        new += [request for state in schedule.states for request in invariant_requests(state, seeds, study)]
    requests = {
        (request.plugin, request.arm, request.view, request.seed, request.trial.key): request
        for request in (*schedule.requests, *new)
    }
    fields: dict[str, Any] = {"requests": tuple(requests.values())}
    if _is_incomplete(new, records):
        looks = max(number, len(suite.rules.looks))  # the schedule may have additional looks at shares of failed runs
        stage = f"look {number} of {looks}: {look} seeds" if not suite.is_audit else "evaluating"
        fields |= {"stage": stage, "pending": batching.unique_trials(new)}
    return fields


def _add_look(
    study: Study,
    schedule: Schedule,
    look: int,
    decisions: Mapping[str, SequentialDecision],
    records: Mapping[str, Record],
) -> dict[str, SequentialDecision]:
    """Return the decisions with the estimates of one more look; an additional look is one at some shares of failed runs."""
    rules, updated = study.suite.rules, dict(decisions)
    is_extra, seeds = look not in rules.looks, _look_seeds(study.suite, look)
    for state in schedule.states:
        by_term = records_by_term(schedule.requests, state.plugin.id, records)
        for name, contrast in state.contrasts("share"):
            if not is_extra or (look == share_looks(contrast, rules)[-1] and decisions[name].is_open):
                updated[name] = decide_share(state, contrast, decisions.get(name), by_term, seeds, rules)
        for name, contrast in () if is_extra else state.contrasts("paired"):
            updated[name] = _decide_contrast(state, contrast, decisions.get(name), by_term, seeds, study)
    return updated


def records_by_term(
    requests: Sequence[TrialRequest], plugin: str, records: Mapping[str, Record]
) -> dict[tuple[str, str, int], Record]:
    """Return a plugin's records by arm, view and seed, without those of selections, which belong to candidates."""
    return {
        (request.arm, request.view, request.seed): records[request.trial.key]
        for request in requests
        if request.plugin == plugin and request.view != "validation"
    }


def rules_for(contrast: Contrast, rules: Rules) -> Rules:
    """Return the rules with the metric and the margin of a contrast."""
    metric = contrast.metric or selection.metric_for_views(rules.metric, [view for _, view in contrast.weights])
    return replace(rules, metric=metric, margin=contrast_margin(contrast, rules))


def _decide_contrast(
    state: PluginState,
    contrast: Contrast,
    previous: SequentialDecision | None,
    records: estimates.RecordsByTerm,
    seeds: tuple[int, ...],
    study: Study,
) -> SequentialDecision:
    """Return the decision on a contrast after one more look.

    A decided contrast keeps its numbers, but controls that are still missing are estimated again.
    """
    rules = rules_for(contrast, study.suite.rules)
    decision = previous
    if decision is None or decision.is_open:
        decision = sequential.add_look(previous, estimates.estimate_contrast(contrast, records, seeds, rules), seeds)
    controls = {
        variant: estimates.estimate_contrast(estimates.positive_control(contrast, variant), records, seeds, rules)
        if previous is None or previous.lacks(variant, rules.margin)
        else previous.controls[variant]
        for variant in state.variants
    }
    return replace(decision, controls=controls)


def training_seconds(requests: Sequence[TrialRequest], records: Mapping[str, Record]) -> float:
    """Return the recorded seconds of training, each network once.

    The time of a student includes that of its teacher, which is subtracted if the teacher was requested by itself.
    """
    seconds_by_spec: dict[TrainingSpec, float] = {}
    for key, trial in batching.unique_trials(requests).items():
        if key in records:
            spec = trial.model.base
            seconds_by_spec[spec] = max(seconds_by_spec.get(spec, 0.0), records[key].fit_seconds)
    teachers = {spec: spec.procedure.teacher for spec in seconds_by_spec}
    teacher_seconds = {spec: seconds_by_spec.get(teacher, 0.0) if teacher else 0.0 for spec, teacher in teachers.items()}
    return sum(max(0.0, seconds - teacher_seconds[spec]) for spec, seconds in seconds_by_spec.items())
