"""From pipelines to trials: the arms of a plugin, the choices among them, and what each is asked. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.core.pipeline import Arm, Pipeline, ScratchGrid, Selection
from xferbench.core.strategies import scratch_baseline
from xferbench.study import feasibility, support

if TYPE_CHECKING:
    from xferbench.core.plugin import Plugin
    from xferbench.study.study import Study


MIN_SCRATCH_STEPS, MAX_SCRATCH_STEPS = 10, 5000  # of a from-scratch baseline on a budget


def plugin_arms(plugin: Plugin, study: Study, subject: Pipeline) -> dict[str, Arm]:
    """The arms of a plugin that need nothing settled but the subject; in a cure the subject is always a candidate."""
    cured = plugin.cure(subject, study.facts)
    if isinstance(cured, Selection):
        cured = replace(cured, candidates=tuple(dict.fromkeys((subject, *cured.candidates))))
    found = {"subject": subject, "cured": cured}
    if plugin.extra_arms:
        found |= {f"beside:{name}": arm for name, arm in plugin.extra_arms(subject, study.facts).items()}
    weighed = any(arm == "scratch" for one in plugin.contrasts for arm, _ in one.weights)
    judged = any(one.kind == "paired" for one in plugin.contrasts)  # an invariant has no use for a baseline
    if (judged or weighed) and (subject.finished is None or study.suite.scratch_budget is not None):
        found["scratch"] = scratch_baseline(subject, scratch_grid(study))
    return support.supported_arms(feasibility.feasible_arms(found, study.facts), subject, study.facts.supports)


def why_not(plugin: Plugin, study: Study, subject: Pipeline) -> str:
    """Why a plugin cannot be asked here, or ""."""
    unscratched = subject.finished is not None and study.suite.scratch_budget is None
    if unscratched and any(arm == "scratch" for one in plugin.contrasts for arm, _ in one.weights):
        return "no from-scratch baseline was asked for (--scratch BUDGET)"
    reason = why_not_scorable(plugin, study, subject) or plugin.applies(subject, study.facts)
    return (
        reason
        or feasibility.why_not_feasible(plugin.cure(subject, study.facts), subject, study.facts)
        or why_not_supported(plugin, study, subject)
    )


def why_not_scorable(plugin: Plugin, study: Study, subject: Pipeline) -> str:
    """Why a finished network cannot be scored on the labels at all, or "" where it can, or nothing is scored."""
    outputs, classes = study.facts.outputs, len(study.facts.classes)
    if subject.finished is None or outputs >= classes or all(one.kind == "exact" for one in plugin.contrasts):
        return ""
    return f"the head has {outputs} outputs and the data {classes} classes (audit/head-size)"


def scratch_grid(study: Study) -> ScratchGrid:
    """The grid of the from-scratch baseline: the suite's, or for a finished network what its budget pays for on one worker."""
    budget, found = study.suite.scratch_budget, study.suite.scratch
    if budget is None:
        return found
    found = replace(found, weight_decay=found.weight_decay[:1], batch_size=32)
    fits = len(found.lr) + 1  # each rate once, then the best one with the judged seed
    steps = budget / (fits * found.batch_size * max(study.facts.seconds_step, 1e-6))
    return replace(found, steps=int(min(max(steps // 10 * 10, MIN_SCRATCH_STEPS), MAX_SCRATCH_STEPS)))


def induced_arms(plugin: Plugin, study: Study, cured: Pipeline) -> dict[str, Arm]:
    """The induced arms, ``induced:VARIANT``, made from the cured pipeline once that is settled."""
    found = {f"induced:{variant}": arm for variant, arm in plugin.induce(cured, study.facts).items()}
    return support.supported_arms(feasibility.feasible_arms(found, study.facts), cured, study.facts.supports)


def why_not_supported(plugin: Plugin, study: Study, subject: Pipeline, cured: Pipeline | None = None) -> str:
    """Why a plugin would ask the user's training code for what that ignores, or ""; with ``cured`` once that is settled."""
    induced = plugin.induce(cured, study.facts).values() if cured else ()
    return support.why_unsupported(plugin.cure(subject, study.facts), induced, subject, study.facts.supports)
