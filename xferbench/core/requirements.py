"""Common requirements of plugins: each function returns the reason why a plugin does not apply, or "". Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.core.interventions import PRETRAINED

if TYPE_CHECKING:
    from xferbench.core.pipeline import Pipeline
    from xferbench.core.plugin import Plugin, Profile
    from xferbench.core.suite import Rules


def always_applies(_pipeline: Pipeline, _profile: Profile) -> str:
    """Apply to every pipeline."""
    return ""


def requires_pretrained(pipeline: Pipeline, _profile: Profile) -> str:
    """Require a recipe that starts from pretrained weights."""
    return "" if pipeline.recipe.init == PRETRAINED else "nothing pretrained is adapted"


def requires_batchnorm(pipeline: Pipeline, profile: Profile) -> str:
    """Require a pretrained backbone with BatchNorm layers."""
    return requires_pretrained(pipeline, profile) if profile.has_batchnorm else "the backbone has no BatchNorm layer"


def requires_source(pipeline: Pipeline, profile: Profile) -> str:
    """Require pretrained weights and a source dataset whose classes are known."""
    unknown = "" if profile.data.source else profile.data.source_error or "the suite has no [source] whose classes are known"
    return requires_pretrained(pipeline, profile) or unknown


def requires_several_steps(pipeline: Pipeline, profile: Profile, purpose: str) -> str:
    """Require pretrained weights and more than one training step; ``purpose`` completes "a single step leaves none …"."""
    single = sum(phase.steps for phase in pipeline.recipe.phases) < 2
    return requires_pretrained(pipeline, profile) or (f"a single step leaves none {purpose}" if single else "")


def unrecorded_preprocessing(_pipeline: Pipeline, profile: Profile) -> str:
    """Return what a plugin takes on trust (``Plugin.trust``) if no preprocessing is recorded with the weights."""
    return "" if profile.recorded else "no preprocessing is recorded with these weights; state it under [backbone]"


def leave_unchanged(pipeline: Pipeline, _profile: Profile) -> Pipeline:
    """Return the pipeline itself: the cure of a plugin that only measures, or that checks an invariant."""
    return pipeline


def apply_rules(plugin: Plugin, rules: Rules) -> Plugin:
    """Return a plugin that judges what the rules of a suite ask for and measures the rest.

    If no contrast is left that leads to a verdict, nothing is cured or induced.
    """
    contrasts = tuple(
        contrast if not contrast.judged_if or getattr(rules, contrast.judged_if) else replace(contrast, kind="info")
        for contrast in plugin.contrasts
    )
    changed = replace(plugin, contrasts=contrasts)
    is_measured = plugin.has_verdict and not changed.has_verdict
    return replace(changed, cure=leave_unchanged, induce=lambda *_: {}) if is_measured else changed
