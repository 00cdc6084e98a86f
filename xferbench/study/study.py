"""A study: a suite, its profile, its plugins and its compute context. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xferbench.core.strategies import default_selection

if TYPE_CHECKING:
    from xferbench.core.pipeline import Arm, Pipeline
    from xferbench.core.plugin import Plugin, Profile
    from xferbench.core.suite import Suite
    from xferbench.core.trial import ComputeContext, Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """Everything that a schedule depends on, apart from the records.

    Attributes:
        suite: the suite.
        profile: the profile of the backbone and the data.
        plugins: the plugins.
        subject: the user's pipeline, or a selection if the suite has no recipe.
        context: the context that trials are computed in.
    """

    suite: Suite
    profile: Profile
    plugins: tuple[Plugin, ...]
    subject: Arm
    context: ComputeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRequest:
    """A trial and the arm of a plugin that requests it; one row of a run."""

    plugin: str
    arm: str
    view: str
    seed: int
    trial: Trial


def subject_arm(suite: Suite, pipeline: Pipeline) -> Arm:
    """Return the user's arm: a finished network, the suite's recipe, or the default selection for a suite without a recipe."""
    if pipeline.checkpoint:
        return pipeline
    return default_selection(pipeline) if suite.recipe is None else pipeline
