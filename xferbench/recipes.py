"""The recipes of a matrix as things that are only measured: each an arm of its own, or the reason why it is none here. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from xferbench import fitting, honours
from xferbench.core.requirements import always_applies, leave_unchanged
from xferbench.crossed import DEFAULT, SCRATCH
from xferbench.design import MADE_HERE, Choice, Contrast, Plugin
from xferbench.plan import VIEWS
from xferbench.strategies import healthy, scratch

if TYPE_CHECKING:
    from xferbench.design import Compared, Facts, Matrix, Pipeline
    from xferbench.plan import Study

COST = "xferbench.lab.cost:measured@2"
IT = "beside:it"
PREFIX = "recipe:"  # what the plugins are called that stand for recipes


def study(matrix: Matrix, asked: Study) -> tuple[Study, dict[str, str]]:
    """What a task's recipes ask, as a study of its own, and why others ask nothing."""
    own = asked.subject.candidates[0] if isinstance(asked.subject, Choice) else asked.subject
    arms = {one.name: arm(one, own) for one in matrix.compared}
    skipped = {name: why for name, one in arms.items() if (why := lacking(one, own, asked.facts))}
    views = {effect.view for effect in matrix.effects if effect.recipe and effect.task == asked.suite.name}
    plugins = tuple(plugin(name, one, asked.facts, views) for name, one in arms.items() if name not in skipped)
    return replace(asked, plugins=plugins, subject=own), skipped


def arm(one: Compared, pipeline: Pipeline) -> Choice:
    """A recipe's arm: the best on validation of its rates, served as the pipeline is."""
    if one.recipes:
        return Choice(candidates=tuple(dict.fromkeys(replace(pipeline, recipe=recipe) for recipe in one.recipes)))
    plain = replace(pipeline, recipe=replace(pipeline.recipe, head="random", augment="", stop="last"))
    if one.name == DEFAULT:
        return healthy(plain)
    assert one.name == SCRATCH, "every other recipe has candidates of its own"
    found = scratch(plain, plain.baseline)
    return replace(found, candidates=found.candidates[1:])  # the grid; S1 belongs to a subject


def lacking(one: Choice, pipeline: Pipeline, facts: Facts) -> str:
    """Why a recipe cannot be carried out here at every rate that it is tuned over, or ""."""
    for candidate in one.candidates:
        recipe = candidate.recipe
        if why := fitting.unfit(recipe, facts):
            return why
        if recipe.init in MADE_HERE and pipeline.source is None:
            return f"{recipe.init}: the suite has no [source]"
        if recipe.regularizer.startswith(("ewc", "replay")) and not facts.source:
            return f"{recipe.regularizer}: the suite has no [source] whose classes are known"
    heard = honours.arms({"it": one}, pipeline, facts.honours).get("it")
    if heard is not None and len(honours.candidates(heard)) == len(one.candidates):
        return ""
    return (
        honours.unheard(one, (), pipeline, facts.honours)
        or "the training code does not honour every rate that it is tuned over"
    )


def plugin(name: str, one: Choice, facts: Facts, views: set[str]) -> Plugin:
    """A recipe as what is only measured: on target, shifted set and source, and what it costs; and as claims want it seen."""
    pretrained = one.candidates[0].recipe.init not in {"random", "target", *MADE_HERE}
    known = {"": True, "shifted": bool(facts.shifted), "source": bool(facts.source) and pretrained}
    wanted = dict.fromkeys(["test", "shifted", "source", "source-before", *sorted(views)])
    seen = [view for view in wanted if known[VIEWS[view].domain]]
    return Plugin(
        id=f"{PREFIX}{name}",
        version=1,
        question="What does this recipe reach, and what does it cost?",
        page=__doc__,
        applies=always_applies,
        cure=leave_unchanged,
        induce=lambda *_: {},
        remedy="",
        beside=lambda *_: {"it": one},
        contrasts=tuple(Contrast(name=view, kind="info", weights={(IT, view): 1.0}) for view in (*seen, "cost")),
        measures={"cost": COST},
    )
