"""The recipes of a matrix as arms that are measured without a verdict, or the reason why a recipe is not feasible. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.core.interventions import RANDOM_HEAD, RandomWeights, SourcePretraining, TargetPretraining
from xferbench.core.pipeline import Selection
from xferbench.core.plugin import Contrast, Plugin
from xferbench.core.reason import Code, Reason, because
from xferbench.core.requirements import always_applies, leave_unchanged
from xferbench.core.strategies import DEFAULT_NAME, SCRATCH_NAME, default_selection, resolve_steps, scratch_baseline
from xferbench.study import feasibility
from xferbench.study.trials import VIEWS

if TYPE_CHECKING:
    from xferbench.core.pipeline import Pipeline
    from xferbench.core.plugin import Profile
    from xferbench.core.suite import Matrix, RecipeGrid
    from xferbench.study.study import Study

COST_MEASURE = "xferbench.lab.evaluation.cost:measure_cost@2"
RECIPE_ARM = "beside:it"  # the arm of a recipe in the plugin that measures it
PLUGIN_PREFIX = "recipe:"  # prefix of the ids of plugins that measure recipes


def recipe_study(matrix: Matrix, study: Study) -> tuple[Study, dict[str, Reason]]:
    """Return the recipes of a task as a separate study, and the reason for each recipe that is not feasible."""
    pipeline = study.subject.candidates[0] if isinstance(study.subject, Selection) else study.subject
    arms = {grid.name: recipe_arm(_in_steps(grid, study.profile), pipeline) for grid in matrix.compared}
    skipped = {name: reason for name, arm in arms.items() if (reason := why_not(arm, pipeline, study.profile))}
    views = {claim.view for claim in matrix.effects if claim.recipe and claim.task == study.suite.name}
    plugins = tuple(recipe_plugin(name, arm, study.profile, views) for name, arm in arms.items() if name not in skipped)
    return replace(study, plugins=plugins, subject=pipeline), skipped


def _in_steps(grid: RecipeGrid, profile: Profile) -> RecipeGrid:
    """Return a recipe of a matrix with its epochs as steps."""
    return replace(grid, recipes=tuple(resolve_steps(recipe, profile.data.train) for recipe in grid.recipes))


def recipe_arm(grid: RecipeGrid, pipeline: Pipeline) -> Selection:
    """Return the arm of a recipe: the best of its rates on validation, with the serving of the pipeline."""
    if grid.recipes:
        return Selection(candidates=tuple(dict.fromkeys(replace(pipeline, recipe=recipe) for recipe in grid.recipes)))
    plain = replace(pipeline, recipe=replace(pipeline.recipe, head=RANDOM_HEAD, augment=None, stop="last"))
    if grid.name == DEFAULT_NAME:
        return default_selection(plain)
    assert grid.name == SCRATCH_NAME, "every other recipe has its own candidates"
    search = scratch_baseline(plain, plain.baseline)
    return replace(search, candidates=search.candidates[1:])  # without the first candidate, which has the subject's settings


def why_not(arm: Selection, pipeline: Pipeline, profile: Profile) -> Reason | None:
    """Return why a recipe cannot run at every rate of its search, or None."""
    for candidate in arm.candidates:
        recipe = candidate.recipe
        if reason := feasibility.why_not_trainable(recipe, profile):
            return reason
        if isinstance(recipe.init, SourcePretraining) and pipeline.data.source is None:
            return because(Code.NO_SOURCE, value=recipe.init)
        if recipe.regularizer and "source" in recipe.regularizer.requires and not profile.data.source:
            return because(Code.NO_SOURCE_CLASSES, value=recipe.regularizer)
    supported = feasibility.supported_arms({"it": arm}, pipeline, profile.user_code.supports).get("it")
    if supported is not None and len(feasibility.candidates(supported)) == len(arm.candidates):
        return None
    unsupported = feasibility.why_unsupported(arm, (), pipeline, profile.user_code.supports)
    return unsupported or because(Code.RATES_UNSUPPORTED)


def recipe_plugin(name: str, arm: Selection, profile: Profile, views: set[str]) -> Plugin:
    """Return a plugin that measures a recipe on the target, the shifted set and the source, its cost, and views of claims."""
    local_starts = RandomWeights | TargetPretraining | SourcePretraining
    pretrained = not isinstance(arm.candidates[0].recipe.init, local_starts)
    available = {"": True, "shifted": bool(profile.data.shifted), "source": bool(profile.data.source) and pretrained}
    all_views = dict.fromkeys(["test", "shifted", "source", "source-before", *sorted(views)])
    feasible_views = [view for view in all_views if available[VIEWS[view].domain]]
    return Plugin(
        id=f"{PLUGIN_PREFIX}{name}",
        version=1,
        question="What does this recipe reach, and what does it cost?",
        doc=__doc__,
        applies=always_applies,
        cure=leave_unchanged,
        induce=lambda *_: {},
        remedy="",
        extra_arms=lambda *_: {"it": arm},
        contrasts=tuple(
            Contrast(name=view, kind="info", weights={(RECIPE_ARM, view): 1.0}) for view in (*feasible_views, "cost")
        ),
        measures={"cost": COST_MEASURE},
    )
