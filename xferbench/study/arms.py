"""The arms of a plugin, and why a plugin does not apply to a study. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.core.pipeline import Arm, Pipeline, Selection
from xferbench.core.reason import Code, Reason, because
from xferbench.core.strategies import scratch_baseline
from xferbench.study import feasibility

if TYPE_CHECKING:
    from xferbench.core.plugin import Plugin
    from xferbench.study.study import Study


def plugin_arms(plugin: Plugin, study: Study, subject: Pipeline) -> dict[str, Arm]:
    """Return the arms of a plugin that depend only on the subject. The subject is always a candidate of a cure."""
    cured = plugin.cure(subject, study.profile)
    if isinstance(cured, Selection):
        cured = replace(cured, candidates=tuple(dict.fromkeys((subject, *cured.candidates))))
    arms = {"subject": subject, "cured": cured}
    if plugin.extra_arms:
        arms |= {f"beside:{name}": arm for name, arm in plugin.extra_arms(subject, study.profile).items()}
    has_margin = any(contrast.kind == "paired" for contrast in plugin.contrasts)  # an invariant needs no baseline
    if (has_margin or _uses_scratch(plugin)) and not _lacks_scratch(study, subject):
        arms["scratch"] = scratch_baseline(subject, subject.baseline)
    return feasibility.supported_arms(feasibility.feasible_arms(arms, study.profile), subject, study.profile.user_code.supports)


def why_not(plugin: Plugin, study: Study, subject: Pipeline) -> Reason | None:
    """Return why a plugin does not apply to a study, or None."""
    if _lacks_scratch(study, subject) and _uses_scratch(plugin):
        return because(Code.SCRATCH_NOT_REQUESTED)
    return (
        why_not_scorable(plugin, study, subject)
        or _why_not_applicable(plugin, study, subject)
        or feasibility.why_not_feasible(plugin.cure(subject, study.profile), subject, study.profile)
        or why_not_supported(plugin, study, subject)
    )


def _why_not_applicable(plugin: Plugin, study: Study, subject: Pipeline) -> Reason | None:
    text = plugin.applies(subject, study.profile)
    return because(Code.TEXT, text=text) if text else None


def _uses_scratch(plugin: Plugin) -> bool:
    return any(arm == "scratch" for contrast in plugin.contrasts for arm, _ in contrast.weights)


def _lacks_scratch(study: Study, subject: Pipeline) -> bool:
    return subject.checkpoint is not None and study.suite.checkpoint.scratch_budget is None


def why_not_scorable(plugin: Plugin, study: Study, subject: Pipeline) -> Reason | None:
    """Return why a finished network cannot be scored on the labels, or None if it can or if the plugin scores nothing."""
    outputs, classes = study.profile.model.outputs, len(study.profile.data.classes)
    if subject.checkpoint is None or subject.checkpoint.sigmoid or outputs >= classes:
        return None
    if all(contrast.kind == "exact" for contrast in plugin.contrasts):
        return None
    return because(Code.HEAD_TOO_SMALL, outputs=outputs, classes=classes)


def induced_arms(plugin: Plugin, study: Study, cured: Pipeline) -> dict[str, Arm]:
    """Return the induced arms, ``induced:VARIANT``, which are derived from the resolved cure."""
    arms = {f"induced:{variant}": arm for variant, arm in plugin.induce(cured, study.profile).items()}
    return feasibility.supported_arms(feasibility.feasible_arms(arms, study.profile), cured, study.profile.user_code.supports)


def why_not_supported(plugin: Plugin, study: Study, subject: Pipeline, cured: Pipeline | None = None) -> Reason | None:
    """Return why the user's training code does not support a plugin's arms, or None; ``cured`` is the resolved cure."""
    if any(contrast.kind == "paired" and "cured" not in {arm for arm, _ in contrast.weights} for contrast in plugin.contrasts):
        return None  # it compares the subject with another arm than the cured one
    induced = plugin.induce(cured, study.profile).values() if cured else ()
    return feasibility.why_unsupported(plugin.cure(subject, study.profile), induced, subject, study.profile.user_code.supports)
