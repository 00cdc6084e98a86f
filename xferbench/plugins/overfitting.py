"""A model that is trained past its best step: it memorizes its few examples.

Symptom
    The training loss keeps falling while validation accuracy stagnates or falls; a shorter training ends higher.

Cause
    More steps than the training examples can constrain, at this rate and with these layers.

Remedy
    Train for the number of steps that is best on validation, with a schedule that ends there. If that is not enough, train
    fewer layers (plugin layer-transfer) or at a lower rate (plugin learning-rate).

How it is judged
    Harm is metric(cured) − metric(subject), on test examples. A checkpoint in the middle of a decaying schedule says little:
    the rate is still high there, and the last step looks best even if the training is far too long. Each number of steps is
    therefore a training of its own, whose schedule ends there.

How it is cured
    The best on validation of the recipe, and of the same recipe in a half, a quarter and an eighth of the steps of each phase.

How it is induced
    ``overtrained``, in twice the steps of the cured recipe: the head alone, then from a fifth on all layers at a constant rate
    of 0.01 (or three times the recipe's) and without weight decay. Labels are unchanged. The high rate is part of the failure:
    few steps memorize little at a low one.

Also measured
    ``gap``: accuracy on training examples − accuracy on test examples. It is no harm by itself: a network that fits its
    training examples perfectly may be the best one. ``regulariser``: the gap of training from scratch − that of the subject.

References
    Prechelt 1998, Early stopping, but when? (Neural networks: tricks of the trade); Cawley & Talbot 2010, On over-fitting in
    model selection (JMLR 11).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from xferbench.plugin import (
    HARM,
    Contrast,
    Phase,
    Pipeline,
    Plugin,
    Profile,
    Run,
    Selection,
    info,
    map_phases,
    plotting,
    records,
    requires_several_steps,
    strategies,
)

SHARES = (0.5, 0.25, 0.125)
GAP_WEIGHTS = {("scratch", "training"): 1.0, ("scratch", "test"): -1.0, ("subject", "training"): -1.0, ("subject", "test"): 1.0}


def applies(pipeline: Pipeline, profile: Profile) -> str:
    return requires_several_steps(pipeline, profile, "to choose")


def _shorten(pipeline: Pipeline, share: float) -> Pipeline:
    def shorten_phase(phase: Phase) -> Phase:
        steps = max(1, round(share * phase.steps))
        return replace(phase, steps=steps, warmup=min(round(share * phase.warmup), steps - 1))

    return map_phases(pipeline, shorten_phase, name=f"{share:g} of the steps")


def cure(pipeline: Pipeline, _: Profile) -> Selection:
    return Selection(candidates=tuple(dict.fromkeys((pipeline, *(_shorten(pipeline, share) for share in SHARES)))))


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    return {"overtrained": replace(pipeline, recipe=strategies.overtrained(pipeline.recipe))}


def plot(axes: Any, run: Run) -> None:
    """Draw validation accuracy by step for each arm except scratch, with a ring at the last mean; the loss is dashed."""
    plugin_records = records.plugin_records(run, plugin.id)
    by_arm = records.values_by_arm(plugin_records, lambda record: record.curve or None, exclude={"scratch"})
    scores_by_arm = {arm: [[(step, score) for step, _, score in curve] for curve in curves] for arm, curves in by_arm.items()}
    plotting.draw_lines(axes, scores_by_arm)
    loss_axes, colors = axes.twinx(), plotting.arm_colors(by_arm)
    for arm, curves in by_arm.items():
        steps, losses, scores = np.mean(curves, axis=0).T
        plotting.draw_mark(axes, steps[-1], scores[-1], color=colors[arm])
        loss_axes.plot(steps, losses, color=colors[arm], linestyle="--", linewidth=1)
    axes.set(xlabel="training step", ylabel="validation accuracy", ylim=(0, 1.02))
    loss_axes.set(ylabel="training loss (dashed)", ylim=(0, None))
    axes.legend()


plugin = Plugin(
    id="overfitting",
    version=2,
    question="Is the model trained past its best step?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    contrasts=(
        HARM,
        info("gap", ("subject", "training"), ("subject", "test"), "accuracy on training images − on test images"),
        Contrast(name="regulariser", kind="info", weights=GAP_WEIGHTS, meaning="gap of training from scratch − of the subject"),
    ),
    remedy="train for the number of steps that is best on validation, with a schedule that ends there",
    plot=plot,
)
