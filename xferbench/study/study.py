"""A study: a suite, its profile, its plugins and its compute context. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from xferbench.core.pipeline import Selection
from xferbench.core.reason import Code, Reason, because
from xferbench.core.strategies import default_selection

if TYPE_CHECKING:
    from xferbench.core.pipeline import Arm, Pipeline, ScratchGrid
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
        lacking_seconds: planned cost of the first look in seconds, if the budget does not pay for it; nothing is run then.
    """

    suite: Suite
    profile: Profile
    plugins: tuple[Plugin, ...]
    subject: Arm
    context: ComputeContext
    lacking_seconds: float | None = None

    @property
    def search(self) -> ScratchGrid:
        """The search of the from-scratch baseline, which a budget may have made smaller than that of the suite."""
        return (self.subject.candidates if isinstance(self.subject, Selection) else (self.subject,))[0].baseline


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRequest:
    """A trial and the arm of a plugin that requests it; one row of a run."""

    plugin: str
    arm: str
    view: str
    seed: int
    trial: Trial


def why_unaffordable(study: Study) -> Reason | None:
    """Return why nothing of a study is run, if its budget does not pay for the first look; else None."""
    if study.lacking_seconds is None:
        return None
    return because(Code.UNAFFORDABLE, needed=study.lacking_seconds, budget=study.suite.rules.budget)


def describe_cut(study: Study) -> Reason | None:
    """Return what the budget affords of the search of the from-scratch baseline, if it is not that of the suite; else None."""
    full = study.suite.scratch
    return None if study.search == full else because(Code.SCRATCH_SEARCH, grid=study.search, full=full)


def subject_arm(suite: Suite, pipeline: Pipeline) -> Arm:
    """Return the user's arm: a finished network, the suite's recipe, or the default selection for a suite without a recipe."""
    if pipeline.checkpoint:
        return pipeline
    return default_selection(pipeline) if suite.recipe is None else pipeline
