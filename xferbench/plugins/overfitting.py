"""A model that is trained past its best step: it learns its few images by heart.

Symptom
    The training loss goes on falling while validation accuracy stands still or falls; the last checkpoint is worse than an
    earlier one.

Cause
    More steps, more trainable layers or a higher rate than the training images can hold in check.

Remedy
    Keep the step that was best on validation; where that is not enough, train fewer layers or decay the weights.

How it is judged
    Harm is metric(best step on validation) − metric(last step) of the same training, on test images. The best of k steps looks
    better on validation than it is, by up to σ√(2 ln k), σ being the standard error there (k is 5); test images do not.

How it is cured
    The best on validation of the recipe as it is and of these, each stopped by the same rule, at its best step: the recipe
    itself, the recipe with weight decay 0.1, half of the trained layer groups, and the head alone at a rate of 0.01.

How it is induced
    ``overtrained``, in twice the steps: the head alone, then from a fifth on all layers at a constant rate of 0.01 (or three
    times the recipe's) and without weight decay, up to the last step. Labels are not touched.

Measured beside it
    ``gap``: accuracy on training images − that on test images. ``regulariser``: the gap of training from scratch − that of the
    subject. ``chosen step``: the mean best step. ``optimism``: its accuracy on validation − that on test images.

References
    Prechelt 1998, Early stopping, but when? (Neural networks: tricks of the trade); Cawley & Talbot 2010, On over-fitting in
    model selection (JMLR 11).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from xferbench.plugin import (
    Contrast,
    Pipeline,
    Plugin,
    Profile,
    Recipe,
    Record,
    Run,
    Selection,
    harm,
    info,
    interventions,
    plotting,
    records,
    replace_phases,
    requires_several_steps,
    strategies,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

DECAY = 0.1
GAPS = {("scratch", "training"): 1.0, ("scratch", "test"): -1.0, ("subject", "training"): -1.0, ("subject", "test"): 1.0}


def applies(pipeline: Pipeline, facts: Profile) -> str:
    return requires_several_steps(pipeline, facts, "to choose")


def _candidates(recipe: Recipe, groups: int) -> Iterator[Recipe]:
    yield replace(recipe, name="the best step")
    decayed = tuple(replace(phase, weight_decay=max(DECAY, phase.weight_decay)) for phase in recipe.phases)
    yield replace(recipe, name=f"weight decay {DECAY:g}", phases=decayed)
    words = {phase.trainable for phase in recipe.phases}
    trained = max(strategies.unfrozen_groups(word, groups) for word in words)
    whole = any(
        isinstance(word, interventions.AllLayers | interventions.TopGroups) for word in words
    )  # others train few numbers already
    if whole and trained > 1:
        half = strategies.partial(strategies.finetune_phase(recipe), trained // 2)
        yield replace(replace_phases(recipe, *half.phases), name=half.name)
    if trained:
        probe = strategies.linear_probe(replace(strategies.finetune_phase(recipe), lr=strategies.HEAD_LR))
        yield replace(replace_phases(recipe, *probe.phases), name=probe.name)


def cure(pipeline: Pipeline, facts: Profile) -> Selection:
    tried = (replace(pipeline, recipe=replace(one, stop="best")) for one in _candidates(pipeline.recipe, len(facts.groups)))
    return Selection(candidates=tuple(dict.fromkeys(tried)))


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    return {"overtrained": replace(pipeline, recipe=strategies.overtrained(pipeline.recipe))}


def best(one: Record) -> tuple[int, float] | None:
    """The best step of a training, and its accuracy on validation − that on test images."""
    if not one.curve or one.predictions is None:
        return None
    step, score = max(records.validation_curve(one), key=lambda row: row[1])
    return step, score - records.accuracy(one)


def chosen(answers: records.RecordsByTerm, seeds: records.Seeds) -> dict[str, float]:
    """The subject's best step, and how much better it looks on validation than on test images: means over seeds."""
    found = records.values_by_arm(answers, best, "best-step", seeds=seeds).get("subject")
    steps, optimism = np.mean(found, axis=0) if found else (np.nan, np.nan)
    return {"chosen step": float(steps), "optimism": float(optimism)}


def picture(axes: Any, run: Run) -> None:
    """Validation accuracy by step for subject and induced, a ring at the mean's best; dashed the training loss."""
    told = records.values_by_arm(
        records.plugin_records(run, plugin.id), lambda one: one.curve or None, but={"cured", "scratch"}
    )
    plotting.draw_lines(axes, {arm: [[(step, score) for step, _, score in one] for one in own] for arm, own in told.items()})
    beside, colours = axes.twinx(), plotting.arm_colours(told)
    for arm, own in told.items():
        steps, losses, scores = np.mean(own, axis=0).T
        plotting.draw_mark(axes, steps[scores.argmax()], scores.max(), color=colours[arm])
        beside.plot(steps, losses, color=colours[arm], linestyle="--", linewidth=1)
    axes.set(xlabel="training step", ylabel="validation accuracy", ylim=(0, 1.02))
    beside.set(ylabel="training loss (dashed)", ylim=(0, None))
    axes.legend()


plugin = Plugin(
    id="overfitting",
    version=1,
    question="Is it trained past its best step?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(
        harm("harm", ("subject", "best-step"), ("subject", "test"), "best step on validation − last step, of one training"),
        info("gap", ("subject", "training"), ("subject", "test"), "on training images − on test images"),
        Contrast(
            name="regulariser",
            kind="info",
            weights=GAPS,
            meaning="the gap of training from scratch − that of the subject",
        ),
    ),
    derived_metrics=chosen,
    remedy="keep the step that is best on validation, or train as the recipe that validation chose",
    plot=picture,
)
