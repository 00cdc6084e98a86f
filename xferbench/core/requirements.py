"""Common requirements of plugins: each function returns the reason why a plugin does not apply, or "". Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.core.interventions import PRETRAINED

if TYPE_CHECKING:
    from xferbench.core.pipeline import Pipeline
    from xferbench.core.plugin import Plugin, Profile
    from xferbench.core.suite import Suite


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
    return "" if profile.recorded else "no preprocessing is recorded with these weights, so nothing confirms that of [backbone]"


def leave_unchanged(pipeline: Pipeline, _profile: Profile) -> Pipeline:
    """Return the pipeline itself: the cure of a plugin that only measures, or that checks an invariant."""
    return pipeline


def measure_only(plugin: Plugin) -> Plugin:
    """Return a plugin whose contrasts are all measured; it cures nothing and induces nothing."""
    contrasts = tuple(replace(contrast, kind="info") for contrast in plugin.contrasts)
    return replace(plugin, contrasts=contrasts, cure=leave_unchanged, induce=lambda *_: {})


def plugin_for_suite(plugin: Plugin, suite: Suite) -> Plugin:
    """Return a plugin that only measures if it does not judge the suite."""
    return plugin if plugin.judges is None or plugin.judges(suite) else measure_only(plugin)
