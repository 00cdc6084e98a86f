"""The recipes of a matrix as arms that are measured and never judged, or the reason why a recipe does not fit. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench.core.interventions import RANDOM_HEAD
from xferbench.core.pipeline import LOCALLY_PRETRAINED_STARTS, Selection
from xferbench.core.plugin import Contrast, Plugin
from xferbench.core.requirements import always_applies, leave_unchanged
from xferbench.core.strategies import DEFAULT_NAME, SCRATCH_NAME, default_selection, scratch_baseline
from xferbench.study import feasibility, support
from xferbench.study.trials import VIEWS

if TYPE_CHECKING:
    from xferbench.core.pipeline import Pipeline
    from xferbench.core.plugin import Profile
    from xferbench.core.suite import Matrix, RecipeGrid
    from xferbench.study.study import Study

COST_MEASURE = "xferbench.lab.evaluation.cost:measure_cost@2"
ARM = "beside:it"  # the arm of a recipe in its own plugin
PLUGIN_PREFIX = "recipe:"  # of the ids of the plugins that stand for recipes


def recipe_study(matrix: Matrix, study: Study) -> tuple[Study, dict[str, str]]:
    """The recipes of a task as a study of their own, and the reason for each recipe that does not fit."""
    pipeline = study.subject.candidates[0] if isinstance(study.subject, Selection) else study.subject
    arms = {compared.name: recipe_arm(compared, pipeline) for compared in matrix.compared}
    skipped = {name: reason for name, arm in arms.items() if (reason := why_not(arm, pipeline, study.facts))}
    views = {effect.view for effect in matrix.effects if effect.recipe and effect.task == study.suite.name}
    plugins = tuple(recipe_plugin(name, arm, study.facts, views) for name, arm in arms.items() if name not in skipped)
    return replace(study, plugins=plugins, subject=pipeline), skipped


def recipe_arm(compared: RecipeGrid, pipeline: Pipeline) -> Selection:
    """The arm of a recipe: the best of its rates on validation, served as the pipeline is."""
    if compared.recipes:
        return Selection(candidates=tuple(dict.fromkeys(replace(pipeline, recipe=recipe) for recipe in compared.recipes)))
    plain = replace(pipeline, recipe=replace(pipeline.recipe, head=RANDOM_HEAD, augment=None, stop="last"))
    if compared.name == DEFAULT_NAME:
        return default_selection(plain)
    assert compared.name == SCRATCH_NAME, "every other recipe has candidates of its own"
    search = scratch_baseline(plain, plain.baseline)
    return replace(search, candidates=search.candidates[1:])  # the grid alone; the first candidate is the subject's


def why_not(arm: Selection, pipeline: Pipeline, facts: Profile) -> str:
    """The reason why a recipe cannot be carried out at every rate of its search; an empty string if it can."""
    for candidate in arm.candidates:
        recipe = candidate.recipe
        if reason := feasibility.why_not_trainable(recipe, facts):
            return reason
        if recipe.init in LOCALLY_PRETRAINED_STARTS and pipeline.source is None:
            return f"{recipe.init}: the suite has no [source]"
        if recipe.regularizer and "source" in recipe.regularizer.requires and not facts.source:
            return f"{recipe.regularizer}: the suite has no [source] whose classes are known"
    supported = support.supported_arms({"it": arm}, pipeline, facts.supports).get("it")
    if supported is not None and len(support.candidates(supported)) == len(arm.candidates):
        return ""
    return (
        support.why_unsupported(arm, (), pipeline, facts.supports)
        or "the training code does not support every rate of its search"
    )


def recipe_plugin(name: str, arm: Selection, facts: Profile, views: set[str]) -> Plugin:
    """A plugin that measures a recipe on target, shifted set and source, its cost, and the views that claims name."""
    pretrained = arm.candidates[0].recipe.init not in {"random", "target", *LOCALLY_PRETRAINED_STARTS}
    available = {"": True, "shifted": bool(facts.shifted), "source": bool(facts.source) and pretrained}
    wanted = dict.fromkeys(["test", "shifted", "source", "source-before", *sorted(views)])
    measured = [view for view in wanted if available[VIEWS[view].domain]]
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
        contrasts=tuple(Contrast(name=view, kind="info", weights={(ARM, view): 1.0}) for view in (*measured, "cost")),
        measures={"cost": COST_MEASURE},
    )
