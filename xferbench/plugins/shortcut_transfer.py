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
    loses a little to a square that hides a corner). The cue is a magenta square, an eighth of the shorter side wide. The
    verdict is about that cue alone. Without [source] images the finding is SKIPPED.

    Two networks from clean sources differ in this cost too: by 15 points on one of our targets. A harm is therefore judged only
    if subject and cured arm differ in the cue alone, that is, if the recipe itself starts from a network that is pretrained
    here (recipe init ``cued-source`` or ``clean-source``). For other weights, ``difference`` is an INFO finding.

How it is induced
    ``tied``: the same recipe from a network pretrained here on [source] with the cue on every image of its first class; all
    else is unchanged.

Also measured
    ``cue-cost``: what the cue costs the subject. For weights that are not pretrained here: ``clean-cue-cost``, the same for the
    network from the clean source; ``difference``, the former minus the latter; and ``tied``, what the cue costs the network
    from the cued source beyond that: whether this recipe would remove such a cue. The plot shows the cost for every arm.

References
    Salman et al. 2022, When does bias transfer in transfer learning? (arXiv:2207.02842): biases of the source survive
    fine-tuning on clean targets; Geirhos et al. 2020, Shortcut learning in deep neural networks (arXiv:2004.07780).
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from xferbench.plugin import Contrast, Pipeline, Plugin, Preprocessing, Profile, Run, info, interventions, plotting, records

if TYPE_CHECKING:
    from xferbench.core.suite import Suite

PRETRAINED_HERE = (interventions.CleanSource(), interventions.CuedSource())
PRETRAINED_INITS = (interventions.PRETRAINED, *PRETRAINED_HERE)


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


def judges(suite: Suite) -> bool:
    return suite.recipe is not None and suite.recipe.init in PRETRAINED_HERE


def cure(pipeline: Pipeline, _: Profile) -> Pipeline:
    return _with_init(pipeline, interventions.CleanSource())


def induce(pipeline: Pipeline, _: Profile) -> dict[str, Pipeline]:
    return {"tied": _with_init(pipeline, interventions.CuedSource())}


def extra_arms(pipeline: Pipeline, profile: Profile) -> dict[str, Pipeline]:
    if pipeline.recipe.init in PRETRAINED_HERE:
        return {}
    return {"clean": cure(pipeline, profile)} | induce(pipeline, profile)


def _extra_cost(arm: str, than: str) -> dict[tuple[str, str], float]:
    """Return the weights of what a cue costs an arm beyond its cost for another one."""
    return {(arm, "test"): 1.0, (arm, "cued"): -1.0, (than, "test"): -1.0, (than, "cued"): 1.0}


CLEAN, TIED = "beside:clean", "beside:tied"
BEYOND_CLEAN = "what a cue costs the subject − what it costs a network from a clean source"
BEYOND_TIED = "what a cue costs a network from a source with it − one from a clean source"


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
    version=2,
    question="Does a shortcut cue from the source survive on the target?",
    doc=__doc__,
    applies=applies,
    cure=cure,
    induce=induce,
    extra_arms=extra_arms,
    judges=judges,
    contrasts=(
        Contrast(name="harm", weights=_extra_cost("subject", "cured"), meaning=BEYOND_CLEAN),
        info("cue-cost", ("subject", "test"), ("subject", "cued"), "subject without the cue − with it"),
        info("clean-cue-cost", (CLEAN, "test"), (CLEAN, "cued"), "network from a clean source without the cue − with it"),
        Contrast(name="difference", kind="info", weights=_extra_cost("subject", CLEAN), meaning=BEYOND_CLEAN),
        Contrast(name="tied", kind="info", weights=_extra_cost(TIED, CLEAN), meaning=BEYOND_TIED),
    ),
    remedy="pretrain on images without the cue, or with it on equally many images of every class",
    plot=plot,
)
