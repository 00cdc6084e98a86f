"""Failures of a finished network that remain after the largest one is repaired; the others were its symptoms. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from typing import TYPE_CHECKING

from xferbench.analysis import metrics
from xferbench.core.interventions import AssignClasses, BatchNormEdit, RotateClasses
from xferbench.core.pipeline import replace_data
from xferbench.core.reason import Code, because
from xferbench.study.schedule import records_by_term
from xferbench.study.trials import training_spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from xferbench.core.pipeline import Pipeline
    from xferbench.core.record import Record
    from xferbench.study.draft import Draft
    from xferbench.study.plugin_state import PluginState
    from xferbench.study.schedule import Schedule
    from xferbench.study.study import Study


@dataclass(frozen=True, slots=True, kw_only=True)
class Followup:
    """The study of the remaining failures after the largest one is repaired.

    Attributes:
        by: id of the plugin whose cure is the repair.
        study: the study of the other failures, whose subject is the repaired network.
        step: the schedule of that study.
    """

    by: str
    study: Study
    step: Schedule


def followup_study(study: Study, schedule: Schedule, records: Mapping[str, Record]) -> tuple[str, Study] | None:
    """Return the plugin whose confirmed repair restores most, and a study of the other failures after this repair.

    What a repair restores is the suite's metric of the repaired network on the test images. Two harms do not say it, since a
    check may compare networks with a fitted bias. The result is None if nothing was repaired or nothing else failed.
    """
    failed = [name for name, decision in schedule.decisions.items() if decision.verdict == "FAIL"]
    states = {name: state for state in schedule.states for kind in ("paired", "share") for name, _ in state.contrasts(kind)}
    repairs = [states[name] for name in failed if is_repair(states[name], study.suite.rules.metric)]
    if len(failed) < 2 or not repairs:
        return None
    largest = max(repairs, key=lambda state: _repaired_score(state, schedule, records, study.suite.rules.metric))
    before, repaired = (largest.arms[arm].pipeline for arm in ("subject", "cured"))
    assert before is not None, "the arms of a decided contrast are resolved"
    assert repaired is not None, "the arms of a decided contrast are resolved"
    others = tuple(states[name].plugin for name in failed if states[name].plugin.id != largest.plugin.id)
    subject = _train_on_served_form(before, repaired)
    return (largest.plugin.id, replace(study, subject=subject, plugins=others)) if others else None


def _repaired_score(state: PluginState, schedule: Schedule, records: Mapping[str, Record], metric: str) -> float:
    """Return the metric of the repaired network on the test images, larger is better; −∞ if it was not evaluated there."""
    by_term = records_by_term(schedule.requests, state.plugin.id, records)
    predictions = [record.predictions for (arm, view, _), record in by_term.items() if (arm, view) == ("cured", "test")]
    scores = [metrics.metric_value(part, metric) for part in predictions if part is not None]
    sign = -1 if metrics.get_metric(metric).loss else 1
    return sign * sum(scores) / len(scores) if scores else -inf


def _train_on_served_form(before: Pipeline, repaired: Pipeline) -> Pipeline:
    """Return a repaired network; if its form of images was repaired, that is the form in which it was trained as well.

    Otherwise the checks that serve images as in training would still use the wrong form.
    """
    form = repaired.serving.preprocessing
    return repaired if form == before.serving.preprocessing else replace_data(repaired, train_preprocessing=form)


def is_repair(state: PluginState, metric: str) -> bool:
    """Return whether a cure repairs a finished network, and has a verdict in the given metric."""
    before = state.arms["subject"].pipeline
    has_metric = any(contrast.kind == "paired" and contrast.metric in {"", metric} for contrast in state.plugin.contrasts)
    return before is not None and before.checkpoint is not None and has_metric and keeps_network(state)


def keeps_network(state: PluginState) -> bool:
    """Return whether a cure changes only how the network is served, its BatchNorm statistics or the order of its outputs."""
    before, after = (state.arms[arm].pipeline for arm in ("subject", "cured"))
    if before is None or after is None or before == after or training_spec(before, 0) != training_spec(after, 0):
        return False
    edits = after.edits[len(before.edits) :]
    return all(isinstance(edit, BatchNormEdit | AssignClasses | RotateClasses) for edit in edits)


def add_followup(drafts: Sequence[Draft], followup: Followup | None) -> tuple[Draft, ...]:
    """Return the drafts, each failure with what remains of it after the largest one is repaired."""
    if followup is None:
        return tuple(drafts)
    return tuple(_add_remainder(draft, followup) for draft in drafts)


def _add_remainder(draft: Draft, followup: Followup) -> Draft:
    finding = draft.finding
    decision = followup.step.decisions.get(f"{finding.plugin}/{finding.contrast}")
    if finding.verdict != "FAIL" or decision is None or decision.harm.error:
        return draft
    reason = because(Code.LEFT_AFTER_REPAIR, by=followup.by, verdict=decision.verdict, estimate=decision.harm.estimate)
    symptom_of = followup.by if decision.verdict == "PASS" else ""
    return replace(draft, finding=replace(finding, symptom_of=symptom_of), followup=reason)
