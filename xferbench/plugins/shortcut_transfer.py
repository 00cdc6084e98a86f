"""A shortcut cue from the source's images that the network still relies on after transfer to the target.

Symptom
    Accuracy on the target falls if a meaningless object is in the picture: a logo, a ruler, a frame, a color of the scanner
    that in the source indicated a class.

Cause
    In the source that object identified a class more easily than the appearance of the class. Fine-tuning on target images
    without it gives no reason to forget it: the head is new, but the features that respond to the cue stay.

Remedy
    Pretrain on images without the cue. If it cannot be removed, put it on equally many images of every class. In the synthetic
    scenario this was part of a cure; fine-tuning all layers on clean images was none.

How it is judged
    A difference of differences, in the metric: what a cue on all test images costs the subject, minus what it costs the same
    recipe from a network that was pretrained here on [source] as it is, in three times the steps of [scratch] (any network
    loses a little to a square that hides a corner; a subject with more to lose may lose more). The cue is a magenta square, an
    eighth of the shorter side wide. The verdict is about that cue alone: a PASS says that these weights do not rely on it,
    and its control, that this recipe would not have removed it. Without [source] images the finding is SKIPPED.

How it is induced
    ``tied``: the same recipe from a network pretrained here on [source] with the cue on every image of its first class; all
    else is unchanged. A pipeline may start this way itself (recipe init ``cued-source``).

Also measured
    ``cue-cost`` and ``clean-cue-cost``: what the cue costs the subject, and the network from the clean source. The plot shows
    it for every arm.

References
    Salman et al. 2022, When does bias transfer in transfer learning? (arXiv:2207.02842): biases of the source survive
    fine-tuning on clean targets; Geirhos et al. 2020, Shortcut learning in deep neural networks (arXiv:2004.07780).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xferbench.plugin import Contrast, Pipeline, Plugin, Preprocessing, Profile, Run, info, interventions, plotting, records

PRETRAINED_INITS = (interventions.PRETRAINED, interventions.CleanSource(), interventions.CuedSource())
WEIGHTS = {("subject", "test"): 1.0, ("subject", "cued"): -1.0, ("cured", "test"): -1.0, ("cured", "cued"): 1.0}
HARM_MEANING = "what a cue costs the subject − what it costs a network from a clean source"


def applies(pipeline: Pipeline, _: Profile) -> str:
    if pipeline.recipe.init not in PRETRAINED_INITS:
        return "nothing pretrained is adapted"
    if not isinstance(pipeline.data.train_preprocessing, Preprocessing):
        return "only images can have the cue"
    if pipeline.recipe.regularizer:
        return "a regularizer needs the source of the checkpoint, and a network pretrained here has none"
    return "" if pipeline.data.source else "the suite has no [source] to pretrain on"


def _with_init(pipeline: Pipeline, init: interventions.Initialization) -> Pipeline:
    return replace(pipeline, recipe=replace(pipeline.recipe, init=init))


def plot(axes: Any, run: Run) -> None:
    """Draw accuracy without the cue (left) and with it on every test image (right), by arm.

    The plot has the mean, and a thin line for each seed.
    """
    by_arm = records.accuracies(records.plugin_records(run, plugin.id), "test", "cued")
    plotting.draw_lines(axes, {arm: [list(enumerate(row)) for row in rows] for arm, rows in by_arm.items()}, marker="o")
    axes.set_xticks((0, 1), ("without the cue", "with it"))
    axes.set(ylabel="accuracy", xlim=(-0.3, 1.3))
    axes.legend()


plugin = Plugin(
    id="shortcut-transfer",
    version=1,
    question="Does a shortcut cue from the source survive on the target?",
    doc=__doc__,
    applies=applies,
    cure=lambda pipeline, _: _with_init(pipeline, interventions.CleanSource()),
    induce=lambda pipeline, _: {"tied": _with_init(pipeline, interventions.CuedSource())},
    contrasts=(
        Contrast(name="harm", weights=WEIGHTS, meaning=HARM_MEANING),
        info("cue-cost", ("subject", "test"), ("subject", "cued"), "subject without the cue − with it"),
        info("clean-cue-cost", ("cured", "test"), ("cured", "cued"), "cured without the cue − with it"),
    ),
    remedy="pretrain on images without the cue, or with it on equally many images of every class",
    plot=plot,
)
