"""A study: a suite, its profile, its plugins and where it is computed. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from xferbench.core.strategies import default_selection

if TYPE_CHECKING:
    from xferbench.core.pipeline import Arm, Pipeline
    from xferbench.core.plugin import Plugin, Profile
    from xferbench.core.suite import Suite
    from xferbench.core.trial import ComputeContext, Trial


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """All that a plan is made of: the suite, what is known, what is asked, and where it is computed."""

    suite: Suite
    facts: Profile
    plugins: tuple[Plugin, ...]
    subject: Arm
    place: ComputeContext


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRequest:
    """A trial with who asks it: one row of a run."""

    plugin: str
    arm: str
    view: str
    seed: int
    trial: Trial


def subject_arm(suite: Suite, pipeline: Pipeline) -> Arm:
    """What the user does today: the suite's recipe, or without one the healthy default; or the network that is finished."""
    if pipeline.finished:
        return pipeline
    return default_selection(pipeline) if suite.recipe is None else replace(pipeline, recipe=suite.recipe)
