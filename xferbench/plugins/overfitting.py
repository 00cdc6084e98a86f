"""A model that is trained past its best step: it memorizes its few images.

Symptom
    The training loss keeps falling while validation accuracy stagnates or falls; the last checkpoint is worse than an earlier
    one.

Cause
    More steps, more trainable layers or a higher rate than the training images can constrain.

Remedy
    Keep the step that was best on validation. If that is not enough, train fewer layers or use weight decay.

How it is judged
    Harm is metric(best step on validation) − metric(last step) of the same training, on test images. The best of k steps looks
    better on validation than it is, by up to σ√(2 ln k), σ being the standard error there (k is 5); test images have no such
    bias.

How it is cured
    The best on validation of the recipe as it is and of these, each stopped at its best step: the recipe itself, the recipe
    with weight decay 0.1, half of the trained layer groups, and the head alone at a rate of 0.01.

How it is induced
    ``overtrained``, in twice the steps: the head alone, then from a fifth on all layers at a constant rate of 0.01 (or three
    times the recipe's) and without weight decay, up to the last step. Labels are unchanged.

Also measured
    ``gap``: accuracy on training images − accuracy on test images. ``regulariser``: the gap of training from scratch − that of
    the subject. ``chosen step``: the mean best step. ``optimism``: its accuracy on validation − accuracy on test images.

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

WEIGHT_DECAY = 0.1
GAP_WEIGHTS = {("scratch", "training"): 1.0, ("scratch", "test"): -1.0, ("subject", "training"): -1.0, ("subject", "test"): 1.0}


def applies(pipeline: Pipeline, profile: Profile) -> str:
    return requires_several_steps(pipeline, profile, "to choose")


def _candidates(recipe: Recipe, groups: int) -> Iterator[Recipe]:
    yield replace(recipe, name="the best step")
    decayed = tuple(replace(phase, weight_decay=max(WEIGHT_DECAY, phase.weight_decay)) for phase in recipe.phases)
    yield replace(recipe, name=f"weight decay {WEIGHT_DECAY:g}", phases=decayed)
    trainables = {phase.trainable for phase in recipe.phases}
    group_count = max(strategies.unfrozen_groups(trainable, groups) for trainable in trainables)
    # Other values of trainable train few parameters already.
    trains_layers = any(isinstance(trainable, interventions.AllLayers | interventions.TopGroups) for trainable in trainables)
    if trains_layers and group_count > 1:
        half = strategies.partial(strategies.finetune_phase(recipe), group_count // 2)
        yield replace(replace_phases(recipe, *half.phases), name=half.name)
    if group_count:
        probe = strategies.linear_probe(replace(strategies.finetune_phase(recipe), lr=strategies.HEAD_LR))
        yield replace(replace_phases(recipe, *probe.phases), name=probe.name)


def cure(pipeline: Pipeline, profile: Profile) -> Selection:
    recipes = _candidates(pipeline.recipe, len(profile.model.groups))
    arms = (replace(pipeline, recipe=replace(recipe, stop="best")) for recipe in recipes)
    return Selection(candidates=tuple(dict.fromkeys(arms)))


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    return {"overtrained": replace(pipeline, recipe=strategies.overtrained(pipeline.recipe))}


def best_step(record: Record) -> tuple[int, float] | None:
    """Return the best step of a training, and its accuracy on validation − accuracy on test images."""
    if not record.curve or record.predictions is None:
        return None
    step, score = max(records.validation_curve(record), key=lambda row: row[1])
    return step, score - records.accuracy(record)


def mean_best_step(records_by_term: records.RecordsByTerm, seeds: records.Seeds) -> dict[str, float]:
    """Return the subject's best step and its optimism, as means over seeds."""
    rows = records.values_by_arm(records_by_term, best_step, "best-step", seeds=seeds).get("subject")
    steps, optimism = np.mean(rows, axis=0) if rows else (np.nan, np.nan)
    return {"chosen step": float(steps), "optimism": float(optimism)}


def plot(axes: Any, run: Run) -> None:
    """Draw validation accuracy by step for subject and induced arms, with a ring at the best mean; the loss is dashed."""
    by_arm = records.values_by_arm(
        records.plugin_records(run, plugin.id), lambda record: record.curve or None, exclude={"cured", "scratch"}
    )
    scores_by_arm = {arm: [[(step, score) for step, _, score in curve] for curve in curves] for arm, curves in by_arm.items()}
    plotting.draw_lines(axes, scores_by_arm)
    loss_axes, colors = axes.twinx(), plotting.arm_colors(by_arm)
    for arm, curves in by_arm.items():
        steps, losses, scores = np.mean(curves, axis=0).T
        plotting.draw_mark(axes, steps[scores.argmax()], scores.max(), color=colors[arm])
        loss_axes.plot(steps, losses, color=colors[arm], linestyle="--", linewidth=1)
    axes.set(xlabel="training step", ylabel="validation accuracy", ylim=(0, 1.02))
    loss_axes.set(ylabel="training loss (dashed)", ylim=(0, None))
    axes.legend()


plugin = Plugin(
    id="overfitting",
    version=1,
    question="Is the model trained past its best step?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(
        harm("harm", ("subject", "best-step"), ("subject", "test"), "best step on validation − last step, of one training"),
        info("gap", ("subject", "training"), ("subject", "test"), "accuracy on training images − on test images"),
        Contrast(
            name="regulariser",
            kind="info",
            weights=GAP_WEIGHTS,
            meaning="the gap of training from scratch − that of the subject",
        ),
    ),
    derived_metrics=mean_best_step,
    remedy="keep the step that is best on validation, or train with the recipe that validation selected",
    plot=plot,
)
