"""A cue of the source's images that the network goes by, and goes by still on the target.

Symptom
    Accuracy on the target falls where a thing that means nothing is in the picture: a logo, a ruler, a frame, a colour of the
    scanner that in the source stood for a class.

Cause
    In the source that thing told a class apart more easily than what the class looks like. Fine-tuning on target images
    without it gives no reason to forget it: the head is new, the features that answer to the cue stay.

Remedy
    Pretrain on images without the cue. Where it cannot be taken out, put it on as many images of every class: in the synthetic
    world that was a part of a cure; fine-tuning all layers on clean images was none.

How it is judged
    A difference of differences, in the metric: what a cue on all test images costs the subject, less what it costs the same
    recipe from a network that was pretrained here on [source] as it is, in three times the steps of [scratch] (any network
    loses a little to a square that hides a corner; a subject with more to lose may lose more). The cue is a magenta square, an
    eighth of the shorter side wide. So the verdict is about that cue alone: a PASS says that these weights do not go by it,
    and its control, that this recipe would not have got rid of it. Without [source] images it is SKIPPED.

How it is induced
    ``tied``: the same recipe from a network pretrained here on [source] with the cue on every image of its first class, no
    other thing changed. A pipeline may begin so itself (recipe init ``cued-source``).

Measured beside it
    ``cue-cost`` and ``clean-cue-cost``: what the cue costs the subject, and the network from the clean source. The picture has
    it for every arm.

References
    Salman et al. 2022, When does bias transfer in transfer learning? (arXiv:2207.02842): biases of the source survive
    fine-tuning on clean targets; Geirhos et al. 2020, Shortcut learning in deep neural networks (arXiv:2004.07780).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from xferbench.plugin import Contrast, Pipeline, Plugin, Preprocessing, Profile, Run, info, plotting, records

OWN = ("pretrained", "clean-source", "cued-source")
WEIGHTS = {("subject", "test"): 1.0, ("subject", "cued"): -1.0, ("cured", "test"): -1.0, ("cured", "cued"): 1.0}
HARM = "what a cue costs the subject − what it costs a network from a clean source"


def applies(pipeline: Pipeline, _: Profile) -> str:
    if pipeline.recipe.init not in OWN:
        return "nothing pretrained is adapted"
    if not isinstance(pipeline.train_preprocessing, Preprocessing):
        return "a cue is put on images alone"
    if pipeline.recipe.regularizer:
        return "a regularizer holds on to the checkpoint's own source, and a network pretrained here has none"
    return "" if pipeline.source else "the suite has no [source] to pretrain on"


def _from(pipeline: Pipeline, init: str) -> Pipeline:
    return replace(pipeline, recipe=replace(pipeline.recipe, init=init))


def picture(axes: Any, run: Run) -> None:
    """Accuracy without the cue (left) and with it on every test image (right), by arm: the mean, and a thin line a seed."""
    told = records.accuracies(records.plugin_records(run, plugin.id), "test", "cued")
    plotting.draw_lines(axes, {arm: [list(enumerate(row)) for row in rows] for arm, rows in told.items()}, marker="o")
    axes.set_xticks((0, 1), ("without the cue", "with it"))
    axes.set(ylabel="accuracy", xlim=(-0.3, 1.3))
    axes.legend()


plugin = Plugin(
    id="shortcut-transfer",
    version=1,
    question="Does a cue that the source taught survive on the target?",
    doc=__doc__,
    applies=applies,
    cure=lambda pipeline, _: _from(pipeline, "clean-source"),
    induce=lambda pipeline, _: {"tied": _from(pipeline, "cued-source")},
    contrasts=(
        Contrast(name="harm", weights=WEIGHTS, meaning=HARM),
        info("cue-cost", ("subject", "test"), ("subject", "cued"), "subject without the cue − with it"),
        info("clean-cue-cost", ("cured", "test"), ("cured", "cued"), "cured without the cue − with it"),
    ),
    remedy="pretrain on images without the cue, or with it on as many images of every class",
    plot=picture,
)
